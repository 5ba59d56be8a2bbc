"""Long shell commands over several lines: broken between words only, so that a pasted command stays the same."""

from __future__ import annotations

import re

#: A word of a shell line: runs without blanks, with quoted parts taken whole.
_WORD = re.compile(r"(?:[^\s'\"\\]|\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\")+")
_INDENT = "    "
#: Options of `docker run` without a value.
_ALONE = frozenset({"--rm", "-d", "-it", "-i", "-t", "--init", "--detach", "--interactive", "--tty", "--read-only"})


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
        if line and (len(line) + 1 + len(group) + 2 > width or (number and _begins_line(group, line))):
            lines.append(line)
            line = group
        else:
            line = f"{line} {group}" if line else group
    lines.append(line)
    return f" \\\n{_INDENT}".join(_filled(lines, width))


def _begins_line(group: str, line: str) -> bool:
    if not group.startswith("-"):
        return line.startswith("-")
    if group.startswith("-m "):
        return False  # the module belongs to the program
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
    """An option with the words that follow it up to the next option; the image of a container by itself."""
    groups: list[str] = []
    options = len(words) > 1 and words[1] == "run"  # of `docker run`: one value each, then the image
    for word in words:
        behind_option = bool(groups) and groups[-1].startswith("-") and not word.startswith("-")
        is_bare = (
            bool(groups) and " " not in _unquoted(groups[-1]) and "=" not in groups[-1] and groups[-1] not in _ALONE
        )
        if behind_option and (is_bare or not options):
            groups[-1] += " " + word
        else:
            options = options and not behind_option
            groups.append(word)
    return groups
