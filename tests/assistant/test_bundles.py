"""Bundles: the same answer on another machine, no secret in them, and nothing hostile gets through."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assistant.bundles import BundleError, pack, replay, unpack
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import read_case
from assistant.report import bug_report
from knowledge.catalog import load
from tools.logs import LogInput
from tools.redaction import Redactor

LAB = Path(__file__).parents[1] / "data" / "lab"
LOG = (LAB / "tp2-truncated" / "server.log").read_bytes()
SECRET = "hf_" + "aB3dE6gH9j" * 4


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load())


def made(engine: Engine, log: bytes = LOG, text: str = "") -> bytes:
    logs = [LogInput(name="server.log", data=log)] if log else []
    case, _ = read_case(load(), text=text, logs=logs)
    clean = Redactor(addresses=True, emails=True).redact
    return pack(case, engine, clean, logs=[("/var/log/../server.log", log)] if log else [])


@pytest.mark.parametrize("name", sorted(path.name for path in LAB.iterdir() if (path / "server.log").exists())[:20])
def test_a_bundle_gives_the_same_answer_again(engine: Engine, name: str) -> None:
    log = (LAB / name / "server.log").read_bytes()
    bundle = unpack(made(engine, log, "it does not work"))
    diagnosis, same = replay(bundle, engine)
    assert same
    case, _ = read_case(load(), text="it does not work", logs=[LogInput(name="server.log", data=log)])
    before = engine.diagnose(case)
    assert (before.verdict, [f.id for f in before.causes]) == (diagnosis.verdict, [f.id for f in diagnosis.causes])


def test_no_secret_is_in_any_member(engine: Engine) -> None:
    log = LOG + f"\nINFO HF_TOKEN={SECRET} from 203.0.113.77 mail ops@example.org\n".encode()
    data = made(engine, log, f"my key is {SECRET}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            content = archive.read(name).decode()
            assert SECRET not in content and "203.0.113.77" not in content and "ops@example.org" not in content
        assert "logs/01-server.log" in archive.namelist()


def test_the_same_incident_gives_the_same_members(engine: Engine) -> None:
    one, two = (unpack(made(engine)) for _ in range(2))
    assert one.case == two.case and one.logs == two.logs


def test_a_report_has_the_sections_of_the_template(engine: Engine) -> None:
    bundle = unpack(made(engine, text="it stops at start"))
    text = bug_report(replay(bundle, engine)[0], bundle.environment, load())
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Your current environment",
        "## 🐛 Describe the bug",
        "## Before submitting a new issue...",
    ]
    assert "collect_env" in text and "model/corrupt-checkpoint" in text and "it stops at start" in text


def rewritten(data: bytes, change: Callable[[dict[str, bytes]], None], *, honest: bool = True) -> bytes:
    """The bundle with other members; ``honest`` writes the manifest anew, as an attacker would."""
    import hashlib

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    if honest:
        manifest = json.loads(members["manifest.json"])
        manifest["files"] = [
            {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in members.items()
            if name != "manifest.json"
        ]
        members["manifest.json"] = json.dumps(manifest).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def put(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.__setitem__(name, content)


def deep(members: dict[str, bytes]) -> None:
    members["case.json"] = b'{"reading":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def many_facts(members: dict[str, bytes]) -> None:
    case = json.loads(members["case.json"])
    case["reading"]["evidence"] = [{}] * 100_001
    members["case.json"] = json.dumps(case).encode()


def wrong_type(members: dict[str, bytes]) -> None:
    case = json.loads(members["case.json"])
    case["reading"]["evidence"][0]["origin"] = "nowhere"
    members["case.json"] = json.dumps(case).encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("../../etc/cron.d/evil", b"x"), "which no bundle has"),
        (put("/etc/passwd", b"x"), "which no bundle has"),
        (put("logs/..", b"x"), "which no bundle has"),
        (put("logs\\..\\x", b"x"), "which no bundle has"),
        (put("case.json", b"[]"), "no object"),
        (put("case.json", b"\xff\xfe"), "no JSON"),
        (put("evidence/bomb.json", b"0" * (17 << 20)), "larger than a bundle may be"),
        (put("logs/bomb.log", b"0" * (257 << 20)), "larger than a bundle may be"),
        (deep, "no JSON that can be read"),
        (many_facts, "more than 100000 facts"),
        (wrong_type, "not in the form"),
        (lambda members: members.pop("case.json"), "has no case.json"),
        (lambda members: members.update({f"logs/{n}.log": b"" for n in range(200)}), "at most"),
    ],
    ids=[
        "up",
        "absolute",
        "dots",
        "backslash",
        "array",
        "bytes",
        "json-bomb",
        "log-bomb",
        "deep",
        "facts",
        "type",
        "missing",
        "many",
    ],
)
def test_hostile_archives_are_refused_with_a_sentence(
    engine: Engine, change: Callable[[dict[str, bytes]], None], says: str
) -> None:
    with pytest.raises(BundleError, match=says):
        unpack(rewritten(made(engine), change))


def test_a_changed_member_is_noticed(engine: Engine) -> None:
    with pytest.raises(BundleError, match="changed or damaged"):
        unpack(rewritten(made(engine), put("diagnosis.json", b"{}"), honest=False))


def test_links_encryption_doubles_and_noise_are_refused(engine: Engine) -> None:
    packed = io.BytesIO(made(engine))
    with zipfile.ZipFile(packed, "a") as archive:
        entry = zipfile.ZipInfo("logs/link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(BundleError, match="not a plain file"):
        unpack(packed.getvalue())
    for data in (b"", b"PK", b"\0" * 1000, made(engine)[:-40], b"PK\x05\x06" + b"\xff" * 18):
        with pytest.raises(BundleError):
            unpack(data)


def test_flipped_bytes_never_do_more_than_a_sentence(engine: Engine) -> None:
    import random

    rng, data = random.Random(7), made(engine)
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            replay(unpack(bytes(broken)), engine)
        except BundleError:
            continue


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    program = "from assistant.faces.cli.main import main; main()"
    environment = {"HOME": str(home), "COLUMNS": "100", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[2],
    )


def test_create_and_open_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "incident.zip"
    log = LAB / "tp2-truncated" / "server.log"
    made = run("bundle", "create", str(file), "--log", str(log), "--text", "why", home=tmp_path)
    assert made.returncode == 0, made.stderr
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    again = run("bundle", "create", str(file), "--log", str(log), home=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr
    opened = run("bundle", "open", str(file), "-o", "json", home=tmp_path)
    body: dict[str, Any] = json.loads(opened.stdout)
    assert body["causes"][0]["id"] == "model/corrupt-checkpoint" and "same answer" in opened.stderr
    assert "结论" in run("bundle", "open", str(file), "--lang", "zh", home=tmp_path).stderr
    assert "# [Bug]: " in run("bundle", "open", str(file), "--report", home=tmp_path).stdout
    bad = run("bundle", "open", str(log), home=tmp_path)
    assert bad.returncode == 3 and "zip" in bad.stderr
