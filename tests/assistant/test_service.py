"""The service that all server faces stand on: reading in processes of its own, incidents, answers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from assistant.readers import Ask, Readers, ReadersError, clean_input
from assistant.security.roles import LOCAL, ForbiddenError, Principal, Role
from assistant.service import QuestionError, Service, opened
from assistant.settings import Settings, load
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
            pool = readers._opened()
            call = asyncio.create_task(readers.diagnose(Ask(text="x" * 3_000_000, logs=(("a", LOG * 40),))))
            await asyncio.sleep(0.05)
            for process in (pool._processes or {}).values():
                os.kill(process.pid or 0, signal.SIGKILL)
            with pytest.raises(ReadersError, match="send less"):
                await call
            answered = await readers.diagnose(Ask(logs=(("a", LOG),)))
            assert answered.verdict == "cause"
        finally:
            readers.close()
        assert readers.problems()
        with pytest.raises(ReadersError):
            await readers.diagnose(Ask(text="late"))

    asyncio.run(main())


def test_reading_processes_end_with_the_server_however_it_ends(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import asyncio, sys, time\n"
        "from assistant.readers import Readers\n"
        "async def main():\n"
        "    r = Readers(1); await r.start()\n"
        "    print(*(r._opened()._processes), flush=True); time.sleep(60)\n"
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
