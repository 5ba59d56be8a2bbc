"""Write docs/reference/*.md from the program itself: commands, settings, endpoints and tools.

``python scripts/reference.py`` writes them; ``--check`` says which differ and exits with 1. A test does the same, so the
reference is never older than the code.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "docs" / "reference"
_MADE = "<!-- Written by scripts/reference.py; change the code and run it again. -->\n"


def cell(text: object) -> str:
    """Text for one cell of a table."""
    return " ".join(str(text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def commands() -> str:
    """Every command of the command line with its arguments and options."""
    import typer.main

    from assistant.faces.cli.main import app

    command = typer.main.get_command(app)
    lines = ["# Commands", "", _MADE, "`vllm-diagnose COMMAND --help` says the same.", ""]
    for name, one in walk(command, ()):
        if one.hidden:
            continue
        lines += [f"## {' '.join(name)}", "", cell(one.help), ""]
        rows = [row(parameter) for parameter in one.params if not getattr(parameter, "hidden", False)]
        rows = [found for found in rows if found]
        if rows:
            lines += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def walk(command: Any, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group, in the order of their names."""
    below = getattr(command, "commands", None)
    if below is None:
        yield ("vllm-diagnose", *name), command
        return
    for word in sorted(below):
        yield from walk(below[word], (*name, word))


def row(parameter: Any) -> str:
    """One line of a command's table; empty for --help."""
    if parameter.name == "help":
        return ""
    is_option = parameter.param_type_name == "option"
    shown = ", ".join((*parameter.opts, *parameter.secondary_opts)) if is_option else parameter.name.upper()
    default = parameter.default
    plain = default if isinstance(default, (str, int, float)) and not isinstance(default, bool) else ""
    needed = "required" if parameter.required else plain
    return f"| `{shown}` | {cell(needed)} | {cell(getattr(parameter, 'help', ''))} |"


def settings() -> str:
    """Every setting with its variable, kind and bounds."""
    from assistant.settings import KEYS

    lines = ["# Settings", "", _MADE, "How they are given is told in [settings](../settings.md).", ""]
    lines += ["| setting | variable | kind | default | meaning |", "|---|---|---|---|---|"]
    for key in KEYS:
        kind = key.kind.replace("_", " or ")
        if key.one_of:
            kind = " or ".join(f"`{value}`" if value else "empty" for value in key.one_of)
        if key.least is not None:
            kind += f", {key.least:g} to {key.most:g}" if key.most is not None else f", at least {key.least:g}"
        default = {True: "true", False: "false"}.get(key.default, key.default) if key.kind == "yes_no" else key.default
        shown = ", ".join(default) if isinstance(default, tuple) else default
        secret = " Secret; also as a file with `_FILE`." if key.secret else ""
        given = "empty" if shown == "" else f"`{shown}`"
        lines.append(f"| `{key.name}` | `{key.variable}` | {cell(kind)} | {given} | {cell(key.meaning)}{secret} |")
    return "\n".join([*lines, ""])


def application() -> Any:
    """The application of somebody who set nothing; nothing is opened before it is served."""
    from assistant.faces.app import create_app
    from assistant.settings import defaults

    return create_app(defaults())


def endpoints() -> str:
    """Every endpoint of the HTTP API."""
    schema = application().openapi()
    lines = ["# HTTP endpoints", "", _MADE, "`/openapi.json` of a running server has every schema.", ""]
    lines += ["| method | path | what it does | answers |", "|---|---|---|---|"]
    for path in sorted(schema["paths"]):
        for method, operation in sorted(schema["paths"][path].items()):
            codes = ", ".join(sorted(operation.get("responses", {})))
            lines.append(f"| {method.upper()} | `{path}` | {cell(operation.get('summary'))} | {codes} |")
    return "\n".join([*lines, ""])


def tools() -> str:
    """Every registered action: what HTTP and jobs call by name, and MCP offers."""
    from tools import registry

    problems = registry.discover()
    if problems:
        raise SystemExit("\n".join(problems))
    lines = ["# Tools", "", _MADE, "One definition for all faces: `POST /v1/tools/NAME`, jobs, MCP and Slack.", ""]
    for action in registry.actions():
        about = f"Effect: `{action.effect}`. Deadline: {action.deadline_s:g} s."
        lines += [f"## {action.name}", "", f"{cell(action.title)}. {about}", "", cell(action.description), ""]
        schema = action.input_schema()
        needed = set(schema.get("required", ()))
        if schema.get("properties"):
            lines += ["| argument | default | meaning |", "|---|---|---|"]
        for name, field in schema.get("properties", {}).items():
            default = "required" if name in needed else cell(field.get("default", ""))
            lines.append(f"| `{name}` | {default} | {cell(field.get('description') or field.get('title'))} |")
        lines.append("")
    return "\n".join(lines)


def mcp_tools() -> str:
    """What an MCP client is offered, asked of the server as a client asks it."""
    import asyncio

    from assistant.faces.mcp.door import LocalDoor
    from assistant.faces.mcp.server import build
    from assistant.settings import defaults

    offered = asyncio.run(build(LocalDoor(defaults())).list_tools())
    lines = [
        "# MCP tools",
        "",
        _MADE,
        "What `vllm-diagnose mcp` and `/mcp` offer to a model, with the words it reads.",
        "",
    ]
    for tool in offered:
        lines += [f"## {tool.name}", "", cell(tool.description), ""]
        schema = tool.input_schema
        needed = set(schema.get("required", ()))
        lines += ["| argument | required | meaning |", "|---|---|---|"]
        for name, field in schema.get("properties", {}).items():
            lines.append(f"| `{name}` | {'yes' if name in needed else ''} | {cell(field.get('description'))} |")
        lines.append("")
    return "\n".join(lines)


PAGES = {
    "commands.md": commands,
    "settings.md": settings,
    "endpoints.md": endpoints,
    "tools.md": tools,
    "mcp.md": mcp_tools,
}


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {name: make().rstrip("\n") + "\n" for name, make in PAGES.items()}


def main() -> int:
    made = pages()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if "--check" in sys.argv:
        stale = [name for name, text in made.items() if not _same(FOLDER / name, text)]
        for name in stale:
            print(f"docs/reference/{name} differs from the code; run scripts/reference.py", file=sys.stderr)
        return 1 if stale else 0
    for name, text in made.items():
        with tempfile.NamedTemporaryFile("w", dir=FOLDER, delete=False, encoding="utf-8") as file:
            file.write(text)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(FOLDER / name)
    return 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text("utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
