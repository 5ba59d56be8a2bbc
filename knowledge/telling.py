"""The program's own errors in the reader's language.

An error is raised as an English sentence, for logs, programs and the command line. Where a person is spoken to in another
language, the sentence is found again among the templates ``told-*`` of the sentences and told with the same values. This
also reaches what was stored before anybody knew who would read it, such as the error of a job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

_PLACE = re.compile(r"\{(\w+)\}")
#: Characters of a sentence that are compared; a longer one holds quoted text and is left alone.
_MOST = 2000


def told(text: str, lang: str, sentences: Mapping[str, Mapping[str, str]]) -> str:
    """``text`` in ``lang``; as it is where it is no sentence that the templates know."""
    if lang == "en" or len(text) > _MOST:
        return text
    for key, said in sentences.items():
        if not key.startswith("told-"):
            continue
        if found := _pattern(said["en"]).fullmatch(text):
            values = {name: told(value, lang, sentences) for name, value in found.groupdict().items()}
            return said[lang].format(**values)
    return text


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Matches what the template becomes when its places are filled."""
    parts = _PLACE.split(template)
    made = [f"(?P<{part}>.+?)" if number % 2 else re.escape(part) for number, part in enumerate(parts)]
    return re.compile("".join(made), re.DOTALL)
