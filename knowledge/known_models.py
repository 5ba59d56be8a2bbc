"""The models of ``models/*.yaml``: configurations that are answered without a network.

Each file gives ``model`` (its id on the hub), ``names`` (other models of the same shape), ``parameters`` (as the hub
states them, where it does) and ``config`` (the fields of its ``config.json`` that decide memory).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from knowledge.errors import KnowledgeError
from knowledge.sources import ROOT, read_yaml

FOLDER: Final = ROOT / "models"
_KEYS: Final = {"model", "names", "parameters", "config"}
_MARKS: Final = re.compile(r"[^a-z0-9.]+")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One architecture by the name of a model that has it."""

    model: str
    names: tuple[str, ...]
    parameters: int | None
    config: Mapping[str, Any]


def load_one(path: Path) -> KnownModel:
    """The model in one file. Raises :class:`KnowledgeError` that says what is wrong with it."""
    data = read_yaml(path).data
    if not isinstance(data, dict) or not set(data) <= _KEYS or not {"model", "config"} <= set(data):
        raise KnowledgeError(f"{path}: a model file has the keys model, names, parameters and config")
    parameters, names, config = data.get("parameters"), data.get("names", []), data["config"]
    if not isinstance(config, dict) or not isinstance(names, list) or not isinstance(parameters, (int, type(None))):
        raise KnowledgeError(f"{path}: config is a mapping, names a list, parameters a whole number")
    if path.stem != str(data["model"]).replace("/", "--"):
        raise KnowledgeError(
            f"{path}: the file of {data['model']} is called {str(data['model']).replace('/', '--')}.yaml"
        )
    return KnownModel(str(data["model"]), tuple(map(str, names)), parameters, config)


def short(name: str) -> str:
    """A name without owner, case and marks: ``Qwen/Qwen3-8B`` and ``qwen3 8b`` are the same."""
    return _MARKS.sub("", name.rsplit("/", 1)[-1].lower())


@lru_cache(maxsize=1)
def _index() -> dict[str, KnownModel]:
    index: dict[str, KnownModel] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        model = load_one(path)
        for name in (model.model, *model.names):
            index.setdefault(short(name), model)
    return index


def all_models() -> tuple[KnownModel, ...]:
    """Every file's model once."""
    return tuple({m.model: m for m in _index().values()}.values())


def find(name: str) -> KnownModel | None:
    """The model of this name; owner and marks do not count. A file that bears the name is read alone."""
    direct = FOLDER / (name.replace("/", "--") + ".yaml")
    if re.fullmatch(r"[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}", name) and direct.is_file():
        return load_one(direct)
    return _index().get(short(name))


_SHAPE: Final = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "moe_intermediate_size")


@lru_cache(maxsize=1)
def _by_shape() -> dict[tuple[Any, ...], list[KnownModel]]:
    shapes: dict[tuple[Any, ...], list[KnownModel]] = {}
    for model in all_models():
        shapes.setdefault(tuple(model.config.get(name) for name in _SHAPE), []).append(model)
    return shapes


def shipped_quantization(config: Mapping[str, Any], method: str) -> Mapping[str, Any] | None:
    """How a known checkpoint of this shape is quantized by its makers, if by this method; the model's name does not count."""
    shape = tuple(config.get(name) for name in _SHAPE)
    if not all(isinstance(value, (int, type(None))) for value in shape):
        return None
    found = [m.config["quantization_config"] for m in _by_shape().get(shape, ()) if "quantization_config" in m.config]
    fitting = [q for q in found if str(q.get("quant_method")) in method.lower()]
    return fitting[0] if len(fitting) == 1 else None


#: Endings that name how a checkpoint is quantized, and what --quantization would say.
_ENDINGS: Final[tuple[tuple[str, str], ...]] = (
    (r"gptq[-_]?int4|gptq", "gptq"), (r"gptq[-_]?int8", "gptq int8"), (r"awq([-_]?int4)?", "awq"),
    (r"fp8([-_]dynamic|[-_]block)?", "fp8"), (r"quantized\.w4a16|w4a16", "compressed-tensors w4a16"),
    (r"quantized\.w8a8|w8a8", "compressed-tensors int8 w8a8"), (r"nvfp4|fp4", "nvfp4"), (r"bnb[-_]4bit", "bitsandbytes"),
)  # fmt: skip


def find_quantized(name: str) -> tuple[KnownModel, str] | None:
    """A known model under the name of a quantized checkpoint of it, and the quantization that the name tells."""
    tail = name.rsplit("/", 1)[-1]
    for pattern, method in _ENDINGS:
        found = re.search(rf"[-_.]({pattern})$", tail, re.IGNORECASE)
        if found:
            base = find(tail[: found.start()])
            if base is None and "Meta-" in tail:
                base = find(tail[: found.start()].replace("Meta-", ""))
            if base is not None:
                return base, method
    return None


def near(name: str, most: int = 3) -> tuple[str, ...]:
    """Known models whose names look alike."""
    import difflib

    close = difflib.get_close_matches(short(name), list(_index()), n=most, cutoff=0.6)
    return tuple(dict.fromkeys(_index()[c].model for c in close))
