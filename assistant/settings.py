"""Settings: one list of keys, read from the environment and one TOML file, each value with the place it came from.

Order of precedence: environment, then file, then the default. ``VLLM_DIAGNOSE_<SECTION>_<KEY>`` sets ``section.key``;
for secrets ``VLLM_DIAGNOSE_<SECTION>_<KEY>_FILE`` (or ``<key>_file`` in the TOML file) names a file that holds the
value, so that it need not stand in an environment or a manifest. A key that nobody knows is refused with the nearest
known one. Only the standard library is used, because every start of the program may come through here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "VLLM_DIAGNOSE_"
#: A settings, targets or secret file larger than this is not what it is said to be.
MAX_FILE_BYTES = 1024 * 1024

# Kubernetes puts variables for every Service of the namespace into each container. A Service called "vllm-diagnose"
# produces names with this program's own prefix; they are no settings.
_KUBERNETES = re.compile(r"(?:SERVICE_(?:HOST|PORT)(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)")


class SettingsError(Exception):
    """Settings that cannot be used. ``problems`` holds one sentence each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its dotted name, type, default, meaning, and whether its value is a secret.

    ``kind`` is one of ``text``, ``path``, ``number``, ``whole`` (a whole number), ``yes_no`` and ``list`` (comma
    separated in the environment). ``least`` and ``most`` bound numbers; ``one_of`` lists the accepted texts.
    """

    name: str
    kind: str
    default: Any
    meaning: str
    secret: bool = False
    least: float | None = None
    most: float | None = None
    one_of: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.replace(".", "_").upper()


KEYS: tuple[Key, ...] = (
    Key("language", "text", "", "Language of answers; empty means that of the question.", one_of=("", "en", "zh")),
    Key("deadline_s", "number", 60.0, "Seconds that one look at something may take.", least=1, most=86400),
    Key("targets_file", "path", "", "File that names the servers to look at, TOML or YAML."),
    Key("runbooks_folder", "path", "", "Folder of your own Markdown runbooks; they are searched beside the documents."),
    Key(
        "redact_addresses", "yes_no", False, "Also remove IP addresses and e-mail addresses from what is saved or sent."
    ),
    Key("store.url", "text", "", "Database; empty means SQLite in the state folder.", secret=True),
    Key("store.timeout_s", "number", 5.0, "Seconds that saving may wait for the database.", least=0.1, most=60),
    Key("store.keep_incidents_days", "whole", 90, "Days an incident is kept; 0 keeps it for ever.", least=0),
    Key("store.keep_jobs_days", "whole", 30, "Days a finished job is kept; 0 keeps it for ever.", least=0),
    Key("store.keep_audit_days", "whole", 365, "Days an audit line is kept; 0 keeps it for ever.", least=0),
    Key("store.backup_folder", "path", "", "Folder for backups; empty means beside the state."),
    Key("jobs.lease_s", "number", 30.0, "Seconds after which a silent job counts as interrupted.", least=1, most=3600),
    Key("jobs.at_once", "whole", 2, "Jobs that one process works on at the same time.", least=1, most=64),
    Key("server.host", "text", "127.0.0.1", "Address that `serve` listens on."),
    Key("server.port", "whole", 8080, "Port that `serve` listens on; 0 takes a free one.", least=0, most=65535),
    Key(
        "server.public_url", "text", "", "Address under which people and alerts reach the server, http:// or https://."
    ),
    Key("server.allowed_hosts", "list", (), "Names that may stand in the Host header, besides that of the public URL."),
    Key("server.allowed_origins", "list", (), "Origins whose browser pages may call the server, besides its own."),
    Key("server.anonymous", "text", "", "Role of whoever sends no token; empty refuses them.", one_of=("", "viewer")),
    Key("server.readers", "whole", 0, "Processes that read logs; 0 takes one for each core.", least=0, most=256),
    Key("server.max_body_bytes", "whole", 67_108_864, "Bytes that one request may bring.", least=1024),
    Key("server.receive_s", "number", 120.0, "Seconds that a request may take to arrive.", least=1, most=3600),
    Key("server.requests_per_minute", "whole", 600, "Requests a minute for each token or address.", least=1),
    Key(
        "server.mcp_sessions",
        "yes_no",
        False,
        "Keep a session for each MCP client that knows no other way; see mcp.md.",
    ),
    Key(
        "server.stop_s", "number", 20.0, "Seconds that requests under way get when the server stops.", least=0, most=600
    ),
    Key(
        "server.drain_s",
        "number",
        0.0,
        "Seconds that the server still takes requests after SIGTERM, while /readyz sends others elsewhere.",
        least=0,
        most=600,
    ),
    Key(
        "server.log",
        "text",
        "",
        "Form of its own log; empty is text on a terminal and else JSON.",
        one_of=("", "json", "text"),
    ),
    Key(
        "server.metrics",
        "text",
        "token",
        "Who may read /metrics: whoever has a token, everybody, or nobody.",
        one_of=("token", "open", "off"),
    ),
    Key("telemetry.otlp_url", "text", "", "OpenTelemetry collector (OTLP over HTTP) that gets traces; empty for none."),
    Key("auth.issuer", "text", "", "OAuth 2.1 authorization server whose access tokens are taken, as their iss says."),
    Key("auth.audience", "text", "", "What their aud must hold; empty means the public URL with /mcp."),
    Key("auth.jwks_url", "text", "", "Where the issuer's keys are; empty means /.well-known/jwks.json below it."),
    Key("alerts.webhook_url", "text", "", "Where diagnosed alerts are sent as JSON, http:// or https://."),
    Key("alerts.webhook_token", "text", "", "Bearer token for that address.", secret=True),
    Key("alerts.grafana_url", "text", "", "Grafana in which diagnosed alerts become annotations."),
    Key("alerts.grafana_token", "text", "", "Service-account token of that Grafana.", secret=True),
    Key("alerts.allow_private", "yes_no", False, "Let the names of these two lead to private or loopback addresses."),
    Key("alerts.diagnoses_at_once", "whole", 3, "Groups of alerts that are diagnosed at once.", least=1, most=100),
    Key("alerts.messages_per_minute", "whole", 5, "Messages in any minute; the rest is counted.", least=1, most=1000),
    Key("alerts.group_s", "number", 60.0, "Seconds in which alerts of a group join one incident.", least=1, most=3600),
    Key(
        "slack.bot_token",
        "text",
        "",
        "Token of the app's bot user (xoxb-) in the one workspace it is installed in.",
        secret=True,
    ),
    Key(
        "slack.signing_secret",
        "text",
        "",
        "What Slack signs its requests with; without it /slack/events is closed.",
        secret=True,
    ),
    Key("slack.app_token", "text", "", "App-level token (xapp-) for Socket Mode, `vllm-diagnose slack`.", secret=True),
    Key("slack.client_id", "text", "", "The app's client id; with the secret, /slack/install puts it into workspaces."),
    Key(
        "slack.client_secret",
        "text",
        "",
        "The app's client secret; installations are kept encrypted with it.",
        secret=True,
    ),
    Key("slack.channels", "list", (), "Ids of the channels it answers in; empty means every channel."),
    Key("slack.users", "list", (), "Ids of users and user groups who may ask; empty means every member."),
    Key("slack.operators", "list", (), "Ids of users and user groups who are operators; the others are viewers."),
    Key(
        "slack.alert_channel",
        "text",
        "",
        "Id of the channel in which alerts become threads; TEAM/CHANNEL with several workspaces.",
    ),
    Key("slack.max_file_bytes", "whole", 33_554_432, "Bytes of one file in Slack that are fetched.", least=1024),
    Key(
        "slack.at_once",
        "whole",
        8,
        "Requests from Slack that one process works on at the same time.",
        least=1,
        most=256,
    ),
    Key("slack.api_url", "text", "https://slack.com/api/", "Slack's Web API; another one for GovSlack."),
    Key("outbound.allow_private", "yes_no", False, "Let every target's name lead to private or loopback addresses."),
    Key("outbound.proxy", "text", "", "Proxy for connections to targets, http:// or https://.", secret=True),
    Key("outbound.no_proxy", "list", (), "Hosts reached without the proxy: exact names, or .suffixes."),
    Key("outbound.proxy_resolves_names", "yes_no", False, "Give names that do not resolve here to the proxy."),
    Key("outbound.ca_file", "path", "", "PEM file of the authorities that targets are checked against."),
    Key("outbound.deadline_s", "number", 10.0, "Seconds that one request may take.", least=0.1, most=3600),
    Key("outbound.connect_s", "number", 3.0, "Seconds that opening a connection may take.", least=0.1, most=600),
    Key("outbound.max_bytes", "whole", 67_108_864, "Bytes of an answer that are read.", least=1024),
    Key("outbound.max_decompressed_bytes", "whole", 134_217_728, "Bytes of an answer after unpacking.", least=1024),
)
_BY_NAME = {key.name: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class Setting:
    """One effective value and where it came from ("default", "VLLM_DIAGNOSE_…", "config.toml: store.url")."""

    key: Key
    value: Any
    source: str

    @property
    def shown(self) -> str:
        """The value as people may see it: secrets only say that they are set."""
        if self.key.secret and self.value:
            return "(set, hidden)"
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        if isinstance(self.value, tuple):
            return ", ".join(self.value) or "(none)"
        return str(self.value) if self.value != "" else "(empty)"


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings. ``settings["store.url"]`` gives a value; ``file`` is the TOML file that was read."""

    values: Mapping[str, Setting]
    file: Path | None = None

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def text(self, name: str) -> str:
        """The value of a ``text`` or ``path`` key."""
        return str(self[name])

    def number(self, name: str) -> float:
        """The value of a ``number`` or ``whole`` key."""
        return float(self[name])

    def whole(self, name: str) -> int:
        """The value of a ``whole`` key."""
        return int(self[name])

    def yes(self, name: str) -> bool:
        """The value of a ``yes_no`` key."""
        return bool(self[name])


def state_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where this user's data lies: ``$XDG_STATE_HOME/vllm-diagnose``, by default below ``~/.local/state``."""
    return _user_folder(environment, "XDG_STATE_HOME", ".local/state")


def default_files(environment: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Where a settings file is looked for when ``VLLM_DIAGNOSE_CONFIG`` names none; the first that exists is read.

    The working directory is not among them: it may belong to somebody else.
    """
    user = _user_folder(environment, "XDG_CONFIG_HOME", ".config")
    return user / "config.toml", Path("/etc/vllm-diagnose/config.toml")


def _user_folder(environment: Mapping[str, str] | None, variable: str, below_home: str) -> Path:
    env = os.environ if environment is None else environment
    stated = env.get(variable, "")
    home = env.get("HOME") or "/nonexistent"
    base = Path(stated) if stated.startswith("/") else Path(home) / below_home
    return base / "vllm-diagnose"


def defaults() -> Settings:
    """The settings of somebody who set nothing."""
    return Settings({key.name: Setting(key, key.default, "default") for key in KEYS})


def override(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The same settings with some given on the command line; raises :class:`SettingsError`."""
    problems: list[str] = []
    changed = dict(settings.values)
    for name, value in values.items():
        _set(changed, name, value, "command line", problems, None)
    if problems:
        raise SettingsError(*problems)
    return Settings(changed, settings.file)


def load(environment: Mapping[str, str] | None = None, file: Path | None = None) -> Settings:
    """Read the settings; raises :class:`SettingsError` with every problem found, not only the first."""
    settings, problems = load_what_works(environment, file)
    if problems:
        raise SettingsError(*problems)
    return settings


def load_what_works(
    environment: Mapping[str, str] | None = None, file: Path | None = None
) -> tuple[Settings, tuple[str, ...]]:
    """Read the settings and fall back to the default for each that cannot be used.

    For commands that must answer while things are broken: they go on and print the problems.
    """
    env = dict(os.environ if environment is None else environment)
    problems: list[str] = []
    values = dict(defaults().values)
    path = file or (Path(env[PREFIX + "CONFIG"]) if env.get(PREFIX + "CONFIG") else None)
    if path is None:
        path = next((candidate for candidate in default_files(env) if _exists(candidate)), None)
    if path is not None:
        for name, raw, source in _from_file(path, problems):
            _set(values, name, raw, source, problems, path.parent)
    for name, raw, source in _from_environment(env, problems):
        _set(values, name, raw, source, problems, None)
    return Settings(values, path), tuple(problems)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def read_small_file(path: Path, what: str) -> str:
    """The text of a settings-like file; raises :class:`SettingsError` when it is absent, unreadable or too large."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{what} {path} cannot be read: {error.strerror or error}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"{what} {path} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(f"{what} {path} is not UTF-8 text.") from None


Raw = tuple[str, Any, str]


def _from_file(path: Path, problems: list[str]) -> list[Raw]:
    import tomllib

    try:
        table = tomllib.loads(read_small_file(path, "The settings file"))
    except SettingsError as error:
        problems.extend(error.problems)
        return []
    except tomllib.TOMLDecodeError as error:
        problems.append(f"The settings file {path} is not TOML: {error}.")
        return []
    found: list[Raw] = []
    for name, value in _flat(table):
        known, from_file = _resolve(name.removesuffix("_file") if name not in _BY_NAME else name, name)
        if known is None or (from_file and not known.secret):
            problems.append(f"{path}: {_unknown(name, tuple(_BY_NAME))}")
        else:
            found.append((known.name, _Reference(str(value)) if from_file else value, f"{path}: {name}"))
    return found


def _from_environment(env: Mapping[str, str], problems: list[str]) -> list[Raw]:
    by_variable = {key.variable: key for key in KEYS}
    found: list[Raw] = []
    for variable in sorted(name for name in env if name.startswith(PREFIX)):
        rest = variable.removeprefix(PREFIX)
        if rest == "CONFIG" or _KUBERNETES.fullmatch(rest):
            continue
        key = by_variable.get(variable)
        from_file = key is None and variable.endswith("_FILE")
        if from_file:
            key = by_variable.get(variable.removesuffix("_FILE"))
        if key is None or (from_file and not key.secret):
            problems.append(_unknown(variable, (*by_variable, PREFIX + "CONFIG")))
        elif from_file and env.get(key.variable):
            problems.append(f"Both {key.variable} and {variable} are set; leave one of them out.")
        else:
            found.append((key.name, _Reference(env[variable]) if from_file else _Text(env[variable]), variable))
    return found


class _Text(str):
    """A value from the environment, where everything is text and still has to become its type."""


class _Reference(str):
    """The name of a file that holds a secret."""


def _flat(table: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        whole = f"{before}{name}"
        found += _flat(value, f"{whole}.") if isinstance(value, dict) else [(whole, value)]
    return found


def _resolve(name: str, written: str) -> tuple[Key | None, bool]:
    return _BY_NAME.get(name), name != written


def _unknown(name: str, known: tuple[str, ...]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{name} is not a setting{f'; {near[0]} is the nearest one' if near else ''}."


def _set(
    values: dict[str, Setting], name: str, raw: Any, source: str, problems: list[str], folder: Path | None
) -> None:
    """Take one value over. Paths in the settings file count from its ``folder``; others from the working directory."""
    key, base = _BY_NAME[name], folder or Path()
    try:
        if isinstance(raw, _Reference):
            value: Any = read_small_file(base / raw, f"The file that {source} names,").strip("\r\n")
        else:
            value = _typed(key, raw)
        if key.kind == "path" and value:
            value = str(base / Path(value).expanduser())
    except SettingsError as error:
        problems.extend(error.problems)
    except (ValueError, RuntimeError) as error:
        given = "" if key.secret else f" has the value {str(raw)!r:.80};"
        problems.append(f"{source}{given} expected {error}.")
    else:
        values[name] = Setting(key, value, source)


def _typed(key: Key, raw: Any) -> Any:
    """``raw`` as the key's type; raises :class:`ValueError` whose text ends the sentence "expected …"."""
    from_text = isinstance(raw, _Text)
    if key.kind == "yes_no":
        if from_text:
            raw = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(raw.lower())
        if not isinstance(raw, bool):
            raise ValueError("true or false")
        return raw
    if key.kind == "list":
        parts = [part.strip() for part in raw.split(",")] if from_text else raw
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError("a list of texts")
        return tuple(part for part in parts if part)
    if key.kind in ("number", "whole"):
        return _number(key, raw, from_text)
    if not isinstance(raw, str) or not str(raw).isprintable():
        raise ValueError("a text of one line")
    if key.one_of and raw not in key.one_of:
        raise ValueError("one of " + ", ".join(text or "(empty)" for text in key.one_of))
    return str(raw)


def _number(key: Key, raw: Any, from_text: bool) -> int | float:
    what = "a whole number" if key.kind == "whole" else "a number"
    if key.least is not None:
        what += f" of at least {key.least:g}"
    if key.most is not None:
        what += f" and at most {key.most:g}"
    try:
        number = (int(raw) if key.kind == "whole" else float(raw)) if from_text else raw
    except ValueError:
        raise ValueError(what) from None
    wrong_type = isinstance(number, bool) or not isinstance(number, int if key.kind == "whole" else int | float)
    if wrong_type or not (key.least or 0) <= number <= (key.most if key.most is not None else 2**53):
        raise ValueError(what)
    return int(number) if key.kind == "whole" else float(number)
