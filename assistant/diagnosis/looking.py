"""Looking at a configured target: its logs and events, from the places that the targets file names.

Reading is all that happens here. What one place cannot give is a line of ``not_measured``; the others still count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.targets import Access, Target
from tools.addresses import Allowance, Policy
from tools.evidence import Reading
from tools.logs import LogInput, ReadOptions, expand

if TYPE_CHECKING:
    from tools.sources.base import Source
    from tools.sources.kubernetes import Kubernetes


@dataclass(frozen=True, slots=True)
class Found:
    """What a target's places brought: facts, and logs that can be read while :func:`looked_at` is open.

    ``places`` counts the places that were asked, ``answered`` those that answered.
    """

    reading: Reading
    logs: tuple[LogInput, ...]
    places: int
    answered: int


@contextmanager
def looked_at(target: Target, policy: Policy, options: ReadOptions) -> Iterator[Found]:
    """Survey all places of ``target.logs``. The logs found stream while the context is open.

    Raises ``SettingsError`` where a credential that the target names is not there.
    """
    from tools.outbound import OutboundError
    from tools.sources.base import Bounds, SourceFailedError
    from tools.sources.feed import Feed

    if not target.logs:
        yield Found(Reading(), (), 0, 0)
        return
    sources, allowances, reading = sources_of(target)
    bounds = Bounds(_aware(options.since), _aware(options.until), deadline_s=options.deadline_s)
    logs: list[LogInput] = []
    answered = 0
    for access in target.logs:
        if access.kind == "files":
            try:
                logs += expand(access.paths)
                answered += 1
            except OSError as error:
                reading += Reading(not_measured=(("log", error.strerror or str(error)),))
    with Feed(policy.allowing(*allowances), bounds) as feed:
        for source in sources:
            try:
                survey = feed.run(partial(source.survey, feed.outbound, bounds))
            except (SourceFailedError, OutboundError) as error:
                reading += Reading(not_measured=((source.name, str(error)),))
                continue
            answered += 1
            reading += survey.reading
            logs += [LogInput(stream.name, stream=partial(feed.opened, stream)) for stream in survey.streams]
        yield Found(reading, tuple(logs), len(target.logs), answered)


def sources_of(target: Target) -> tuple[list[Source], list[Allowance], Reading]:
    """The places of ``target.logs`` that are asked over a connection, what they need to be reached, and what is wrong.

    Raises ``SettingsError`` where a credential that the target names is not there.
    """
    from tools.addresses import AddressError
    from tools.sources.base import SourceFailedError

    sources: list[Source] = []
    allowances: list[Allowance] = []
    missed: list[tuple[str, str]] = []
    for access in target.logs:
        try:
            source, allowance = _source(access, target)
        except (SourceFailedError, AddressError) as error:
            missed.append((access.kind, str(error)))
            continue
        if source is not None:
            sources.append(source)
        if allowance is not None:
            allowances.append(allowance)
    return sources, allowances, Reading(not_measured=tuple(missed))


def _source(access: Access, target: Target) -> tuple[Source | None, Allowance | None]:
    """The place that ``access`` names, and the server it needs beyond those that the targets file spells out."""
    if access.kind == "loki":
        from tools.sources.loki import Loki

        return Loki("Loki", access.address, access.query, access.headers()), None
    if access.kind == "docker":
        from tools.sources.docker import Docker

        return Docker(f"container {access.address}", access.options["socket"], access.address), None
    if access.kind == "journald":
        from tools.sources.journal import Journal

        return Journal(f"journal of {access.address}", access.address, access.options.get("folder", "")), None
    if access.kind == "kubernetes":
        return kubernetes_of(access, target)
    return None, None


def kubernetes_of(access: Access, target: Target) -> tuple[Kubernetes, Allowance]:
    """The cluster's namespace that ``access`` names, and its API server. Raises ``SourceFailedError``."""
    from tools.sources.kubeconfig import Cluster, from_kubeconfig, in_cluster
    from tools.sources.kubernetes import Kubernetes

    options = access.options
    private = access.private if access.private is not None else target.private
    if options.get("kubeconfig"):
        cluster = from_kubeconfig(Path(options["kubeconfig"]), options.get("context", ""))
    elif access.address == "in-cluster":
        cluster = in_cluster()
        private = True  # the cluster's own service name; its certificate is checked against the mounted authority
    else:
        cluster = Cluster(access.address, ca_file=access.ca_file or target.ca_file)
    headers = access.headers() or cluster.headers
    allowance = replace(
        Allowance.of(cluster.address, private=private, ca_file=access.ca_file or cluster.ca_file),
        ca_data=None if access.ca_file else cluster.ca_data,
        client_cert=cluster.client_cert,
    )
    source = Kubernetes(
        name=f"Kubernetes {options.get('namespace') or cluster.namespace}",
        address=cluster.address,
        namespace=options.get("namespace") or cluster.namespace,
        pod=options.get("pod", ""),
        selector=options.get("selector", ""),
        container=options.get("container", ""),
        headers=headers,
    )
    return source, allowance


def _aware(at: datetime | None) -> datetime | None:
    """A time without a zone is the person's own."""
    return at.astimezone(UTC) if at is not None else None
