"""Which version an incident is of: who says so, what the style of lines tells, and which defects that brings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from assistant.diagnosis.defects import of_version, raised
from assistant.diagnosis.diagnose import Engine
from assistant.diagnosis.gather import log_inputs, read_case
from assistant.diagnosis.model import Case
from assistant.diagnosis.version import resolve
from knowledge.catalog import Catalog, load
from knowledge.versions import describe, is_between, parse
from knowledge.vllm_tables import examined, versions
from tools.evidence import Evidence, Origin, Reading


@pytest.fixture(scope="module")
def known() -> Catalog:
    return load()


def stated(*rows: tuple[str, str]) -> Case:
    """A case in which sources (by name) state versions."""
    evidence = tuple(
        Evidence("server.version", "present", version, Origin(source, order=order))
        for order, (source, version) in enumerate(rows)
    )
    return Case(reading=Reading(evidence))


@pytest.mark.parametrize(
    ("text", "number", "build", "table"),
    [
        ("0.10.2", (0, 10, 2, 0), "release", "0.10.2"),
        ("v0.6.3.post1", (0, 6, 3, 1), "release", "0.6.3.post1"),
        ("0.10.1.1", (0, 10, 1, 1), "release", "0.10.1.1"),
        ("0.10.1+gptoss", (0, 10, 1, 0), "release", "0.10.1"),
        ("0.9.1+rocm641", (0, 9, 1, 0), "release", "0.9.1"),
        ("0.32.0+cpu", (0, 32, 0, 0), "release", "0.32.0"),
        ("0.11.0rc2", (0, 11, 0, 0), "candidate", "0.11.0"),
        ("0.29.1rc1.dev339+g5ba1ac1", (0, 29, 1, 0), "development", "0.29.0"),
        ("0.6.3.post2.dev77+gabc", (0, 6, 3, 2), "development", "0.6.3.post1"),
        ("0.8.5.post1+cu128", (0, 8, 5, 1), "release", "0.8.5.post1"),
        ("0.1.dev1+g12ab", None, "unnamed", "newest"),
        ("dev", None, "unnamed", "newest"),
        ("0.0.0", None, "unnamed", "newest"),
        ("0.99.0", (0, 99, 0, 0), "release", "newest"),
    ],
)
def test_builds_and_forks(text: str, number: object, build: str, table: str) -> None:
    found = describe(text)
    assert (found.number, found.build) == (number, build)
    assert examined(text) == (versions()[-1] if table == "newest" else table)


def test_a_fourth_number_is_newer() -> None:
    assert is_between("0.10.1.1", "0.10.1.1", None)
    assert not is_between("0.10.1", "0.10.1.1", None)
    assert parse("0.9.0.1") > parse("0.9.0")  # type: ignore[operator]


def test_a_server_counts_more_than_a_log_and_a_log_more_than_a_person(known: Catalog) -> None:
    case = replace(stated(("server.log", "0.10.2"), ("GET http://h:8000/version", "0.11.0")), vllm_version="0.9.1")
    found = resolve(case, known)
    assert (found.version, found.source) == ("0.11.0", "server")
    assert [(o.source, o.version) for o in found.others] == [("log", "0.10.2"), ("person", "0.9.1")]


def test_sources_that_disagree_are_shown_in_both_languages(known: Catalog) -> None:
    case = replace(stated(("server.log", "0.10.2")), vllm_version="0.11.0")
    for language, words in (
        ("en", "the log says 0.10.2, what you gave says 0.11.0"),
        ("zh", "日志为 0.10.2，你给出的信息为 0.11.0"),
    ):
        diagnosis = Engine(known).diagnose(replace(case, language=language))
        assert any(words in note for note in diagnosis.notes)
        assert diagnosis.vllm_version == "0.10.2"
        assert diagnosis.to_json(engine="x")["vllm_version_source"]["contradicted_by"][0]["version"] == "0.11.0"


def test_sources_that_agree_are_not_mentioned(known: Catalog) -> None:
    found = resolve(replace(stated(("server.log", "0.10.2+cu128")), vllm_version="v0.10.2"), known)
    assert found.others == ()


def test_nothing_known_means_the_newest_and_says_so(known: Catalog) -> None:
    diagnosis = Engine(known).diagnose(Case(text="it hangs"))
    assert diagnosis.vllm_version is None
    assert diagnosis.version_source["from"] == "none"
    assert diagnosis.version_source["assumed"] == versions()[-1]
    assert "newest" in diagnosis.version_label


def test_a_build_without_a_number_is_told(known: Catalog) -> None:
    diagnosis = Engine(known).diagnose(stated(("server.log", "0.1.dev1+g12ab")))
    assert diagnosis.vllm_version is None
    assert any("0.1.dev1+g12ab" in note for note in diagnosis.notes)


def test_a_development_build_is_told(known: Catalog) -> None:
    notes = Engine(known).diagnose(stated(("server.log", "0.29.1rc1.dev339+g5ba1ac1"))).notes
    assert any("development build" in note and "0.29.0" in note for note in notes)


def without_version(case: Case) -> Case:
    evidence = tuple(e for e in case.reading.evidence if e.name != "server.version")
    return replace(case, reading=replace(case.reading, evidence=evidence))


def test_the_style_of_real_logs_gives_an_interval_that_holds_their_version(known: Catalog, captured: Path) -> None:
    narrow = told = 0
    table = versions()
    for log in sorted(captured.glob("*/server.log")):
        case, _ = read_case(known, logs=log_inputs([log]))
        found = resolve(without_version(case), known)
        if found.source != "style":
            continue
        told += 1
        assert found.low is not None and found.high is not None
        assert parse(found.low) <= (0, 32, 0, 0) <= parse(found.high), log.parent.name  # type: ignore[operator]
        narrow += found.low in table and table.index(found.high) - table.index(found.low) < 12
    assert told >= 40
    assert narrow >= 20


OLD = """INFO 07-01 10:00:00 llm_engine.py:161] Initializing an LLM engine (v) with config: model='x'
WARNING 07-01 10:00:10 scheduler.py:702] Input prompt (5000 tokens) is too long and exceeds limit of 4096
INFO 07-01 10:00:20 gpu_executor.py:102] # GPU blocks: 1000, # CPU blocks: 512
"""


def test_old_lines_give_an_old_interval(known: Catalog) -> None:
    case, _ = read_case(known, text=OLD)
    diagnosis = Engine(known).diagnose(case)
    assert diagnosis.vllm_version is None
    source = diagnosis.version_source
    assert source["from"] == "style"
    assert parse(source["until"]) < (0, 8, 0, 0)  # type: ignore[operator]
    assert source["assumed"] == source["until"]
    assert "by the style of its lines" in diagnosis.version_label


def test_a_single_line_that_many_releases_print_decides_nothing(known: Catalog) -> None:
    case = Case(
        reading=Reading((Evidence("log.stage", "present", "ready", Origin("a.log"), "INFO 07-01 10:00:00 [x.py:1] y"),))
    )
    assert resolve(case, known).source == "none"


# -- defects ------------------------------------------------------------------------------------------------------


def test_defects_of_versions(known: Catalog) -> None:
    def of(version: str | None) -> set[str]:
        return {defect.id for defect in of_version(version, known)}

    assert "zmq-start-hang" in of("0.5.3.post1")
    assert "zmq-start-hang" not in of("0.5.1") | of("0.5.4")
    assert "structured-output-stops-engine" in of("0.29.0+cu130")
    assert "structured-output-stops-engine" not in of("0.30.0")
    assert of(None) == set() == of("dev")
    assert len(known.defects) >= 14


def test_a_defect_raises_its_cause_only_with_the_symptom(known: Catalog) -> None:
    engine = Engine(known)
    words = "since this morning requests with guided json return nothing and the server hangs"

    def support(version: str | None, text: str) -> float:
        case, _ = read_case(known, text=text, vllm_version=version)
        _, found = engine.consider(case)
        return next((c.support for c in found if c.cause.id == "engine/structured-output"), 0.0)

    assert support("0.23.0", words) > support("0.30.0", words) > 0
    assert support("0.23.0", "the tokenizer is missing") == support("0.30.0", "the tokenizer is missing")
    assert "engine/structured-output" in raised("0.23.0", known)


def test_a_defect_alone_is_a_note_and_no_answer(known: Catalog) -> None:
    for language, words in (("en", "known defects"), ("zh", "个已知缺陷")):
        diagnosis = Engine(known).diagnose(replace(stated(("server.log", "0.8.4")), language=language))
        assert diagnosis.verdict == "unknown"
        assert sum(words in note for note in diagnosis.notes) == 1


def test_a_matching_defect_is_told_with_its_fix_and_work_around(known: Catalog) -> None:
    case, _ = read_case(known, text="vLLM 0.5.3 hangs at start with two GPUs, nothing is logged", vllm_version="0.5.3")
    notes = [note for note in Engine(known).diagnose(case).notes if "Known defect" in note]
    assert len(notes) == 1
    assert "Fixed in 0.5.4" in notes[0]


def test_the_newest_version_has_no_known_defect_to_tell(known: Catalog) -> None:
    assert not any("defect" in note for note in Engine(known).diagnose(stated(("server.log", "0.33.0"))).notes)
