"""The targets file: the servers that may be looked at, by name, and how to reach what they show.

TOML or YAML by the file's ending; both hold the same tree, described in docs/settings.md. Addresses written here are
what ``tools.outbound`` is allowed to connect to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.settings import Settings, SettingsError, read_small_file
from tools.addresses import AddressError, Allowance, Policy, parse_url

#: Further keys of a kind of access. Those that name files count from the folder of the targets file.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "kubernetes": ("namespace", "pod", "selector", "container", "context", "discover"),
    "docker": ("socket",),
    "journald": ("folder",),
}
_LOG_KINDS = ("files", "loki", "kubernetes", "docker", "journald")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_DEPTH = 10


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a credential lies: in a file or in an environment variable. It is read when it is used, and never kept."""

    file: str = ""
    variable: str = ""

    def read(self) -> str:
        """The credential; raises :class:`SettingsError` that names the place and not the value."""
        if self.file:
            return read_small_file(Path(self.file), "The credential file").strip("\r\n")
        value = os.environ.get(self.variable, "")
        if not value:
            raise SettingsError(
                f"The environment variable {self.variable}, which should hold a credential, is not set."
            )
        return value


@dataclass(frozen=True, slots=True)
class Access:
    """One thing of a target that can be read: an address with its credential, or paths on this machine.

    ``kind`` is ``vllm`` or ``prometheus`` for metrics; ``files``, ``loki``, ``kubernetes``, ``docker`` or ``journald``
    for logs; ``mcp`` for a node's tools, ``dcgm`` for its GPUs' exporter. ``query`` is what selects this target there: PromQL label matchers or a LogQL
    stream selector. ``options`` holds what only some kinds have (:data:`OPTIONS`), paths already resolved.
    """

    kind: str
    address: str = ""
    paths: tuple[str, ...] = ()
    query: str = ""
    token: Secret | None = None
    private: bool | None = None
    ca_file: str | None = None
    username: str = ""
    password: Secret | None = None
    tenant: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """Credentials and tenant as HTTP headers; raises :class:`SettingsError` where a credential is not there."""
        found = {}
        if self.token is not None:
            found["Authorization"] = f"Bearer {self.token.read()}"
        elif self.username:
            import base64

            secret = self.password.read() if self.password is not None else ""
            found["Authorization"] = "Basic " + base64.b64encode(f"{self.username}:{secret}".encode()).decode()
        if self.tenant:
            found["X-Scope-OrgID"] = self.tenant
        return found


@dataclass(frozen=True, slots=True)
class Target:
    """One vLLM server. ``metrics`` falls back to ``/metrics`` of its own address."""

    name: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    private: bool | None = None
    ca_file: str | None = None
    api_key: Secret | None = None
    metrics: Access | None = None
    logs: tuple[Access, ...] = ()
    node_tools: Access | None = None
    gpus: Access | None = None

    def allowances(self) -> tuple[Allowance, ...]:
        """Every server that looking at this target may connect to."""
        found = [Allowance.of(self.address, private=self.private, ca_file=self.ca_file)]
        for access in (self.metrics, *self.logs, self.node_tools, self.gpus):
            if access is not None and "://" in access.address:
                private = self.private if access.private is None else access.private
                found.append(Allowance.of(access.address, private=private, ca_file=access.ca_file or self.ca_file))
        return tuple(dict.fromkeys(found))

    def sockets(self) -> tuple[str, ...]:
        """The Unix sockets that looking at this target may open: Docker's, where its logs come from there."""
        return tuple(access.options["socket"] for access in self.logs if access.kind == "docker")


def load_targets(path: Path) -> dict[str, Target]:
    """Read a targets file; raises :class:`SettingsError` with every problem found."""
    text = read_small_file(path, "The targets file")
    problems: list[str] = []
    tree = _parse(text, path)
    unknown = sorted(set(tree) - {"targets"})
    if unknown:
        problems.append(f"{path}: {unknown[0]} is not known here; everything stands below targets.")
    entries = tree.get("targets", {})
    if not isinstance(entries, dict):
        raise SettingsError(f"{path}: targets must map names to servers.")
    found: dict[str, Target] = {}
    for name, entry in entries.items():
        try:
            found[str(name)] = _target(str(name), entry, path.parent)
        except (ValueError, AddressError) as error:
            problems.append(f"{path}: targets.{name}: {error}")
    if problems:
        raise SettingsError(*problems)
    return found


def policy_for(settings: Settings, targets: Mapping[str, Target], *extra: Allowance) -> Policy:
    """What may be connected to: the configured targets and what was permitted on the command line (``extra``)."""
    return Policy(
        allowed=(*extra, *(allowance for target in targets.values() for allowance in target.allowances())),
        private=settings.yes("outbound.allow_private"),
        proxy=settings.text("outbound.proxy") or None,
        no_proxy=tuple(settings["outbound.no_proxy"]),
        proxy_resolves_names=settings.yes("outbound.proxy_resolves_names"),
        ca_file=settings.text("outbound.ca_file") or None,
        sockets=tuple(dict.fromkeys(path for target in targets.values() for path in target.sockets())),
    )


def _parse(text: str, path: Path) -> dict[str, Any]:
    if path.suffix == ".toml":
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"The targets file {path} is not TOML: {error}.") from None
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"The targets file {path} must end in .toml, .yaml or .yml.")
    import yaml

    try:
        _refuse_unusual_yaml(yaml.parse(text, Loader=yaml.SafeLoader), path)
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        where = str(error).splitlines()[0]
        raise SettingsError(f"The targets file {path} is not YAML: {where}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"The targets file {path} must hold a mapping with the key targets.")
    return tree


def _refuse_unusual_yaml(events: Iterable[Any], path: Path) -> None:
    """Refuse aliases, which can make a small file into a huge tree, and deep nesting, before a tree is built."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise SettingsError(f"The targets file {path} uses YAML aliases; write the values out.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise SettingsError(f"The targets file {path} is not YAML as expected: it is nested too deeply.")


def _target(name: str, entry: Any, folder: Path) -> Target:
    if not _NAME.fullmatch(name):
        raise ValueError("a name has letters, digits, dots, dashes and underscores, at most 64.")
    known = (
        "address",
        "labels",
        "private",
        "ca_file",
        "api_key_file",
        "api_key_env",
        "metrics",
        "logs",
        "node_tools",
        "gpus",
    )
    table = _table(entry, known)
    address = _text(table, "address", required=True)
    parse_url(address)
    labels = table.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise ValueError("labels must map names to texts.")
    metrics = _access(table, "metrics", ("vllm", "prometheus"), folder)
    logs = _logs(table, folder)
    node_tools = _access(table, "node_tools", ("mcp",), folder)
    gpus = _access(table, "gpus", ("dcgm",), folder)
    return Target(
        name=name,
        address=address,
        labels={str(key): value for key, value in labels.items()},
        private=_yes_no(table, "private"),
        ca_file=_path(table, "ca_file", folder),
        api_key=_secret(table, "api_key", folder),
        metrics=metrics,
        logs=logs,
        node_tools=node_tools,
        gpus=gpus,
    )


def _logs(table: Mapping[str, Any], folder: Path) -> tuple[Access, ...]:
    """``logs:`` is one place or a list of places (Kubernetes for events and state, Loki for what it no longer has)."""
    given = table.get("logs")
    if given is None:
        return ()
    places = given if isinstance(given, list) else [given]
    if not 0 < len(places) <= 8:
        raise ValueError("logs must be one place or a list of at most 8.")
    found = (_access({"logs": place}, "logs", _LOG_KINDS, folder) for place in places)
    return tuple(access for access in found if access is not None)


def _access(table: Mapping[str, Any], name: str, kinds: tuple[str, ...], folder: Path) -> Access | None:
    """``metrics: {prometheus: URL, query: …}``: one of ``kinds`` names the way, the rest belongs to it."""
    if name not in table:
        return None
    general = ("query", "token_file", "token_env", "username", "password_file", "password_env", "tenant")
    special = tuple(option for kind in kinds for option in OPTIONS.get(kind, ()))
    part = _table(table[name], (*kinds, *general, "private", "ca_file", *special), name)
    chosen = [kind for kind in kinds if kind in part]
    if len(chosen) != 1:
        raise ValueError(f"{name} must have exactly one of {', '.join(kinds)}.")
    kind = chosen[0]
    foreign = [key for key in part if key in special and key not in OPTIONS.get(kind, ())]
    if foreign:
        raise ValueError(f"{name}.{foreign[0]} has no meaning beside {name}.{kind}.")
    paths: tuple[str, ...] = ()
    address = ""
    options = {key: _text(part, key) for key in OPTIONS.get(kind, ()) if key in part}
    if kind == "files":
        given = part["files"] if isinstance(part["files"], list) else [part["files"]]
        if not given or not all(isinstance(item, str) and item for item in given):
            raise ValueError(f"{name}.files must be a path or a list of paths.")
        paths = tuple(str(folder / item) for item in given)
    else:
        address = _text(part, kind, required=True)
        if kind in _CHECKS:
            _CHECKS[kind](name, address, options, folder)
        else:
            parse_url(address)
    username, token, password = (
        _text(part, "username"),
        _secret(part, "token", folder),
        _secret(part, "password", folder),
    )
    if username and token:
        raise ValueError(f"{name}.username and a token are both given; leave one of them out.")
    if password and not username:
        raise ValueError(f"{name}.username is missing beside its password.")
    return Access(
        kind=kind,
        address=address,
        paths=paths,
        query=_text(part, "query"),
        token=token,
        private=_yes_no(part, "private"),
        ca_file=_path(part, "ca_file", folder),
        username=username,
        password=password,
        tenant=_text(part, "tenant"),
        options=options,
    )


def _check_kubernetes(name: str, address: str, options: dict[str, str], folder: Path) -> None:
    """``in-cluster``, an API server's address, or the path of a kubeconfig, which becomes ``options["kubeconfig"]``."""
    if bool(options.get("pod")) == bool(options.get("selector")):
        raise ValueError(f"{name} must name either a pod or a selector of pods.")
    if options.get("discover") and (options["discover"] != "pods" or not options.get("selector")):
        raise ValueError(f"{name}.discover can only be pods, beside a selector.")
    if "://" in address:
        parse_url(address)
        if not options.get("namespace"):
            raise ValueError(f"{name}.namespace is missing.")
    elif address != "in-cluster":
        options["kubeconfig"] = str(folder / Path(address).expanduser())


def _check_docker(name: str, address: str, options: dict[str, str], folder: Path) -> None:
    """``docker:`` names the container; the socket is the daemon's usual one unless given."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", address):
        raise ValueError(f"{name}.docker must be the name or id of a container.")
    options.setdefault("socket", "/var/run/docker.sock")
    if not options["socket"].startswith("/"):
        raise ValueError(f"{name}.socket must be an absolute path.")


def _check_journald(name: str, address: str, options: dict[str, str], folder: Path) -> None:
    """``journald:`` names the unit; ``folder`` reads the files of another machine's journal."""
    if not re.fullmatch(r"[A-Za-z0-9_:.\\@][A-Za-z0-9_:.\\@-]{0,254}", address):
        raise ValueError(f"{name}.journald must be the name of a unit, such as vllm.service.")
    if options.get("folder"):
        options["folder"] = str(folder / options["folder"])


_CHECKS: Mapping[str, Callable[[str, str, dict[str, str], Path], None]] = {
    "kubernetes": _check_kubernetes,
    "docker": _check_docker,
    "journald": _check_journald,
}


def _table(value: Any, known: tuple[str, ...], name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'a target'} must be a mapping.")
    for key in value:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"; {near[0]} is the nearest key" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"{name + '.' if name else ''}{key} is not known{hint}.")
    return value


def _text(table: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or (required and not value) or not value.isprintable():
        raise ValueError(f"{key} must be a text of one line.")
    return value


def _yes_no(table: Mapping[str, Any], key: str) -> bool | None:
    value = table.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false.")
    return value


def _path(table: Mapping[str, Any], key: str, folder: Path) -> str | None:
    value = _text(table, key)
    return str(folder / value) if value else None


def _secret(table: Mapping[str, Any], key: str, folder: Path) -> Secret | None:
    file, variable = _text(table, f"{key}_file"), _text(table, f"{key}_env")
    if file and variable:
        raise ValueError(f"{key}_file and {key}_env are both given; leave one of them out.")
    if not file and not variable:
        return None
    return Secret(str(folder / file) if file else "", variable)
