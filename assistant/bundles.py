"""One incident in one file: redacted logs, evidence, environment and the diagnosis, to be replayed anywhere.

A bundle is a zip file with ``manifest.json`` first, which lists every other member with its size and SHA-256:

- ``case.json``: all evidence (of logs, metrics, checks, and the person's words and answers); enough to diagnose again
- ``diagnosis.json``: the answer when the bundle was made, computed from the redacted case
- ``environment.json``: version of vLLM and how it was told, of this program, of its knowledge; where the facts come from
- ``evidence/metrics.json``, ``evidence/checks.json``: the figures of live servers and of checks, for people
- ``logs/*``: the logs as they were given, redacted

A bundle comes from strangers: it is read into memory within limits, nothing of it is ever written to disk, and names,
links, sizes, counts and digests are checked before anything is parsed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from assistant import __version__
from assistant.diagnosis.model import Case, Diagnosis, case_from_json

if TYPE_CHECKING:
    from assistant.diagnosis.diagnose import Engine

FORMAT = 1
MEDIA = "application/zip"
#: What a bundle may be: bytes of the file, bytes of all members and of JSON after unpacking, members, facts.
MOST_BYTES, MOST_UNPACKED, MOST_JSON = 64 << 20, 256 << 20, 16 << 20
MOST_MEMBERS, MOST_FACTS = 100, 100_000
_MEMBER = re.compile(r"(?:(?:logs|evidence)/)?[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_WANTED = ("manifest.json", "case.json", "diagnosis.json")
_BEGINNING = (1980, 1, 1, 0, 0, 0)  # the same content gives the same file
_REGULAR = 0o100600 << 16


class BundleError(ValueError):
    """A file that is no bundle, or none that is opened here. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: the case and the answer it was made with; ``logs`` are names and bytes."""

    case: Case
    diagnosis: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    logs: tuple[tuple[str, bytes], ...] = ()


def pack(
    case: Case,
    engine: Engine,
    clean: Callable[[str], str],
    *,
    logs: Sequence[tuple[str, bytes]] = (),
    incident: str | None = None,
    created: datetime | None = None,
) -> bytes:
    """A bundle of one case. ``clean`` removes secrets; the diagnosis in it is computed from what is left.

    Logs are kept from their end where all of them together would be too large. Raises :class:`BundleError`.
    """
    from assistant.store.kept import everywhere

    plain = everywhere(case.to_json(), clean)
    diagnosis = engine.diagnose(case_from_json(plain))
    at = (created or datetime.now(UTC)).isoformat(timespec="seconds")
    facts = plain["reading"]["evidence"]
    members: dict[str, bytes] = {
        "case.json": _json(plain),
        "diagnosis.json": _json(diagnosis.to_json(engine=__version__, created=at, incident=incident)),
        "environment.json": _json(_environment(diagnosis, plain)),
        "evidence/metrics.json": _json([fact for fact in facts if fact["name"].startswith(("metrics.", "server."))]),
        "evidence/checks.json": _json([fact for fact in facts if not _from_logs(fact, plain)]),
    }
    if any(len(content) > MOST_JSON for content in members.values()):
        raise BundleError(f"The evidence is larger than {MOST_JSON >> 20} MiB, which no bundle may hold.")
    members |= _redacted(logs, clean)
    manifest = {
        "vllm-diagnose-bundle": FORMAT,
        "engine": __version__,
        "knowledge": diagnosis.knowledge,
        "created": at,
        "incident": incident,
        "files": [
            {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in members.items()
        ],
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, content in ({"manifest.json": _json(manifest)} | members).items():
            entry = zipfile.ZipInfo(name, _BEGINNING)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, _REGULAR
            archive.writestr(entry, content)
    if packed.tell() > MOST_BYTES:
        raise BundleError(f"The bundle would be larger than {MOST_BYTES >> 20} MiB; give fewer or shorter logs.")
    return packed.getvalue()


def unpack(data: bytes) -> Bundle:
    """Open a bundle in memory. Raises :class:`BundleError` for whatever is not exactly one."""
    if len(data) > MOST_BYTES:
        raise BundleError(f"The file has more than {MOST_BYTES >> 20} MiB, which no bundle has.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, OSError, OverflowError) as error:
        raise BundleError(f"The file is no readable zip archive: {error}.") from None
    except (RuntimeError, ValueError, zlib.error) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"The archive cannot be unpacked: {error}.") from None
    manifest = _parsed(members, "manifest.json")
    _check(manifest, members)
    case, diagnosis = _parsed(members, "case.json"), _parsed(members, "diagnosis.json")
    try:
        if len(case["reading"]["evidence"]) > MOST_FACTS:
            raise BundleError(f"The bundle holds more than {MOST_FACTS} facts.")
        read = case_from_json(case)
    except BundleError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BundleError(
            f"The evidence in the bundle is not in the form that is read here ({error!r:.200})."
        ) from None
    environment = _parsed(members, "environment.json") if "environment.json" in members else {}
    logs = tuple((name.removeprefix("logs/"), data) for name, data in members.items() if name.startswith("logs/"))
    return Bundle(read, diagnosis, environment, manifest, logs)


def replay(bundle: Bundle, engine: Engine, language: Any = None) -> tuple[Diagnosis, bool]:
    """The diagnosis of a bundle on this machine, and whether it is the one that the bundle was made with."""
    case = bundle.case if language is None else replace(bundle.case, language=language)
    try:
        diagnosis = engine.diagnose(case)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BundleError(f"The evidence in the bundle cannot be diagnosed ({error!r:.200}).") from None
    return diagnosis, _essence(diagnosis.to_json(engine="")) == _essence(bundle.diagnosis)


def _essence(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two answers the same answer, whatever the language."""
    causes = body.get("causes")
    rows = causes if isinstance(causes, list) else []
    named = [(row.get("id"), row.get("relation"), row.get("confidence")) for row in rows if isinstance(row, Mapping)]
    return body.get("verdict"), body.get("vllm_version"), body.get("stage"), named


def _members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    entries = archive.infolist()
    if len(entries) > MOST_MEMBERS:
        raise BundleError(f"The archive has {len(entries)} members; a bundle has {MOST_MEMBERS} at most.")
    if len({entry.filename for entry in entries}) != len(entries):
        raise BundleError("The archive has two members of one name.")
    left, found = MOST_UNPACKED, {}
    for entry in entries:
        kind = entry.external_attr >> 16 & 0o170000
        if not _MEMBER.fullmatch(entry.filename) or ".." in entry.filename:
            raise BundleError(f"The archive has a member {entry.filename[:80]!r}, which no bundle has.")
        if kind not in (0, 0o100000) or entry.is_dir():
            raise BundleError(f"{entry.filename} in the archive is not a plain file.")
        if entry.flag_bits & 0x1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"{entry.filename} is encrypted or packed in a way that is not read here.")
        room = left if entry.filename.startswith("logs/") else min(left, MOST_JSON)
        with archive.open(entry) as stream:
            content = stream.read(room + 1)  # the header's word on its size is not believed
        if len(content) > room:
            raise BundleError(f"{entry.filename} is larger than a bundle may be after unpacking.")
        left -= len(content)
        found[entry.filename] = content
    missing = [name for name in _WANTED if name not in found]
    if missing:
        raise BundleError(f"The archive has no {missing[0]}; it is no bundle of vllm-diagnose.")
    return found


def _check(manifest: Any, members: Mapping[str, bytes]) -> None:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), list):
        raise BundleError("The manifest is not one of a bundle.")
    number = manifest.get("vllm-diagnose-bundle")
    if number != FORMAT:
        raise BundleError(f"The bundle has the format {str(number)[:20]}; this program reads {FORMAT}.")
    stated = {str(entry.get("name")): entry.get("sha256") for entry in manifest["files"] if isinstance(entry, dict)}
    if set(stated) != set(members) - {"manifest.json"}:
        raise BundleError("The manifest does not list exactly what the archive holds.")
    for name, digest in stated.items():
        if hashlib.sha256(members[name]).hexdigest() != digest:
            raise BundleError(f"{name} is not what the manifest says; the bundle was changed or damaged.")


def _parsed(members: Mapping[str, bytes], name: str) -> Any:
    try:
        found = json.loads(members[name])
    except (ValueError, RecursionError):
        raise BundleError(f"{name} in the bundle is no JSON that can be read.") from None
    if not isinstance(found, dict):
        raise BundleError(f"{name} in the bundle is no object.")
    return found


def _redacted(logs: Sequence[tuple[str, bytes]], clean: Callable[[str], str]) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    left = MOST_UNPACKED // 4
    for number, (name, data) in enumerate(logs[:50], 1):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", 1)[-1]).strip("-.")[:80] or "log"
        kept = data[-left:] if left else b""
        left -= len(kept)
        text = "".join(clean(line) for line in kept.decode("utf-8", "replace").splitlines(keepends=True))
        members[f"logs/{number:02}-{plain}"] = text.encode("utf-8", "replace")
    return members


def _environment(diagnosis: Diagnosis, plain: Mapping[str, Any]) -> dict[str, Any]:
    facts = plain["reading"]["evidence"]
    said = {
        fact["name"]: fact["value"]
        for fact in facts
        if fact["state"] == "present"
        and fact["name"].startswith(("environment.", "argument.", "engine.", "gpu.", "host."))
    }
    return {
        "vllm_version": diagnosis.vllm_version,
        "vllm_version_source": dict(diagnosis.version_source),
        "stage": diagnosis.stage,
        "facts": said,
        "looked_at": [source["source"] for source in plain["reading"]["looked_at"]],
    }


def _from_logs(fact: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    return any(coverage["source"] == fact["origin"]["source"] for coverage in plain["reading"]["coverage"])


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, indent=1, sort_keys=True).encode()
