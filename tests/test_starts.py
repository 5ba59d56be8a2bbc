"""The five-minute starts of the README, executed as they stand there, in an empty home and a folder like a clone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from tests.assistant.faces.slack.driver import User, wait_for
from tests.assistant.faces.slack.standin import Slack
from tests.tools.prometheus.real import UNPACKED, binary

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "tests/data/lab/tp2-truncated/server.log"
README = (ROOT / "README.md").read_text("utf-8")
#: What a new account has; nothing of ours is in it.
PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
#: Seconds until an alert has come: a scrape, the rule's minute, the group's ten seconds, a look, and a busy machine.
ALERT_S = 300


def blocks(heading: str) -> list[str]:
    """The commands below a heading, up to the next one."""
    assert README.count(f"\n{heading}\n") == 1, heading
    section = re.split(r"\n##+ ", README.split(f"\n{heading}\n", 1)[1])[0]
    found = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found


def script(heading: str) -> str:
    """What every start begins with, and then its own commands."""
    return "\n".join((*blocks("## Five-minute starts"), *blocks(heading)))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with everything of the repository in it, and nothing that a command writes there comes back here."""
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("make install has not been run here")
    folder = tmp_path / "vllm-diagnose"
    folder.mkdir()
    for name in (
        ".venv",
        "Makefile",
        "assistant",
        "constraints.txt",
        "deploy",
        "knowledge",
        "pyproject.toml",
        "tests",
        "tools",
    ):
        (folder / name).symlink_to(ROOT / name)
    return folder


def environment(clone: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(clone.parent), "PATH": PLAIN_PATH, "LANG": "C.UTF-8", **more}


def run(clone: Path, commands: str, seconds: float = 120, **more: str) -> str:
    """What the commands print; each has to succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=clone,
        env=environment(clone, **more),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


def test_on_the_command_line(clone: Path) -> None:
    printed = run(clone, script("### Command line"))
    log, words, answered = (
        printed.index(text) for text in ("model/corrupt-checkpoint", "Not known", "p2p-or-custom-allreduce · ")
    )
    assert log < words < answered
    assert "--answer incident.cured_by_p2p_off=yes" in printed


def test_in_an_ide(clone: Path) -> None:
    """The official client starts what the written files say, as an IDE would: from elsewhere, without our PATH."""
    run(clone, script("### In an IDE (MCP)"))
    code = json.loads((clone / ".vscode/mcp.json").read_text("utf-8"))["servers"]["vllm-diagnose"]
    cursor = json.loads((clone / ".cursor/mcp.json").read_text("utf-8"))["mcpServers"]["vllm-diagnose"]
    assert code == {"type": "stdio", **cursor}

    async def exchange() -> tuple[set[str], Any]:
        started = StdioServerParameters(
            command=cursor["command"], args=cursor["args"], env=environment(clone), cwd=clone.parent
        )
        async with asyncio.timeout(60), Client(started) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            return tools, await client.call_tool("diagnose", {"paths": [str(LOG)]})

    tools, answer = asyncio.run(exchange())
    assert {"diagnose", "estimate_memory", "search_knowledge"} <= tools
    assert answer.structured_content["causes"][0]["id"] == "model/corrupt-checkpoint"


def test_in_slack(clone: Path) -> None:
    """Up to where Slack itself acts: its stand-in takes the two tokens as they stand in the text, and sends the command."""
    commands = script("### In Slack")
    slack = Slack().start()
    for token in re.findall(r"TOKEN=(xoxb-\S+)", commands):
        slack.token(token)
    slack.app_tokens |= set(re.findall(r"TOKEN=(xapp-\S+)", commands))
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=clone,
        env=environment(clone, VLLM_DIAGNOSE_SLACK_API_URL=slack.api_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        wait_for(lambda: slack.socket is not None or process.poll() is not None, 60)
        assert process.poll() is None, process.stdout.read()
        body = User(slack, "http://nowhere.invalid").command_body("it hangs at start with two GPUs")
        slack.send({"type": "slash_commands", "envelope_id": "e1", "payload": body, "accepts_response_payload": True})
        wait_for(lambda: slack.answers()[:1], 60)
        wait_for(lambda: "--version" in json.dumps(slack.answers()[0].blocks), 60)
        assert slack.refused == []
    finally:
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C, as the text says
        printed = process.communicate(timeout=30)[0]
        slack.stop()
    assert "connected" in printed and "Traceback" not in printed, printed


@pytest.mark.slow
def test_alerts(clone: Path) -> None:
    """Real Prometheus and Alertmanager with the shipped files, on the ports of the text, in a network of their own; no vLLM
    answers on port 8000, which is the alert."""
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("a network namespace needs root, unshare and ip")
    prometheus = Path(binary())
    programs = clone.parent / "programs"
    programs.mkdir()
    (programs / "prometheus").symlink_to(prometheus)
    alertmanager = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
    if alertmanager:
        (programs / "alertmanager").symlink_to(alertmanager)
    else:
        # Debian's build reads its templates from a fixed path; unpacked, it gets that path in a mount namespace of its own.
        unpacked = UNPACKED.parents[2]
        if not os.access(unpacked / "usr/bin/prometheus-alertmanager", os.X_OK):
            pytest.skip("there is no Alertmanager here; scripts/prometheus_setup.sh .prometheus unpacks Debian's")
        (programs / "alertmanager").write_text(
            f'#!/bin/sh\nexec unshare --mount sh -c \'mount --bind "$1/usr/share" /usr/share; shift; '
            f'exec "$@"\' sh {unpacked} {unpacked}/usr/bin/prometheus-alertmanager "$@"\n'
        )
        (programs / "alertmanager").chmod(0o755)
    *before, ask = script("### Alerts").rpartition("curl ")
    commands = (
        f"export PATH={programs}:$PATH\nip link set lo up\n{before[0]}\ntrap 'kill %1 %2 %3; wait' EXIT\n"
        f"for _ in $(seq {ALERT_S}); do\n  answer=$(curl {ask.strip()} || true)\n"
        '  case $answer in *serving/endpoint-unreachable*) break;; esac\n  sleep 1\ndone\necho "$answer"; tail -n 5 *.log >&2\n'
    )
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "--net", "bash", "-euo", "pipefail", "-c", commands],
        cwd=clone,
        env=environment(clone),
        capture_output=True,
        text=True,
        timeout=ALERT_S + 120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    print(f"{time.monotonic() - began:.0f} s from the first command to the diagnosed alert")
    found = json.loads(done.stdout[done.stdout.index('{"items"') :])["items"]
    assert len(found) == 1, found
    assert "VllmDown" in done.stdout and "serving/endpoint-unreachable" in done.stdout
