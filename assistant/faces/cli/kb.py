"""`vllm-diagnose kb`: search and show the knowledge, and what its authors need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_MARK = {True: "true", False: "false", None: "unknown"}


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="words, an error text, or an id")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=50)] = 5,
    lang: Annotated[str | None, typer.Option("--lang", help="en or zh; that of the words unless given")] = None,
    runbooks: Annotated[
        Path | None, typer.Option("--runbooks", metavar="FOLDER", help="your own Markdown files, searched too")
    ] = None,
) -> None:
    """Find causes and document sections by id, error text or description."""
    from assistant.faces.cli.answering import catalogue
    from assistant.faces.cli.options import fail
    from assistant.settings import load_what_works
    from knowledge.documents import site_sections
    from knowledge.retrieve import Retriever
    from knowledge.text import language_of

    configured = load_what_works()[0].text("runbooks_folder")
    folder = runbooks or (Path(configured) if configured else None)
    try:
        site = list(site_sections(folder)) if folder is not None else []
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", 3)
    language = lang if lang in ("en", "zh") else language_of(text)
    known = catalogue()
    retriever = Retriever(known, site=site)
    anything = False
    for kind, hits in retriever.search_kinds(text, limit, language):
        typer.echo(("\n" if anything else "") + known.word(f"heading-found-{kind}", language))
        anything = True
        for hit in hits:
            typer.echo(f"  {hit.id:38} {hit.title}")
    if not anything:
        typer.echo(known.word("found-nothing", language, text=text))


@app.command()
def show(
    cause: Annotated[
        str, typer.Argument(metavar="ID", help="a cause id, for example memory/no-room-for-kv-cache, or xid-79")
    ],
    lang: Annotated[str, typer.Option("--lang", help="en or zh")] = "en",
    vllm_version: Annotated[str | None, typer.Option("--vllm-version")] = None,
) -> None:
    """Show one cause: what it is, how it is told, what to do."""
    from assistant.advice.fixes import advise, collect_first
    from assistant.diagnosis.truth import Facts
    from assistant.faces.cli.answering import catalogue
    from assistant.faces.cli.options import fail
    from assistant.faces.cli.terminal import draw
    from assistant.render.blocks import cause_blocks

    known = catalogue()
    language: Any = "zh" if lang == "zh" else "en"
    event = known.gpu_events.get(cause.lower().replace(" ", "-"))
    if event is not None:
        code = cause.replace("-", " ")
        typer.echo(
            known.word(
                "gpu-event",
                language,
                code=code,
                name=event.name,
                meaning=event.meaning[language],
                action=event.action[language],
            )
        )
        typer.echo(event.cause or "")
        return
    if cause not in known.causes:
        from difflib import get_close_matches

        near = get_close_matches(cause, known.causes, 1, 0.3)
        fail(f"there is no cause {cause!r}." + (f" Did you mean {near[0]}?" if near else " `kb search` finds one."))
    entry = known.causes[cause]
    fixes = advise(entry, Facts(), known, vllm_version, language)
    draw(cause_blocks(entry, fixes, collect_first(entry, known, language, vllm_version), known, language))


@app.command()
def check(
    causes: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="only the examples of these causes")
    ] = None,
    examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="also diagnose the causes' examples")
    ] = True,
) -> None:
    """Check every knowledge file, and that every example is diagnosed as its file says."""
    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.examples import run_examples
    from assistant.faces.cli.answering import catalogue
    from assistant.faces.cli.options import fail
    from knowledge.check import check_files

    problems = check_files()
    for problem in problems:
        typer.echo(str(problem))
    if problems:
        typer.echo(f"kb check: {len(problems)} problems")
        raise typer.Exit(1)
    known = catalogue()
    wrong = total = 0
    if examples:
        for unknown in set(causes or ()) - set(known.causes):
            fail(f"there is no cause {unknown!r}; `kb search` finds one")
        for outcome in run_examples(Engine(known), only=frozenset(causes or ())):
            total += 1
            if not outcome.ok:
                wrong += 1
                typer.echo(
                    f"{outcome.file}:{outcome.line}: this {outcome.kind.replace('_', ' ')} should be {outcome.wanted}, "
                    f"but is {outcome.got} (confidence {outcome.confidence:.2f}). `kb try` shows every condition."
                )
    drafts = sum(c.draft for c in known.causes.values())
    ran = f"; {total - wrong} of {total} examples right" if examples else ""
    typer.echo(
        f"kb check: {len(known.causes)} causes ({drafts} drafts), {len(known.messages)} messages, "
        f"{len(known.concepts)} concepts, {len(known.intents)} intents{ran}"
    )
    if wrong:
        raise typer.Exit(1)


@app.command()
def new(
    cause: Annotated[str, typer.Argument(metavar="AREA/SLUG", help="the id of the new cause")],
) -> None:
    """Write the skeleton of a new cause file."""
    import re

    from assistant.faces.cli.options import fail
    from knowledge.sources import ROOT

    if not re.fullmatch(r"[a-z]+/[a-z0-9]+(-[a-z0-9]+)*", cause):
        fail(f"{cause!r} is no id; write AREA/SLUG in lower case, for example memory/host-ram-exhausted")
    path = ROOT / "causes" / f"{cause}.yaml"
    if path.exists():
        fail(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_SKELETON, encoding="utf-8")
    typer.echo(f"{path}\nFill it in, then: vllm-diagnose kb try {path} LOG, and vllm-diagnose kb check")


_SKELETON = """\
title: {en: "One line that names the cause", zh: "一句话说明原因"}
severity: critical
begins: startup
explanation:
  en: "What happened and why, at most 60 words."
  zh: "发生了什么、为什么，不超过 150 个字。"
signals:
  - message: kv-no-available-memory
    weight: decisive
  - symptoms:
      en: ["How people describe it"]
      zh: ["用户会怎么描述"]
near: []
fixes:
  - intent: raise-memory-utilization
    why: {en: "Why this helps here.", zh: "为什么这样做有用。"}
    impact: restart
check: {en: "What shows that it worked.", zh: "怎样确认已经解决。"}
sources:
  - {file: vllm/v1/core/kv_cache_utils.py, version: 0.32.0}
examples:
  match:
    - log: "a line that this cause prints"
    - text: "a sentence that a person would write"
  near_miss:
    - {log: "a line that looks alike", belongs_to: unknown}
"""


@app.command(name="try")
def try_(
    file: Annotated[Path, typer.Argument(help="a cause file")],
    log: Annotated[Path, typer.Argument(help="a log, or a text file with a person's words; - is standard input")],
) -> None:
    """Show every condition of a cause as true, false or unknown on one log."""
    import sys

    from assistant.diagnosis.diagnose import Engine
    from assistant.diagnosis.gather import read_case
    from assistant.diagnosis.score import order_of, weigh
    from assistant.diagnosis.truth import judge
    from assistant.faces.cli.answering import catalogue
    from assistant.faces.cli.options import fail
    from knowledge.catalog import from_compiled
    from knowledge.compiler import compile_cause, compile_knowledge
    from knowledge.errors import KnowledgeError
    from knowledge.search import rank
    from knowledge.sources import ROOT
    from knowledge.text import normalise

    try:
        inside = file.resolve().is_relative_to(ROOT)
        own = compile_cause(file.resolve(), ROOT if inside else file.resolve().parents[2])
        known = from_compiled({**compile_knowledge(), "digest": "try"}) if inside else catalogue()
    except (KnowledgeError, IndexError, ValueError) as error:
        fail(str(error))
    text = (
        sys.stdin.read()
        if str(log) == "-"
        else log.read_text(encoding="utf-8", errors="replace")
        if log.is_file()
        else None
    )
    if text is None:
        fail(f"{log} is no file", 3)
    engine = Engine(known)
    case, _ = read_case(known, text=text)
    facts, _found = engine.consider(case)
    cause = known.causes.get(own["id"])
    if cause is None:
        fail(f"{file} is not below {ROOT / 'causes'}; put it there so that it takes part")
    for signal in cause.signals:
        if signal.when is None:
            said = normalise(case.text)
            alike = {item.cause: item.score for item in rank(said, known.symptoms, engine.concepts(said))}
            typer.echo(f"  likeness {alike.get(cause.id, 0.0):.2f}  symptoms")
            continue
        found = judge(signal.when, facts)
        typer.echo(f"  {_MARK[found.truth]:8} {signal.weight:9} {signal.key}")
    for exclusion in cause.ruled_out:
        typer.echo(f"  {_MARK[judge(exclusion.when, facts).truth]:8} rules out {exclusion.when}")
    typer.echo(f"support {weigh(cause, facts, known, order_of(facts, known), 0.0).support:.2f} without symptoms")
    diagnosis = engine.diagnose(case)
    typer.echo(f"verdict {diagnosis.verdict}")
    for finding in diagnosis.causes:
        typer.echo(f"  {finding.confidence:.3f}  {finding.id}")
    typer.echo("seen: " + ", ".join(sorted(facts.messages)) + " | said: " + ", ".join(sorted(facts.said)))
