"""Message templates: program output with holes, compiled to a prefilter literal and one RE2 pattern.

A template is one line of literal text. Letters match in any case, a blank matches any run of blanks, and:

=====================  ==============================================================================
``{name}``             anything within the line, as little as possible (all the rest at the line's end)
``{name:int}``         ``-3``, ``40960``, ``2,097,152``
``{name:number}``      ``0.92``, ``1e-5``, ``1,024.5``
``{name:size}``        ``1.25 GiB``, ``512.00 MiB``; converted to GiB
``{name:word}``        no blanks
``{name:path}``        a file name or address without blanks and quotes
``{name:quoted}``      what stands between quotes or backticks
``{a|b}``              one of these literal alternatives
``{{`` and ``}}``      braces
=====================  ==============================================================================

Compiling is pure string work (no expression is compiled here), so that 1,500 templates cost a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: A prefilter literal shorter than this hits too many healthy lines.
SHORTEST_LITERAL = 6
#: Longer literals cost compile time and decide nothing.
LONGEST_LITERAL = 64

Value = str | int | float
Converter = Callable[[str], Value | None]

#: vLLM before 0.8.3 printed "GB" for 2**30 bytes (worker/model_runner.py), and so do most tools around it: GB is read as GiB.
_GIB_PER_UNIT: Mapping[str, float] = {
    "b": 2.0**-30, "byte": 2.0**-30, "bytes": 2.0**-30,
    "k": 2.0**-20, "kb": 2.0**-20, "kib": 2.0**-20,
    "m": 2.0**-10, "mb": 2.0**-10, "mib": 2.0**-10,
    "g": 1.0, "gb": 1.0, "gib": 1.0,
    "t": 1024.0, "tb": 1024.0, "tib": 1024.0,
}  # fmt: skip

_NUMBER = r"[-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_SIZE = _NUMBER + r"[ \t]*(?:[KMGT]i?B|bytes?|[KMGT]|B)\b"
_PATTERNS: Mapping[str, str] = {
    "int": r"[-+]?[0-9][0-9,_]*",
    "number": _NUMBER,
    "size": _SIZE,
    "word": r"[^ \t]+?",
    "path": r"[^ \t'\"`,;()<>|]+",
    "quoted": r"['\"`][^'\"`]*['\"`]",
}
_SIZE_PARTS = re.compile(r"([-+]?[0-9.,eE+-]+?)[ \t]*([A-Za-z]+)?$")
_FIRST_NUMBER = re.compile(r"[-+]?(?:\d[\d,_]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_FIELD = re.compile(r"([^{}:|]*)(?::(int|number|size|word|path|quoted))?")
#: Where a literal run ends: at a hole, at a written brace, at the end of a line.
_HOLES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|\n")
_SPECIAL = re.compile(r"([^0-9A-Za-z_ \t\x80-\U0010ffff])")


@dataclass(frozen=True, slots=True)
class CompiledTemplate:
    """What a scanner needs: the longest literal in lower case (UTF-8), the RE2 pattern, and typed converters.

    The named groups of ``pattern`` are ``p_<capture>``; ``captures`` maps the capture's own name to its converter.
    """

    literal: bytes
    pattern: str
    captures: Mapping[str, Converter] = field(default_factory=dict)


def as_number(text: str) -> float | int | None:
    """The first number in ``text``, thousands separators removed: "2,097,152 tokens" -> 2097152."""
    found = _FIRST_NUMBER.search(text)
    if found is None:
        return None
    plain = found.group().replace(",", "").replace("_", "")
    try:
        number = float(plain)
    except ValueError:
        return None
    return int(plain) if plain.lstrip("+-").isdigit() else number


def as_gib(text: str) -> float | None:
    """A size in GiB: "512.00 MiB" -> 0.5. A number without a unit is taken to be GiB already."""
    found = _SIZE_PARTS.match(text.strip())
    if found is None:
        return None
    number = as_number(found.group(1))
    factor = _GIB_PER_UNIT.get((found.group(2) or "gib").lower())
    return None if number is None or factor is None else float(number) * factor


def _as_text(text: str) -> str | None:
    return text.strip().rstrip(".,;:") or None


def _as_quoted(text: str) -> str | None:
    return text[1:-1] or None


_CONVERTERS: Mapping[str, Converter] = {
    "int": as_number,
    "number": as_number,
    "size": as_gib,
    "word": _as_text,
    "path": _as_text,
    "quoted": _as_quoted,
    "": _as_text,
}


def literal_of(template: str) -> bytes:
    """The prefilter of a template: its longest literal run, in lower case, at most :data:`LONGEST_LITERAL` bytes.

    This alone is needed to start a scan; the pattern is only made for templates whose literal was seen.
    Raises :class:`ValueError` when the run is shorter than :data:`SHORTEST_LITERAL` characters.
    """
    if "{" in template or "\n" in template or "}}" in template:
        longest = max(map(str.strip, _HOLES.split(template)), key=len).encode().lower()
    else:
        longest = template.strip().encode().lower()
    if len(longest) < SHORTEST_LITERAL:
        raise ValueError(
            f"template {template[:80]!r}: its longest literal is {longest.decode()!r}; "
            f"at least {SHORTEST_LITERAL} characters in a row are needed"
        )
    return longest[:LONGEST_LITERAL]


def compile_template(template: str) -> CompiledTemplate:
    """Compile one template; of several lines the one with the longest literal is used.

    Raises :class:`ValueError` when no literal run of :data:`SHORTEST_LITERAL` characters is left to search for.
    """
    literal = literal_of(template)
    line = template
    if "\n" in template:
        line = max(template.splitlines(), key=lambda text: max(map(_stripped_length, _HOLES.split(text))))
    return _compile_line(line.strip(), literal)


def fixed_text(template: str) -> list[str]:
    """The literal runs of a template that a printed line holds as they stand, at least 4 characters long.

    Of several lines the one with the longest literal counts, as in :func:`compile_template`.
    """
    line = template
    if "\n" in template:
        line = max(template.splitlines(), key=lambda text: max(map(_stripped_length, _HOLES.split(text))))
    runs = [text.strip() for is_literal, text in _split(line) if is_literal]
    return [run for run in runs if len(run) >= 4 and "  " not in run]


def _stripped_length(text: str) -> int:
    return len(text.strip())


def _compile_line(line: str, literal: bytes) -> CompiledTemplate:
    pieces = _split(line)
    pattern: list[str] = []
    captures: dict[str, Converter] = {}
    for place, (is_literal, text) in enumerate(pieces):
        if is_literal:
            pattern.append(_literal_pattern(text))
            continue
        if "|" in text:
            pattern.append("(?:" + "|".join(_literal_pattern(choice) for choice in text.split("|")) + ")")
            continue
        parsed = _FIELD.fullmatch(text)
        name, kind = (parsed.group(1), parsed.group(2) or "") if parsed else (text, "")
        capture = re.sub(r"\W", "_", name.strip(), flags=re.ASCII) or "value"
        last = place == len(pieces) - 1
        body = _PATTERNS.get(kind) or (".*" if last else ".*?")
        if kind == "word" and last:
            body = r"[^ \t]+"
        if capture in captures:
            pattern.append(f"(?:{body})")
        else:
            captures[capture] = _CONVERTERS[kind]
            pattern.append(f"(?P<p_{capture}>{body})")
    return CompiledTemplate(literal, "".join(pattern), captures)


def _split(line: str) -> list[tuple[bool, str]]:
    """The template as (is it literal, text) pieces; a brace that closes nothing is a literal brace."""
    pieces: list[tuple[bool, str]] = []
    literal: list[str] = []
    at = 0
    while at < len(line):
        char = line[at]
        if char in "{}" and line[at : at + 2] == char * 2:
            literal.append(char)
            at += 2
            continue
        if char == "{":
            end = line.find("}", at)
            if end > at:
                if literal:
                    pieces.append((True, "".join(literal)))
                    literal = []
                pieces.append((False, line[at + 1 : end]))
                at = end + 1
                continue
        literal.append(char)
        at += 1
    if literal:
        pieces.append((True, "".join(literal)))
    return pieces


def _literal_pattern(text: str) -> str:
    return re.sub(r"[ \t]+", r"[ \\t]+", _SPECIAL.sub(r"\\\1", text))
