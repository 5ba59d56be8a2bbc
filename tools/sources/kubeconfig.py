"""Where the Kubernetes API is and how to speak to it: from inside a pod, or from a kubeconfig.

Kubeconfig: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/ . Tokens, token files,
client certificates and basic authentication are taken; commands that fetch credentials (``exec``, ``auth-provider``)
are not run. Inside a pod: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ .
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.addresses import parse_url
from tools.sources.base import SourceFailedError, rows, table, text

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_IN_CLUSTER = "https://kubernetes.default.svc"
_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cluster:
    """An API server with what is needed to be let in. Secrets are left out of its representation."""

    address: str
    namespace: str = "default"
    ca_file: str | None = None
    ca_data: str | None = field(default=None, repr=False)
    client_cert: tuple[str, str] | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)


def in_cluster(folder: Path = SERVICE_ACCOUNT) -> Cluster:
    """The cluster this process runs in, by the service account that is mounted into its pod."""
    if not (folder / "token").exists():
        raise SourceFailedError(f"This process runs in no pod with a service account: {folder}/token does not exist.")
    namespace = _read(folder / "namespace").strip() if (folder / "namespace").exists() else "default"
    headers = {"Authorization": f"Bearer {_read(folder / 'token').strip()}"}
    return Cluster(_IN_CLUSTER, namespace, str(folder / "ca.crt"), headers=headers)


def from_kubeconfig(path: Path, context: str = "") -> Cluster:
    """The cluster and user of one context; the current one unless named. Raises :class:`SourceFailedError`."""
    import yaml

    try:
        whole = table(yaml.safe_load(_read(path)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SourceFailedError(f"The kubeconfig {path} is not YAML: {str(error).splitlines()[0]}.") from None
    name = context or text(whole.get("current-context"))
    chosen = _named(whole, "contexts", "context", name, path)
    cluster = _named(whole, "clusters", "cluster", text(chosen.get("cluster")), path)
    user = _named(whole, "users", "user", text(chosen.get("user")), path) if chosen.get("user") else {}
    address = text(cluster.get("server"), 2000)
    parse_url(address)
    if cluster.get("insecure-skip-tls-verify") is True:
        raise SourceFailedError(
            f"The kubeconfig {path} switches off the check of the server's certificate, which is not done here; "
            "give certificate-authority instead."
        )
    folder = path.parent
    return Cluster(
        address,
        text(chosen.get("namespace")) or "default",
        str(folder / text(cluster.get("certificate-authority"), 2000))
        if cluster.get("certificate-authority")
        else None,
        _inline(cluster, "certificate-authority", path),
        _certificate(user, path),
        _credentials(user, path),
    )


def _named(whole: dict[str, Any], group: str, kind: str, name: str, path: Path) -> dict[str, Any]:
    for row in rows(whole.get(group)):
        if row.get("name") == name:
            return table(row.get(kind))
    raise SourceFailedError(f"The kubeconfig {path} has no {kind} named {name!r:.100}.")


def _credentials(user: dict[str, Any], path: Path) -> dict[str, str]:
    if user.get("token"):
        return {"Authorization": f"Bearer {text(user['token'], 20_000)}"}
    if user.get("tokenFile"):
        return {"Authorization": f"Bearer {_read(path.parent / text(user['tokenFile'], 2000)).strip()}"}
    if user.get("username"):
        pair = f"{text(user['username'])}:{text(user.get('password'), 2000)}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    for way in ("exec", "auth-provider"):
        if user.get(way):
            raise SourceFailedError(
                f"The kubeconfig {path} gets its credentials from a command ({way}), which is not run here; make a "
                "service account with a token (`kubectl create token`) and name that instead."
            )
    return {}


def _certificate(user: dict[str, Any], path: Path) -> tuple[str, str] | None:
    found = []
    for key in ("client-certificate", "client-key"):
        inline = _inline(user, key, path)
        if inline is not None:
            found.append(inline)
        elif user.get(key):
            found.append(_read(path.parent / text(user[key], 2000)))
    return (found[0], found[1]) if len(found) == 2 else None


def _inline(part: dict[str, Any], key: str, path: Path) -> str | None:
    value = part.get(f"{key}-data")
    if not value:
        return None
    try:
        return base64.b64decode(str(value), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise SourceFailedError(f"The kubeconfig {path} has a {key}-data that is not base64 of a PEM text.") from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise SourceFailedError(f"{path} is larger than {_MOST_BYTES} bytes.")
        return data.decode()
    except OSError as error:
        raise SourceFailedError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise SourceFailedError(f"{path} is not text.") from None
