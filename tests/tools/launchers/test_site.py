"""Frames that come mixed, cut and twice; host lists; what a site makes of what its nodes and its launcher say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from knowledge.catalog import load
from tools.launchers.frames import FrameReader
from tools.launchers.node_worker import BOOT
from tools.launchers.site import _LOSSES, _REFUSALS, Site, bundled, description, host_names, node_program
from tools.launchers.started import _slurm_error
from tools.sanity.launch import json_line, run_program


def test_frames_of_two_nodes_may_be_mixed_and_read_again() -> None:
    lines = [
        b'0: @vd 0 0 + {"event": "no', b'@vd 1 0 . {"event": "node", "name": "b"}', b'@vd 0 1 . de", "name": "a"}\r\n',
        b"something that a prolog prints", b"@vd 0 2 . no json",
    ]  # fmt: skip
    reader = FrameReader()
    found = [event for line in [*lines, *lines] if (event := reader.read(line))]
    assert found == [{"event": "node", "name": "b", "task": 1}, {"event": "node", "name": "a", "task": 0}]


def test_a_frame_that_is_missing_costs_its_event_and_no_other() -> None:
    reader = FrameReader()
    for line in (b'@vd 0 0 + {"event": "no', b'@vd 0 2 . de"}', b'@vd 0 3 . {"event": "bye"}'):
        last = reader.read(line)
    assert last == {"event": "bye", "task": 0}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n[1-2]", ["n1", "n2"]),
        ("gpu[008-010],login", ["gpu008", "gpu009", "gpu010", "login"]),
        ("a[1,3-4]-ib,b", ["a1-ib", "a3-ib", "a4-ib", "b"]),
        ("", []),
        ("a[1-999999]", []),
    ],
)
def test_host_lists(text: str, names: list[str]) -> None:
    assert host_names(text) == names


def site_of_two() -> Site:
    site = Site()
    site.expected = 2
    hello = {"event": "node", "task": 1, "name": "n2", "host": "n2", "address": "10.0.0.2", "interface": "eth0", "clock": 1.0, "gpus": 8, "settings": {"NCCL_DEBUG": "x\x1b[31m" + "y" * 500}, "nodes": "n[1-2]"}  # fmt: skip
    site.take(hello)
    return site


def test_slurm_says_which_nodes_there_are_and_which_is_lost() -> None:
    site = site_of_two()
    assert [site.parts[task].name for task in (0, 1)] == ["n1", "n2"] and not site.all_here()
    _slurm_error(site, "slurmstepd-n1: error: execve(): /x/python3: No such file or directory")
    _slurm_error(site, "srun: error: n1: task 0: Exited with exit code 2")
    assert site.parts[0].lost is not None and site.parts[0].lost[0] == "broken"
    _slurm_error(site, "srun: error: Node failure on n2")
    assert site.parts[1].lost == ("died", "Node failure on n2")
    assert site.all_here() and site.all_ended("ranks")


def test_what_nodes_say_is_cleaned_and_what_does_not_fit_is_left_out() -> None:
    site = site_of_two()
    told = description(site.parts[1])
    assert told.gpus == 8 and "\x1b" not in told.settings["NCCL_DEBUG"] and len(told.settings["NCCL_DEBUG"]) <= 120
    hostile: list[Any] = [
        {"event": "said", "task": 5000, "of": "ranks", "what": {}}, {"event": "said", "task": 0, "of": "ranks", "what": 7},
        {"event": "refused", "kind": "anything"}, {"event": "nodes", "nodes": 3}, {"event": "lost", "lost": "x", "kind": "died", "text": ""}, {"event": "node"},
    ]  # fmt: skip
    for event in hostile:
        site.take(event)
    assert sorted(site.parts) == [0, 1] and site.refused is None and not site.parts[0].said


def test_the_worker_alone_describes_this_machine_and_follows_commands() -> None:
    """The program as it travels, run by an interpreter that knows nothing of this project."""
    site = Site(["here"])
    reader = FrameReader()

    async def main() -> Any:
        async def talk() -> None:
            await site.wait(site.all_here, 30)
            site.command(do="clock", number=1)
            site.command(do="links", parts={"0": ["--address", "127.0.0.1", "--peers", "", "--ports", "29691", "--seconds", "2"]}, seconds=20)  # fmt: skip
            await site.wait(lambda: site.all_ended("links"), 30)
            site.command(do="end")

        def start(send: Any) -> None:
            site.send = send

        talking = asyncio.create_task(talk())
        ran = await run_program(
            (sys.executable,), node_program(), ["--task", "0", "--address", "127.0.0.1"], environment={"PATH": "/usr/bin:/bin", "NCCL_IB_DISABLE": "1"},
            deadline_s=60, on_event=site.take, on_start=start, read=lambda line: reader.read(line) or json_line(line),
        )  # fmt: skip
        await talking
        return ran

    ran = asyncio.run(main())
    assert ran.status == 0, ran.stderr
    part = site.parts[0]
    assert description(part).settings["NCCL_IB_DISABLE"] == "1" and part.hello and part.hello["address"] == "127.0.0.1"
    assert part.clocks[1][0] > 0 and part.ended["links"]["status"] == 0 and part.over


def test_the_worker_ends_when_its_standard_input_is_closed() -> None:
    source = node_program().encode()  # too long for an argument
    process = subprocess.Popen([sys.executable, "-I", "-c", BOOT, "--task", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdin and process.stdout
    process.stdin.write(f"{len(source)}\n".encode() + source)
    process.stdin.flush()
    assert process.stdout.readline().startswith(b"@vd 0 0 ")
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


def test_a_bundle_carries_texts_unchanged() -> None:
    text = 'print("""it\'s \\n é""")'
    ran = subprocess.run([sys.executable, "-I", "-c", bundled("import json\nprint(json.dumps(PROGRAMS))", {"a": text})], capture_output=True, text=True, timeout=30, check=True)  # fmt: skip
    assert json.loads(ran.stdout) == {"a": text}


def test_every_way_to_be_lost_or_refused_has_its_sentence() -> None:
    sentences = load().sentences
    assert {f"launcher-lost-{kind}" for kind in (*_LOSSES, "broken", "silent", "late", "over", "unmet", "waiting")} <= set(sentences)  # fmt: skip
    assert {f"launcher-{kind}" for kind in _REFUSALS} <= set(sentences)
