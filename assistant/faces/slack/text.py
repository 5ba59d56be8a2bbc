"""Slack's text as a person wrote it: without the markup in which Slack sends mentions, links and escapes."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"<([^<>\n]{1,2000})>")


def readable(text: str) -> str:
    """The words: ``<https://x|x>`` becomes ``https://x``, mentions go, ``&lt;`` becomes ``<``."""
    plain = _MARKUP.sub(_plain, text)
    return plain.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()


def _plain(match: re.Match[str]) -> str:
    inner = match[1]
    if inner[:1] in "@#!":
        return inner.partition("|")[2] if inner[:1] != "@" else ""
    address, _, label = inner.partition("|")
    # Slack makes a link of anything like a name of a host: <http://server.log|server.log> was only "server.log".
    return label if label and label in address else address
