"""The image, where no container engine runs: its build steps in a folder, its entry point as it will run.

What the Dockerfile's steps make is made here: a wheel with compiled knowledge, an environment with what the project asks
for in the locked versions, bytecode. Then the entry point runs in mount and process namespaces of its own whose root is
read-only, as user 65532 without any capability: a diagnosis from standard input, and the server until /readyz.
That an engine builds the Dockerfile is not shown by this, and is printed as unverified.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USER = "65532"
#: In the namespace: everything read-only, then the places that the image lets its user write.
_INSIDE = """
set -e
mount --make-rprivate /
[ -z "${BASE-}" ] || mount --bind "$BASE" "$REACHABLE"
mount --bind / / && mount -o remount,bind,ro /
for place in $(awk '$5 != "/" && $5 !~ "^/(proc|sys|dev)" {print $5}' /proc/self/mountinfo); do
  mount -o remount,bind,ro "$place" 2>/dev/null || true
done
mount -t tmpfs -o mode=0700,uid=65532,gid=65532 tmpfs "$STATE"
exec setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
"""


def run(*command: str, **more: object) -> None:
    subprocess.run(command, cwd=ROOT, check=True, timeout=600, **more)  # type: ignore[call-overload]


def build(folder: Path) -> Path:
    """What the image's /opt/vllm-diagnose is; returns its program."""
    bin_, needs, wheels = Path(sys.executable).parent, folder / "run.txt", folder / "wheel"
    place = folder / "vllm-diagnose"
    run(str(bin_ / "python"), "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels), stdout=subprocess.DEVNULL)
    run(sys.executable, "-m", "venv", "--without-pip", str(place))
    lock = ["--constraints", "constraints.txt", "--generate-hashes", "--no-header", "--quiet", "-o", str(needs)]
    run(str(bin_ / "uv"), "pip", "compile", "pyproject.toml", "--extra", "postgres", "--extra", "telemetry", *lock)
    pip = [str(bin_ / "python"), "-m", "pip", "--disable-pip-version-check", "--python", str(place / "bin" / "python")]
    run(*pip, "install", "--quiet", "--no-compile", "--require-hashes", "-r", str(needs))
    (wheel,) = wheels.glob("*.whl")
    run(*pip, "install", "--quiet", "--no-compile", "--no-deps", str(wheel))
    compiled = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(place / "lib")]
    run(str(place / "bin" / "python"), *compiled)
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file() and not file.is_symlink())
    tools = [name for name in ("mypy", "ruff", "pytest", "uv", "pip") if (place / "bin" / name).exists()]
    if tools:
        raise SystemExit(f"the image would hold {', '.join(tools)}")
    print(f"passed: the steps; {size / 2**20:.0f} MiB beside the base image, nothing that only builds or checks")
    return place / "bin" / "vllm-diagnose"


def make_reachable(folder: Path, place: Path) -> dict[str, str]:
    """An interpreter that only its owner can reach (below /root, say) is shown in the namespace at another place.

    Returns the environment that says so.
    """
    base = Path(sys.base_prefix)
    if all(parent.stat().st_mode & 0o001 for parent in (base, *base.parents)):
        return {}
    shown, program = folder / "python", Path(sys.executable).resolve().name
    shown.mkdir()
    settings = place / "pyvenv.cfg"
    settings.write_text(re.sub(r"(?m)^home = .*$", f"home = {shown / 'bin'}", settings.read_text("utf-8")), "utf-8")
    for link in (place / "bin").glob("python*"):
        if link.is_symlink() and link.readlink().is_absolute():
            link.unlink()
            link.symlink_to(shown / "bin" / program)
    return {"BASE": str(base), "REACHABLE": str(shown), "LD_LIBRARY_PATH": str(shown / "lib")}


def inside(folder: Path, *command: str) -> list[str]:
    """``command`` as the image runs it."""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", _INSIDE, "inside", *command]


def environment(folder: Path) -> dict[str, str]:
    """Nothing of the builder's but a search path."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    return {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "STATE": str(state),
        "HOME": str(state),
        "XDG_STATE_HOME": str(state),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def enter(folder: Path, program: Path) -> None:
    """The entry point: read-only root, no capability, no root."""
    env = environment(folder) | make_reachable(folder, program.parent.parent)
    probe = "import os; s = open('/proc/self/status').read(); print(os.getuid(), 'CapEff:\\t0000000000000000' in s)\n"
    probe += f"try: open({str(program.parent / 'x')!r}, 'w')\nexcept OSError as e: print(e.errno)"
    said = subprocess.run(
        inside(folder, str(program.parent / "python"), "-c", probe), env=env, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    if said.stdout.split() != [USER, "True", "30"]:  # 30 is EROFS
        raise SystemExit(f"not as it should be: {said.stdout} {said.stderr[-500:]}")
    log = ROOT / "tests" / "data" / "lab" / "tp2-truncated" / "server.log"
    answer = subprocess.run(
        inside(folder, str(program), "logs", "-"), env=env, input=log.read_bytes(), capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    if answer.returncode not in (0, 1) or not answer.stdout:
        raise SystemExit(f"logs: {answer.returncode} {answer.stderr[-1000:].decode()}")
    print("passed: a diagnosis from standard input as user 65532 on a read-only root without capabilities")
    serve(folder, program, env)


def serve(folder: Path, program: Path, env: dict[str, str]) -> None:
    """The server, asked as its health check asks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = inside(folder, str(program), "serve", "--port", str(port))
    with subprocess.Popen(command, env=env) as process:
        try:
            until = time.monotonic() + 90
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
                    break
                except (urllib.error.URLError, OSError) as error:
                    if time.monotonic() > until or process.poll() is not None:
                        raise SystemExit(f"the server is not ready: {error}; see above") from None
                    time.sleep(0.2)
        finally:
            # The first process of the namespace takes the others with it. It would not follow unshare by itself: whoever
            # changes its user forgets the signal that its parent's death was to send.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            process.kill()
    print("passed: the server is ready there")


def main() -> int:
    if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        run("docker", "build", "-t", "vllm-diagnose:verify", ".")
        print("passed: the image builds")
    else:
        print("skipped: no container engine runs; that an engine builds the Dockerfile is unverified")
    if os.geteuid() or not all(shutil.which(name) for name in ("unshare", "setpriv", "mount")):
        print("skipped: making namespaces takes root, unshare, setpriv and mount")
        return 0
    trial = ["unshare", "--mount", "--pid", "--fork", "bash", "-c", "mount --make-rprivate / && mount --bind / /"]
    if (said := subprocess.run(trial, capture_output=True, text=True, timeout=30, check=False)).returncode:
        print(f"skipped: namespaces cannot be made here: {said.stderr.strip()[:200]}")
        return 0
    if not re.search(rf"^USER {USER}:{USER}$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE):
        raise SystemExit(f"the Dockerfile does not run as {USER}")
    folder = Path(tempfile.mkdtemp(prefix="vllm-diagnose-image-"))
    try:
        folder.chmod(0o755)
        enter(folder, build(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
