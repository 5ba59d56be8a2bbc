"""Entering releases in the tables: what changes, what stays, what is reported."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import releases

from knowledge import vllm_tables
from knowledge.history import entry_at, expand, fold, ranges, render
from knowledge.sources import ROOT
from knowledge.sync.release import read_release
from knowledge.sync.touched import touched
from knowledge.sync.update import TABLES, update

LEVEL = {"level": "WARNING", "topic": "model", "says": ["The model {name} is loading slowly."]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Knowledge with one message, no versions yet, and a few files that name things."""
    root = tmp_path / "knowledge"
    (root / "vllm").mkdir(parents=True)
    messages = {"_meta": {"versions": ["9.0.0"]}, "messages": {"slow-model": {"9.0.0": LEVEL}}}
    (root / "vllm" / "messages.json").write_text(render(messages))
    for name in ("causes/model", "normal", "documents/en", "messages"):
        (root / name).mkdir(parents=True)
    (root / "intents.yaml").write_text(
        "fewer-extras: {title: {en: a, zh: b}, argument: extra_39, spelled: [{since: 9.0.0, flag: --extra-39}]}\n"
    )
    (root / "causes/model/extra.yaml").write_text(
        "fixes:\n  - intent: fewer-extras\nwhen: {argument.extra_38: {is: 1}}\n"
    )
    (root / "documents/en/model.md").write_text("Use `--extra-38`, never `--extra-380`.\n")
    (root / "tree.yaml").write_text("start: x\n")
    (root / "observables.yaml").write_text("x: 1\n")
    return root


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "vllm").iterdir())}


def test_a_table_is_what_its_changes_add_up_to() -> None:
    snapshots = {
        "0.9.0": {"a": {"kind": "int", "default": 1}},
        "0.10.0": {"a": {"kind": "int"}, "b": {"kind": "str"}},
        "0.10.1": {"b": {"kind": "str"}},
        "0.10.1.1": {"a": {"kind": "float"}, "b": {"kind": "str"}},
    }
    table = fold(snapshots)
    assert expand(table, snapshots) == snapshots
    assert table["a"] == {
        "0.9.0": {"kind": "int", "default": 1},
        "0.10.0": {"default": None},
        "0.10.1": None,
        "0.10.1.1": {"kind": "float"},
    }
    assert ranges(table["a"]) == [("0.9.0", "0.10.1"), ("0.10.1.1", None)]
    assert entry_at(table["a"], "0.9.5") == {"kind": "int", "default": 1}
    assert entry_at(table["b"], "0.9.9") is None


def test_the_second_time_changes_nothing(root: Path, tmp_path: Path) -> None:
    release = read_release(releases.by_fields(tmp_path / "r"))
    assert update("9.1.0", release, root).written == [*TABLES, "renames.json"]
    before = files(root)
    again = update("9.1.0", release, root)
    assert (again.known, again.written) == (True, [])
    assert files(root) == before


def test_the_order_in_which_releases_are_entered_does_not_matter(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    older = read_release(releases.by_fields(tmp_path / "a"))
    newer = read_release(releases.by_fields(tmp_path / "b", extra=38))
    for folder, order in ((root, (older, newer)), (other, (newer, older))):
        for release in order:
            update("9.1.0" if release is older else "9.2.0", release, folder)
    assert files(root) == files(other)


def test_what_is_new_gone_and_renamed_and_who_names_it(root: Path, tmp_path: Path) -> None:
    update("9.1.0", read_release(releases.by_fields(tmp_path / "a")), root)
    changes = update("9.2.0", read_release(releases.by_fields(tmp_path / "b", extra=38)), root)
    assert changes.before == "9.1.0"
    assert changes.tables["flags.json"].gone == ["--extra-38", "--extra-39"]
    rows = {row.name: row for row in touched(changes, root)}
    assert rows["--extra-39"].intents_to_mend == ["fewer-extras"]
    assert rows["--extra-39"].causes == ["model/extra"]
    assert rows["--extra-38"].documents == ["documents/en/model.md"]
    assert rows["--extra-38"].conditions == ["model/extra: argument.extra_38"]
    assert "--extra-38: " not in (root / "vllm/flags.json").read_text()
    assert entry_at(json.loads((root / "vllm/flags.json").read_text())["flags"]["--extra-39"], "9.2.0") is None


def test_a_successor_that_the_sources_name_is_noted(root: Path, tmp_path: Path) -> None:
    changes = update("9.1.0", read_release(releases.by_fields(tmp_path / "a")), root)
    assert ("--old-size", "--max-num-batched-tokens", True) in changes.tables[
        "flags.json"
    ].renamed or not changes.before
    update("0.4.0", read_release(releases.by_hand(tmp_path / "h")), root)
    again = update("9.1.0", read_release(releases.by_fields(tmp_path / "a")), root)
    assert again.before == "0.4.0"


def test_a_message_in_other_words_is_learnt(root: Path, tmp_path: Path) -> None:
    update("9.1.0", read_release(releases.by_fields(tmp_path / "a")), root)
    update("9.2.0", read_release(releases.by_fields(tmp_path / "b", moved="being loaded")), root)
    history = json.loads((root / "vllm/messages.json").read_text())["messages"]["slow-model"]
    assert entry_at(history, "9.1.0") == LEVEL
    assert entry_at(history, "9.2.0") == {**LEVEL, "says": ["The model {name} is being loaded slowly."]}


def test_a_dry_run_writes_nothing(root: Path, tmp_path: Path) -> None:
    before = files(root)
    changes = update("9.1.0", read_release(releases.by_fields(tmp_path / "a")), root, dry_run=True)
    assert changes.tables["flags.json"].new
    assert files(root) == before


def test_the_diff_of_a_release_is_what_it_changed(root: Path, tmp_path: Path) -> None:
    update("9.1.0", read_release(releases.by_fields(tmp_path / "a")), root)
    before = [line.rstrip(",") for line in (root / "vllm/flags.json").read_text().splitlines()]
    update("9.2.0", read_release(releases.by_fields(tmp_path / "b", extra=38)), root)
    after = [line.rstrip(",") for line in (root / "vllm/flags.json").read_text().splitlines()]
    added = [line for line in after if line not in before and "_meta" not in line]
    assert sorted(set(added)) == ['   "9.2.0": null']


# -- the tables of this repository --------------------------------------------------------------------------------


def test_every_minor_release_from_0_4_to_the_newest_is_there() -> None:
    minors = {tuple(map(int, version.split(".")[:2])) for version in vllm_tables.versions()}
    newest = max(minors)
    assert newest >= (0, 33)
    assert minors == {(0, minor) for minor in range(4, newest[1] + 1)}


def test_the_tables_are_written_as_the_program_writes_them() -> None:
    for name in TABLES:
        path = ROOT / "vllm" / name
        document = json.loads(path.read_text(encoding="utf-8"))
        assert render(document) == path.read_text(encoding="utf-8"), name
        section = TABLES[name]
        versions = document["_meta"]["versions"]
        assert fold(expand(document[section], versions)) == document[section], name


@pytest.mark.parametrize(
    ("version", "name", "kind", "default"),
    [
        ("0.4.2", "--swap-space", "int", 4),
        ("0.6.3", "--swap-space", "float", 4),
        ("0.10.2", "-tp", "int", 1),
        ("0.19.1", "--gpu-memory-utilization", "float", 0.9),
        ("0.20.1", "--gpu_memory_utilization", "float", 0.92),
        ("0.29.1rc1.dev339+g5ba1ac1", "--no-enable-prefix-caching", "bool", None),
        ("0.33.0+cu130", "--device-memory-utilization", "float", 0.92),
        ("0.32.0", "max_num_seqs", "int", None),
    ],
)
def test_an_argument_of_a_version(version: str, name: str, kind: str, default: object) -> None:
    found = vllm_tables.flag(version, name)
    assert found is not None
    assert (found.kind, found.default) == (kind, default)


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.18.0", "--swap-space"),
        ("0.6.4", "--no-enable-prefix-caching"),
        ("0.10.1", "--h11-max-header-count"),
        ("0.8.4", "--compilation-config.level"),
        ("0.33.0", "--structured-outputs-config.no_such_field"),
        ("0.12.0", "--task-"),
    ],
)
def test_an_argument_that_a_version_lacks(version: str, name: str) -> None:
    assert vllm_tables.flag(version, name) is None


def test_fields_of_json_arguments() -> None:
    assert vllm_tables.flag("0.33.0", "--structured-outputs-config.backend") is not None
    assert "backend" in vllm_tables.config_fields("0.33.0", "StructuredOutputsConfig")


def test_renames_are_dated_by_the_tables() -> None:
    rows = {row.old: row for row in vllm_tables.renames()}
    usage = rows["vllm:gpu_cache_usage_perc"]
    assert (usage.new, usage.since, usage.until) == ("vllm:kv_cache_usage_perc", "0.9.2", "0.12.0")
    assert all(row.since is not None for row in rows.values())
