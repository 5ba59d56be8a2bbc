"""The command line. Heavy imports stand inside the commands: `vllm-diagnose logs` must feel immediate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from assistant import __version__
from assistant.faces.cli.options import (
    AnswerOption,
    DeadlineOption,
    ExitCodeOption,
    FullOption,
    LangOption,
    Output,
    OutputOption,
    PathOption,
    SaveOption,
    TargetOption,
    VersionOption,
    fail,
)

app = typer.Typer(
    name="vllm-diagnose",
    help="Finds the cause of a vLLM server's trouble from logs or a question, in English or Chinese.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vllm-diagnose {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """Finds the cause of a vLLM server's trouble from logs or a question, in English or Chinese."""


@app.command()
def ask(
    text: Annotated[
        str | None, typer.Argument(help="what you see, in English or Chinese; - reads standard input")
    ] = None,
    log: Annotated[
        list[Path] | None, typer.Option("--log", help="a log file of the incident; may be given again")
    ] = None,
    target: TargetOption = None,
    lang: LangOption = None,
    vllm_version: VersionOption = None,
    answer: AnswerOption = None,
    output: OutputOption = Output.text,
    full: FullOption = False,
    path: PathOption = False,
    deadline: DeadlineOption = 60.0,
    exit_code: ExitCodeOption = False,
    save: SaveOption = False,
) -> None:
    """Diagnose from words, logs, a target, or all of them."""
    from assistant.faces.cli import answering

    if text == "-" or (text is None and not log and target is None and not sys.stdin.isatty()):
        text = sys.stdin.read(answering.MOST_TEXT)
    if not (text and text.strip()) and not log and target is None:
        fail(
            'nothing was given. Say what you see: vllm-diagnose ask "it hangs at start", or give --log FILE or '
            "--target ADDRESS."
        )
    answering.answer(
        text=text or "",
        paths=log or [],
        language=lang.value if lang else None,
        vllm_version=vllm_version,
        answers=answering.parse_answers(answer or []),
        shown=answering.Shown(output.value, full, path, exit_code, save),
        deadline_s=deadline,
        target=target,
    )


@app.command()
def logs(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="log files or folders of one incident; - is standard input")
    ] = None,
    target: TargetOption = None,
    run: Annotated[str, typer.Option("--run", help="which run of the log: last, all, or its number")] = "last",
    since: Annotated[
        str | None, typer.Option("--since", help="leave out what is older (2026-11-21T14:05, or 14:05)")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="leave out what is newer")] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="GOOD.log", help="a log of a good start to compare with")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="keep reading and announce the first failure as it happens")
    ] = False,
    lang: LangOption = None,
    vllm_version: VersionOption = None,
    answer: AnswerOption = None,
    output: OutputOption = Output.text,
    full: FullOption = False,
    path: PathOption = False,
    deadline: DeadlineOption = 60.0,
    exit_code: ExitCodeOption = False,
    save: SaveOption = False,
) -> None:
    """Diagnose log files."""
    from assistant.faces.cli import answering

    shown = answering.Shown(output.value, full, path, exit_code, save)
    paths = paths or []
    if not paths and not target:
        fail("no PATHS were given: name a log file or folder, - for standard input, or use --target NAME")
    if follow:
        answering.follow_log(paths, lang.value if lang else "en", shown)
        return
    answering.answer(
        text="",
        paths=paths,
        language=lang.value if lang else None,
        vllm_version=vllm_version,
        answers=answering.parse_answers(answer or []),
        shown=shown,
        deadline_s=deadline,
        run=answering.parse_run(run),
        since=answering.parse_time(since, "--since"),
        until=answering.parse_time(until, "--until"),
        compare=compare,
        target=target,
        live=False,
    )


@app.command()
def batch(
    file: Annotated[Path, typer.Argument(help='JSON lines with {"id", "text", "vllm_version"?}; - is standard input')],
    full: FullOption = False,
    lang: LangOption = None,
) -> None:
    """Diagnose every line of a file; one JSON answer a line."""
    from assistant.faces.cli import answering

    answering.batch(file, full=full, language=lang.value if lang else None)


def _mount() -> None:
    from assistant.faces.cli import (
        admin,
        bundle,
        check,
        feedback,
        incidents,
        kb,
        memory,
        metrics,
        sanity,
        serve,
        slack,
        sync,
        tool_server,
    )

    incidents.mount(app)
    feedback.mount(app)
    admin.mount(app)
    sanity.mount(app)
    memory.mount(app)
    metrics.mount(app)
    serve.mount(app)
    tool_server.mount(app)
    check.mount(app)
    sync.mount(app)
    slack.mount(app)
    app.add_typer(
        bundle.app, name="bundle", help="One incident in one redacted file that gives the same answer elsewhere."
    )
    app.add_typer(kb.app, name="kb", help="The knowledge base and its authors' tools.")


_mount()


def main() -> None:
    """The entry point: an interruption ends with 130, a reader that went away with 0."""
    import os

    try:
        app()
    except KeyboardInterrupt:
        typer.echo("vllm-diagnose: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
