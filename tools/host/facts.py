"""What `check_host` needs to know of a machine or a container, as plain data. Nothing here judges.

Stands alone (standard library, Python 3.9), as everything that launchers bring to nodes: hence no slots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.host.packages import Packages
from tools.proc import PROC, read

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


class Place:
    """A machine or container as one process of it sees it. ``inside`` is whether its files are not ours."""

    def __init__(self, pid: str, inside: bool, environment: Mapping[str, str]) -> None:
        self.pid, self.inside, self.environment = pid, inside, environment
        self.root = PROC / pid / "root" if inside else Path("/")

    def at(self, path: str | Path) -> Path:
        """A path of the process as we can open it."""
        return self.root / str(path).lstrip("/")


@dataclass(frozen=True)
class Space:
    """Bytes of a file system; ``error`` says why there are none."""

    total: int = 0
    free: int = 0
    error: str = ""


@dataclass(frozen=True)
class Folder:
    """A cache's folder: on which kind of file system it lies, or would be made, and whether the process may write there."""

    name: str
    folder: str
    kind: str
    free: int = 0
    files: int = 0
    files_free: int = 0
    read_only: bool = False
    writable: bool = True
    error: str = ""


@dataclass(frozen=True)
class HostFacts:
    """Sizes in bytes; a limit of -1 is none. ``compiler`` is empty where there is none; ``model`` is a folder and its file
    system, ``headers`` an interpreter and whether its Python.h is there; None is "not known" or "does not apply"."""

    shm: Space
    memlock: int | None
    may_lock: bool
    open_files: int | None
    memory: int
    memory_free: int
    swap: int
    swap_free: int
    cgroup_memory: int | None
    cgroup_used: int | None
    cpus: int
    cpu_quota: float | None
    numa_nodes: int
    numa_balancing: bool
    compiler: str
    folders: tuple[Folder, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    open_files_used: int = 0
    workers: int = 1
    model: tuple[str, str] | None = None
    headers: tuple[str, bool] | None = None
    packages: Packages | None = None


def gather(
    place: Place,
    *,
    workers: int = 1,
    open_files_used: int = 0,
    model: str | None = None,
    python: str | None = None,
    packages: Packages | None = None,
) -> HostFacts:
    """Look. ``python`` is the interpreter whose headers matter, ``model`` a folder as the process sees it."""
    memory = {key: int(value) * 1024 for key, value in re.findall(r"^(\w+):\s+(\d+) kB", read(PROC / "meminfo"), re.M)}
    limits = read(PROC / place.pid / "limits")
    limit, used = cgroup_memory(place)
    mounts = read_mounts(place)
    header = has_headers(place) if python is not None else None
    return HostFacts(
        shm=_shared_memory(place),
        memlock=_limit(limits, "Max locked memory"),
        may_lock=_may_lock(place),
        open_files=_limit(limits, "Max open files"),
        open_files_used=open_files_used,
        memory=memory.get("MemTotal", 0),
        memory_free=memory.get("MemAvailable", 0),
        swap=memory.get("SwapTotal", 0),
        swap_free=memory.get("SwapFree", 0),
        cgroup_memory=limit,
        cgroup_used=used,
        cpus=len(os.sched_getaffinity(int(place.pid) if place.pid.isdigit() else 0)),
        cpu_quota=cpu_quota(place),
        workers=workers,
        numa_nodes=len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))),
        numa_balancing=read(PROC / "sys/kernel/numa_balancing", 8).strip() == "1",
        folders=tuple(_folders(place, mounts)),
        model=(model, file_system(model, mounts)) if model is not None else None,
        compiler=_compiler(place),
        headers=(str(python), header) if header is not None else None,
        environment={name: place.environment[name] for name in LINGERING if name in place.environment},
        packages=packages,
    )


def _shared_memory(place: Place) -> Space:
    try:
        found = os.statvfs(place.at("/dev/shm"))  # noqa: S108 (it is what is looked at)
    except OSError as error:
        return Space(error=str(error.strerror))
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def _may_lock(place: Place) -> bool:
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", read(PROC / place.pid / "status"), re.MULTILINE)
    return bool(int(capabilities[1], 16) >> _CAP_IPC_LOCK & 1) if capabilities else False


def _limit(text: str, name: str) -> int | None:
    """The soft limit; -1 is no limit."""
    found = re.search(rf"^{name}\s+(\S+)", text, re.MULTILINE)
    if not found:
        return None
    return -1 if found[1] == "unlimited" else int(found[1])


def _cgroup_folders(place: Place, controller: str) -> list[Path]:
    """The folders of the process's control group, its own first, then its parents (a parent's limit holds as well)."""
    for line in read(PROC / place.pid / "cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        base = Path("/sys/fs/cgroup") if not names else Path("/sys/fs/cgroup") / controller
        if not names or controller in names.split(","):
            folder = base / path.strip("/")
            return [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]
    return []


def cgroup_memory(place: Place) -> tuple[int | None, int | None]:
    """The smallest limit that holds for the process and what is used of it, in bytes."""
    limit: int | None = None
    used: int | None = None
    for folder in _cgroup_folders(place, "memory"):
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            text = read(folder / most, 64).strip()
            if text.isdigit() and int(text) < 1 << 60 and (limit is None or int(text) < limit):
                limit = int(text)
                current = read(folder / now, 64).strip()
                used = int(current) if current.isdigit() else None
    return limit, used


def cpu_quota(place: Place) -> float | None:
    """CPUs that the control groups of the process grant; None is all."""
    quota: float | None = None
    for folder in _cgroup_folders(place, "cpu"):
        most, _, period = read(folder / "cpu.max", 64).strip().partition(" ")
        if not period:
            most, period = read(folder / "cpu.cfs_quota_us", 64).strip(), read(folder / "cpu.cfs_period_us", 64).strip()
        if most.isdigit() and period.isdigit() and int(period):
            quota = min(quota or 1e9, int(most) / int(period))
    return quota


def hub_cache(environment: Mapping[str, str]) -> str:
    """Where huggingface_hub keeps what it has downloaded (huggingface_hub/constants.py)."""
    cache = environment.get("XDG_CACHE_HOME", f"{environment.get('HOME', '/root')}/.cache")
    return environment.get("HF_HUB_CACHE", f"{environment.get('HF_HOME', f'{cache}/huggingface')}/hub")


def _folders(place: Place, mounts: list[tuple[str, str, str]]) -> list[Folder]:
    environment = place.environment
    home = environment.get("HOME", "/root")
    cache = environment.get("XDG_CACHE_HOME", f"{home}/.cache")
    wanted = {
        "hub": hub_cache(environment),
        "vllm": environment.get("VLLM_CACHE_ROOT", f"{cache}/vllm"),
        "triton": environment.get("TRITON_CACHE_DIR", f"{home}/.triton"),
        "inductor": environment.get("TORCHINDUCTOR_CACHE_DIR", "/tmp"),  # noqa: S108 (torch's own default)
    }
    found: list[Folder] = []
    for name, folder in wanted.items():
        existing = _existing(place, folder)
        if existing is None:
            continue
        kind = file_system(str(existing), mounts)
        try:
            space = os.statvfs(place.at(existing))
            found.append(
                Folder(
                    name,
                    folder,
                    kind,
                    free=space.f_bavail * space.f_frsize,
                    files=space.f_files,
                    files_free=space.f_favail,
                    read_only=bool(space.f_flag & os.ST_RDONLY),
                    writable=_may_write(place, existing),
                )
            )
        except OSError as error:
            found.append(Folder(name, folder, kind, error=str(error.strerror)))
    return found


def _existing(place: Place, folder: str) -> Path | None:
    """The folder, or the parent in which it would be made, as we can open it."""
    path = Path(folder)
    for candidate in (path, *path.parents):
        if place.at(candidate).exists():
            return candidate
    return None


def _may_write(place: Place, folder: Path) -> bool:
    """Whether the process's user may write there; mode bits are compared, because we may be somebody else."""
    status = read(PROC / place.pid / "status")
    ids = {key: [int(n) for n in values.split()] for key, values in re.findall(r"^(Uid|Gid|Groups):\s*([\d\s]*?)$", status, re.M)}  # fmt: skip
    user = ids.get("Uid", [os.geteuid()])[1 if len(ids.get("Uid", ())) > 1 else 0]
    if user == os.geteuid() and not place.inside:
        return os.access(folder, os.W_OK | os.X_OK)
    if user == 0:
        return True
    found = place.at(folder).stat()
    groups = set(ids.get("Gid", ())) | set(ids.get("Groups", ()))
    shift = 6 if found.st_uid == user else 3 if found.st_gid in groups else 0
    return found.st_mode >> shift & 0o3 == 0o3


def read_mounts(place: Place) -> list[tuple[str, str, str]]:
    """(folder, type, options) of the process's mounts, in their order."""
    rows: list[tuple[str, str, str]] = []
    for line in read(PROC / place.pid / "mounts", 4 << 20).splitlines():
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


def _compiler(place: Place) -> str:
    """The C compiler that Triton and Inductor would call."""
    chosen = place.environment.get("CC")
    if chosen and chosen.startswith("/") and place.at(chosen).exists():
        return chosen
    folders = place.environment.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    names = [chosen] if chosen else ["gcc", "cc", "clang"]
    return next((f"{folder}/{name}" for name in names for folder in folders if name and place.at(f"{folder}/{name}").exists()), "")  # fmt: skip


def has_headers(place: Place) -> bool | None:
    """Whether Python.h of the process's interpreter is there: Triton and Inductor compile against it."""
    try:
        base = (PROC / place.pid / "exe").readlink()
    except OSError:
        return None
    version = re.search(r"3\.\d+", base.name)
    if version is None:
        return None
    prefix = base.parent.parent
    return any(place.at(prefix / "include" / f"python{version[0]}{suffix}" / "Python.h").exists() for suffix in ("", "m", "t"))  # fmt: skip
