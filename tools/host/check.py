"""`check_host`: what the machine and the container grant a vLLM server, seen from inside the server where possible."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from tools.host.packages import package_rows
from tools.processes import PROC, Server, process, read, same_namespace
from tools.registry import Context, action
from tools.sanity.choose import find_server
from tools.sanity.results import Asked, Report, Sheet, Status, Where

_GIB = 2**30
#: NCCL and vLLM's queues want about this much for several GPUs; Docker grants 64 MiB unless told otherwise.
SHM_ENOUGH = 1 * _GIB
SHM_SMALL = 128 << 20
_CAP_IPC_LOCK = 14
#: Variables of a hunt for a fault that cost speed, space or correctness when they stay (vllm/envs.py, CUDA and NCCL
#: documentation); the value that is harmless.
LINGERING: Mapping[str, str] = {
    "CUDA_LAUNCH_BLOCKING": "0",
    "VLLM_TRACE_FUNCTION": "0",
    "NCCL_P2P_DISABLE": "0",
    "NCCL_SHM_DISABLE": "0",
    "NCCL_IB_DISABLE": "0",
    "TORCH_DISTRIBUTED_DEBUG": "OFF",
    "TORCH_SHOW_CPP_STACKTRACES": "0",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "0",
    "TORCH_USE_CUDA_DSA": "0",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "NCCL_DEBUG": "WARN",
    "VLLM_LOGGING_LEVEL": "INFO",
    "PYTORCH_CUDA_ALLOC_CONF": "",
}
#: Those of them that only say how much is printed, or are often meant.
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


class View:
    """The machine as a process sees it: its root folder, limits and environment. Ours where there is no server."""

    def __init__(self, server: Server | None) -> None:
        self.server = server
        self.pid = str(server.main.pid) if server else "self"
        self.inside = server is not None and same_namespace(server.main.pid, "mnt") is False
        self.root = PROC / self.pid / "root" if self.inside else Path("/")
        self.environment: Mapping[str, str] = server.environment if server else os.environ

    def at(self, path: str | Path) -> Path:
        """A path of the process as we can open it."""
        return self.root / str(path).lstrip("/")


def look(given: HostInput) -> Report:
    """The whole check."""
    sheet = Sheet("check_host", given.lang)
    server = find_server(given.pid)
    view = View(server)
    sheet.where = "server" if server else "here"
    if server is None:
        sheet.add("host.no-server", "note")
    elif not os.access(PROC / view.pid / "environ", os.R_OK):
        sheet.add("host.not-ours", "note", pid=server.main.pid)
    _shared_memory(sheet, view)
    _limits(sheet, view)
    _memory(sheet, view)
    _processors(sheet, view)
    _disks(sheet, view, given.model)
    _compilers(sheet, view)
    _lingering(sheet, view)
    package_rows(sheet, server)
    return sheet.report()


def _size(count: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def _shared_memory(sheet: Sheet, view: View) -> None:
    path = view.at("/dev/shm")  # noqa: S108 (it is what is looked at)
    try:
        found = os.statvfs(path)
    except OSError as error:
        sheet.add("host.shm", "unknown", detail=str(error.strerror))
        sheet.unknown("host.shm_bytes", f"/dev/shm: {error.strerror}")  # noqa: S108
        return
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    status = "ok" if total >= SHM_ENOUGH and free >= SHM_SMALL else "bad" if min(total, free) <= SHM_SMALL else "note"
    sheet.add("host.shm", status, f"{_size(free)} / {_size(total)}")  # type: ignore[arg-type]
    sheet.fact("host.shm_bytes", total, f"/dev/shm {_size(total)}, {_size(free)} free")  # noqa: S108


def _limits(sheet: Sheet, view: View) -> None:
    limits = read(PROC / view.pid / "limits")
    locked = _limit(limits, "Max locked memory")
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", read(PROC / view.pid / "status"), re.MULTILINE)
    may_lock = bool(int(capabilities[1], 16) >> _CAP_IPC_LOCK & 1) if capabilities else False
    if locked is not None:
        enough = may_lock or locked < 0 or locked >= _GIB
        shown = "unlimited" if locked < 0 else _size(locked)
        sheet.add("host.memlock", "ok" if enough else "note", f"{shown}{', IPC_LOCK' if may_lock else ''}")
        if locked >= 0:
            sheet.fact("host.memlock_bytes", locked)
    files = _limit(limits, "Max open files")
    if files is not None:
        sheet.add("host.files", "ok" if files < 0 or files >= 65536 else "note", files if files >= 0 else "unlimited")
        sheet.fact("host.open_files_limit", files if files >= 0 else 1 << 30)
        if view.server is not None:
            try:
                used = sum(1 for _ in (PROC / view.pid / "fd").iterdir())
            except OSError:
                used = 0
            if files > 0 and used > 0.8 * files:
                sheet.add("host.files-used", "bad", used, limit=files)


def _limit(text: str, name: str) -> int | None:
    """The soft limit; -1 is no limit."""
    found = re.search(rf"^{name}\s+(\S+)", text, re.MULTILINE)
    if not found:
        return None
    return -1 if found[1] == "unlimited" else int(found[1])


def _memory(sheet: Sheet, view: View) -> None:
    table = {key: int(value) * 1024 for key, value in re.findall(r"^(\w+):\s+(\d+) kB", read(PROC / "meminfo"), re.M)}
    total, free = table.get("MemTotal", 0), table.get("MemAvailable", 0)
    limit, used = _cgroup_memory(view)
    if limit is not None and limit < total:
        sheet.fact("host.cgroup_memory_gib", round(limit / _GIB, 2))
        left = limit - (used or 0)
        sheet.add("host.cgroup-memory", "note" if left < 0.1 * limit else "ok", _size(limit), used=_size(used or 0))
        free = min(free, left)
    sheet.add("host.ram", "ok" if free > 0.05 * total else "bad", f"{_size(free)} / {_size(total)}")
    sheet.fact("host.ram_available_gib", round(free / _GIB, 2))
    swap, swap_free = table.get("SwapTotal", 0), table.get("SwapFree", 0)
    if swap and swap_free < 0.5 * swap:
        sheet.add("host.swap", "note", f"{_size(swap - swap_free)} / {_size(swap)}")


def _cgroup_folders(view: View, controller: str) -> list[Path]:
    """The folders of the process's control group, its own first, then its parents (a parent's limit holds as well)."""
    for line in read(PROC / view.pid / "cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        base = Path("/sys/fs/cgroup") if not names else Path("/sys/fs/cgroup") / controller
        if not names or controller in names.split(","):
            folder = base / path.strip("/")
            return [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]
    return []


def _cgroup_memory(view: View) -> tuple[int | None, int | None]:
    limit: int | None = None
    used: int | None = None
    for folder in _cgroup_folders(view, "memory"):
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            text = read(folder / most, 64).strip()
            if text.isdigit() and int(text) < 1 << 60 and (limit is None or int(text) < limit):
                limit = int(text)
                current = read(folder / now, 64).strip()
                used = int(current) if current.isdigit() else None
    return limit, used


def _processors(sheet: Sheet, view: View) -> None:
    count = len(os.sched_getaffinity(view.server.main.pid if view.server else 0))
    quota: float | None = None
    for folder in _cgroup_folders(view, "cpu"):
        most, _, period = read(folder / "cpu.max", 64).strip().partition(" ")
        if not period:
            most, period = read(folder / "cpu.cfs_quota_us", 64).strip(), read(folder / "cpu.cfs_period_us", 64).strip()
        if most.isdigit() and period.isdigit() and int(period):
            quota = min(quota or 1e9, int(most) / int(period))
    usable = min(count, quota) if quota else count
    workers = 1 + sum(p.title.startswith(("Worker", "EngineCore")) for p in view.server.below) if view.server else 1
    status: Status = "note" if usable < workers + 1 else "ok"
    sheet.add("host.cpu", status, f"{usable:g}" + (f" ({count} CPU, cgroup {quota:g})" if quota else ""), workers=workers)  # fmt: skip
    sheet.fact("host.cpus", float(usable))
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    balancing = read(PROC / "sys/kernel/numa_balancing", 8).strip()
    if nodes > 1:
        sheet.add("host.numa", "note" if balancing == "1" else "ok", nodes)


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


def hub_cache(environment: Mapping[str, str]) -> str:
    """Where huggingface_hub keeps what it has downloaded (huggingface_hub/constants.py)."""
    cache = environment.get("XDG_CACHE_HOME", f"{environment.get('HOME', '/root')}/.cache")
    return environment.get("HF_HUB_CACHE", f"{environment.get('HF_HOME', f'{cache}/huggingface')}/hub")


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


def _disks(sheet: Sheet, view: View, model: str | None) -> None:
    environment = view.environment
    home = environment.get("HOME", "/root")
    cache = environment.get("XDG_CACHE_HOME", f"{home}/.cache")
    folders = {
        "hub": hub_cache(environment),
        "vllm": environment.get("VLLM_CACHE_ROOT", f"{cache}/vllm"),
        "triton": environment.get("TRITON_CACHE_DIR", f"{home}/.triton"),
        "inductor": environment.get("TORCHINDUCTOR_CACHE_DIR", "/tmp"),  # noqa: S108 (torch's own default)
    }
    mounts = read_mounts(view)
    for name, folder in folders.items():
        existing = _existing(view, folder)
        if existing is None:
            continue
        _folder(sheet, view, name, folder, existing, mounts)
    found = files_of_model(view, model)
    if found is not None:
        kind = file_system(found, mounts)
        remote = kind in _REMOTE_FILES and kind != "overlay"
        sheet.add("host.model-files", "note" if remote else "ok", f"{found} ({kind})")
        sheet.fact("host.model_file_system", kind)


def _existing(view: View, folder: str) -> Path | None:
    """The folder, or the parent in which it would be made, as we can open it."""
    path = Path(folder)
    for candidate in (path, *path.parents):
        if view.at(candidate).exists():
            return candidate
    return None


def _folder(sheet: Sheet, view: View, name: str, folder: str, existing: Path, mounts: list[tuple[str, str, str]]) -> None:  # fmt: skip
    try:
        found = os.statvfs(view.at(existing))
    except OSError as error:
        sheet.add("host.cache", "unknown", f"{name}: {folder}", detail=str(error.strerror))
        return
    free = found.f_bavail * found.f_frsize
    shown = f"{name}: {folder} ({file_system(str(existing), mounts)}, {_size(free)})"
    if found.f_flag & os.ST_RDONLY:
        sheet.add("host.cache-readonly", "bad", shown)
        sheet.fact("host.cache_writable", "no", shown)
    elif not _may_write(view, existing):
        sheet.add("host.cache-denied", "bad", shown)
        sheet.fact("host.cache_writable", "no", shown)
    elif free < (10 if name == "hub" else 1) * _GIB or found.f_favail < 1000 < found.f_files:
        sheet.add("host.cache-full", "bad" if free < _GIB // 4 else "note", shown)
        sheet.fact("host.disk_free_gib", round(free / _GIB, 2), shown)
    else:
        sheet.add("host.cache", "ok", shown)


def _may_write(view: View, folder: Path) -> bool:
    """Whether the process's user may write there; mode bits are compared, because we may be somebody else."""
    status = read(PROC / view.pid / "status")
    ids = {key: [int(n) for n in values.split()] for key, values in re.findall(r"^(Uid|Gid|Groups):\s*([\d\s]*?)$", status, re.M)}  # fmt: skip
    user = ids.get("Uid", [os.geteuid()])[1 if len(ids.get("Uid", ())) > 1 else 0]
    if user == os.geteuid() and not view.inside:
        return os.access(folder, os.W_OK | os.X_OK)
    if user == 0:
        return True
    found = view.at(folder).stat()
    groups = set(ids.get("Gid", ())) | set(ids.get("Groups", ()))
    shift = 6 if found.st_uid == user else 3 if found.st_gid in groups else 0
    return found.st_mode >> shift & 0o3 == 0o3


def read_mounts(view: View) -> list[tuple[str, str, str]]:
    """(folder, type, options) of the process's mounts, in their order."""
    rows: list[tuple[str, str, str]] = []
    for line in read(PROC / view.pid / "mounts", 4 << 20).splitlines():
        values = line.split()
        if len(values) >= 4:
            rows.append((values[1].replace("\\040", " "), values[2], values[3]))
    return rows


def file_system(path: str, mounts: list[tuple[str, str, str]]) -> str:
    """The type of the file system on which a path lies: that of its longest mount, the last one mounted there."""
    best, kind = "", "?"
    for folder, type_, _ in mounts:
        inside = path == folder or path.startswith(folder.rstrip("/") + "/")
        if inside and len(folder) >= len(best):
            best, kind = folder, type_
    return kind


def _compilers(sheet: Sheet, view: View) -> None:
    folders = view.environment.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    chosen = view.environment.get("CC")
    names = [chosen] if chosen else ["gcc", "cc", "clang"]
    found = next((f"{folder}/{name}" for name in names for folder in folders if name and view.at(f"{folder}/{name}").exists()), None)  # fmt: skip
    if chosen and chosen.startswith("/") and view.at(chosen).exists():
        found = chosen
    sheet.add("host.compiler", "ok" if found else "bad", found or "-")
    sheet.fact("host.compiler", "yes" if found else "no", found or "")
    if view.server is None:
        return
    from tools.processes import interpreter

    python = interpreter(view.server.main.pid)
    if python is not None:
        header = _header(view, python)
        if header is not None:
            sheet.add("host.headers", "ok" if header else "bad", str(python))
            sheet.fact("host.python_headers", "yes" if header else "no", str(python))


def _header(view: View, python: Path) -> bool | None:
    """Whether Python.h of that interpreter is there: Triton and Inductor compile against it."""
    real = process(view.server.main.pid) if view.server else None
    try:
        base = (PROC / view.pid / "exe").readlink()
    except OSError:
        return None
    version = re.search(r"3\.\d+", base.name)
    if real is None or version is None:
        return None
    prefix = base.parent.parent
    return any(view.at(prefix / "include" / f"python{version[0]}{suffix}" / "Python.h").exists() for suffix in ("", "m", "t"))  # fmt: skip


def _lingering(sheet: Sheet, view: View) -> None:
    """Debug variables in the server's environment, and in ours where the next start would inherit them."""
    own: Where = "server" if view.server else "here"
    for where, environment in ((own, view.environment), ("here", os.environ)):
        for name, harmless in LINGERING.items():
            value = environment.get(name)
            if value is None or value.upper() in ("", harmless.upper()):
                continue
            if where == "here" and view.server and view.environment.get(name) == value:
                continue
            status: Status = "note" if name in _MILD else "bad"
            sheet.add(
                "host.lingering",
                status,
                f"{name}={value}",
                where="server" if where == "server" else "here",
                place=where,
            )
            if where == sheet.where:
                sheet.fact(f"environment.{name}", value, f"{name}={value}")
        if view.server is None:
            break
