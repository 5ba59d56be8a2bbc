"""One request for a page: who looks, in which language, and how the answer is drawn."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tools.redaction import clean

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from starlette.datastructures import FormData

    from assistant.faces.app import Shared
    from assistant.faces.web.sessions import Sessions, Visitor
    from assistant.security.roles import Principal
    from assistant.service import Service

Lang = Literal["en", "zh"]
FOLDER = Path(__file__).parent
LANGUAGE_COOKIE = "vllm-diagnose-language"
#: Nothing but this server's own style sheet, script and icon; no inline script or style, no frame around a page.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    # not no-referrer: with that, browsers send forms with the origin "null"
    "Referrer-Policy": "same-origin",
}
_LANGUAGE = re.compile(r"\s*([a-zA-Z]{1,8})(?:-[a-zA-Z0-9-]+)?\s*(?:;\s*q=([0-9.]{1,5}))?\s*")
_HERE = re.compile(r"/(?![/\\])[!-~]{0,1000}")


class PageError(Exception):
    """A page that cannot be shown; the message is a sentence, ``status`` the HTTP status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class Visit:
    """A request with everything that a page needs. ``form`` is there for a POST whose proof was right."""

    request: Request
    shared: Shared
    sessions: Sessions
    visitor: Visitor
    lang: Lang
    form: FormData | None = None
    cookies: list[tuple[str, str]] = field(default_factory=list)

    @property
    def service(self) -> Service:
        """The running service."""
        return self.shared.service

    @property
    def principal(self) -> Principal:
        """Who looks; a page that everybody may see does not ask."""
        if self.visitor.principal is None:
            raise RuntimeError("a page for those who may look was drawn for somebody who may not")
        return self.visitor.principal

    def word(self, key: str, **values: object) -> str:
        """A sentence in the visitor's language."""
        return self.service.catalog.word(key, self.lang, **values)

    def told(self, error: Exception | str) -> str:
        """What an error says, in the visitor's language, fit for a page."""
        return self.service.catalog.told(clean(str(error)), self.lang)

    def field(self, name: str, most: int = 200) -> str:
        """A text of the form or of the address, cut and without blanks around it."""
        given = (self.form or self.request.query_params).get(name, "")
        return given.strip()[:most] if isinstance(given, str) else ""

    def page(self, template: str, *, status: int = 200, title: str = "", **values: Any) -> Response:
        """A template as an answer."""
        text = environment().get_template(template).render(self.context(title=title, **values))
        response = Response(text.encode("utf-8", "replace"), status, dict(HEADERS), "text/html; charset=utf-8")
        if self.visitor.is_new:
            self.sessions.set_cookie(response, self.visitor.identifier)
        if self.request.query_params.get("lang") in ("en", "zh"):
            response.set_cookie(LANGUAGE_COOKIE, self.lang, max_age=365 * 86400, path="/", samesite="lax")
        return response

    def context(self, **values: Any) -> dict[str, Any]:
        """What every template sees."""
        return {
            "w": self.word,
            "lang": self.lang,
            "path": self.request.url.path,
            "other_lang": self.address(lang="zh" if self.lang == "en" else "en"),
            "proof": self.sessions.proof(self.visitor.identifier),
            "name": self.visitor.principal.name if self.visitor.signed_in and self.visitor.principal else "",
            "may_look": self.visitor.principal is not None,
            "asset": asset_address,
            **values,
        }

    def address(self, **changed: str) -> str:
        """This page's address with some of its parameters changed; an empty one is left out."""
        query = {**self.request.query_params, **changed}
        query = {key: value for key, value in query.items() if value and key != "ticket"}
        path = self.request.url.path if self.request.method == "GET" else "/"
        return quote(path) + (f"?{urlencode(query)}" if query else "")

    def to(self, path: str) -> Response:
        """Go on with another page."""
        return RedirectResponse(path, 303, dict(HEADERS))


def language_of(request: Request, default: str) -> Lang:
    """The language that was asked for: by the address, by an earlier choice, by the browser, by the settings."""
    for given in (request.query_params.get("lang"), request.cookies.get(LANGUAGE_COOKIE)):
        if given in ("en", "zh"):
            return "zh" if given == "zh" else "en"
    ranked: list[tuple[float, Lang]] = []
    for part in request.headers.get("accept-language", "")[:500].split(","):
        found = _LANGUAGE.fullmatch(part)
        if found and found[1].lower() in ("en", "zh"):
            try:
                ranked.append((float(found[2] or 1), "zh" if found[1].lower() == "zh" else "en"))
            except ValueError:
                continue
    if ranked:
        return max(ranked, key=lambda row: row[0])[1]
    return "zh" if default == "zh" else "en"


def own_path(text: str) -> str:
    """The text where it is a path on this server, else the first page: nobody is sent elsewhere after signing in."""
    return text if _HERE.fullmatch(text) else "/"


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates. Whatever is put into one is escaped, unless this package made it."""
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["ticks"] = _ticks
    made.tests["block"] = lambda value, name: type(value).__name__ == name  # of assistant.render.blocks
    made.filters["marked"] = _marked
    return made


def _ticks(text: str) -> Markup:
    """A sentence of ours, with `what stands in back-ticks` as code."""
    from markupsafe import Markup

    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(_with_whole_flags(text))))  # noqa: S704 (escaped before)


#: A flag, which browsers break behind each hyphen.
_FLAG = re.compile(r"(?<![\w&-])--[a-z0-9]+(?:-[a-z0-9]+)*(?![\w-])", re.IGNORECASE)


def _marked(command: str, pieces: tuple[str, ...] | None) -> Markup:
    """A command with its new pieces marked, and with flags that a narrow page does not break at their hyphens."""
    from markupsafe import Markup

    wanted = sorted({piece for piece in pieces or () if piece}, key=len, reverse=True)
    if not wanted:
        return _with_whole_flags(command)
    parts = re.split("(" + "|".join(re.escape(piece) for piece in wanted) + ")", command)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(_with_whole_flags(part)) if part in wanted else _with_whole_flags(part)
        for part in parts
        if part
    )


def _with_whole_flags(text: str) -> Markup:
    from markupsafe import Markup, escape

    return Markup(_FLAG.sub(r'<span class="flag">\g<0></span>', str(escape(text))))  # noqa: S704 (escaped before)


_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@lru_cache(maxsize=1)
def assets() -> dict[str, tuple[bytes, str, str]]:
    """The files beside the pages: content, type and tag by name."""
    found = {}
    for path in sorted((FOLDER / "assets").iterdir()):
        if path.suffix in _TYPES:
            data = path.read_bytes()
            found[path.name] = (data, _TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:16])
    return found


@lru_cache(maxsize=32)
def asset_address(name: str) -> str:
    """Where a file is; the address changes with its content, so that a browser may keep it for ever."""
    return f"/assets/{name}?v={assets()[name][2]}"
