"""Ray and Slurm: a program of theirs that carries our lines to the nodes and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from tools.launchers.frames import FrameReader
from tools.launchers.site import Site, SiteError, bundled, host_names, node_program
from tools.sanity.choose import choose
from tools.sanity.launch import Event, LaunchError, json_line, run_program
from tools.sanity.results import plain

#: Variables of our own interpreter that must not reach the site's.
_OURS = ("VIRTUAL_ENV", "PYTHON", "__PYVENV", "VLLM_DIAGNOSE_")
#: Seconds that srun may wait for nodes that others hold.
SLURM_WAIT_S = 60
_SRUN_TASK = re.compile(r"srun: error: (\S+): tasks? ([\d,\-]+): (.*)")
_SRUN_NODE = re.compile(r"srun: error: (?:Node failure on|Task launch for \S+ failed on node) ([^\s:]+):?\s*(.*)")
_SRUN_SAID = re.compile(r"srun: (?:error|fatal): (.*)")


@contextlib.asynccontextmanager
async def ray_site(
    *, python: str | None, address: str, nodes: Sequence[str], cpu_only: bool, claim: bool, deadline_s: float
) -> AsyncIterator[Site]:
    """One task on each node of the running Ray cluster, through the interpreter that has ray.

    ``claim`` takes the nodes' GPUs for the time of the test. Raises ``ActionError`` where no interpreter can be found.
    """
    chosen = await asyncio.to_thread(choose, python, None)
    source = bundled(Path(__file__).with_name("ray_driver.py").read_text("utf-8"), {"node": node_program()})
    arguments = ["--nodes", ",".join(nodes), *(["--address", address] if address else [])]
    arguments += [*(["--cpu-only"] if cpu_only else []), *(["--claim"] if claim else [])]
    environment = {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0", **chosen.environment}
    async with _running(Site(), chosen.command, source, arguments, environment, deadline_s, lambda line: None) as site:
        yield site


@contextlib.asynccontextmanager
async def slurm_site(
    *, python: str | None, nodes: Sequence[str], count: int | None, deadline_s: float
) -> AsyncIterator[Site]:
    """One task on each node of this Slurm allocation, or of a new one of ``count`` nodes or of the ``nodes`` named.

    Options of the site, such as the partition, come from the ``SLURM_*`` variables that srun reads. Raises
    :class:`SiteError` where there is no srun, and where it is not known how many nodes are meant.
    """
    srun = shutil.which("srun")
    if srun is None:
        raise SiteError("no-srun")
    inside = os.environ.get("SLURM_JOB_NODELIST", "") if os.environ.get("SLURM_JOB_ID") else ""
    names = list(nodes) or (host_names(inside) if not count else [])
    if not (names or count):
        raise SiteError("slurm-how-many")
    site = Site()
    site.expected = count or len(names)

    def read_error(line: str) -> None:
        _slurm_error(site, line)

    command = [
        srun,
        f"--nodes={site.expected}",
        f"--ntasks={site.expected}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=0",
    ]
    command += ["--wait=0", "--input=all", "--job-name=vllm-diagnose"]
    command += ["--overlap"] if inside else [f"--immediate={SLURM_WAIT_S}"]
    command += [f"--nodelist={','.join(names)}"] if names else []
    command.append(await asyncio.to_thread(_slurm_python, python))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    async with _running(site, command, node_program(), [], environment, deadline_s, read_error) as running:
        yield running


def _slurm_python(python: str | None) -> str:
    """The interpreter on the nodes: as given, since it need not exist here; else the one that would be used here."""
    if python is not None:
        if not Path(python).is_absolute() or "python" not in Path(python).name:
            raise SiteError("python-path", python=python)
        return python
    return choose(None, None).command[-1]


def _slurm_error(site: Site, line: str) -> None:
    """Take what srun says about a node that it lost."""
    if found := _SRUN_TASK.match(line):
        for text in host_names(f"[{found[2]}]"):
            if text.isdigit() and int(text) < 4096:
                part = site.part(int(text))
                part.name = part.name or plain(found[1], 80)
                if not part.over:
                    why = f"{found[3]}; {site.last_words}" if part.hello is None and site.last_words else found[3]
                    site.lose(part.task, "died" if part.hello else "broken", why)
    elif found := _SRUN_NODE.match(line):
        for part in list(site.parts.values()):
            if part.name == found[1]:
                site.lose(part.task, "died", line.removeprefix("srun: error: "))
    elif line.strip() and not any(part.hello for part in site.parts.values()):
        said = _SRUN_SAID.match(line)
        site.last_words = plain(said[1] if said else line)


@contextlib.asynccontextmanager
async def _running(
    site: Site,
    command: Sequence[str],
    source: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    deadline_s: float,
    on_stderr: Callable[[str], None],
) -> AsyncIterator[Site]:
    frames = FrameReader()

    def read(line: bytes) -> Event | None:
        return frames.read(line) or json_line(line)

    def start(send: Callable[[str], None]) -> None:
        site.send = send

    async def carry() -> None:
        try:
            ran = await run_program(
                command,
                source,
                arguments,
                environment=environment,
                deadline_s=deadline_s,
                on_event=site.take,
                on_start=start,
                on_stderr=on_stderr,
                read=read,
            )
            if ran.stderr.strip() and not site.last_words:
                site.last_words = plain(ran.stderr.strip().splitlines()[-1])
        except LaunchError as error:
            site.last_words = str(error)
        finally:
            site.over = True
            site.changed()

    task = asyncio.create_task(carry())
    try:
        yield site
        site.command(do="end")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.shield(task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
