"""How many parameters a checkpoint has, from the headers of its safetensors files; no weight is ever read.

The format (huggingface/safetensors, README): 8 bytes length, little endian, then that many bytes of JSON with
``dtype``, ``shape`` and ``data_offsets`` of each tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tools.memory.config import ConfigError, Model

#: The format's own limit for a header.
MOST_HEADER: Final = 100_000_000
_MOST_FILES: Final = 2_000
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def header(path: Path) -> dict[str, Any]:
    """The header of one file. Raises :class:`ConfigError` where it is none, and ``OSError``."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= MOST_HEADER:
            raise ConfigError(f"{path.name} is no safetensors file: its header would have {size:,} bytes.")
        try:
            found = json.loads(stream.read(size))
        except (ValueError, RecursionError):
            raise ConfigError(f"{path.name} is no safetensors file: its header is not JSON.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path.name} is no safetensors file: its header is no object.")
    return found


def parameters(headers: Iterable[Mapping[str, Any]], model: Model) -> int | None:
    """Parameters that vLLM loads: without layers for multi-token prediction, which it leaves out unless asked.

    ``None`` for packed checkpoints (integers that hold several weights each), whose shapes say nothing.
    """
    total = 0
    for tensors in headers:
        for name, entry in tensors.items():
            if name == "__metadata__":
                continue
            shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, Mapping) else (None, None)
            if not isinstance(shape, list) or not all(isinstance(n, int) and 0 <= n < 2**40 for n in shape):
                raise ConfigError(f"The header gives no shape for {str(name)[:80]!r}.")
            if dtype in ("I32", "U8") and len(shape) > 1:
                return None
            layer = _LAYER.search(str(name))
            if str(name).startswith("mtp.") or (
                layer and int(layer.group(1)) >= max(model.layers, model.encoder_layers)
            ):
                continue
            if str(name).endswith(("_scale_inv", "weight_scale", "input_scale")):
                continue
            count = 1
            for n in shape:
                count *= n
            total += count
    return total or None


def of_folder(folder: Path, model: Model) -> int | None:
    """Parameters of the checkpoint in a folder, or ``None`` where there are no safetensors files."""
    files = sorted(folder.glob("*.safetensors"))[:_MOST_FILES]
    if not files:
        return None
    return parameters((header(path) for path in files), model)
