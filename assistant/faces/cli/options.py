"""The options that several commands share, and how a command ends in a sentence."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NoReturn

import typer


class Output(StrEnum):
    """How an answer is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


class Lang(StrEnum):
    """The language of the answer."""

    en = "en"
    zh = "zh"


OutputOption = Annotated[
    Output, typer.Option("-o", "--output", help="text for people, json for programs, markdown for tickets")
]
LangOption = Annotated[
    Lang | None, typer.Option("--lang", help="language of the answer; that of the question unless given")
]
VersionOption = Annotated[
    str | None, typer.Option("--vllm-version", help="the vLLM version, where the log does not state it")
]
AnswerOption = Annotated[
    list[str] | None,
    typer.Option("--answer", metavar="NAME=VALUE", help="the answer to a question of an earlier diagnosis"),
]
ExitCodeOption = Annotated[bool, typer.Option("--exit-code", help="exit with 0 healthy, 1 cause, 4 unknown")]
PathOption = Annotated[bool, typer.Option("--path", help="show the walk through the decision tree")]
FullOption = Annotated[bool, typer.Option("--full", help="include all evidence in the JSON answer")]
DeadlineOption = Annotated[
    float, typer.Option("--deadline", help="seconds after which the answer is given from what was read")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target", help="a server: its address, or a name of the targets file, whose logs and events are read too"
    ),
]
SaveOption = Annotated[bool, typer.Option("--save", help="keep the incident, and print its id")]


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends with one sentence on standard error."""
    typer.echo(f"vllm-diagnose: {message}", err=True)
    raise typer.Exit(code)
