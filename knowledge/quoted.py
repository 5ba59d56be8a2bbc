"""What a person says around the lines that the person quotes.

"All works, may I ignore `... is not supported, falling back to ...`?" complains of nothing: the words of trouble are the
program's. So they are left out where it is asked whether there is any trouble at all.
"""

from __future__ import annotations

import re

#: A quoted line: shorter quotes are names, flags and figures of speech.
_LEAST = 12
_QUOTES = (("`", "`"), ('"', '"'), ("“", "”"), ("「", "」"), ("『", "』"), ("«", "»"))
_QUOTED = re.compile("|".join(rf"{left}[^\n{left}{right}]{{{_LEAST},600}}{right}" for left, right in _QUOTES))


def around(normalised: str) -> str:
    """A normalised description without the lines it quotes; the same text where it quotes none."""
    return _QUOTED.sub(" ... ", normalised)
