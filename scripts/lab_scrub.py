"""Takes what belongs to the machine out of a capture, and keeps the captures that tests use."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PORT = "8000"
#: A metrics page is 50 kB; only faults that are seen in it keep theirs.
METRICS = ("metrics-0.txt", "metrics-1.txt")
KEPT_FILES = ("server.log", "responses.jsonl")


def scrubbed(text: str, lab: Path, name: str, port: int) -> str:
    """The text with the paths, the user, the host name, the port and the addresses of this machine replaced."""
    capture = lab / "captures" / name
    interpreters = {sys.base_prefix, sysconfig.get_config_var("prefix") or "", _base_of(lab)}
    places = [
        (f"{capture}/model", "/srv/models/tiny"),
        (f"{lab}/model", "/srv/models/tiny"),
        (f"{capture}/cache", "/var/cache/vllm"),
        (f"{capture}/shadow", "/opt/shadow"),
        (str(capture), "/srv/app"),
        (f"{lab}/venv", "/opt/venv"),
        (f"{lab}/home", "/home/vllm"),
        (str(lab), "/opt/lab"),
        *((prefix, "/usr") for prefix in sorted(interpreters, key=len, reverse=True) if len(prefix) > len("/usr")),
    ]
    for place, replacement in places:
        text = text.replace(place, replacement)
    text = re.sub(rf"\b{port}\b", PORT, text)
    text = re.sub(rf"(/tmp/[\w./-]*_){re.escape(getpass.getuser())}\b", r"\1vllm", text)
    text = re.sub(r"/(?:root|home/(?!vllm\b)\w+)(?=/)", "/home/vllm", text)
    text = re.sub(rf"(?<![\w./-]){re.escape(socket.gethostname())}(?![\w/-])(?=[:\s.,'\"])", "gpu-node-1", text)
    text = re.sub(r"\b(?!127\.|0\.0\.0\.0|192\.0\.2\.)(?:\d{1,3}\.){3}\d{1,3}\b(?![.\w])", _documentation_address, text)
    return re.sub(r"\bfd[0-9a-f]{2}:[0-9a-f:]*::?[0-9a-f]+\b", "2001:db8::2", text)


def _documentation_address(match: re.Match[str]) -> str:
    """192.0.2.2 for an address; a version such as 12.4.5.8 of a package is no address of a private range."""
    first = match.group().split(".", 1)[0]
    return "192.0.2.2" if first in {"10", "172", "192", "169", "100"} else match.group()


def _base_of(lab: Path) -> str:
    """The folder of the Python that the laboratory's environment was made from."""
    home = re.search(r"^home = (.+)/bin$", (lab / "venv" / "pyvenv.cfg").read_text(), re.MULTILINE)
    return home.group(1) if home else ""


def keep(
    lab: Path, chosen: Mapping[str, Mapping[str, Any]], faults: Mapping[str, Mapping[str, Any]], kept: Path
) -> int:
    """Writes the scrubbed captures of the chosen faults below ``kept``; the manifest lists all that lie there."""
    for name, fault in chosen.items():
        raw = lab / "captures" / name
        if not (raw / "capture.json").exists():
            print(f"{name:28} no capture yet")
            continue
        facts = json.loads((raw / "capture.json").read_text())
        target = kept / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in (*KEPT_FILES, *(METRICS if fault.get("keep_metrics") else ())):
            if (raw / file).exists():
                text = (raw / file).read_bytes().decode("utf-8", errors="surrogateescape")
                text = scrubbed(text, lab, name, facts["port"])
                (target / file).write_bytes(text.encode("utf-8", errors="surrogateescape"))
        size = sum(path.stat().st_size for path in target.iterdir())
        print(f"{name:28} {size / 1000:6.1f} kB")
    write_manifest(lab, faults, kept)
    return 0


def write_manifest(lab: Path, faults: Mapping[str, Mapping[str, Any]], kept: Path) -> None:
    path = kept / "manifest.yaml"
    manifest: dict[str, Any] = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    for name, fault in faults.items():
        if not (kept / name / "server.log").exists():
            manifest.pop(name, None)
            continue
        entry: dict[str, Any] = {"verdict": "cause" if fault.get("cause") else fault["verdict"]}
        entry |= {key: fault[key] for key in ("cause", "also", "note") if key in fault}
        capture = lab / "captures" / name / "capture.json"
        if capture.exists():
            facts = json.loads(capture.read_text())
            entry |= {"came_up": facts["up"], "exit_status": facts["exit_status"]}
        else:
            entry |= {key: manifest.get(name, {}).get(key) for key in ("came_up", "exit_status")}
        manifest[name] = entry
    heading = (
        "# What a real server (vLLM 0.32.0 for CPU) printed, most often broken on purpose, and the diagnosis\n"
        "# that each capture must get; `also` lists answers that are as acceptable.\n"
        "# Written by `scripts/lab.py keep`; edit tests/lab/faults.yaml instead.\n"
    )
    ordered = {name: manifest[name] for name in faults if name in manifest}
    path.write_text(heading + yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120))
