"""Jobs: claimed once, fenced, ended in time and on request, and never lost."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from assistant.store import worker as worker_module
from assistant.store.database import Database, NotFoundError, StoreError
from assistant.store.incidents import Incidents
from assistant.store.jobs import MAX_LOG_LINES, Job, Jobs, Lease, LostLeaseError
from assistant.store.schema import JOBS
from assistant.store.worker import Report, Worker

ROOT = Path(__file__).resolve().parents[3]
PROCESSES = Path(__file__).with_name("processes.py")


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


def submit(jobs: Jobs, **more: Any) -> Job:
    options: dict[str, Any] = {"effect": "reads", "deadline_s": 30.0, "requested_by": "ada", **more}
    return jobs.submit("look", {"x": 1}, **options)


def claim(jobs: Jobs, lease_s: float = 30) -> Lease:
    lease = jobs.claim("worker", lease_s)
    assert lease is not None
    return lease


def let_it_run_out(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.update(JOBS).where(JOBS.c.state == "running").values(lease_until=1))


def test_the_life_of_a_job(jobs: Jobs) -> None:
    job = submit(jobs, incident="abc", consent={"by": "ada"})
    assert (job.state, job.arguments, job.consent, job.finished) == ("queued", {"x": 1}, {"by": "ada"}, False)
    lease = claim(jobs)
    assert lease.job.id == job.id and jobs.claim("other", 30) is None
    jobs.report(lease, 0.25, "reading")
    jobs.report(lease, 0.5, "")
    jobs.report(lease, None, "writing \0")
    now = jobs.get(job.id)
    assert (now.state, now.progress, now.doing) == ("running", 0.5, "writing ")
    assert not jobs.extend(lease, 30)
    jobs.finish(lease, "done", result={"found": [1, "显存"]})
    done = jobs.get(job.id)
    assert (done.state, done.progress, done.result, done.finished) == ("done", 1.0, {"found": [1, "显存"]}, True)
    assert [(line.line, line.text) for line in jobs.log(job.id)] == [(1, "reading"), (2, "writing ")]
    assert [line.text for line in jobs.log(job.id, after=1)] == ["writing "]
    assert [entry.id for entry in jobs.recent()] == [job.id] and jobs.recent(state="queued") == []


def test_jobs_are_taken_in_order(jobs: Jobs) -> None:
    made = [submit(jobs).id for _ in range(5)]
    assert [claim(jobs).job.id for _ in range(5)] == made


def test_a_silent_worker_is_interrupted_and_what_it_writes_later_does_not_count(jobs: Jobs, database: Database) -> None:
    job = submit(jobs)
    lease = claim(jobs)
    let_it_run_out(database)
    assert jobs.claim("other", 30) is None
    ended = jobs.get(job.id)
    assert ended.state == "interrupted" and ended.error and ended.finished_at_ms
    for write in (
        lambda: jobs.finish(lease, "done", result=1),
        lambda: jobs.report(lease, 0.9, "still here"),
        lambda: jobs.extend(lease, 30),
    ):
        with pytest.raises(LostLeaseError):
            write()
    assert jobs.get(job.id) == ended and jobs.log(job.id) == []


def test_the_fence_keeps_an_earlier_attempt_of_the_same_owner_out(jobs: Jobs, database: Database) -> None:
    job = submit(jobs, max_attempts=2)
    first = claim(jobs)
    let_it_run_out(database)
    second = claim(jobs)
    assert (first.job.id, first.owner) == (second.job.id, second.owner) and second.fence == first.fence + 1
    with pytest.raises(LostLeaseError):
        jobs.finish(first, "done", result="old")
    jobs.finish(second, "done", result="new")
    assert jobs.get(job.id).result == "new"


def test_what_touches_is_never_tried_twice(jobs: Jobs) -> None:
    with pytest.raises(StoreError, match="once only"):
        submit(jobs, effect="loads", max_attempts=2)
    with pytest.raises(StoreError, match="larger than 8 MiB"):
        jobs.submit("look", {"log": "x" * 9_000_000}, effect="reads", deadline_s=1, requested_by="ada")


def test_a_worker_that_is_stopped_hands_over_what_only_reads(jobs: Jobs) -> None:
    read, touching, unwanted = submit(jobs), submit(jobs, effect="loads"), submit(jobs)
    leases = [claim(jobs) for _ in range(3)]
    jobs.cancel(unwanted.id)
    for lease in leases:
        jobs.hand_over(lease, "The process that worked on it was stopped.")
    assert [jobs.get(job.id).state for job in (read, touching, unwanted)] == ["queued", "interrupted", "cancelled"]
    assert "was stopped" in (jobs.get(touching.id).error or "")
    with pytest.raises(LostLeaseError):
        jobs.finish(leases[0], "done", result="late")
    again = claim(jobs)
    assert (again.job.id, again.fence) == (read.id, 2)
    jobs.finish(again, "done", result="new")
    assert jobs.waiting() == {"queued": 0, "running": 0}


def test_handing_over_has_an_end(jobs: Jobs) -> None:
    job = submit(jobs)
    for _ in range(10):
        jobs.hand_over(claim(jobs), "stopped")
    assert jobs.get(job.id).state == "interrupted" and jobs.claim("worker", 30) is None


def test_cancelling(jobs: Jobs, database: Database) -> None:
    queued = submit(jobs)
    assert jobs.cancel(queued.id).state == "cancelled" and jobs.claim("w", 30) is None
    running = submit(jobs, max_attempts=2)
    lease = claim(jobs)
    assert jobs.cancel(running.id).cancel_wanted and jobs.extend(lease, 30)
    let_it_run_out(database)
    assert jobs.claim("w", 30) is None and jobs.get(running.id).state == "cancelled"
    done = submit(jobs)
    jobs.finish(claim(jobs), "done")
    assert jobs.cancel(done.id).state == "done"
    with pytest.raises(NotFoundError):
        jobs.cancel("nope")


def test_a_key_makes_one_job(jobs: Jobs) -> None:
    one, same, other = submit(jobs, key="k"), submit(jobs, key="k"), submit(jobs, key="l")
    assert one.id == same.id != other.id


def test_a_key_that_comes_several_times_at_once_makes_one_job(jobs: Jobs) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(submit(jobs, key="once").id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6 and len(set(made)) == 1


def test_logs_and_results_are_bounded(jobs: Jobs, database: Database) -> None:
    submit(jobs)
    lease = claim(jobs)
    jobs.report(lease, 0.1, "x" * 100_000)
    assert len(jobs.log(lease.job.id)[0].text) == 2000
    with database.write() as connection:
        connection.execute(sa.text("UPDATE job_log SET line = :n"), {"n": MAX_LOG_LINES})
    jobs.report(lease, 0.2, "too many")
    assert len(jobs.log(lease.job.id)) == 1 and jobs.get(lease.job.id).doing == "too many"
    jobs.finish(lease, "done", result="x" * 9_000_000)
    assert jobs.get(lease.job.id).state == "failed" and "larger than" in (jobs.get(lease.job.id).error or "")


# --- several processes ------------------------------------------------------------------------------------------------


def start(program: str, url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROCESSES), program, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_four_processes_claim_a_thousand_jobs_exactly_once(jobs: Jobs, database: Database, url: str) -> None:
    submit(jobs)
    with database.write() as connection:  # copies of one submitted job, because a thousand commits take their time
        pattern = dict(connection.execute(sa.select(JOBS)).mappings().one())
        del pattern["number"]
        connection.execute(sa.delete(JOBS))
        connection.execute(sa.insert(JOBS), [{**pattern, "id": f"job-{number}"} for number in range(1000)])
    wanted = Counter(f"job-{number}" for number in range(1000))
    workers = [start("claim", url) for _ in range(4)]
    printed = [worker.communicate(timeout=240)[0].splitlines() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    claimed = Counter(line.split()[0] for lines in printed for line in lines)
    assert claimed == wanted
    assert {line.split()[1] for lines in printed for line in lines} == {"1"}
    assert sum(1 for lines in printed if lines) >= 2, "more than one process had its share"
    assert len(jobs.recent(limit=2000, state="done")) == 1000


def killed_at_random(database: Database, url: str, points: int) -> Counter[str]:
    """Kill a writer ``points`` times; afterwards everything that it was told is kept must be there."""
    chance = random.Random(points)
    acknowledged: list[list[str]] = []
    for _ in range(points):
        writer = start("write", url)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(chance.random() * 0.15)
        writer.kill()
        rest, _ = writer.communicate(timeout=60)
        acknowledged += [line.split(" ", 2) for line in (first + rest).split("\n")[:-1] if line]
    incidents, jobs = Incidents(database), Jobs(database)
    claims = Counter((job, fence) for what, job, fence in acknowledged if what == "claimed")
    assert not claims or max(claims.values()) == 1
    for what, identifier, detail in acknowledged:
        if what == "incident":
            assert incidents.get(identifier).diagnosis["number"] == int(detail)
        elif what == "answer":
            assert [answer.value for answer in incidents.get(identifier).answers] == [detail]
            assert incidents.get(identifier).diagnosis["verdict"] == "healthy"
        elif what == "job":
            assert jobs.get(identifier).arguments == {"number": int(detail)}
        elif what == "finished":
            assert jobs.get(identifier).state == "done" and jobs.get(identifier).result
    time.sleep(1.2)  # the writers' leases are one second long
    jobs.give_up_the_dead()
    assert jobs.recent(state="running") == []
    if not database.is_postgres:
        with database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").first() is None
    return Counter(what for what, *_ in acknowledged)


def test_killing_the_writer_loses_nothing_acknowledged(database: Database, url: str) -> None:
    seen = killed_at_random(database, url, 8)
    assert seen["incident"] >= 8


@pytest.mark.slow
def test_killing_the_writer_at_fifty_points_loses_nothing_acknowledged(database: Database, url: str) -> None:
    seen = killed_at_random(database, url, 50)
    assert seen["incident"] >= 50 and seen["answer"] and seen["job"] and seen["finished"]


# --- the worker -------------------------------------------------------------------------------------------------------

Work = Callable[[Job, Report], Awaitable[Any]]


async def working(jobs: Jobs, carry: Work, until: Callable[[], bool], **options: Any) -> None:
    stop = asyncio.Event()
    worker = asyncio.create_task(Worker(jobs, carry, look_every_s=0.02, **options).run(stop))
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline, "the worker did not get there"
        await asyncio.sleep(0.02)
    stop.set()
    await asyncio.wait_for(worker, 20)


def test_a_worker_carries_out_reports_and_ends(jobs: Jobs) -> None:
    async def carry(job: Job, report: Report) -> Any:
        report(0.5, "half way")
        if job.arguments["x"] != 1:
            raise ValueError("no good")
        return {"text": "ok"}

    good = submit(jobs)
    bad = jobs.submit("look", {"x": 2}, effect="reads", deadline_s=5, requested_by="ada")
    asyncio.run(working(jobs, carry, lambda: jobs.get(bad.id).finished and jobs.get(good.id).finished))
    assert (jobs.get(good.id).state, jobs.get(good.id).result) == ("done", {"text": "ok"})
    assert [line.text for line in jobs.log(good.id)] == ["half way"]
    assert (jobs.get(bad.id).state, jobs.get(bad.id).error) == ("failed", "no good")


def test_the_deadline_cancellation_and_the_end_of_the_worker_stop_a_job(jobs: Jobs) -> None:
    stopped: list[str] = []

    async def carry(job: Job, report: Report) -> Any:
        report(None, "begun")
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(job.id)

    late, unwanted, left = submit(jobs, deadline_s=0.1), submit(jobs), submit(jobs)

    def ready() -> bool:
        if jobs.get(unwanted.id).state == "running":
            jobs.cancel(unwanted.id)
        return jobs.get(late.id).finished and jobs.get(unwanted.id).finished and jobs.get(left.id).doing == "begun"

    asyncio.run(working(jobs, carry, ready, lease_s=3.0, at_once=3))
    assert jobs.get(late.id).state == "failed" and "deadline of 0.1 s" in (jobs.get(late.id).error or "")
    assert jobs.get(unwanted.id).state == "cancelled"
    assert jobs.get(left.id).state == "queued", "what only reads is there for another worker"
    assert sorted(stopped) == sorted([late.id, unwanted.id, left.id])


def test_a_long_job_keeps_its_lease_and_a_lost_one_is_let_go(jobs: Jobs, database: Database) -> None:
    ended: list[str] = []

    async def carry(job: Job, report: Report) -> Any:
        try:
            await asyncio.sleep(2.5 if job.arguments["x"] == 1 else 60)
        except asyncio.CancelledError:
            ended.append(job.id)
            raise
        return "kept"

    long = submit(jobs)
    asyncio.run(working(jobs, carry, lambda: jobs.get(long.id).finished, lease_s=1.0))
    assert jobs.get(long.id).result == "kept" and jobs.get(long.id).attempts == 1

    lost = jobs.submit("look", {"x": 2}, effect="reads", deadline_s=60, requested_by="ada")

    def taken() -> bool:
        if jobs.get(lost.id).state == "running":
            with database.write() as connection:
                connection.execute(sa.update(JOBS).values(state="interrupted", owner=None))
        return bool(ended)

    asyncio.run(working(jobs, carry, taken, lease_s=1.0))
    assert ended == [lost.id] and jobs.get(lost.id).result is None


def test_a_worker_outlives_a_database_that_is_away(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job, away, real = submit(jobs), iter(range(5)), jobs.claim

    def sometimes(owner: str, lease_s: float) -> Lease | None:
        if next(away, None) is not None:
            raise StoreError("The database is away.")
        return real(owner, lease_s)

    async def carry(job: Job, report: Report) -> Any:
        return "done"

    monkeypatch.setattr(jobs, "claim", sometimes)
    asyncio.run(working(jobs, carry, lambda: jobs.get(job.id).finished))
    assert jobs.get(job.id).state == "done"


def test_work_that_does_not_listen_is_left_behind(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "STUBBORN_S", 0.1)
    job, release = submit(jobs, deadline_s=0.1), asyncio.Event()

    async def carry(job: Job, report: Report) -> Any:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                report(0.9, "no")
        return "too late"

    async def work() -> None:
        lease = jobs.claim("w", 30)
        assert lease is not None
        await asyncio.wait_for(Worker(jobs, carry).carry_out(lease), 10)
        release.set()

    asyncio.run(work())
    assert jobs.get(job.id).state == "failed" and jobs.get(job.id).result is None
