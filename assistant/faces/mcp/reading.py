"""Resources and prompts: causes and documents to read, and two prompts in both languages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp_types import Completion, PromptReference, ResourceTemplateReference
from pydantic import Field

from knowledge.catalog import Catalog, load
from knowledge.documents import LANGUAGES, ROOT

if TYPE_CHECKING:
    from assistant.diagnosis.model import Language

CAUSE = "vllm-kb://causes/{area}/{slug}"
DOCUMENT = "vllm-kb://documents/{lang}/{slug}"
_MARKDOWN = "text/markdown"
#: Values that one completion offers.
MOST_VALUES = 100


def add_resources(server: MCPServer) -> None:
    """Every cause and document by its address, with completion of areas, names and languages."""

    @server.resource(
        CAUSE, name="cause", title="A cause", mime_type=_MARKDOWN, description="One root cause: signs, fixes, checks."
    )
    def cause(area: str, slug: str) -> str:
        catalog = load()
        identifier = f"{area}/{slug}"
        if identifier not in catalog.causes:
            raise ResourceNotFoundError(f"There is no cause {identifier[:120]!r}; search_knowledge finds one.")
        return "\n\n".join(cause_page(catalog, identifier, language) for language in LANGUAGES)

    @server.resource(
        DOCUMENT,
        name="document",
        title="A troubleshooting document",
        mime_type=_MARKDOWN,
        description="One document in English (en) or Chinese (zh).",
    )
    def document(lang: str, slug: str) -> str:
        if lang not in LANGUAGES or slug not in documents(lang):
            raise ResourceNotFoundError(f"There is no document {f'{lang}/{slug}'[:120]!r}; search_knowledge finds one.")
        return (ROOT / lang / f"{slug}.md").read_text(encoding="utf-8")

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]
    async def complete(
        reference: PromptReference | ResourceTemplateReference, argument: Any, context: Any
    ) -> Completion | None:
        chosen = dict(context.arguments or {}) if context is not None else {}
        values = _values(reference, argument.name, chosen)
        found = [value for value in values if value.startswith(argument.value)]
        return Completion(values=found[:MOST_VALUES], total=len(found), has_more=len(found) > MOST_VALUES)


def _values(reference: Any, name: str, chosen: dict[str, str]) -> list[str]:
    uri = getattr(reference, "uri", "")
    if name in ("lang", "language"):
        return list(LANGUAGES)
    if uri == CAUSE:
        pairs = [identifier.split("/", 1) for identifier in load().causes]
        if name == "area":
            return sorted({area for area, _ in pairs})
        return sorted(slug for area, slug in pairs if chosen.get("area", area) == area)
    if uri == DOCUMENT and name == "slug":
        return documents(chosen.get("lang", "en"))
    return []


def documents(language: str) -> list[str]:
    """The names of the documents in a language."""
    folder = Path(ROOT) / language if language in LANGUAGES else Path(ROOT) / "en"
    return sorted(path.stem for path in folder.glob("*.md"))


def cause_page(catalog: Catalog, identifier: str, language: Any, vllm_version: str | None = None) -> str:
    """A cause as a page of Markdown."""
    from assistant.advice.fixes import advise, collect_first
    from assistant.diagnosis.truth import Facts
    from assistant.render.blocks import cause_blocks
    from assistant.render.markdown import to_markdown

    entry = catalog.causes[identifier]
    chosen: Language = language
    fixes = advise(entry, Facts(), catalog, vllm_version, chosen)
    return to_markdown(cause_blocks(entry, fixes, collect_first(entry, catalog, chosen), catalog, chosen))


def add_prompts(server: MCPServer) -> None:
    """Two ways into an incident, in English and Chinese."""
    catalog = load()

    @server.prompt(
        name="triage_incident", title="Triage a vLLM incident", description=catalog.word("prompt-triage", "en")
    )
    def triage_incident(
        symptom: Annotated[str, Field(description="what is wrong, in your words")],
        target: Annotated[str, Field(description="a configured server's name, if any")] = "",
        language: Annotated[str, Field(description="en or zh")] = "en",
    ) -> str:
        chosen = "zh" if language == "zh" else "en"
        about = catalog.word("prompt-target", chosen, target=_line(target)) if target.strip() else ""
        return catalog.word("prompt-triage-text", chosen, symptom=_quoted(symptom), target=about)

    @server.prompt(name="explain_log", title="Explain a vLLM log", description=catalog.word("prompt-explain", "en"))
    def explain_log(
        log: Annotated[str, Field(description="the log, or its path")],
        language: Annotated[str, Field(description="en or zh")] = "en",
    ) -> str:
        return catalog.word("prompt-explain-text", "zh" if language == "zh" else "en", log=_quoted(log))


def _line(text: str) -> str:
    from tools.redaction import clean, redact

    return " ".join(redact(clean(text)).split())[:200]


def _quoted(text: str) -> str:
    """Text of a person or a log as a fenced block that it cannot close itself."""
    from assistant.render.markdown import fence
    from tools.redaction import clean, redact

    return fence(redact(clean(text))[:100_000])
