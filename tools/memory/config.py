"""A model's ``config.json`` as facts with known ranges, or a sentence that says what is wrong with it.

The file is somebody else's: it is bounded in size and depth, every number is checked for type and range, and no
field that is not read here matters. Field names differ between families; the aliases are those of the configuration
classes of transformers (``configuration_*.py``) and of ``vllm/transformers_utils/config.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

#: The largest configuration on the hub (long lists of layers that are not quantized) has about 1 MB.
MOST_BYTES: Final = 8 * 2**20
_MOST_LAYERS: Final = 2_000
_MOST: Final = 2**40

#: Where a composed model keeps the configuration of its language model, outermost first.
_TEXT_PARTS: Final = ("thinker_config", "text_config", "llm_config", "language_config", "language_model_config", "llm")

_DTYPE_BYTES: Final = {
    "float32": 4, "float": 4, "fp32": 4, "float16": 2, "half": 2, "fp16": 2, "bfloat16": 2, "bf16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1,
}  # fmt: skip


class ConfigError(ValueError):
    """The configuration cannot be used. The message says which field, what it holds and what was expected.

    What it quotes is somebody else's: characters that do not print are shown as ``?``, and it is cut at 1,200.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in message[:1200]))


@dataclass(frozen=True, slots=True)
class Mamba:
    """Sizes of the recurrent layers. ``kind`` is ``gdn`` (gated delta net), ``mamba1``, ``mamba2``, ``kda``,
    ``lightning`` or ``short_conv``; heads and groups are those of the whole model."""

    kind: str
    inner: int  # elements of the expanded stream; GDN: heads * head size of the values
    state: int  # state size of a head; GDN: head size of the keys
    heads: int
    head_dim: int
    groups: int = 1
    conv: int = 4
    key_heads: int = 0
    dt_rank: int = 0
    float32_state: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """What of a configuration decides memory. Counts are of the whole model, before any parallelism."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    dtype: str
    kinds: tuple[str, ...]  # one of full, window, chunked, mamba, parallel, cross, none for each layer
    dense: tuple[bool, ...]  # whether the layer's feed-forward part is dense rather than a mixture
    intermediate: int
    gated: bool = True
    value_dim: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    dense_beside_experts: bool = False
    window: int = 0
    chunk: int = 0
    global_head_dim: int = 0
    global_kv_heads: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    index_head_dim: int = 0
    index_heads: int = 0
    shared_kv_layers: int = 0
    attention_bias: str = "none"  # none, qkv, all
    gate_on_attention: bool = False
    learned_positions: int = 0
    longest: int = 0
    rotary_dim: int = 0
    mamba: Mamba | None = None
    encoder_layers: int = 0
    cross_length: int = 0
    mtp_layers: int = 0
    deepstack_levels: int = 0
    is_multimodal: bool = False
    vision: Mapping[str, int] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    kv_cache_scheme_fp8: bool = False
    known: bool = True
    notes: tuple[str, ...] = ()

    @property
    def is_mla(self) -> bool:
        """Multi-head latent attention: one compressed vector per token instead of keys and values."""
        return self.kv_lora_rank > 0 and self.architecture not in _MLA_LOOKALIKES

    @property
    def is_moe(self) -> bool:
        return self.experts > 1


#: Architectures with a ``kv_lora_rank`` that vLLM runs with ordinary attention.
_MLA_LOOKALIKES: Final = frozenset({"MiniCPM3ForCausalLM"})

#: Feed-forward parts of two matrices instead of three (model definitions in vllm/model_executor/models).
_TWO_MATRICES: Final = frozenset(
    """GPT2LMHeadModel OPTForCausalLM GPTNeoXForCausalLM GPTJForCausalLM GPTBigCodeForCausalLM FalconForCausalLM
    RWForCausalLM BloomForCausalLM MPTForCausalLM MptForCausalLM PhiForCausalLM Starcoder2ForCausalLM
    NemotronForCausalLM NemotronHForCausalLM PersimmonForCausalLM StableLMAlphaForCausalLM BartForConditionalGeneration
    WhisperForConditionalGeneration BertModel RobertaModel XLMRobertaModel NomicBertModel""".split()
)
_QKV_BIAS: Final = (
    "Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen2VL Qwen2_5_VL Qwen2_5Omni Qwen2Audio QWenLMHeadModel "
    "GptOss Glm4MoeForCausalLM Glm4vMoe ChatGLM GlmForCausalLM Glm4ForCausalLM"
).split()
_ALL_BIAS: Final = frozenset(
    """GPT2LMHeadModel OPTForCausalLM GPTNeoXForCausalLM GPTBigCodeForCausalLM BloomForCausalLM PhiForCausalLM
    Starcoder2ForCausalLM""".split()
)

#: Architectures whose layers are counted exactly; prefixes, because a tower changes the ending.
_KNOWN: Final = tuple(
    """Llama Mistral Mixtral Ministral Pixtral Qwen Gemma Phi GPT2 OPT GPTNeoX GPTJ GPTBigCode Falcon Bloom Mpt MPT
    Starcoder2 Deepseek Kimi Moonshot Glm ChatGLM GptOss MiniMax Granite Nemotron Bamba Jamba Mamba Zamba2 Lfm2 Cohere Command
    InternLM InternVL Internlm Yi Baichuan Aquila Solar Exaone Olmo OLMo StableLm Smol SmolLM Hunyuan HunYuan Ernie
    Seed Step Dots Bailing LongCat Longcat Llava LLaVA Idefics Molmo MiniCPM Ovis Aya Arcee Apertus Jais Orion Xverse
    Grok Dbrx Arctic TeleChat Teleflm Whisper Bert Roberta XLMRoberta Voxtral Ultravox H2OVL NVLM Paligemma PaliGemma
    SkyworkR1V Skywork Tarsier VideoLlama Plamo FalconH1 Mimo MiMo Janus Aria Keye Intern AXK1 Sarvam Trinity Afmoe
    Flex""".split()
)


def parse(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a configuration. Raises :class:`ConfigError` for what is too large, too deep or no object."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"The configuration has {len(text):,} bytes; at most {MOST_BYTES:,} are read.")
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ConfigError("The configuration is nested too deeply to be a model's; give its config.json.") from None
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The configuration is not JSON ({str(error)[:120]}); give a model's config.json.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"The configuration is a JSON {type(raw).__name__}; a model's config.json is an object.")
    return raw


def read_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or in ``config.json`` of a folder. Raises :class:`ConfigError` and ``OSError``."""
    target = path / "config.json" if path.is_dir() else path
    with target.open("rb") as stream:
        return parse(stream.read(MOST_BYTES + 1))


def _refuse_constant(name: str) -> float:
    raise ConfigError(f"The configuration holds {name}, which is no number a model can have.")


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


class Fields:
    """Checked access to the fields of one configuration object, by any of their names."""

    def __init__(self, raw: Mapping[str, Any], outer: Mapping[str, Any] | None = None) -> None:
        self.raw = raw
        self.outer = outer or {}

    def get(self, *names: str) -> Any:
        """The first of these fields that is there and not null; inner before outer."""
        for source in (self.raw, self.outer):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        return None

    def whole(self, *names: str, default: int | None = None, low: int = 0, high: int = _MOST) -> int:
        """A whole number in ``low..high``. Raises :class:`ConfigError` where it is missing without a default."""
        value = self.get(*names)
        if value is None:
            if default is None:
                raise ConfigError(
                    f"The configuration lacks {names[0]!r}, which decides memory; give the whole config.json."
                )
            return default
        if isinstance(value, float) and value.is_integer() and abs(value) <= high:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{names[0]} is {_show(value)}; a whole number was expected.")
        if not low <= value <= high:
            raise ConfigError(f"{names[0]} is {_show(value)}; a number from {low} to {high} was expected.")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        """A truth value. Raises :class:`ConfigError` for anything else."""
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{names[0]} is {_show(value)}; true or false was expected.")
        return value

    def text(self, *names: str, default: str = "") -> str:
        """A text. Raises :class:`ConfigError` for anything else."""
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ConfigError(f"{names[0]} is {_show(value)}; a text was expected.")
        return value

    def list_of(self, *names: str) -> list[Any]:
        """A list, empty where it is missing. Raises :class:`ConfigError` for anything else."""
        value = self.get(*names)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ConfigError(f"{names[0]} is {_show(value)}; a list was expected.")
        if len(value) > _MOST_LAYERS:
            raise ConfigError(f"{names[0]} has {len(value):,} entries; at most {_MOST_LAYERS:,} are believed.")
        return value

    def part(self, *names: str) -> dict[str, Any]:
        """An object, empty where it is missing. Raises :class:`ConfigError` for anything else."""
        value = self.get(*names)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConfigError(f"{names[0]} is {_show(value)}; an object was expected.")
        return value


def text_part(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the language model inside that of a composed one."""
    current = raw
    for _ in range(3):
        for name in _TEXT_PARTS:
            inner = current.get(name)
            if isinstance(inner, dict) and inner:
                current = inner
                break
        else:
            break
    return current


def dtype_bytes(name: str) -> int:
    """Bytes of one element. Raises :class:`ConfigError` for a type nobody knows."""
    found = _DTYPE_BYTES.get(name.removeprefix("torch.").lower())
    if found is None:
        raise ConfigError(
            f"{_show(name)} is no data type of weights; expected one of {', '.join(sorted(_DTYPE_BYTES))}."
        )
    return found


def starts_with(architecture: str, names: Iterator[str] | tuple[str, ...] | list[str]) -> bool:
    """Whether the architecture belongs to one of these families."""
    return architecture.startswith(tuple(names))
