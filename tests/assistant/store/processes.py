"""Programs that the store tests start as processes of their own: one claims jobs, one writes until it is killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from assistant.store.database import Database
from assistant.store.incidents import Incidents
from assistant.store.jobs import Jobs


def claim_all(url: str) -> None:
    """Claim and finish jobs until none is left; prints each claim."""
    database = Database(url, timeout_s=30)
    jobs = Jobs(database)
    owner = f"process {time.monotonic_ns()}"
    while (lease := jobs.claim(owner, 60)) is not None:
        print(lease.job.id, lease.fence, flush=True)
        jobs.finish(lease, "done", result={"by": owner})


def write_for_ever(url: str) -> None:
    """Write everything that can be acknowledged, and print each thing once the store has acknowledged it."""
    database = Database(url, timeout_s=30)
    incidents, jobs = Incidents(database), Jobs(database)
    number = 0
    while True:
        number += 1
        incident = incidents.save({"verdict": "unknown", "number": number}, ["x" * 2000])
        print("incident", incident, number, flush=True)
        incidents.answer(incident, 1, "scope", f"value {number}", diagnosis={"verdict": "healthy", "number": number})
        print("answer", incident, f"value {number}", flush=True)
        job = jobs.submit("look", {"number": number}, effect="reads", deadline_s=60, requested_by="test")
        print("job", job.id, number, flush=True)
        lease = jobs.claim("writer", 1)
        if lease is not None:
            print("claimed", lease.job.id, lease.fence, flush=True)
            jobs.report(lease, 0.5, "half")
            jobs.finish(lease, "done", result={"number": number})
            print("finished", lease.job.id, number, flush=True)


PROGRAMS: dict[str, Callable[[str], None]] = {"claim": claim_all, "write": write_for_ever}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2])
