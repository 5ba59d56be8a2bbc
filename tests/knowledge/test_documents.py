"""The troubleshooting documents: both languages tell the same, every name in them exists, nothing is said twice."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import yaml

from knowledge.sources import ROOT
from knowledge.vllm_tables import Range, flag_range, variable_range, versions

DOCUMENTS = ROOT / "documents"
LANGUAGES = ("en", "zh")
SLUGS = sorted({path.stem for language in LANGUAGES for path in (DOCUMENTS / language).glob("*.md")})
FILES = sorted(path for language in LANGUAGES for path in (DOCUMENTS / language).glob("*.md"))

SECTION = re.compile(r"^## (?P<heading>.+?) \{#(?P<anchor>[a-z0-9-]+)\}$", re.MULTILINE)
CODE = re.compile(r"^ *```(?P<language>python|json)\n(?P<code>.*?)^ *```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
VARIABLE = re.compile(r"\bVLLM_[A-Z0-9_]*[A-Z0-9]\b")
AREAS = ("distributed", "engine", "gpu", "install", "memory", "model", "performance", "quality", "serving", "normal")
CAUSE = re.compile(rf"`((?:{'|'.join(AREAS)})/[a-z0-9-]+)`")
LINK = re.compile(r"\]\((?P<document>[a-z0-9-]+\.md)?(?:#(?P<anchor>[a-z0-9-]+))?\)")
GONE = re.compile(
    r"removed|gone|dropped|no longer|until|up to|before|older|移除|删除|不再|之前|以前|更早|过去|旧", re.IGNORECASE
)

# What the commands of other programs are called with; `vllm serve` knows none of these.
OTHER_PROGRAMS = {
    "docker": {"--cap-add", "--device", "--gpus", "--ipc", "--memory", "--mount", "--network", "--privileged", "--rm"}
    | {"--shm-size", "--ulimit", "--volume"},
    "kubectl": {"--previous", "--all-containers"},
    "torchrun": {"--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--standalone"},
    "nvidia-smi": {"--query-gpu", "--query-compute-apps", "--format"},
    "hf": {"--dry-run", "--local-dir", "--include", "--exclude", "--repo-type"},
    "pip": {"--upgrade", "--no-cache-dir", "--force-reinstall", "--extra-index-url", "--index-url"},
    "nsys": {"--trace-fork-before-exec", "--cuda-graph-trace"},
    "vllm bench": {"--num-prompts", "--request-rate", "--max-concurrency", "--dataset-name", "--random-input-len"}
    | {"--random-output-len", "--backend", "--base-url", "--ignore-eos"},
    "py-spy": {"--pid", "--native"},
    "vllm-diagnose": {"--compare", "--log", "--answer", "--follow"},
}
FOREIGN = frozenset().union(*OTHER_PROGRAMS.values())


def sections(path: Path) -> dict[str, str]:
    """Anchor -> text of the section; the text before the first section under the empty anchor."""
    text = path.read_text(encoding="utf-8")
    found = list(SECTION.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    pieces = {match["anchor"]: text[match.end() : end] for match, end in zip(found, ends, strict=True)}
    return {"": text[: found[0].start()] if found else text, **pieces}


def sentences(path: Path) -> set[str]:
    """Sentences of the prose: without code, tables and the lines that list causes."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    kept = [line for line in prose.splitlines() if not CAUSE.search(line) and not line.startswith("|")]
    paragraphs = re.split(r"\n\s*\n", "\n".join(kept))
    joined = (re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs)
    return {part.strip(" *-") for text in joined for part in re.split(r"(?<=[.!?:]) |[。！？；]", text)}


def known_and_not_sold_as_current(known: Range | None, text: str) -> bool:
    """Whether a name exists in some version and, if the newest lacks it, the section says so or names its last version."""
    return known is not None and (
        known[1] in (versions()[-1], *re.findall(r"[\w.]+\w", text)) or bool(GONE.search(text))
    )


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_there_are_documents() -> None:
    assert len(SLUGS) >= 13


@pytest.mark.parametrize("slug", SLUGS)
def test_both_languages_have_the_same_sections(slug: str) -> None:
    english, chinese = (list(sections(DOCUMENTS / language / f"{slug}.md")) for language in LANGUAGES)
    assert english == chinese


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_document_is_a_title_and_sections_with_anchors_of_their_own(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    assert re.match(r"# \S", text)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings
    assert [line for line in headings if not SECTION.match(line)] == []
    assert [anchor for anchor, count in Counter(SECTION.findall(text)).items() if count > 1] == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_cause_exists(path: Path) -> None:
    def exists(cause: str) -> bool:
        folder = ROOT if cause.startswith("normal/") else ROOT / "causes"
        return (folder / f"{cause}.yaml").is_file()

    causes = set(CAUSE.findall(path.read_text(encoding="utf-8")))
    assert causes, "a document leads to causes"
    assert sorted(cause for cause in causes if not exists(cause)) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = []
    for link in LINK.finditer(text):
        target = path.with_name(link["document"]) if link["document"] else path
        if not target.is_file() or (link["anchor"] or "") not in sections(target):
            broken.append(link[0])
    assert broken == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_flag_is_known_and_a_removed_one_is_called_removed(path: Path) -> None:
    wrong = []
    for anchor, text in sections(path).items():
        for flag in set(FLAG.findall(text)) - FOREIGN:
            if not known_and_not_sold_as_current(flag_range(flag), text):
                wrong.append((anchor, flag, flag_range(flag)))
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_variable_is_known_and_a_removed_one_is_called_removed(path: Path) -> None:
    wrong = []
    for anchor, text in sections(path).items():
        for variable in set(VARIABLE.findall(text)):
            if not known_and_not_sold_as_current(variable_range(variable), text):
                wrong.append((anchor, variable, variable_range(variable)))
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_programs_and_json_in_a_document_parse(path: Path) -> None:
    for block in CODE.finditer(path.read_text(encoding="utf-8")):
        code = textwrap.dedent(block["code"])
        if block["language"] == "json":
            json.loads(code)
        else:
            compile(code, str(path), "exec")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_stands_in_two_documents(language: str) -> None:
    places: dict[str, list[str]] = {}
    for path in sorted((DOCUMENTS / language).glob("*.md")):
        for sentence in sentences(path):
            if len(sentence) > 60:
                places.setdefault(sentence, []).append(path.name)
    assert {sentence: names for sentence, names in places.items() if len(names) > 1} == {}


def test_every_section_of_the_earlier_guides_is_covered() -> None:
    rows = yaml.safe_load((DOCUMENTS / "seeds.yaml").read_text(encoding="utf-8"))
    assert len({row["seed"] for row in rows}) >= 5
    assert [key for key, count in Counter((row["seed"], row["section"]) for row in rows).items() if count > 1] == []
    missing = []
    for row in rows:
        path = DOCUMENTS / "en" / f"{row['document']}.md"
        if not path.is_file() or row["anchor"] not in sections(path):
            missing.append(row)
    assert missing == []
