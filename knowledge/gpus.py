"""The GPUs of ``gpus.yaml``: memory as a program sees it, capability, bandwidth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from knowledge.errors import KnowledgeError
from knowledge.sources import ROOT, read_yaml

_MARKS: Final = re.compile(r"[^a-z0-9]+")
_VENDOR: Final = re.compile(r"^(nvidia|tesla|geforce|amd|instinct)+")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. ``total_gib`` is what PyTorch reports, ``spread_gib`` half the difference between boards."""

    name: str
    total_gib: float
    spread_gib: float
    nominal_gb: float
    capability: float
    bandwidth_gb_s: float
    link: str
    names: tuple[str, ...] = ()


def key(name: str) -> str:
    """A name without case, marks and maker: ``NVIDIA GeForce RTX-4090`` and ``rtx 4090`` are the same."""
    return _VENDOR.sub("", _MARKS.sub("", name.lower()))


@lru_cache(maxsize=1)
def load() -> tuple[Gpu, ...]:
    """Every card, in the order of the file. Raises :class:`KnowledgeError` where a line is wrong."""
    path = ROOT / "gpus.yaml"
    rows = []
    for row in read_yaml(path).data:
        try:
            gpu = Gpu(
                str(row["name"]), float(row["total"]), float(row["spread"]), float(row["nominal"]), float(row["capability"]),
                float(row["bandwidth"]), str(row["link"]), tuple(str(n) for n in row["names"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise KnowledgeError(f"{path}: {row!r} is no complete GPU ({error!r})") from None
        rows.append(gpu)
    return tuple(rows)


@lru_cache(maxsize=1)
def _index() -> dict[str, Gpu]:
    return {key(name): gpu for gpu in reversed(load()) for name in (gpu.name, *gpu.names)}


def find(name: str) -> Gpu | None:
    """The card of this name, or of a longer name that holds it (``NVIDIA A100-SXM4-80GB`` is ``A100 80GB``)."""
    wanted = key(name)
    known = _index()
    if wanted in known:
        return known[wanted]
    inside = [k for k in known if k and k in wanted]
    if not inside:
        return None
    best = known[max(inside, key=len)]
    size = re.search(r"(\d{2,3})\s*gb?\b", name.lower())
    if size and abs(float(size.group(1)) - best.nominal_gb) > 0.1 * best.nominal_gb:
        family = [g for g in load() if key(g.name).startswith(max(inside, key=len)[:4])]
        exact = [g for g in family if abs(g.nominal_gb - float(size.group(1))) <= 2]
        return exact[0] if exact else None
    return best


def near(name: str, most: int = 3) -> tuple[str, ...]:
    """Names that may have been meant."""
    import difflib

    by_key = {key(n): g.name for g in load() for n in (g.name, *g.names)}
    close = difflib.get_close_matches(key(name), list(by_key), n=most, cutoff=0.5)
    return tuple(dict.fromkeys(by_key[k] for k in close))
