"""The service that all server faces stand on: reading in processes of its own, incidents, answers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from assistant import readers as readers_module
from assistant import reading_process
from assistant.readers import Ask, Readers, ReadersError, clean_input
from assistant.running import opened
from assistant.security.roles import LOCAL, ForbiddenError, Principal, Role
from assistant.service import QuestionError, Service
from assistant.settings import Settings, load
from assistant.store import incidents
from assistant.store.incidents import StaleRevisionError

LOG = (Path(__file__).parents[1] / "data" / "lab" / "tp2-truncated" / "server.log").read_bytes()


def settings_in(folder: Path, **more: str) -> Settings:
    environment = {
        "HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
        "VLLM_DIAGNOSE_SERVER_READERS": "1",
        **{f"VLLM_DIAGNOSE_{name}": value for name, value in more.items()},
    }
    return load(environment)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return settings_in(tmp_path)


def running(settings: Settings, work):
    async def main():
        async with opened(settings, work=False) as service:
            return await work(service)

    return asyncio.run(main())


def test_a_log_becomes_a_saved_incident_that_can_be_asked_again_and_answered(settings: Settings) -> None:
    async def work(service: Service):
        first = await service.diagnose(LOCAL, Ask(logs=(("server.log", LOG),), language="zh"), face="test")
        again = await service.incident(LOCAL, first.incident or "")
        later = await service.answer(
            LOCAL, first.incident or "", {"incident.phase": "startup"}, face="test", revision=1
        )
        with pytest.raises(StaleRevisionError):
            await service.answer(LOCAL, first.incident or "", {"incident.phase": "serving"}, face="test", revision=1)
        with pytest.raises(QuestionError, match=r"incident\.phase"):
            await service.answer(LOCAL, first.incident or "", {"incident.phase": "tuesday"}, face="test")
        return first, again, later

    first, again, later = running(settings, work)
    assert first.diagnosis.verdict == "cause"
    assert first.diagnosis.language == "zh"
    assert again.to_json()["causes"] == first.to_json()["causes"]
    assert (again.revision, later.revision) == (1, 2)
    assert first.to_json()["incident"] == first.incident


def test_a_store_that_fails_costs_the_id_and_not_the_answer(settings: Settings) -> None:
    async def work(service: Service):
        service.database.close()
        import sqlalchemy as sa

        path = service.database.path
        assert path is not None
        with sa.create_engine(f"sqlite:///{path}").begin() as connection:
            connection.execute(sa.text("DROP TABLE answers"))
            connection.execute(sa.text("DROP TABLE feedback"))
            connection.execute(sa.text("DROP TABLE incidents"))
        return await service.diagnose(LOCAL, Ask(logs=(("a", LOG),)), face="test")

    answered = running(settings, work)
    assert answered.incident is None
    assert answered.not_saved
    assert answered.diagnosis.verdict == "cause"


def test_scopes_are_kept(settings: Settings) -> None:
    async def work(service: Service):
        narrow = Principal("t", "narrow", Role.viewer, ("search_knowledge",))
        with pytest.raises(ForbiddenError):
            await service.diagnose(narrow, Ask(text="hangs"), face="test")

    running(settings, work)


def test_secrets_do_not_reach_the_store(settings: Settings) -> None:
    secret = "hf_" + "abcdEFGHijklMNOPqrst" * 2

    async def work(service: Service):
        log = LOG + f"\nINFO 11-21 10:00:00 [x.py:1] token {secret}\n".encode()
        answered = await service.diagnose(
            LOCAL, Ask(text=f"why? HF_TOKEN={secret}", logs=((secret, log),)), face="test"
        )
        saved = service.incidents.get(answered.incident or "")
        return str(saved.diagnosis) + str(saved.evidence) + saved.question

    assert secret not in running(settings, work)


def test_a_reading_process_that_dies_fails_its_own_call_and_is_replaced() -> None:
    async def main() -> None:
        readers = Readers(1)
        try:
            await readers.start()
            (dead,) = readers.pids
            call = asyncio.create_task(readers.diagnose(Ask(text="x" * 3_000_000, logs=(("a", LOG * 40),))))
            await asyncio.sleep(0.05)
            os.kill(dead, signal.SIGKILL)
            with pytest.raises(ReadersError, match="send less"):
                await call
            answered = await readers.diagnose(Ask(logs=(("a", LOG),)))
            assert answered.verdict == "cause"
            assert readers.replaced == 1 and dead not in readers.pids
        finally:
            readers.close()
        assert readers.problems()
        with pytest.raises(ReadersError):
            await readers.diagnose(Ask(text="late"))

    asyncio.run(main())


#: Takes a reader some seconds: far longer than it needs to notice that nobody waits.
LARGE = LOG * 700


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until_idle(pid: int, seconds: float = 30) -> None:
    """Wait until a process does nothing for half a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = processor_seconds(pid)
        await asyncio.sleep(0.5)
        if processor_seconds(pid) - before < 0.1:
            return
    raise AssertionError("it goes on")


def test_a_cancelled_call_stops_reading_and_keeps_its_process() -> None:
    async def main() -> None:
        readers = Readers(1)
        try:
            await readers.start()
            (pid,) = readers.pids
            began = processor_seconds(pid)
            await readers.diagnose(Ask(logs=(("a", LARGE),)))
            whole = processor_seconds(pid) - began
            began = processor_seconds(pid)
            call = asyncio.create_task(readers.diagnose(Ask(logs=(("a", LARGE),))))
            waiting = asyncio.create_task(readers.diagnose(Ask(logs=(("b", LOG),))))
            while processor_seconds(pid) - began < whole / 10:  # noqa: ASYNC110 (another process's time)
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (await waiting).verdict == "cause", "whoever waits behind it is served"
            await until_idle(pid)
            assert processor_seconds(pid) - began < whole * 0.8, "it read on for nobody"
            assert readers.pids == (pid,) and readers.replaced == 0 and readers.asked == 0
        finally:
            readers.close()

    asyncio.run(main())


def test_a_call_that_does_not_listen_loses_its_process_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_process, "STUBBORN_S", 0.2)

    async def main() -> None:
        readers = Readers(2)
        try:
            await readers.start()
            before = set(readers.pids)
            assert len(before) == 2
            deaf = asyncio.create_task(readers._run(time.sleep, 60.0))
            await asyncio.sleep(0.2)
            other = asyncio.create_task(readers.diagnose(Ask(logs=(("a", LARGE),))))
            deaf.cancel()
            assert (await other).verdict
            assert (await readers.diagnose(Ask(logs=(("b", LOG),)))).verdict == "cause"
            assert readers.replaced == 1 and len(before & set(readers.pids)) == 1
        finally:
            readers.close()

    asyncio.run(main())


def test_a_call_that_is_too_late_says_so_and_its_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_process, "STUBBORN_S", 0.2)
    monkeypatch.setattr(readers_module, "GRACE_S", 0.2)

    async def main() -> None:
        readers = Readers(1, deadline_s=20)
        try:
            await readers.start()
            readers._deadline_s = 0.5
            with pytest.raises(TimeoutError):
                await readers._run(time.sleep, 60.0)
            readers._deadline_s = 20
            assert (await readers.diagnose(Ask(logs=(("b", LOG),)))).verdict == "cause"
            assert readers.replaced == 1
        finally:
            readers.close()

    asyncio.run(main())


def test_reading_processes_end_with_the_server_however_it_ends(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import asyncio, sys, time\n"
        "from assistant.readers import Readers\n"
        "async def main():\n"
        "    r = Readers(1); await r.start()\n"
        "    print(*r.pids, flush=True); time.sleep(60)\n"
        "if __name__ == '__main__': asyncio.run(main())\n"
    )
    script = tmp_path / "server.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        server.kill()
    until = time.monotonic() + 15
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (Ask(), "Nothing was given"),
        (Ask(text=" \n"), "Nothing was given"),
        (Ask(logs=(("a", b"x"),) * 51), "at most 50"),
    ],
)
def test_what_is_no_question_is_refused_with_a_sentence(ask: Ask, words: str) -> None:
    with pytest.raises(ReadersError, match=words):
        clean_input(ask)


def test_names_of_logs_carry_no_control_characters() -> None:
    named = clean_input(Ask(logs=(("a\x1b[31m\u202eb\n", b"x"), ("\n", b"y"))))
    assert [name for name, _ in named.logs][1] == "log 2"
    assert all(name.isprintable() for name, _ in named.logs)


def test_an_incident_and_the_note_of_who_asked_are_kept_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(service: Service) -> None:
        transactions: list[str] = []
        service.database.observer = lambda kind, seconds, failed: transactions.append(kind)
        ask = Ask(text="my key is sk-proj-Ab3dEf6hIj9lMn2pQr5tUv8x", logs=(("server.log", LOG),))
        kept = await service.diagnose(LOCAL, ask, face="test")
        service.database.observer = None
        assert transactions.count("write") == 1
        saved = service.incidents.get(kept.incident or "")
        assert "sk-proj" not in saved.question and "sk-proj" not in str(saved.evidence)
        assert saved.diagnosis["causes"] and saved.evidence[0]["language"]
        (line,) = service.audit.recent()
        assert (line["did"], line["outcome"], line["detail"]["bytes"]) == ("diagnose", "done", len(LOG))

        monkeypatch.setattr(incidents, "MAX_JSON", 100)
        lost = await service.diagnose(LOCAL, ask, face="test")
        assert lost.incident is None and "larger than" in lost.not_saved and lost.diagnosis.verdict
        assert [line["outcome"] for line in service.audit.recent()] == ["done", "done"]
        assert len(service.incidents.recent()) == 1

    running(settings, work)


def test_a_call_of_the_store_that_is_cancelled_as_it_ends_is_cancelled(settings: Settings) -> None:
    """Whatever the moment: a loop that never hears of it would keep the server from stopping."""

    async def work(service: Service) -> list[int]:
        swallowed: list[int] = []
        for turns in range(8):
            done = threading.Event()

            async def ask(done: threading.Event = done) -> None:
                await service.in_thread(done.set)
                await asyncio.sleep(60)

            call = asyncio.create_task(ask())
            await asyncio.sleep(0)
            assert done.wait(10)  # the loop stands still meanwhile: what came back waits to be seen
            time.sleep(0.02)  # noqa: ASYNC251
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            _, late = await asyncio.wait({call}, timeout=0.5)
            if late:
                swallowed.append(turns)
                call.cancel()
        return swallowed

    assert running(settings, work) == []
