"""Long shell commands over several lines: broken between words only, so that a pasted command stays the same."""

from __future__ import annotations

import re

#: A word of a shell line: runs without blanks, with quoted parts taken whole.
_WORD = re.compile(r"(?:[^\s'\"\\]|\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\")+")
_INDENT = "    "


def broken(text: str, width: int) -> str:
    """``text`` with `` \\`` at the ends of lines, an option and its value together; as it is where it fits ``width``.

    Only single lines of plain words are broken: a text with line breaks, pipes, substitutions or anything else that
    is not a word stays whole.
    """
    if len(text) <= width or "\n" in text:
        return text
    words = _WORD.findall(text)
    if " ".join(words) != text or any(re.search(r"^[|&;<>(){}#]|`|\$\(", _unquoted(word)) for word in words):
        return text
    lines: list[str] = []
    line = ""
    for number, group in enumerate(_groups(words)):
        if line and (len(line) + 1 + len(group) + 2 > width or (number and _begins_line(group))):
            lines.append(line)
            line = group
        else:
            line = f"{line} {group}" if line else group
    lines.append(line)
    return f" \\\n{_INDENT}".join(_filled(lines, width))


def _begins_line(group: str) -> bool:
    return group.startswith("--") or (group.startswith("-") and " " in group)


def _filled(lines: list[str], width: int) -> list[str]:
    """One option a line reads best, but more than fourteen lines scroll the cause away: then lines are filled."""
    if len(lines) <= 14:
        return lines
    out = [lines[0]]
    for line in lines[1:]:
        if len(out) > 1 and len(out[-1]) + 1 + len(line) + len(_INDENT) + 2 <= width:
            out[-1] += " " + line
        else:
            out.append(line)
    return out


def _unquoted(word: str) -> str:
    return re.sub(r"'[^']*'|\\.", "", word)


def _groups(words: list[str]) -> list[str]:
    """An option with the words that follow it up to the next option."""
    groups: list[str] = []
    for word in words:
        is_value = groups and groups[-1].startswith("-") and not word.startswith("-")
        if is_value and " " not in _unquoted(groups[-1]):
            groups[-1] += " " + word
        else:
            groups.append(word)
    return groups
