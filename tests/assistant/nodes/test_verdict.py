"""The plan of a group and the verdict over it, from made descriptions: pure, so every combination can be had."""

from __future__ import annotations

from typing import Any

import pytest

from assistant.nodes.gathered import Clock, Gathered
from assistant.nodes.plan import PlanError, make_plan
from assistant.nodes.verdict import judge
from tools.launchers.links import LinksReport, PeerSeen
from tools.launchers.node import NodeDescription
from tools.sanity.nccl import Finding, NcclReport
from tools.sanity.results import Fact, Report


def described(number: int, **more: Any) -> NodeDescription:
    made = {"name": f"host-{number}", "address": f"10.0.0.{number}", "interface": "eth0", "clock": 0.0, "gpus": 0}
    return NodeDescription(**(made | more))


def group(count: int = 2, **settings: dict[str, str]) -> Gathered:
    names = tuple(f"n{number}" for number in range(1, count + 1))
    found = Gathered(names)
    for number, name in enumerate(names, 1):
        found.described[name] = described(number, settings=settings.get(name, {"torch": "2.13.0"}))
        found.clocks[name] = Clock(0.0, 0.01)
    found.plan = make_plan(list(found.described.items()))
    for name in names:
        peers = [PeerSeen(peer=found.plan.place(p).address, ports={"29500": "open", "29501": "open"}, largest=1500) for p in found.plan.peers[name]]  # fmt: skip
        found.links[name] = LinksReport(address=found.plan.place(name).address, mtu=1500, peers=peers)
        found.tests[name] = NcclReport(tool="run_nccl_test", verdict="ok", summary="")
    return found


def failed(kind: str, stage: str, ranks: list[int], at: float | None) -> NcclReport:
    finding = Finding(kind=kind, stage=stage, ranks=ranks, severity="bad", text=f"{kind} of {ranks}")
    facts = [Fact(name="collective.fault", value=kind)]
    return NcclReport(tool="run_nccl_test", verdict="bad", summary="", findings=[finding], failed_at=at, facts=facts)


def values(report: Report, identity: str) -> list[str]:
    return [str(check.value) for check in report.checks if check.id == f"cluster.{identity}"]


def test_ranks_are_numbered_by_gpus_and_every_pair_is_tried_up_to_sixteen() -> None:
    plan = make_plan([("a", described(1, gpus=8)), ("b", described(2, gpus=4)), ("c", described(3))])
    assert [(p.first_rank, p.here) for p in plan.places] == [(0, 8), (8, 4), (12, 1)]
    assert (plan.ranks, plan.master, plan.star) == (13, "10.0.0.1:29500", False)
    assert plan.peers["b"] == ("a", "c") and plan.node_of(11) == "b"
    many = make_plan([(f"n{k}", described(k)) for k in range(1, 18)])
    assert many.star and len(many.peers["n1"]) == 16 and many.peers["n9"] == ("n1",)
    assert sum(len(peers) for peers in many.peers.values()) == 32


@pytest.mark.parametrize("nodes", [[("a", described(1))], [("a", described(1)), ("b", described(1))], [("a", described(1)), ("b", described(2, address=None))]])  # fmt: skip
def test_what_cannot_be_a_group_is_said(nodes: Any) -> None:
    with pytest.raises(PlanError):
        make_plan(nodes)


def test_all_in_order() -> None:
    report = judge(group(3), "en")
    assert report.verdict == "ok" and "3 ranks on 3 nodes" in report.summary
    assert "3 个节点" in judge(group(3), "zh").summary


def test_who_stands_apart_is_named_and_a_mere_kernel_is_a_note() -> None:
    usual = {"torch": "2.13.0", "kernel": "6.1"}
    found = group(3, n1=usual, n2=usual, n3={"torch": "2.12.0", "kernel": "6.2", "NCCL_IB_DISABLE": "1"})
    report = judge(found, "en")
    by_name = {str(check.value).split(" ")[0]: check for check in report.checks if check.id == "cluster.differs"}
    assert by_name["torch"].status == "bad" and "n3: 2.12.0" in str(by_name["torch"].value)
    assert "n1" not in str(by_name["torch"].value)
    assert by_name["kernel"].status == "note" and by_name["NCCL_IB_DISABLE"].status == "bad"


def test_the_rank_that_caused_it_stands_before_those_that_noticed() -> None:
    found = group(3)
    found.tests["n1"] = failed("peer-lost", "gloo", [0], 100.0)
    found.tests["n2"] = failed("peer-lost", "gloo", [1], 99.0)
    found.tests["n3"] = failed("rank-died", "gloo", [2], 101.0)
    report = judge(found, "en")
    assert values(report, "rank") == ["n3: rank 2"]
    assert [fact.value for fact in report.facts] == ["rank-died"]


def test_a_rank_that_never_came_is_looked_for_on_its_own_node() -> None:
    found = group(2)
    found.tests["n1"] = failed("rank-never-started", "barrier", [1], 100.0)
    found.tests["n2"] = failed("no-torch", "import", [1], 90.0)
    assert values(judge(found, "en"), "rank") == ["n2: rank 1"]
    assert judge(found, "en").summary.endswith("no-torch of [1]")


def test_the_order_of_two_nodes_is_only_told_where_the_clocks_can() -> None:
    found = group(2)
    found.tests["n1"] = failed("peer-lost", "gloo", [0], 100.0)
    found.tests["n2"] = failed("peer-lost", "gloo", [1], 101.0)
    assert values(judge(found, "en"), "first") == ["n1"]
    found.clocks["n2"] = Clock(5.0, 0.01)  # its clock is ahead: it failed at 96 on ours
    assert values(judge(found, "en"), "first") == ["n2"]
    found.clocks["n2"] = Clock(0.0, 2.0)
    (row,) = [check for check in judge(found, "en").checks if check.id == "cluster.first"]
    assert row.status == "unknown"


def test_links_name_the_pair_the_port_and_the_packet() -> None:
    found = group(2)
    found.links["n1"].peers[0] = PeerSeen(peer="10.0.0.2", ports={"29500": "open", "29501": "silent"}, largest=1500)
    found.links["n2"].peers[0] = PeerSeen(peer="10.0.0.1", ports={"29500": "open", "29501": "open"}, largest=1280)
    report = judge(found, "en")
    assert values(report, "port") == ["n1 → n2"] and values(report, "mtu") == ["n2 → n1"]
    shut = {"29500": "refused", "29501": "silent"}
    found.links["n1"].peers[0] = PeerSeen(peer="10.0.0.2", ports=shut)
    assert values(judge(found, "en"), "link") == ["n1 → n2"]


def test_a_port_that_its_owner_could_not_listen_on_is_no_firewall() -> None:
    found = group(2)
    found.links["n2"] = found.links["n2"].model_copy(update={"taken": {"29501": "EADDRINUSE"}})
    found.links["n1"].peers[0] = PeerSeen(peer="10.0.0.2", ports={"29500": "open", "29501": "other"}, largest=1500)
    report = judge(found, "en")
    assert values(report, "taken") == ["n2: 29501"] and not values(report, "port")


def test_a_pair_that_was_connected_before_was_cut() -> None:
    found = group(2)
    found.tests["n1"] = failed("ranks-missing", "barrier", [1], 100.0)
    found.tests["n2"] = failed("master-unreachable", "rendezvous", [1], 100.0)
    found.again["n1"] = LinksReport(address="10.0.0.1", mtu=1500, peers=[PeerSeen(peer="10.0.0.2", ports={"29500": "silent"})])  # fmt: skip
    report = judge(found, "en")
    assert values(report, "cut") == ["n1 ↔ n2"] and "cut" in report.summary
    assert [check.status for check in report.checks if check.id == "cluster.rank"] == ["note"]
    assert not report.facts


def test_a_node_that_does_not_answer_is_the_answer() -> None:
    found = Gathered(("a", "b"), lost={"b": "b: refused."})
    report = judge(found, "en")
    assert report.verdict == "bad" and report.summary.startswith("b does not answer")
