"""Writes a start command again with changes in it, in the form in which the server was started.

Every word comes from the knowledge, or from the user's own command through :mod:`assistant.advice.started`, which
keeps only what the version's table knows; all of them are quoted for the place they go to. Shell forms are one line;
YAML, units and scripts have one line per word or statement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from assistant.advice.started import MODULE, SERVE_SINCE, Argument, Started
from assistant.advice.words import Word, reference, text_word
from knowledge.versions import parse

#: A command longer than this is not offered; nobody reads it before pasting it.
LONGEST_COMMAND = 8000


@dataclass(frozen=True, slots=True)
class Change:
    """One argument to set (``values`` empty for a switch) or, with ``remove``, to take away."""

    flag: str
    python: str
    values: tuple[Word, ...] = ()
    remove: bool = False


@dataclass(frozen=True, slots=True)
class VariableChange:
    """One environment variable to set, or to take away (``value`` is ``None``)."""

    name: str
    value: Word | None


@dataclass(frozen=True, slots=True)
class Written:
    """A command. ``changed`` are the pieces of ``text`` that are new, for a face to mark."""

    text: str
    changed: tuple[str, ...] = ()
    model_unseen: bool = False


def apply(started: Started, changes: Sequence[Change], variables: Sequence[VariableChange]) -> Started:
    """The start command with the changes made: a value is replaced where it stands, what is new comes last."""
    arguments = list(started.arguments)
    for change in changes:
        places = [i for i, a in enumerate(arguments) if a.python == change.python and "." not in a.name]
        new = None if change.remove else _argument(change, arguments[places[0]] if places else None)
        for place in reversed(places[1:] if new else places):
            del arguments[place]
        if new is not None and places:
            arguments[places[0]] = new
        elif new is not None:
            arguments.append(new)
    named = [(n, v) for n, v in started.variables if n not in {c.name for c in variables}]
    return replace(
        started,
        arguments=tuple(arguments),
        variables=(*named, *((c.name, c.value) for c in variables if c.value is not None)),
    )


def _argument(change: Change, old: Argument | None) -> Argument:
    """The new argument, in the user's own spelling of the flag where that means the same."""
    keeps = old is not None and change.values and old.values and not old.name.startswith("--no-")
    return Argument(old.name if keeps and old is not None else change.flag, change.python, change.values)


def write(started: Started, changes: Sequence[Change] = (), variables: Sequence[VariableChange] = ()) -> Written | None:
    """The corrected command; ``None`` where it cannot be written safely in a reasonable length."""
    after = apply(started, changes, variables)
    new = {c.python for c in changes if not c.remove}
    names = {c.name for c in variables if c.value is not None}
    # Where variables stand apart from the command, a change of them alone leaves the command out.
    whole = bool(changes) or not names
    try:
        match started.form:
            case "compose" | "kubernetes":
                written = _manifest(after, new, names, whole)
            case "systemd":
                written = _unit(after, new, names, whole)
            case "python":
                written = _script(after, new, names, whole)
            case _:
                written = _line(after, new, names)
    except ValueError:
        return None
    return written if len(written.text) <= LONGEST_COMMAND else None


def export(change: VariableChange) -> Written | None:
    """The variable by itself, for a shell whose start command nobody showed."""
    try:
        text = f"export {change.name}={change.value.shell()}" if change.value is not None else f"unset {change.name}"
    except ValueError:
        return None
    return Written(text, (text.split(" ", 1)[1],))


def _program(started: Started) -> tuple[list[Word], bool]:
    """The program's words, and whether the model follows it as a word of its own."""
    if started.program:
        return list(started.program), started.program[-1].literal == "serve"
    if (parse(started.version) or SERVE_SINCE) < SERVE_SINCE or started.form == "module":
        return [text_word(w) for w in ("python3", "-m", MODULE)], False
    return [text_word("vllm"), text_word("serve")], True


def _options(argument: Argument) -> list[Word]:
    name = text_word(argument.name)
    if len(argument.values) == 1 and argument.values[0].written.startswith("-"):
        return [Word((("text", argument.name + "="), *argument.values[0].parts))]
    if len(argument.values) == 1 and argument.name.startswith("-O"):
        return [Word((*name.parts, *argument.values[0].parts))]
    return [name, *argument.values]


def _groups(started: Started, new: set[str], *, own_entry: bool = False) -> tuple[list[tuple[list[Word], bool]], bool]:
    """Model and arguments as groups of words that belong together, each with whether it is new."""
    program, positional = ([], False) if own_entry else _program(started)
    model = started.model
    unseen = model is None and not _has_config(started)
    groups: list[tuple[list[Word], bool]] = []
    if unseen:
        model = reference("MODEL")
    if model is not None:
        first = _model_first(started) and not started.model_by_flag
        as_flag = not positional and not (own_entry and started.model is not None and first)
        groups.append(([text_word("--model"), model] if as_flag else [model], False))
    if program:
        groups.insert(0, (program, False))
    groups += [(_options(a), a.python in new) for a in started.arguments]
    return groups, unseen


def _model_first(started: Started) -> bool:
    """Images since 0.11 start ``vllm serve`` themselves, and older ones the module, which wants the flag."""
    return (parse(started.version) or (99, 0, 0, 0)) >= (0, 11, 1, 0)


def _has_config(started: Started) -> bool:
    return started.argument("config") is not None


def _line(started: Started, new: set[str], names: set[str]) -> Written:
    pieces: list[str] = []
    changed: list[str] = []
    own_entry = started.image is not None and not started.program
    if started.image is not None:
        options = _shell(started.docker)
        inner = [(n, v) for n, v in started.variables if n in names]
        outer = [(n, v) for n, v in started.variables if n not in names]
        pieces += [f"{n}={v.shell()}" for n, v in outer]
        pieces += [w.shell() for w in started.wrappers]
        pieces.append(options)
        for name, value in inner:
            changed.append(f"-e {name}={value.shell()}")
            pieces.append(changed[-1])
        pieces.append(started.image.shell())
    else:
        for name, value in started.variables:
            pieces.append(f"{name}={value.shell()}")
            if name in names:
                changed.append(pieces[-1])
        # Assignments before a wrapper such as nohup reach the program; `sudo` and `env` want them behind.
        last = started.wrappers[-1].literal if started.wrappers else None
        wrappers = [w.shell() for w in started.wrappers]
        pieces = [*wrappers, *pieces] if last in ("sudo", "env") else [*pieces, *wrappers]
    groups, unseen = _groups(started, new, own_entry=own_entry)
    for words, is_new in groups:
        pieces.append(_shell(words))
        if is_new:
            changed.append(pieces[-1])
    return Written(" ".join(p for p in pieces if p), tuple(changed), unseen)


def _shell(words: Sequence[Word]) -> str:
    return " ".join(w.shell() for w in words)


def _manifest(started: Started, new: set[str], names: set[str], whole: bool) -> Written:
    """``command``/``args`` and the variables of a container, as they stand in its manifest."""
    form: str = started.form
    place = "compose" if form == "compose" else "kubernetes"
    lines: list[str] = []
    changed: list[str] = []
    if names:
        lines.append("environment:" if form == "compose" else "env:")
        for name, value in started.variables:
            if name not in names:
                continue
            text = value.yaml("compose" if form == "compose" else "kubernetes")
            row = f"  {name}: {text}" if form == "compose" else f"  - {{name: {name}, value: {text}}}"
            lines.append(row)
            changed.append(row.strip())
    if not whole:
        return Written("\n".join(lines), tuple(changed))
    groups, unseen = _groups(started, new, own_entry=not started.program)
    if started.program and form == "kubernetes":
        program, _ = groups.pop(0)
        lines.append(f"command: [{', '.join(w.yaml('kubernetes') for w in program)}]")
    lines.append("command:" if form == "compose" else "args:")
    for words, is_new in groups:
        rows = [f"  - {w.yaml('compose' if place == 'compose' else 'kubernetes')}" for w in words]
        lines += rows
        if is_new:
            changed += [row.strip() for row in rows]
    return Written("\n".join(lines), tuple(changed), unseen)


def _unit(started: Started, new: set[str], names: set[str], whole: bool) -> Written:
    """A drop-in for ``systemctl edit``: the empty assignment takes the old command away."""
    lines = ["[Service]"]
    changed: list[str] = []
    for name, value in started.variables:
        if name in names:
            if value.literal is None:
                raise ValueError("a unit has no variables of a shell to refer to")
            lines.append(f"Environment={text_word(f'{name}={value.literal}').unit()}")
            changed.append(lines[-1])
    if whole:
        groups, unseen = _groups(started, new)
        pieces = [" ".join(w.unit() for w in words) for words, _ in groups]
        changed += [piece for piece, (_, is_new) in zip(pieces, groups, strict=True) if is_new]
        lines += ["ExecStart=", f"ExecStart={' '.join(pieces)}"]
        return Written("\n".join(lines), tuple(changed), unseen)
    return Written("\n".join(lines), tuple(changed))


def _script(started: Started, new: set[str], names: set[str], whole: bool) -> Written:
    """The call of ``LLM`` with its keyword arguments, and variables that must be there before the import."""
    lines: list[str] = []
    changed: list[str] = []
    variables = [(n, v) for n, v in started.variables if n in names]
    if variables:
        lines.append("import os")
        for name, value in variables:
            lines.append(f"os.environ[{json.dumps(name)}] = {value.python()}  # before vllm is imported")
            changed.append(lines[-1])
    if whole:
        unseen = started.model is None
        rows = [f"model={(started.model or reference('MODEL')).python()},"]
        for argument in started.arguments:
            rows.append(f"{argument.python}={python_value(argument)},")
            if argument.python in new:
                changed.append(rows[-1])
        lines += ["llm = LLM(", *("    " + row for row in rows), ")"]
        return Written("\n".join(lines), tuple(changed), unseen)
    return Written("\n".join(lines), tuple(changed))


def python_value(argument: Argument) -> str:
    """The value of an argument as an expression of Python's: numbers, ``True``, dictionaries, or a string."""
    if not argument.values:
        return str(not argument.name.startswith("--no-"))
    rows = [_python_word(v) for v in argument.values]
    return rows[0] if len(rows) == 1 else f"[{', '.join(rows)}]"


def _python_word(word: Word) -> str:
    text = word.literal
    if text is None or not word.is_safe:
        return word.python()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return word.python()
    return repr(value) if isinstance(value, (int, float, dict, list, bool)) else word.python()
