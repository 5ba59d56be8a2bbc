"""Says what the checks of host, network and GPUs need to know of the node on which it runs; judges nothing.

This file stands alone (standard library, Python 3.9 or newer): :mod:`tools.launchers.node_worker` runs its text on a node.
``PROGRAMS["modules"]`` holds the modules that gather, which the checks of the assistant's own machine use as well, and
pynvml: names and texts as JSON, compressed, in base 64. Prints a JSON line for each part as soon as it is known, so that
a part that hangs, as a file system whose server is gone makes it do, keeps none of the others back. Ends after its seconds.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

#: ``modules``; the launcher sets it.
PROGRAMS: dict[str, str] = globals().get("PROGRAMS", {})
#: Characters of one part's facts; a machine that has more to say is no machine that we know.
MOST = 512 << 10
#: Seconds for a connection to the model hub: all nodes ask at the same time.
HUB_S = 3.0
lock = threading.Lock()


class Brought(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from texts. Packages above them are empty and hide what the node has under the same names."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:  # fmt: skip
        if name not in self.texts and not self.is_package(name):
            return None
        return importlib.util.spec_from_loader(name, self, origin="the assistant")

    def is_package(self, name: str) -> bool:
        return any(other.startswith(f"{name}.") for other in self.texts)

    def get_source(self, name: str) -> str:
        return self.texts.get(name, "")


def say(event: str, **facts: Any) -> None:
    text = json.dumps({"event": event, **facts})
    if len(text) > MOST:
        text = json.dumps({"event": "failed", "part": facts.get("part"), "text": f"{len(text)} characters"})
    line = text.encode() + b"\n"
    with lock:
        while line:
            line = line[os.write(1, line) :]


def host() -> Any:
    from tools.host.facts import Place, gather
    from tools.host.packages import packages_below

    return gather(Place("self", False, os.environ), python=sys.executable, packages=packages_below(Path(sys.prefix)))


def network() -> Any:
    from tools.network.facts import Hub, hub_of, measure, offline

    url = hub_of(os.environ)
    hub = [Hub("skipped", without_password(url), "HF_HUB_OFFLINE")]
    asking = None
    if not offline(os.environ):
        hub[0] = Hub("bad", without_password(url), f"no answer within {HUB_S:g} s.")
        asking = threading.Thread(target=lambda: hub.__setitem__(0, reach(hub[0], url)), daemon=True)
        asking.start()
    found = measure(os.environ, addresses_of_name, source_address)
    if asking is not None:
        asking.join(HUB_S + 0.5)
    told = {name: without_password(value) for name, value in found.environment.items()}
    return dataclasses.replace(found, environment=told, hub=hub[0])


def gpu() -> Any:
    from tools.gpu.facts import gather, torch_cuda_of

    torch = importlib.util.find_spec("torch")
    version = Path(torch.origin).with_name("version.py") if torch is not None and torch.origin else None
    found = gather(torch_cuda=torch_cuda_of(version) if version is not None else None)
    for card in found.machine.cards if found.machine is not None else ():
        card.holders = tuple(dataclasses.replace(holder, name=without_options(holder.name)) for holder in card.holders)
    return found


def without_password(text: str) -> str:
    """A URL's user and password stay on the node: what is said here may be kept in the log of a pod or job."""
    return re.sub(r"//[^/\s]*@", "//***@", text)[:300]


def without_options(command: str) -> str:
    """The words of a command line before its first option; a key may be among those."""
    return command.partition(" -")[0]


def reach(before: Any, url: str) -> Any:
    """Whether the hub takes a connection from here."""
    try:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        started = time.monotonic()
        with socket.create_connection((parts.hostname or "", port), HUB_S) as connection:
            took = time.monotonic() - started
            return dataclasses.replace(
                before, status="ok", detail=f"{connection.getpeername()[0]}, {took * 1000:.0f} ms"
            )
    except (OSError, ValueError) as error:
        return dataclasses.replace(before, status="bad", detail=str(error)[:200].rstrip(".") + ".")


def addresses_of_name(name: str) -> list[str]:
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)))


def source_address(destination: str) -> str | None:
    """The own address from which the kernel would speak to ``destination``; nothing is sent."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((destination, 80))
            return str(asked.getsockname()[0])
    except OSError:
        return None


def look(part: str) -> None:
    try:
        found = {"host": host, "network": network, "gpu": gpu}[part]()
        say("facts", part=part, facts=dataclasses.asdict(found))
    except Exception as error:  # noqa: BLE001 (a part that fails costs no other, whatever the node is like)
        say("failed", part=part, text=f"{type(error).__name__}: {error}"[:300])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="checks_worker.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    sys.meta_path.insert(0, Brought(json.loads(zlib.decompress(base64.b64decode(PROGRAMS["modules"])))))
    threads = [threading.Thread(target=look, args=(part,), daemon=True) for part in ("host", "network", "gpu")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    os._exit(0)  # a thread that hangs would be waited for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
