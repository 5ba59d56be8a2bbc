"""`check_host`: what the machine and the container grant a vLLM server, seen from inside the server where possible."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from tools.host.facts import LINGERING, Folder, HostFacts, Place, gather, hub_cache
from tools.host.packages import Packages, packages_below
from tools.processes import PROC, Server, interpreter, read, same_namespace
from tools.registry import Context, action
from tools.sanity.choose import find_server
from tools.sanity.results import Asked, Report, Sheet, Status, Where

_GIB = 2**30
#: NCCL and vLLM's queues want about this much for several GPUs; Docker grants 64 MiB unless told otherwise.
SHM_ENOUGH = 1 * _GIB
SHM_SMALL = 128 << 20
#: Variables that only say how much is printed, or are often meant.
_MILD = {"NCCL_DEBUG", "VLLM_LOGGING_LEVEL", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_DEVICE_ORDER", "NCCL_IB_DISABLE"}
_REMOTE_FILES = ("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "9p", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs", "fuse.sshfs", "virtiofs", "overlay", "glusterfs", "beegfs")  # fmt: skip


class HostInput(Asked):
    """Looks at the limits and files of this machine or of the server's container."""

    model: str | None = Field(None, description="folder of the model, where the server does not say it")


@action(name="check_host", title="Limits, memory, disks and environment of this node", effect="reads", deadline_s=20)
async def check_host(given: HostInput, context: Context) -> Report:
    """Shared memory, locked memory, open files, RAM, swap, cgroup limits, CPU quota, NUMA, disks and file systems of model
    and caches, compilers, lingering debug variables and clashing packages, as the server's container has them."""
    return await asyncio.to_thread(look, given)


class View(Place):
    """The machine as a server sees it: its root folder, limits and environment. Ours where there is no server."""

    def __init__(self, server: Server | None) -> None:
        self.server = server
        inside = server is not None and same_namespace(server.main.pid, "mnt") is False
        super().__init__(
            str(server.main.pid) if server else "self", inside, server.environment if server else os.environ
        )


def look(given: HostInput) -> Report:
    """The whole check."""
    sheet = Sheet("check_host", given.lang)
    server = find_server(given.pid)
    view = View(server)
    sheet.where = "server" if server else "here"
    model = files_of_model(view, given.model)
    if server is None:
        sheet.add("host.no-server", "note")
        judge(sheet, gather(view, model=model))
        return sheet.report()
    if not os.access(PROC / view.pid / "environ", os.R_OK):
        sheet.add("host.not-ours", "note", pid=server.main.pid)
    python = interpreter(server.main.pid)
    found = gather(
        view,
        workers=1 + sum(p.title.startswith(("Worker", "EngineCore")) for p in server.below),
        open_files_used=_open_files(view),
        model=model,
        python=str(python) if python is not None else None,
        packages=packages_below(PROC / view.pid / "root" / str(python.parent.parent).lstrip("/"))
        if python is not None
        else None,
    )
    judge(sheet, found, os.environ)
    return sheet.report()


def judge(sheet: Sheet, found: HostFacts, ours: Mapping[str, str] | None = None) -> None:
    """Rows and facts for what was found. ``ours`` is the environment that the server's next start would inherit."""
    _shared_memory(sheet, found)
    _limits(sheet, found)
    _memory(sheet, found)
    _processors(sheet, found)
    for folder in found.folders:
        _folder(sheet, folder)
    if found.model is not None:
        path, kind = found.model
        remote = kind in _REMOTE_FILES and kind != "overlay"
        sheet.add("host.model-files", "note" if remote else "ok", f"{path} ({kind})")
        sheet.fact("host.model_file_system", kind)
    _compilers(sheet, found)
    _lingering(sheet, found.environment, ours)
    if found.packages is not None:
        _packages(sheet, found.packages)


def _size(count: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def _shared_memory(sheet: Sheet, found: HostFacts) -> None:
    if found.shm.error:
        sheet.add("host.shm", "unknown", detail=found.shm.error)
        sheet.unknown("host.shm_bytes", f"/dev/shm: {found.shm.error}")  # noqa: S108 (it is what is looked at)
        return
    total, free = found.shm.total, found.shm.free
    status: Status = "ok" if total >= SHM_ENOUGH and free >= SHM_SMALL else "bad" if min(total, free) <= SHM_SMALL else "note"  # fmt: skip
    sheet.add("host.shm", status, f"{_size(free)} / {_size(total)}")
    sheet.fact("host.shm_bytes", total, f"/dev/shm {_size(total)}, {_size(free)} free")  # noqa: S108


def _limits(sheet: Sheet, found: HostFacts) -> None:
    locked, files = found.memlock, found.open_files
    if locked is not None:
        enough = found.may_lock or locked < 0 or locked >= _GIB
        shown = "unlimited" if locked < 0 else _size(locked)
        sheet.add("host.memlock", "ok" if enough else "note", f"{shown}{', IPC_LOCK' if found.may_lock else ''}")
        if locked >= 0:
            sheet.fact("host.memlock_bytes", locked)
    if files is not None:
        sheet.add("host.files", "ok" if files < 0 or files >= 65536 else "note", files if files >= 0 else "unlimited")
        sheet.fact("host.open_files_limit", files if files >= 0 else 1 << 30)
        if files > 0 and found.open_files_used > 0.8 * files:
            sheet.add("host.files-used", "bad", found.open_files_used, limit=files)


def _open_files(view: View) -> int:
    try:
        return sum(1 for _ in (PROC / view.pid / "fd").iterdir())
    except OSError:
        return 0


def _memory(sheet: Sheet, found: HostFacts) -> None:
    total, free = found.memory, found.memory_free
    limit, used = found.cgroup_memory, found.cgroup_used
    if limit is not None and limit < total:
        sheet.fact("host.cgroup_memory_gib", round(limit / _GIB, 2))
        left = limit - (used or 0)
        sheet.add("host.cgroup-memory", "note" if left < 0.1 * limit else "ok", _size(limit), used=_size(used or 0))
        free = min(free, left)
    sheet.add("host.ram", "ok" if free > 0.05 * total else "bad", f"{_size(free)} / {_size(total)}")
    sheet.fact("host.ram_available_gib", round(free / _GIB, 2))
    swap, swap_free = found.swap, found.swap_free
    if swap and swap_free < 0.5 * swap:
        sheet.add("host.swap", "note", f"{_size(swap - swap_free)} / {_size(swap)}")


def _processors(sheet: Sheet, found: HostFacts) -> None:
    count, quota = found.cpus, found.cpu_quota
    usable = min(count, quota) if quota else count
    status: Status = "note" if usable < found.workers + 1 else "ok"
    shown = f"{usable:g}" + (f" ({count} CPU, cgroup {quota:g})" if quota else "")
    sheet.add("host.cpu", status, shown, workers=found.workers)
    sheet.fact("host.cpus", float(usable))
    if found.numa_nodes > 1:
        sheet.add("host.numa", "note" if found.numa_balancing else "ok", found.numa_nodes)


def argument(server: Server, *names: str) -> str | None:
    words = list(server.main.command)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in names:
            return value if equals else words[position + 1] if position + 1 < len(words) else None
    return None


def served_model(server: Server) -> str | None:
    """The model as the server's command line names it: a folder or a name on the hub."""
    words = list(server.main.command)
    given = argument(server, "--model")
    if given is None and "serve" in words and words.index("serve") + 1 < len(words):
        given = words[words.index("serve") + 1]
    return given


def model_folder(server: Server | None, given: str | None = None) -> str | None:
    """The folder of the model that a server was started with, where it is one and not a name on the hub."""
    if given is None and server is not None:
        given = served_model(server)
    if given is None:
        return None
    if not given.startswith("/") and server is not None:
        try:
            given = str((PROC / str(server.main.pid) / "cwd").readlink() / given)
        except OSError:
            return None
    return given if given.startswith("/") else str(Path(given).absolute())


def files_of_model(view: View, given: str | None) -> str | None:
    """The folder of the model's files as the process sees it: the one it names, or what the hub's cache holds under that
    name; None where there is neither."""
    folder = model_folder(view.server, given)
    if folder is not None and view.at(folder).is_dir():
        return folder
    name = given or (served_model(view.server) if view.server else None)
    if name is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    repository = f"{hub_cache(view.environment)}/models--{name.replace('/', '--')}"
    commit = read(view.at(f"{repository}/refs/main"), 100).strip()
    snapshot = f"{repository}/snapshots/{commit}"
    return snapshot if re.fullmatch(r"[0-9a-f]{40}", commit) and view.at(snapshot).is_dir() else None


def _folder(sheet: Sheet, found: Folder) -> None:
    if found.error:
        sheet.add("host.cache", "unknown", f"{found.name}: {found.folder}", detail=found.error)
        return
    shown = f"{found.name}: {found.folder} ({found.kind}, {_size(found.free)})"
    if found.read_only:
        sheet.add("host.cache-readonly", "bad", shown)
        sheet.fact("host.cache_writable", "no", shown)
    elif not found.writable:
        sheet.add("host.cache-denied", "bad", shown)
        sheet.fact("host.cache_writable", "no", shown)
    elif found.free < (10 if found.name == "hub" else 1) * _GIB or found.files_free < 1000 < found.files:
        sheet.add("host.cache-full", "bad" if found.free < _GIB // 4 else "note", shown)
        sheet.fact("host.disk_free_gib", round(found.free / _GIB, 2), shown)
    else:
        sheet.add("host.cache", "ok", shown)


def _compilers(sheet: Sheet, found: HostFacts) -> None:
    sheet.add("host.compiler", "ok" if found.compiler else "bad", found.compiler or "-")
    sheet.fact("host.compiler", "yes" if found.compiler else "no", found.compiler)
    if found.headers is not None:
        python, there = found.headers
        sheet.add("host.headers", "ok" if there else "bad", python)
        sheet.fact("host.python_headers", "yes" if there else "no", python)


def _lingering(sheet: Sheet, environment: Mapping[str, str], ours: Mapping[str, str] | None) -> None:
    """Debug variables in the server's environment, and in ours where the next start would inherit them."""
    _debug_variables(sheet, environment)
    if ours is not None:
        inherited = {name: value for name, value in ours.items() if environment.get(name) != value}
        _debug_variables(sheet, inherited, "here")


def _debug_variables(sheet: Sheet, environment: Mapping[str, str], where: Where | None = None) -> None:
    where = where or sheet.where
    for name, harmless in LINGERING.items():
        value = environment.get(name)
        if value is None or value.upper() in ("", harmless.upper()):
            continue
        sheet.add("host.lingering", "note" if name in _MILD else "bad", f"{name}={value}", where=where, place=where)
        if where == sheet.where:
            sheet.fact(f"environment.{name}", value, f"{name}={value}")


def _packages(sheet: Sheet, found: Packages) -> None:
    """Rows for vLLM's version, pins that are not met, and packages that clash."""
    sheet.add("host.vllm", "ok", f"vLLM {found.vllm}, torch {found.torch}")
    for name, version, exact in found.unmet:
        sheet.add("host.pin", "bad" if name in ("torch", "xgrammar", "flashinfer-python") else "note", name, found=version, wanted=exact)  # fmt: skip
        sheet.fact("host.package_clash", f"{name} {version}, vLLM wants {exact}")
    for pair in found.clashes:
        sheet.add("host.clash", "note", pair)
