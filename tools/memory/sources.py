"""Where a model's facts come from: a file, a folder, what is known here, or the hub.

Nothing is connected to for a path or a known model. The hub is asked through ``huggingface_hub``, which brings its own
conventions of token, endpoint, cache and offline mode, and which is imported nowhere else; only ``config.json`` and the
headers of safetensors files are fetched, never weights.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from knowledge import known_models
from tools.memory import architecture, safetensors
from tools.memory.config import ConfigError, Model, read_file

#: Longer than this nobody waits for a configuration of a few kilobytes.
HUB_SECONDS = 20
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


class UnreachableError(ConfigError):
    """Nothing could be read: the hub is away, refuses, or may not be asked."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model with where it was found; ``total_params`` where the source states them."""

    model: Model
    name: str
    origin: str  # file, known, hub
    total_params: int | None = None
    quantization: str | None = None


def find(name: str, *, may_ask_hub: bool = True, paths: bool = True) -> Found:
    """The model that a path or name means. Raises :class:`ConfigError`, :class:`UnreachableError` and ``OSError``."""
    path = Path(name).expanduser()
    if paths and (_exists(path) or name.endswith(".json") or name.startswith(("/", "./", "../", "~"))):
        return _local(path, name)
    known = known_models.find(name)
    if known is not None:
        return Found(architecture.read(known.config), known.model, "known", known.parameters)
    quantized = known_models.find_quantized(name)
    if quantized is not None:
        known, method = quantized
        return Found(architecture.read(known.config), name, "known", known.parameters, method)
    if not _HUB_NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!r} is neither a file nor a model's name such as Qwen/Qwen3-8B.")
    near = known_models.near(name)
    hint = f" Known here without a network are for example {', '.join(near)}." if near else ""
    if not may_ask_hub or "/" not in name:
        raise ConfigError(
            f"No model is known here as {name!r}.{hint} Give its config.json, or OWNER/NAME to ask the hub."
        )
    return _from_hub(name, hint)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _local(path: Path, name: str) -> Found:
    if not _exists(path):
        raise UnreachableError(f"{name}: there is no such file.")
    model = architecture.read(read_file(path))
    folder = path if path.is_dir() else path.parent
    has_weights = path.is_dir() or path.name == "config.json"
    return Found(model, name, "file", safetensors.of_folder(folder, model) if has_weights else None)


def _from_hub(name: str, hint: str) -> Found:
    """Asks the hub in a thread of its own: its client tries again and again when nobody answers, and nobody waits that long."""
    answers: queue.SimpleQueue[Found | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_ask_hub(name, hint))
        except Exception as error:  # noqa: BLE001  (whatever the client raises belongs to the thread that waits)
            answers.put(error)

    threading.Thread(target=ask, daemon=True, name="hub").start()
    try:
        answer = answers.get(timeout=HUB_SECONDS)
    except queue.Empty:
        raise UnreachableError(
            f"The hub did not answer for {name} within {HUB_SECONDS} s.{hint} Give its config.json instead."
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _ask_hub(name: str, hint: str) -> Found:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # what it tells about its retries is said once, as a sentence, if they all fail
    disable_progress_bars()

    try:
        raw = read_file(Path(hf_hub_download(name, "config.json", etag_timeout=10)))
        model = architecture.read(raw)
        total = None
        try:
            metadata = HfApi().get_safetensors_metadata(name)
            headers = (
                {t: {"dtype": i.dtype, "shape": list(i.shape)} for t, i in part.tensors.items()}
                for part in metadata.files_metadata.values()
            )
            total = safetensors.parameters(headers, model)
        except Exception:  # noqa: BLE001  (as below)
            total = None  # a checkpoint without safetensors: the architecture is counted instead
        return Found(model, name, "hub", total)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  (the client passes on what its HTTP library raises, whichever that is)
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UnreachableError(
            f"The configuration of {name} could not be had from the hub ({reason}).{hint} Give its config.json instead."
        ) from None
