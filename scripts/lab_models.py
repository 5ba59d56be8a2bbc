"""The tiny model broken in one way each, and folders that shadow an installed package; standard library only."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

VLLM = "0.32.0"


def break_model(model: Path, copy: Path, how: str | None) -> Path:
    """The folder to use: the model itself, or a copy of it in ``copy`` broken as ``how`` says.

    Raises KeyError for a way that nobody wrote.
    """
    if how is None:
        return model
    change = WAYS[how]
    shutil.copytree(model, copy)
    change(copy)
    return copy


def _config(**changes: Any) -> Callable[[Path], None]:
    """A change of config.json; None removes a key."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.update(changes)
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}, indent=2))

    return change


def _without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size * 55 // 100)


def _pointer_weights(folder: Path) -> None:
    """What `git clone` leaves where git-lfs is not installed."""
    oid = "9f2c" * 16
    (folder / "model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 855440\n"
    )


def _renamed_tensor(folder: Path) -> None:
    """One tensor gets a name that the model's code does not know; the header keeps its length."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length].replace(b"layers.1.mlp.gate_proj", b"layers.1.mlp.gate_pruj", 1)
    path.write_bytes(raw[:8] + header + raw[8 + length :])


def _gguf(folder: Path) -> None:
    """A file with the right ending and magic that holds nothing else."""
    (folder / "tiny-q4.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


def _adapter(folder: Path) -> None:
    """A LoRA adapter of rank 64 on one projection; its weights are read only after its rank was accepted."""
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "base_model_name_or_path": "tiny",
                "r": 64,
                "lora_alpha": 64,
                "target_modules": ["q_proj"],
                "bias": "none",
                "task_type": "CAUSAL_LM",
            }
        )
    )
    shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")


def _shadow_distribution(name: str, version: str) -> Callable[[Path], None]:
    """A metadata folder that answers for a package's version before the installed one can."""

    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        metadata = folder / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return change


def _no_platform(folder: Path) -> None:
    """A vLLM that is no CPU build and has no compiled kernels, as on a machine without an accelerator.

    The kernels have to go: those of the plain build need AVX-512, and without it the import alone ends the process.
    """
    _shadow_distribution("vllm", VLLM)(folder)
    (folder / "sitecustomize.py").write_text("import sys\n\nsys.modules['vllm._C'] = None\n")


WAYS: dict[str, Callable[[Path], None]] = {
    "unknown-architecture": _config(architectures=["HarbourForCausalLM"]),
    "unknown-model-type": _config(architectures=["HarbourNextForCausalLM"], model_type="harbour_next"),
    "remote-code": _config(
        architectures=["HarbourForCausalLM"],
        model_type="harbour",
        auto_map={
            "AutoConfig": "configuration_harbour.HarbourConfig",
            "AutoModelForCausalLM": "modeling_harbour.Harbour",
        },
    ),
    "awq-config": _config(
        quantization_config={"quant_method": "awq", "bits": 3, "group_size": 128, "zero_point": True}
    ),
    "cut-weights": _cut_weights,
    "pointer-weights": _pointer_weights,
    "renamed-tensor": _renamed_tensor,
    "wider-than-weights": _config(intermediate_size=320),
    "no-weights": _without("model.safetensors"),
    "no-config": _without("config.json"),
    "no-tokenizer": _without("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "no-chat-template": _without("chat_template.jinja"),
    "gguf": _gguf,
    "adapter": _adapter,
    "vllm-without-cpu": _shadow_distribution("vllm", VLLM),
    "no-platform": _no_platform,
}
