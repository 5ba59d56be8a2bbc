"""`make verify`, `make endure` and the end of `make test`: the checks that take long or need something that not every machine has.

Every step ends as passed, failed or skipped. What could not run is printed as ``skipped: why`` and counted; a test
that pytest skips counts too, so that a green end never hides what nobody looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / ".lab"
#: What the laboratory takes at its largest, wheels still unpacked (measured 2026-11: 3 GB installed).
LAB_BYTES = 9 * 2**30
#: Seconds that installing it takes, and a real server's way through all its states (two busy cores, measured 2026-11).
LAB_S, LIVE_S = 300.0, 150.0
NOTHING_COLLECTED = 5  # pytest's exit status
NO_TOOL = 4  # scripts/verify_http.py's
#: pytest's -m takes an expression; no test is marked so.
EVERY_TEST = "not nothing"


@dataclass
class Outcome:
    """What a step came to: counts of tests (a step that is no test run counts as one) and the reasons of the skips."""

    passed: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    name: str
    run: Callable[[float], Outcome]  # is told how many seconds it may take
    needs_s: float = 30


def pytest_step(markers: str, *arguments: str, aloud: bool = False) -> Callable[[float], Outcome]:
    """Tests by their markers; ``aloud`` passes on what they print, which is the report of a long one."""

    def run(seconds: float) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-m", markers, f"--junitxml={report}", *arguments]
            command += ["-s"] if aloud else []
            try:
                status = run_in_group(command, seconds)
            except TimeoutError:
                return Outcome(skipped=[f"stopped after {seconds:.0f} s, the time that was left"])
            if status == NOTHING_COLLECTED:
                return Outcome(skipped=["there are no such tests yet"])
            if not report.exists():
                return Outcome(failed=1)
            return read_report(report, status)

    return run


def read_report(report: Path, status: int) -> Outcome:
    """Counts of a JUnit report that pytest has just written."""
    outcome = Outcome()
    for case in ElementTree.parse(report).getroot().iter("testcase"):  # noqa: S314 (our own file)
        skip = case.find("skipped")
        if skip is not None:
            outcome.skipped.append(f"{case.get('name')}: {skip.get('message', 'no reason given')}")
        elif case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        else:
            outcome.passed += 1
    if status and not outcome.failed:
        outcome.failed = 1
    return outcome


def run_in_group(command: Sequence[str], seconds: float) -> int:
    """Runs a command in a process group of its own and ends the whole group when the time is over.

    Raises TimeoutError then.
    """
    with subprocess.Popen(command, cwd=ROOT, process_group=0) as process:
        try:
            return process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as interruption:
            for number in (2, 15, 9):
                try:
                    os.killpg(process.pid, number)
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    continue
                except ProcessLookupError:
                    pass
                break
            if isinstance(interruption, KeyboardInterrupt):
                raise
            raise TimeoutError(f"{command[0]} did not end within {seconds:.0f} s") from interruption


def laboratory(seconds: float, markers: str = "lab and not endure", paths: Sequence[str] = ()) -> Outcome:
    """The real server: installed when it is missing, then faults are run and their captures diagnosed.

    Its environment also has the torch that the tests of the ranks and of the compilers run with.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return Outcome(skipped=["the CPU build of vLLM is for Linux on x86-64"])
    installed = (LAB / "model" / "model.safetensors").exists()
    if not installed and shutil.disk_usage(ROOT).free < LAB_BYTES:
        return Outcome(skipped=[f"the laboratory needs {LAB_BYTES >> 30} GiB of free disk"])
    started = time.monotonic()
    try:
        status = run_in_group([str(ROOT / "scripts/lab_setup.sh"), str(LAB)], seconds)
    except TimeoutError as late:
        return Outcome(skipped=[str(late)])
    if status:
        return Outcome(skipped=[f"the laboratory could not be installed (exit status {status}, see above)"])
    return pytest_step(markers, *paths)(seconds - (time.monotonic() - started))


def live(seconds: float) -> Outcome:
    """The end of `make test`: a real server in all its states, installed first where there is time for that."""
    if not (LAB / "model" / "model.safetensors").exists() and seconds < LAB_S + LIVE_S:
        why = f"the laboratory is not set up (make lab) and {seconds:.0f} s are too few for that"
        return Outcome(skipped=[why])
    return laboratory(seconds, paths=("tests/lab/test_live.py",))


def real_prometheus(seconds: float) -> Outcome:
    """A real Prometheus scrapes servers in many states: unpacked from Debian's package where there is none."""
    if shutil.which("prometheus") is None:
        try:
            status = run_in_group(
                [str(ROOT / "scripts/prometheus_setup.sh"), str(ROOT / ".prometheus")], min(seconds, 400)
            )
        except TimeoutError as late:
            return Outcome(skipped=[str(late)])
        if status:
            return Outcome(skipped=[f"Prometheus could not be unpacked (exit status {status}, see above)"])
    return pytest_step("slow and not lab", "tests/tools/prometheus", "tests/assistant/alerts/test_shipped.py")(seconds)


def launchers(seconds: float) -> Outcome:
    """A real Ray and a real Slurm of two nodes on this machine, and Kubernetes' stand-in: each fetched where it is missing."""
    started = time.monotonic()
    missed = []
    for script, folder in (("ray_setup.sh", LAB), ("slurm_setup.sh", ROOT / ".slurm")):
        try:
            status = run_in_group([str(ROOT / "scripts" / script), str(folder)], min(seconds, 400))
        except TimeoutError as late:
            missed.append(str(late))
            continue
        if status:
            missed.append(f"scripts/{script} failed (exit status {status}, see above)")
    paths = [f"tests/assistant/nodes/test_{name}.py" for name in ("ray", "slurm", "kubernetes")]
    outcome = pytest_step("slow", *paths)(seconds - (time.monotonic() - started))
    outcome.skipped[:0] = missed
    return outcome


def http_api(seconds: float) -> Outcome:
    """The API against its own description: schemathesis, at least 3,000 cases."""
    try:
        status = run_in_group([sys.executable, str(ROOT / "scripts/verify_http.py")], seconds)
    except TimeoutError as late:
        return Outcome(skipped=[str(late)])
    if status == NO_TOOL:
        return Outcome(skipped=["schemathesis could not be installed (see above)"])
    return Outcome(failed=1) if status else Outcome(passed=1)


def model_context_protocol(seconds: float) -> Outcome:
    """MCP: the conformance suite, clients that others wrote, the view in a browser."""
    started = time.monotonic()
    os.environ.setdefault("PYTHON", sys.executable)
    try:
        status = run_in_group([str(ROOT / "scripts/node_setup.sh"), str(ROOT / ".node")], seconds)
    except TimeoutError as late:
        return Outcome(skipped=[str(late)])
    if status:
        return Outcome(skipped=[f"the clients could not be fetched (exit status {status}, see above)"])
    return pytest_step("mcp")(seconds - (time.monotonic() - started))


def wheel(seconds: float) -> Outcome:
    """A wheel holds the compiled knowledge and the data beside the code, and no test."""
    with tempfile.TemporaryDirectory() as folder:
        status = run_in_group([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], seconds)
        built = list(Path(folder).glob("*.whl"))
        if status or len(built) != 1:
            return Outcome(failed=1)
        with zipfile.ZipFile(built[0]) as archive:
            names = archive.namelist()
    wanted = ("knowledge/_compiled.json", "knowledge/intents.yaml", "knowledge/py.typed", "assistant/faces/cli/main.py")
    wanted += ("assistant/faces/web/templates/base.html", "assistant/faces/web/assets/style.css")
    missing = [name for name in wanted if name not in names]
    foreign = [name for name in names if name.startswith(("tests/", "scripts/", ".lab/"))]
    for problem in [f"missing in the wheel: {name}" for name in missing] + [f"not wanted: {name}" for name in foreign]:
        print(problem)
    return Outcome(failed=1) if missing or foreign else Outcome(passed=1)


#: What drives the browser, and what judges a page's accessibility.
BROWSER_PACKAGES = ("playwright-core@1.64.1", "axe-core@4.10.3", "node@22")


def browser(seconds: float) -> Outcome:
    """The pages in a real Chromium; the packages that drive it are fetched where npm can and they are missing."""
    if shutil.which("chromium") is None:
        return Outcome(skipped=["there is no chromium on PATH"])
    modules = ROOT / ".node" / "node_modules"
    started = time.monotonic()
    if not all((modules / name.split("@")[0]).is_dir() for name in BROWSER_PACKAGES):
        if shutil.which("npm") is None:
            return Outcome(skipped=["there is no npm to install " + " and ".join(BROWSER_PACKAGES)])
        quiet = ("--no-save", "--no-audit", "--no-fund", "--loglevel=error")
        command = ["npm", "install", "--prefix", str(modules.parent), *quiet, *BROWSER_PACKAGES]
        try:
            status = run_in_group(command, min(seconds, 300))
        except TimeoutError as late:
            return Outcome(skipped=[str(late)])
        if status:
            return Outcome(skipped=["npm could not install " + " and ".join(BROWSER_PACKAGES)])
    return pytest_step("browser")(seconds - (time.monotonic() - started))


def script_step(script: str) -> Callable[[float], Outcome]:
    """A script of ours that prints ``passed: what`` and ``skipped: why``, and ends with 1 where something is wrong."""

    def run(seconds: float) -> Outcome:
        command = [sys.executable, str(ROOT / "scripts" / script)]
        with tempfile.TemporaryFile("w+") as out:
            try:
                done = subprocess.run(command, cwd=ROOT, stdout=out, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                return Outcome(skipped=[f"stopped after {seconds:.0f} s, the time that was left"])
            out.seek(0)
            text = out.read()
        print(text, end="")
        skipped = [line.removeprefix("skipped: ") for line in text.splitlines() if line.startswith("skipped: ")]
        passed = sum(line.startswith("passed: ") for line in text.splitlines())
        return Outcome(passed, 1 if done.returncode else 0, skipped)

    return run


def audit(seconds: float) -> Outcome:
    """Known vulnerabilities of what the lock pins, asked of pip-audit's database; takes a network."""
    program = shutil.which("pip-audit")
    if program is None:
        return Outcome(skipped=["pip-audit is not installed; run it with --require-hashes -r constraints.txt"])
    command = [program, "--require-hashes", "--disable-pip", "--format", "json", "-r", "constraints.txt"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(skipped=["pip-audit had no answer in time"])
    if "ConnectionError" in done.stderr:
        return Outcome(skipped=["pip-audit reaches no database here"])
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print(done.stderr[-2000:])
        return Outcome(failed=1)
    known = [package for package in packages if "skip_reason" not in package]
    for package in known:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {found['id']}, mended in {fixed}")
    # An index that is a mirror knows the packages and none of their faults; that nothing was found there says nothing.
    skipped = [f"{len(packages) - len(known)} of {len(packages)} packages are unknown to pip-audit's database here"]
    outcome = Outcome(skipped=skipped if len(known) < len(packages) else [])
    outcome.failed = sum(bool(package["vulns"]) for package in known)
    outcome.passed = len(known) - outcome.failed
    return outcome


#: What `make test` ends with.
LIVE = [Step("real vLLM server, live", live, LIVE_S)]
#: What has been seen to pass as a step; what others depend on least comes last, because time may run out.
VERIFY = [
    Step("wheel", wheel),
    Step(
        "slow tests",
        pytest_step("slow and not postgres and not endure", "tests/assistant/store", "tests/tools/logs"),
        60,
    ),
    Step("PostgreSQL", pytest_step("postgres and not lab and not endure", "tests/assistant/store"), 60),
    Step("manifests", script_step("manifests.py"), 60),
    Step("image", script_step("image.py"), 120),
    Step("HTTP API", http_api, 180),
    Step("Model Context Protocol", model_context_protocol, 180),
    Step("pages in a browser", browser, 120),
    Step("real Prometheus", real_prometheus, 120),
    Step(
        "real vLLM server, two nodes in network namespaces",
        lambda seconds: laboratory(
            seconds, paths=("tests/lab/test_captures.py", "tests/assistant/nodes/test_two_nodes.py")
        ),
        450,
    ),
    Step("launchers", launchers, 500),
]
#: What passes test by test but has not run as a step on a machine of its own yet: `make verify EXTENDED=1` runs it as well.
EXTENDED = [
    Step(
        "all slow tests",
        pytest_step(
            "slow and not lab and not postgres and not browser and not endure",
            "--fuzz-seconds=20",
            "--ignore=tests/tools/prometheus",
            "--ignore=tests/assistant/alerts/test_shipped.py",
            *(f"--ignore=tests/assistant/nodes/test_{name}.py" for name in ("ray", "slurm", "kubernetes")),
            "--ignore=tests/assistant/faces/test_replicas.py",
        ),
        120,
    ),
    Step(
        "replicas",
        pytest_step(
            "(postgres or slow) and not lab and not endure",
            "tests/assistant/faces/test_replicas.py",
            "tests/endurance/test_dying_dependencies.py",
            aloud=True,
        ),
        600,
    ),
    Step("known vulnerabilities", audit, 60),
    Step("all of the real vLLM server", laboratory, 300),
]
#: The long runs, an hour of fuzzing and half an hour of load among them; each prints what it measured.
ENDURE = [
    Step(
        "rolling restart",
        pytest_step("slow and postgres", "-k", "replaced", "tests/assistant/faces/test_replicas.py", aloud=True),
        300,
    ),
    Step("dying dependencies", pytest_step(EVERY_TEST, "tests/endurance/test_dying_dependencies.py"), 400),
    Step("soak", pytest_step("endure", "--soak-seconds=1800", "tests/endurance/test_soak.py", aloud=True), 2000),
    Step(
        "fuzz",
        pytest_step(
            EVERY_TEST,
            "--fuzz-seconds=600",
            "--fuzz-seed=random",
            "-k",
            "fuzz",
            "tests/endurance/test_fuzz.py",
            aloud=True,
        ),
        3700,
    ),
    Step("killed at 200 points", pytest_step("endure", "tests/assistant/faces/test_replicas.py", aloud=True), 3600),
    Step(
        "other slow and long tests",
        pytest_step(
            "(slow or endure) and not lab and not browser and not mcp",
            "--fuzz-seconds=60",
            "--ignore=tests/endurance",
            "--ignore=tests/assistant/faces/test_replicas.py",
        ),
        900,
    ),
    Step("real vLLM server", lambda seconds: laboratory(seconds, "lab"), 300),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endure", action="store_true", help="the long runs instead of the short ones")
    parser.add_argument("--live", action="store_true", help="only a real server, live, as the end of `make test`")
    parser.add_argument("--seconds", type=float, default=3600, help="what the whole may take")
    parser.add_argument("--extended", action="store_true", help="also what is not proven on a quiet machine yet")
    options = parser.parse_args()
    steps = ENDURE if options.endure else LIVE if options.live else [*VERIFY, *(EXTENDED if options.extended else ())]
    end = time.monotonic() + options.seconds
    results: list[tuple[str, Outcome, float]] = []
    for step in steps:
        left, started = end - time.monotonic(), time.monotonic()
        print(f"\n== {step.name}", flush=True)
        if left < step.needs_s:
            outcome = Outcome(skipped=[f"{left:.0f} s are left, it needs about {step.needs_s:.0f} s"])
        else:
            outcome = step.run(left)
        results.append((step.name, outcome, time.monotonic() - started))

    if not options.endure and not options.live and not options.extended:
        why = "not part of verify until it has passed as a step on a quiet machine; run make verify EXTENDED=1"
        results += [(step.name, Outcome(skipped=[why]), 0.0) for step in EXTENDED]
    print("\n== summary")
    for name, outcome, seconds in results:
        counts = f"passed {outcome.passed:5}  failed {outcome.failed:3}  skipped {len(outcome.skipped):3}"
        print(f"{name:26} {counts}  {seconds:6.0f} s")
        for why, times in Counter(outcome.skipped).items():
            print(f"  skipped: {why}" + (f" ({times} times)" if times > 1 else ""))
    return 1 if any(outcome.failed for _, outcome, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())
