"""The targets file: the servers that may be looked at, by name, and how to reach what they show.

TOML or YAML by the file's ending; both hold the same tree, described in docs/settings.md. Addresses written here are
what ``tools.outbound`` is allowed to connect to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.settings import Settings, SettingsError, read_small_file
from tools.addresses import AddressError, Allowance, Policy, parse_url

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

    ``kind`` is ``vllm`` or ``prometheus`` for metrics, ``files`` or ``loki`` for logs, ``mcp`` for a node's tools,
    ``dcgm`` for its GPUs' exporter.
    ``query`` is what selects this target there: a PromQL label matcher or a LogQL stream selector.
    """

    kind: str
    address: str = ""
    paths: tuple[str, ...] = ()
    query: str = ""
    token: Secret | None = None
    private: bool | None = None
    ca_file: str | None = None


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
    logs: Access | None = None
    node_tools: Access | None = None
    gpus: Access | None = None

    def allowances(self) -> tuple[Allowance, ...]:
        """Every server that looking at this target may connect to."""
        found = [Allowance.of(self.address, private=self.private, ca_file=self.ca_file)]
        for access in (self.metrics, self.logs, self.node_tools, self.gpus):
            if access is not None and access.address:
                private = self.private if access.private is None else access.private
                found.append(Allowance.of(access.address, private=private, ca_file=access.ca_file or self.ca_file))
        return tuple(dict.fromkeys(found))


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
    logs = _access(table, "logs", ("files", "loki"), folder)
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


def _access(table: Mapping[str, Any], name: str, kinds: tuple[str, ...], folder: Path) -> Access | None:
    """``metrics: {prometheus: URL, query: …}``: one of ``kinds`` names the way, the rest belongs to it."""
    if name not in table:
        return None
    part = _table(table[name], (*kinds, "query", "token_file", "token_env", "private", "ca_file"), name)
    chosen = [kind for kind in kinds if kind in part]
    if len(chosen) != 1:
        raise ValueError(f"{name} must have exactly one of {', '.join(kinds)}.")
    kind = chosen[0]
    paths: tuple[str, ...] = ()
    address = ""
    if kind == "files":
        given = part["files"] if isinstance(part["files"], list) else [part["files"]]
        if not given or not all(isinstance(item, str) and item for item in given):
            raise ValueError(f"{name}.files must be a path or a list of paths.")
        paths = tuple(str(folder / item) for item in given)
    else:
        address = _text(part, kind, required=True)
        parse_url(address)
    return Access(
        kind=kind,
        address=address,
        paths=paths,
        query=_text(part, "query"),
        token=_secret(part, "token", folder),
        private=_yes_no(part, "private"),
        ca_file=_path(part, "ca_file", folder),
    )


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
