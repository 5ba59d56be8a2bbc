"""Targets that stand for several servers: the pods that a selector finds in Kubernetes, each a target of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from assistant.diagnosis.looking import kubernetes_of
from assistant.settings import SettingsError
from assistant.targets import Access, Target
from tools.addresses import AddressError, Policy
from tools.outbound import Outbound, OutboundError
from tools.sources.base import Bounds, SourceFailedError

#: More pods of one target than this are left out, and said so.
MOST_PODS = 5_000


async def expanded(
    targets: Mapping[str, Target], policy: Policy, deadline_s: float
) -> tuple[dict[str, Target], tuple[str, ...]]:
    """The targets, those that say ``discover: pods`` replaced by their pods; and a sentence for each that failed.

    A target whose pods cannot be listed stays as it is.
    """
    found: dict[str, Target] = {}
    problems: list[str] = []
    places = {name: place for name, target in targets.items() if (place := _place(target)) is not None}
    listed = await asyncio.gather(*(_pods(targets[name], place, policy, deadline_s) for name, place in places.items()))
    pods = dict(zip(places, listed, strict=True))
    for name, target in targets.items():
        answer = pods.get(name)
        if answer is None or isinstance(answer, str) or not answer:
            found[name] = target
            if name in pods:
                problems.append(f"{name}: {answer or 'no pod matches its selector'}")
            continue
        if len(answer) > MOST_PODS:
            problems.append(f"{name}: {len(answer)} pods match; {MOST_PODS} are looked at")
        for pod, where in answer[:MOST_PODS]:
            # A pod's address is private by its nature; link-local and metadata stay refused.
            found[f"{name}/{pod}"] = replace(
                target, name=f"{name}/{pod}", address=f"http://{where}", private=True, metrics=None, logs=()
            )
    return found, tuple(problems)


def _place(target: Target) -> Access | None:
    return next((a for a in target.logs if a.kind == "kubernetes" and a.options.get("discover")), None)


async def _pods(target: Target, place: Access, policy: Policy, deadline_s: float) -> list[tuple[str, str]] | str:
    try:
        source, allowance = kubernetes_of(place, target)
        async with Outbound(policy.allowing(allowance)) as outbound:
            return await source.addresses(outbound, Bounds(deadline_s=min(deadline_s, 20.0)))
    except (SourceFailedError, OutboundError, AddressError, SettingsError) as error:
        return str(error)
