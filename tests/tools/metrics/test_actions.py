"""The actions on a live server: what they return, what they send, and whom they may speak to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from assistant.fleet.naming import policy_of, server_of
from assistant.settings import defaults
from assistant.targets import Secret, Target
from tests.tools.metrics.serving import Servers, serving
from tests.tools.metrics.states import QUEUED, one
from tools import registry
from tools.metrics import actions
from tools.registry import ActionError, Consent, ConsentError, Context, digest_of


def call(name: str, known: bool = True, **arguments: Any) -> tuple[Any, list[str]]:
    """The result of an action on a stand-in called "prod", and the paths that were asked for."""

    async def run() -> tuple[Any, list[str]]:
        async with serving(Servers({"x": one(QUEUED)})) as servers:
            targets = {"prod": Target("prod", servers.url("x"))} if known else {}
            consent = None
            given = {"target": "prod", **arguments}
            if arguments.pop("agreed", False):
                given.pop("agreed")
                whole = registry.get(name).validate(given).model_dump(mode="json")
                consent = Consent(name, digest_of(whole), "somebody", 1e12)
            context = Context(policy=policy_of(defaults(), targets), consent=consent, server=server_of(targets))
            result = await registry.get(name).call(given, context)
            return result, servers.asked

    return asyncio.run(run())


def test_fetch_metrics_returns_figures_and_facts() -> None:
    assert registry.get("fetch_metrics").function is actions.fetch_metrics
    result, asked = call("fetch_metrics", window_s=1.0)
    assert result.answer == "vllm" and result.looks == 5 and result.health == 200
    (engine,) = result.engines
    assert engine.levels["waiting"] == 60
    assert engine.per_second["finished"] == pytest.approx(3, rel=0.2)
    assert {fact.name: fact.value for fact in result.facts}["metrics.waiting"] == 60
    assert set(asked) == {f"/x/{route}" for route in ("metrics", "health", "version", "v1/models", "load")}


def test_what_nobody_allowed_is_not_asked() -> None:
    result, _ = call("fetch_metrics", known=False, target="http://127.0.0.1:1", window_s=0)
    assert result.answer == "not-asked"
    with pytest.raises(ActionError, match="no scheme"):
        call("fetch_metrics", known=False, window_s=0)


def test_a_token_is_asked_for_only_when_somebody_agreed() -> None:
    with pytest.raises(ConsentError):
        call("probe_server")
    result, asked = call("probe_server", agreed=True)
    assert asked == ["/x/v1/models", "/x/v1/completions"]
    assert not result.answered and result.status == 404 and "404" in result.detail


def test_a_credential_goes_to_its_own_server_only(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret\n")
    find = server_of({"prod": Target("prod", "http://a:8000", api_key=Secret(file=str(key)))})
    assert find("prod") == ("http://a:8000", {"Authorization": "Bearer sk-secret"})
    assert find("http://a:8000/metrics")[1] == {"Authorization": "Bearer sk-secret"}
    assert find("http://a:8001")[1] == {} and find("https://a:8000")[1] == {}
