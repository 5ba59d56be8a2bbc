"""The tables against what the real server of the laboratory prints: its help and its metrics."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from knowledge.vllm_tables import Flag, flags, metrics

LAB = Path(__file__).resolve().parents[2] / ".lab"
VERSION = "0.32.0"
CAPTURED = Path(__file__).resolve().parents[1] / "data" / "lab"

#: What the real help prints otherwise than the table, each with its reason (docs/versions.md lists the same).
DEFAULTS_THAT_DIFFER = {
    "--cpu-offload-params": "an empty set prints as set()",
    "--offload-params": "an empty set prints as set()",
    "--mamba-backend": "the member of an enumeration prints its name; its value is what is given",
}

_OPTION = re.compile(r"^  (-.+)$")
_CHOICES = re.compile(r"\{([^{}]+)\}")


def parse_help(text: str) -> dict[str, dict[str, object]]:
    """Main flag -> every spelling, choices, whether it takes a value, and the printed default."""
    found: dict[str, dict[str, object]] = {}
    current: list[str] = []
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if _OPTION.match(line):
            current = [line.strip()]
            blocks.append(current)
        elif line.startswith("      ") and current:
            current.append(line.strip())
        elif line.strip():
            current = []
    for block in blocks:
        head, _, rest = block[0].partition("   ")
        spellings = re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*(?![\w}])", re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", head))
        long = [name for name in spellings if name.startswith("--") and not name.startswith("--no-")]
        printed = re.findall(r"\(default: (.*?)\)$", " ".join([rest, *block[1:]]))
        choices = _CHOICES.search(head)
        found[long[0] if long else spellings[0]] = {
            "spellings": set(spellings),
            "choices": set(choices[1].split(",")) if choices else None,
            "default": printed[-1] if printed else None,
        }
    return found


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, object]]:
    given = os.environ.get("VLLM_DIAGNOSE_TEST_HELP")
    if given:
        return parse_help(Path(given).read_text(encoding="utf-8"))
    server = LAB / "venv/bin/vllm"
    if not server.exists():
        pytest.skip("the laboratory is not installed (make lab)")
    environment = {**os.environ, "COLUMNS": "200", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [server, "serve", "--help=all"], capture_output=True, text=True, timeout=400, env=environment, check=True
    )
    return parse_help(done.stdout)


@pytest.mark.lab
def test_every_argument_of_the_real_parser_is_in_the_table_and_no_other(real: dict[str, dict[str, object]]) -> None:
    printed = {spelling for entry in real.values() for spelling in entry["spellings"]}  # type: ignore[attr-defined]
    known = {spelling for flag in flags(VERSION).values() for spelling in flag.spellings}
    assert printed - known == {"-h", "--help"}
    assert known - printed == set()


@pytest.mark.lab
def test_choices_are_those_of_the_real_parser(real: dict[str, dict[str, object]]) -> None:
    wrong = {}
    for name, flag in flags(VERSION).items():
        shown = real.get(name, {}).get("choices")
        if flag.choices is not None and not flag.open_choices and shown is not None:
            mine = {str(choice) for choice in flag.choices}
            if mine != {c for c in shown if c != "None"}:  # type: ignore[attr-defined]
                wrong[name] = (mine, shown)
    assert wrong == {}


def as_printed(flag: Flag) -> str:
    return str(flag.default)


@pytest.mark.lab
def test_defaults_are_those_of_the_real_parser(real: dict[str, dict[str, object]]) -> None:
    wrong = {}
    for name, flag in flags(VERSION).items():
        shown = real.get(name, {}).get("default")
        if shown is None or flag.default_from is not None or name in DEFAULTS_THAT_DIFFER:
            continue
        if as_printed(flag) != shown:
            wrong[name] = (as_printed(flag), shown)
    assert wrong == {}


def families(page: str) -> dict[str, tuple[str, set[str]]]:
    """Family -> its type and its labels on a page of /metrics, vLLM's own only."""
    kinds = dict(re.findall(r"^# TYPE (vllm:\S+) (\w+)$", page, re.MULTILINE))
    labels: dict[str, set[str]] = {}
    for name, inside in re.findall(r"^(vllm:[\w:]+)\{([^}]*)\}", page, re.MULTILINE):
        labels.setdefault(re.sub(r"_(bucket|sum|count)$", "", name), set()).update(re.findall(r"(\w+)=", inside))
    return {
        name: (kind, labels.get(name, set()) - {"le"}) for name, kind in kinds.items() if not name.endswith("_created")
    }


@pytest.mark.parametrize("page", sorted(CAPTURED.glob("*/metrics-*.txt")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_metrics_of_the_real_server_are_in_the_table(page: Path) -> None:
    known = metrics(VERSION)
    printed = families(page.read_text(encoding="utf-8"))
    assert len(printed) > 30
    assert sorted(set(printed) - set(known)) == []
    wrong = {
        name: (kind, labels, known[name])
        for name, (kind, labels) in printed.items()
        # cache_config_info has one label for every field of the cache's configuration
        if name != "vllm:cache_config_info"
        and (known[name].kind != kind or (labels and labels != set(known[name].labels)))
    }
    assert wrong == {}
