"""A real Prometheus that scrapes servers in many states gives the verdicts that looking at them gives."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.examples import label_of
from assistant.fleet.looking import diagnose_window
from knowledge.catalog import load
from tests.tools.metrics.serving import Servers, serving
from tests.tools.metrics.states import STATES
from tests.tools.prometheus.real import prometheus
from tools.metrics.window import ServerWindow
from tools.outbound import Allowance, Outbound, Policy
from tools.prometheus.client import Prometheus
from tools.prometheus.windows import server_windows

WINDOW_S = 12.0
#: What only the server itself can tell: Prometheus never asks /health.
NOT_KEPT = {"health-fails"}


async def _by_prometheus(folder: Path) -> dict[str, dict[str, ServerWindow]]:
    async with serving(Servers({name: state for name, (state, _) in STATES.items()})) as servers:
        where = servers.base.removeprefix("http://")
        jobs = {name: (where, f"/{name}/metrics") for name in STATES}
        with prometheus(folder, jobs) as url:
            await asyncio.sleep(WINDOW_S + 6)
            async with Outbound(Policy((Allowance.of(url),))) as outbound:
                asked = Prometheus(url, outbound)
                at = time.time()
                return {name: await server_windows(asked, f'job="{name}"', window_s=WINDOW_S, at=at) for name in STATES}


@pytest.mark.slow
def test_every_state_has_the_same_verdict_through_promql(tmp_path: Path) -> None:
    engine = Engine(load())
    found = asyncio.run(_by_prometheus(tmp_path))
    wrong = {}
    for name, (_, right) in STATES.items():
        (window,) = found[name].values() or (ServerWindow("", "no-vllm-series"),)
        diagnosis = diagnose_window(window, name, engine, "en")
        if label_of(diagnosis) not in right and name not in NOT_KEPT:
            wrong[name] = (label_of(diagnosis), right, diagnosis.summary)
    print(f"{len(STATES) - len(wrong)} of {len(STATES)} states right through PromQL")
    assert wrong == {}
