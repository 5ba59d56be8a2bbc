"""The only module that removes secrets; everything shown, kept or sent passes through it.

Text from outside goes through :func:`clean` first and :func:`redact` second: an invisible character or a colour code
inside a token would hide it from the patterns.

Both are linear in the length of the text (RE2, and character classes that cannot backtrack). A text without any
of the literal hints of :mod:`tools.secret_kinds` costs some substring searches; patterns are compiled when needed.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tools import secret_kinds

_Span = tuple[int, int]
_VALUE_GROUPS = ("s", "dq", "sq", "bare")
#: What ends a value in a Chinese sentence, where no blank does.
_SENTENCE_END = re.compile("[，。；、！？）】」』”’》\u3000]")
#: A run of characters of an address, and a dotted one in it with or without a port ("tcp:10.0.0.1:29500").
_RUN = re.compile(rb"[0-9A-Za-z_.:]{3,}")
_DOTTED = re.compile(rb"(?:^|:)((?:\d{1,3}\.){3}\d{1,3})(?=:|\.?$)")

_SK_KEY = rf"(?:^|[^A-Za-z0-9_-])(?P<s>{secret_kinds.SK_KEY})"
_LONG_TEXT = 8192  # bytes
_MANY_TEXTS = 64
_short_texts = itertools.count()

# C0 without tab and newline, DEL, C1, marks of direction, invisible and tag characters, lone surrogates.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_ESCAPES = re.compile(
    r"""(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?          # CSI: colours, cursor
      | (?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?   # OSC: titles, links
      | \x1b[PX^_][^\x1b\n]*(?:\x1b\\)?            # other strings
      | \x1b[ -/]*[0-~]?
    """,
    re.VERBOSE,
)


def clean(text: str) -> str:
    """The text without terminal escapes, control, bidirectional and invisible characters.

    Line ends become ``\\n``; a lone carriage return ends a line, because what overwrites a line on a terminal would
    hide it here. Tabs stay. What cannot be encoded becomes U+FFFD.
    """
    if not _UNWANTED.search(text):
        return text
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x1b" in text or "\x9b" in text or "\x9d" in text:
        text = _ESCAPES.sub("", text)
    return _UNWANTED.sub(_replacement_of_unwanted, text)


def _replacement_of_unwanted(match: re.Match[str]) -> str:
    character = match.group()
    if "\ud800" <= character <= "\udfff":
        return "\ufffd"
    return "\n" if character in "\u2028\u2029\x0b\x0c\x85" else ""


def redact(text: str) -> str:
    """The text with every secret replaced by ``<secret>``. What is already replaced stays as it is."""
    return _replaced(text, _secret_spans, lambda _: "<secret>")


class Redactor:
    """Replaces secrets so that equal ones stay recognisable as equal: ``<secret:1>``, ``<secret:2>``.

    One redactor serves one bundle or one incident; it remembers the secrets it saw, so it must not outlive it. With
    ``addresses`` also IP addresses (loopback and unspecified ones stay, they identify nobody) and with ``emails`` also
    e-mail addresses are replaced.
    """

    def __init__(self, *, addresses: bool = False, emails: bool = False) -> None:
        self._addresses = addresses
        self._emails = emails
        self._numbers: dict[str, dict[str, int]] = {"secret": {}, "email": {}, "address": {}}

    def redact(self, text: str) -> str:
        text = _replaced(text, _secret_spans, functools.partial(self._placeholder, "secret"))
        if self._emails and "@" in text:
            text = _replaced(text, _email_spans, functools.partial(self._placeholder, "email"))
        if self._addresses:
            text = _replaced(text, _address_spans, functools.partial(self._placeholder, "address"))
        return text

    @property
    def replaced(self) -> int:
        """How many different secrets and addresses were replaced so far."""
        return sum(len(seen) for seen in self._numbers.values())

    def _placeholder(self, kind: str, value: str) -> str:
        seen = self._numbers[kind]
        return f"<{kind}:{seen.setdefault(value, len(seen) + 1)}>"


def _replaced(text: str, find: Callable[[bytes], list[_Span]], placeholder: Callable[[str], str]) -> str:
    """The text with the spans that ``find`` sees in its UTF-8 form replaced; the text itself where there are none."""
    encoded = text.encode("utf-8", "surrogatepass")
    spans = find(encoded)
    if not spans:
        return text
    parts: list[str] = []
    end = 0
    for start, stop in (*spans, (len(encoded), len(encoded))):
        parts.append(encoded[end:start].decode("utf-8", "surrogatepass"))
        if start < stop:
            parts.append(placeholder(encoded[start:stop].decode("utf-8", "surrogatepass")))
        end = stop
    return "".join(parts)


def _secret_spans(text: bytes) -> list[_Span]:
    """Where the secrets stand, in order, without overlaps."""
    if not _may_hold_one(text):
        return []
    lowered = text.lower()
    spans: list[_Span] = []
    if any(hint in text for hint in _issued_hints()):
        pattern, groups = _compiled(_issued_pattern())
        spans += (match.span(groups["s"]) for match in pattern.finditer(text))
    if b"sk-" in text:
        pattern, groups = _compiled(_SK_KEY)
        for match in pattern.finditer(text):
            start, stop = match.span(groups["s"])
            if secret_kinds.has_digit_and_letter(text[start + 3 : stop].decode()):
                spans.append((start, stop))
    for place, hints in _places():
        if any(hint in lowered for hint in hints):
            spans += _spans_of_place(place, text)
    return _merged(spans)


def _may_hold_one(text: bytes) -> bool:
    """Whether the text is worth a search by every pattern.

    All patterns in one tell that at 100 MB/s (3 us a line), but take 20 ms to compile: too long for the few quotes
    of one diagnosis, for which the hints do.
    """
    if len(text) < _LONG_TEXT and next(_short_texts) < _MANY_TEXTS:
        return True
    return _any_pattern().search(text) is not None


def _spans_of_place(place: secret_kinds.Place, text: bytes) -> Iterator[_Span]:
    pattern, groups = _compiled(place.pattern)
    for match in pattern.finditer(text):
        name = text[slice(*match.span(groups["n"]))].decode("utf-8", "replace") if "n" in groups else ""
        start, stop = next(match.span(groups[g]) for g in _VALUE_GROUPS if g in groups and match.start(groups[g]) >= 0)
        value = _SENTENCE_END.split(text[start:stop].decode("utf-8", "surrogatepass"), maxsplit=1)[0]
        if value and not value.startswith("<secret") and (place.accepts is None or place.accepts(name, value)):
            yield start, start + len(value.encode("utf-8", "surrogatepass"))


def _email_spans(text: bytes) -> list[_Span]:
    return _merged(match.span() for match in _compiled(secret_kinds.EMAIL)[0].finditer(text))


def _address_spans(text: bytes) -> list[_Span]:
    spans: list[_Span] = []
    if not _could_be_an_address(text):
        return spans
    for run in _RUN.finditer(text):
        characters = run.group()
        if not _could_be_an_address(characters):
            continue
        dotted = _DOTTED.search(characters)
        ended = characters if characters.endswith(b"::") else characters.rstrip(b".:")
        start, stop = dotted.span(1) if dotted else (0, len(ended))
        if _identifies_a_host(characters[start:stop].decode()):
            spans.append((run.start() + start, run.start() + stop))
    return spans


def _could_be_an_address(text: bytes) -> bool:
    """Whether there are the signs of one: three dots, eight groups, or groups left out. A clock has two colons."""
    return text.count(b".") >= 3 or b"::" in text or text.count(b":") >= 7


def _identifies_a_host(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _merged(spans: Iterable[_Span]) -> list[_Span]:
    merged: list[_Span] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


@functools.cache
def _compiled(pattern: str) -> tuple[Any, dict[str, int]]:
    """The pattern over bytes and the numbers of its groups."""
    import re2  # imported here: most runs meet no hint

    compiled = re2.compile(pattern.encode())
    return compiled, {name.decode(): number for name, number in compiled.groupindex.items()}


@functools.cache
def _any_pattern() -> Any:
    import re2

    options = re2.Options()
    options.never_capture = True
    options.max_mem = 64 << 20  # bytes; room for the states that logs lead to, so that none is computed twice
    patterns = (_issued_pattern(), _SK_KEY, *(place.pattern for place in secret_kinds.PLACES))
    return re2.compile("|".join(f"(?:{re.sub(r'[?]P<[a-z]+>', '?:', p)})" for p in patterns).encode(), options)


@functools.cache
def _issued_hints() -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(hint.encode() for hint, _ in secret_kinds.ISSUED))


@functools.cache
def _issued_pattern() -> str:
    alternatives = "|".join(pattern for _, pattern in secret_kinds.ISSUED)
    return rf"(?:^|[^A-Za-z0-9_])(?P<s>{alternatives})"


@functools.cache
def _places() -> tuple[tuple[secret_kinds.Place, tuple[bytes, ...]], ...]:
    return tuple((place, tuple(hint.encode() for hint in place.hints)) for place in secret_kinds.PLACES)
