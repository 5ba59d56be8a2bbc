"""Which interpreter and which environment a test runs with: those of the running server, where there is one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tools.pinned import is_here
from tools.processes import Server, environment, interpreter, listeners, same_namespace, server_of, servers
from tools.registry import ActionError, Context

#: Who agrees on the command line (``assistant.security.roles.LOCAL``).
LOCAL_USER = "local"
#: What a test takes over from the server's environment: what decides how ranks talk, which devices they see, which
#: libraries they load. Credentials have other names.
_TAKEN = ("NCCL_", "GLOO_", "CUDA_", "HIP_", "ROCR_", "UCX_", "TORCH_", "LD_LIBRARY_PATH", "NVIDIA_", "OMP_")
_TAKEN_VLLM = ("VLLM_HOST_IP", "VLLM_LOOPBACK_IP", "VLLM_NCCL_SO_PATH", "VLLM_PORT", "VLLM_CACHE_ROOT",
               "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_SIM_MULTI_NUMA", "VLLM_TARGET_DEVICE")  # fmt: skip
#: What decides where and by which programs torch.compile compiles.
_TAKEN_COMPILE = ("PATH", "CC", "CXX", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
#: What belongs to our own interpreter and must not reach another one.
_OURS = ("VIRTUAL_ENV", "PYTHON", "__PYVENV", "VLLM_DIAGNOSE_")


@dataclass(frozen=True, slots=True)
class Chosen:
    """``command`` runs the interpreter, entering the server's container where needed; ``server`` is whose it is."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    server: Server | None = None


def only_here(context: Context, **paths: str | None) -> None:
    """Refuse programs and paths that somebody elsewhere names: a token over HTTP may look, and run what is there, but not
    choose what is run or written. Raises :class:`ActionError`."""
    by = context.consent.by if context.consent is not None else ""
    for name, path in paths.items():
        if path is not None and by != LOCAL_USER:
            raise ActionError(f"{name} names a path of this machine and can only be given on its own command line.")


def choose(python: str | None, pid: int | None) -> Chosen:
    """The interpreter: the given one, else that of the server, else the `python3` or `vllm` on PATH.

    An interpreter that is given needs no server: where several run and none was said, it takes nothing over from any.
    Raises :class:`ActionError` as a sentence when none can be had.
    """
    server = find_server(pid) if python is None or pid is not None else _only_server()
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    taken = _taken(server)
    if python is not None:
        path = shutil.which(python) if "python" in Path(python).name else None
        if path is None:
            raise ActionError(
                f"{python} is not a Python interpreter that can be run; give --python the path of vLLM's."
            )
        return Chosen((str(Path(path).absolute()),), ours | taken, server)
    if server is not None:
        found = interpreter(server.main.pid)
        if found is None:
            raise ActionError(
                f"The interpreter of process {server.main.pid} cannot be seen; run this as the same user, or give --python."
            )
        if same_namespace(server.main.pid, "mnt") is not False:
            return Chosen((str(found),), ours | taken, server)
        return Chosen(_entered(server.main.pid, found), environment(server.main.pid) | taken, server)
    return Chosen((str(_on_path()),), ours, None)


def find_server(pid: int | None) -> Server | None:
    """The server of ``pid``, or the only one that runs; raises :class:`ActionError` where several do."""
    if pid is not None:
        server = server_of(pid)
        if server is None:
            raise ActionError(f"There is no process {pid}.")
        return server
    found = servers()
    if len(found) > 1:
        raise ActionError(f"Several vLLM servers run here (processes {_listed(found)}); say which with --pid.")
    return found[0] if found else None


def _only_server() -> Server | None:
    found = servers()
    return found[0] if len(found) == 1 else None


def server_at(url: str) -> Server | None:
    """The server of this machine that listens at an address; None where the address is elsewhere, or where nobody that
    may be seen listens. A listener that is no vLLM (a proxy, an older launcher) is taken as it is, with all below it."""
    pids = listeners().get(port_of(url), set())
    if not pids or not is_here(urlsplit(url).hostname or ""):
        return None
    return next((s for s in servers() if any(p.pid in pids for p in s.processes)), None) or server_of(min(pids))


def port_of(url: str) -> int:
    """The port of an address, where none is written that of its scheme."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _listed(found: Sequence[Server]) -> str:
    """The servers by process and port, as far as both may be seen."""
    ports = {pid: port for port, pids in listeners().items() for pid in pids}
    rows = [(s.main.pid, next((ports[p.pid] for p in s.processes if p.pid in ports), None)) for s in found[:8]]
    return ", ".join(f"{pid} (port {port})" if port else str(pid) for pid, port in rows)


def _taken(server: Server | None) -> dict[str, str]:
    if server is None:
        return {}
    return {
        name: value
        for name, value in server.environment.items()
        if name.startswith(_TAKEN) or name in (*_TAKEN_VLLM, *_TAKEN_COMPILE)
    }


def _entered(pid: int, python: Path) -> tuple[str, ...]:
    """The command that runs the server's interpreter inside its container: its files, network and shared memory."""
    nsenter = shutil.which("nsenter")
    if nsenter is None or os.geteuid() != 0:
        raise ActionError(
            f"Process {pid} lives in a container, and entering it needs root and nsenter. Print the test with "
            "--print-script and run it in there: kubectl exec -i POD -- python3 -I - < rank_worker.py"
        )
    kinds = {"mnt": "--mount", "net": "--net", "ipc": "--ipc"}
    enter = [option for kind, option in kinds.items() if same_namespace(pid, kind) is False]
    return (nsenter, "--target", str(pid), *enter, "--wd=/", str(python))


def _on_path() -> Path:
    """The interpreter of the `vllm` on PATH, else the first `python3` there that is not ours."""
    vllm = shutil.which("vllm")
    if vllm is not None:
        try:
            first = Path(vllm).open("rb").readline(512).decode("utf-8", "replace")  # noqa: SIM115
        except OSError:
            first = ""
        named = Path(first[2:].strip().split(" ")[0]) if first.startswith("#!") else None
        if named is not None and "python" in named.name and named.exists():
            return named
    own = Path(sys.prefix).resolve()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        found = Path(folder) / "python3"
        if found.exists() and own not in found.absolute().parents:
            return found
    raise ActionError("No Python interpreter was found; give --python the path of the one that vLLM uses.")
