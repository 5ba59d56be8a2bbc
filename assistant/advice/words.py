"""Words of a command: taken apart without running anything, and written again so that they stay one word each.

A word knows which of its parts are text and which refer to a variable of the shell that will run it (``$HOME``). Text
is quoted wherever it is written; references stay references, in the spelling of the place that the word goes to.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Literal

#: A word longer than this is nothing that anybody would paste.
LONGEST_WORD = 2000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}")
_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]{0,60})\}|([A-Za-z_][A-Za-z0-9_]{0,60}))")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_ENDS = frozenset("|&;<>()\n`")


@dataclass(frozen=True, slots=True)
class Word:
    """One word: ("text", ...), ("variable", NAME), ("home", "") for a leading ``~``, or ("unsafe", ...) parts."""

    parts: tuple[tuple[Literal["text", "variable", "home", "unsafe"], str], ...]

    @property
    def literal(self) -> str | None:
        """The text, where nothing in it depends on the shell."""
        return "".join(text for _, text in self.parts) if all(kind == "text" for kind, _ in self.parts) else None

    @property
    def written(self) -> str:
        """The text for reading, with references as ``$NAME``; never for running."""
        marks = {"variable": "$", "home": "~"}
        return "".join(marks.get(kind, "") + text for kind, text in self.parts)

    @property
    def is_safe(self) -> bool:
        """Whether it can be written as one word of one line: printable, bounded, without a substitution."""
        return (
            all(kind != "unsafe" for kind, _ in self.parts)
            and len(self.written) <= LONGEST_WORD
            and all(text.isprintable() for _, text in self.parts)
        )

    def shell(self) -> str:
        """One word for a POSIX shell. Raises ``ValueError`` where it is not safe."""
        if not self.is_safe:
            raise ValueError("a word with control characters, a substitution or too much text is not written")
        if not self.written:
            return "''"
        out = []
        for kind, text in self.parts:
            if kind == "variable":
                out.append(f'"${text}"')
            elif kind == "home":
                out.append("~")
            elif text:
                out.append(text if _PLAIN.fullmatch(text) else shlex.quote(text))
        return "".join(out)

    def yaml(self, form: Literal["compose", "kubernetes"]) -> str:
        """A double-quoted YAML scalar; a dollar of the text is doubled, because both expand it once more."""
        if not self.is_safe:
            raise ValueError("a word with control characters, a substitution or too much text is not written")
        out = ""
        for kind, text in self.parts:
            if kind == "variable":
                out += f"${{{text}}}" if form == "compose" else f"$({text})"
            elif kind == "home":
                out += "${HOME}" if form == "compose" else "$(HOME)"
            else:
                out += text.replace("$", "$$")
        return json.dumps(out, ensure_ascii=False)

    def unit(self) -> str:
        """A word of ``ExecStart=``: quoted as systemd.syntax(7) says, with ``%`` and ``$`` doubled."""
        if not self.is_safe:
            raise ValueError("a word with control characters, a substitution or too much text is not written")
        out = ""
        for kind, text in self.parts:
            if kind == "variable":
                out += f"${{{text}}}"
            elif kind == "home":
                out += "%h"
            else:
                out += text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        return out if _PLAIN.fullmatch(out.replace("${", "").replace("}", "")) and "%%" not in out else f'"{out}"'

    def python(self) -> str:
        """An expression of Python's for the text."""
        if not self.is_safe:
            raise ValueError("a word with control characters, a substitution or too much text is not written")
        if len(self.parts) == 1 and self.parts[0][0] == "variable":
            return f"os.environ[{json.dumps(self.parts[0][1])}]"
        return json.dumps(self.written, ensure_ascii=False)


def text_word(text: str) -> Word:
    """A word of nothing but text."""
    return Word((("text", text),))


def reference(name: str) -> Word:
    """A word that refers to a variable. Raises ``ValueError`` where ``name`` is no name of one."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a variable")
    return Word((("variable", name),))


def value_word(value: str) -> Word:
    """A value of the knowledge: ``"$NAME"`` in quotes is a reference, everything else is text."""
    found = re.fullmatch(r'"\$([A-Za-z_][A-Za-z0-9_]{0,60})"', value)
    return reference(found.group(1)) if found else text_word(value)


def split_at(word: Word, sign: str) -> tuple[Word, Word] | None:
    """The word before and behind the first ``sign`` of its first part; ``None`` where that part has none."""
    kind, text = word.parts[0] if word.parts else ("text", "")
    before, found, behind = text.partition(sign)
    if kind != "text" or not found:
        return None
    rest = text_word(behind).parts if behind or len(word.parts) == 1 else ()
    return text_word(before), Word((*rest, *word.parts[1:]))


class _Builder:
    """Puts the parts of one word together."""

    def __init__(self) -> None:
        self.parts: list[tuple[Literal["text", "variable", "home", "unsafe"], str]] = []
        self.open = False

    @property
    def is_windows_path(self) -> bool:
        """``C:...``: there a backslash separates folders."""
        return bool(self.parts) and re.match(r"[A-Za-z]:(?:\\|$)", self.parts[0][1]) is not None

    def add(self, kind: Literal["text", "variable", "home", "unsafe"], text: str) -> None:
        self.open = True
        if kind == "text" and self.parts and self.parts[-1][0] == "text":
            self.parts[-1] = ("text", self.parts[-1][1] + text)
        else:
            self.parts.append((kind, text))


def split_words(line: str, most: int = 500) -> list[Word]:
    """The words of a shell command up to what ends it (an operator, a comment, an unclosed quote).

    Substitutions are kept as parts that are never written again. Linear in the length of ``line``.
    """
    words: list[Word] = []
    word = _Builder()
    place, quote = 0, ""
    while place < len(line) and len(words) < most:
        sign = line[place]
        if quote == "'":
            if sign == "'":
                quote = ""
            else:
                word.add("text", sign)
        elif sign == "\\" and not quote and word.is_windows_path:
            word.add("text", sign)
        elif sign == "\\" and place + 1 < len(line):
            follows = line[place + 1]
            word.add("text", follows if not quote or follows in '"\\$`' else sign + follows)
            place += 1
        elif sign == "$" and (found := _REFERENCE.match(line, place)):
            word.add("variable", found.group(1) or found.group(2))
            place = found.end() - 1
        elif sign == "$" and line[place + 1 : place + 2] in ("(", "{", "'", "["):
            word.add("unsafe", line[place : place + 40])
            close = {"(": ")", "{": "}", "'": "'", "[": "]"}[line[place + 1]]
            end = line.find(close, place + 2)
            place = end if end > 0 else len(line)
        elif quote == '"':
            if sign == '"':
                quote = ""
            elif sign == "`":
                word.add("unsafe", sign)
            else:
                word.add("text", sign)
        elif sign in "'\"":
            quote = sign
            word.add("text", "")
        elif sign in " \t":
            if word.open:
                words.append(Word(tuple(word.parts)))
                word = _Builder()
        elif sign in _ENDS or (sign == "#" and not word.open):
            break
        elif sign == "~" and not word.open and line[place + 1 : place + 2] in ("/", " ", ""):
            word.add("home", "")
        else:
            word.add("text", sign)
        place += 1
    if word.open and not quote:
        words.append(Word(tuple(word.parts)))
    return words
