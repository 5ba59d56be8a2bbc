"""Small packages that declare arguments, variables, metrics and messages as each generation of vLLM does.

They are written for these tests; every generation has the same few arguments so that expectations can be read.
"""

from __future__ import annotations

import textwrap
import zipfile
from pathlib import Path

#: Enough arguments, metrics and messages to be taken for a release.
_MANY = 40

_ENVS = """
import os
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    VLLM_PORT_RANGE: str = "declared"
def default_root():
    return os.getenv("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
def env_with_choices(name, default, choices, case_sensitive=True):
    return lambda: os.getenv(name, default)
environment_variables = {
    "VLLM_CACHE": lambda: os.path.expanduser(os.getenv("VLLM_CACHE", os.path.join(default_root(), "vllm"))),
    "VLLM_TIMEOUT_S": lambda: int(os.environ.get("VLLM_TIMEOUT_S", "600")),
    "VLLM_FAST": lambda: os.environ.get("VLLM_FAST", "0").strip().lower() in ("1", "true"),
    "VLLM_LEVEL": env_with_choices("VLLM_LEVEL", "info", ["info", "debug"]),
    "VLLM_PORT_RANGE": lambda: compute_at_run_time(),
    "VLLM_UNSET": lambda: os.environ.get("VLLM_UNSET", None),
    "VLLM_WORKERS": lambda: int(os.environ["VLLM_WORKERS"]) if "VLLM_WORKERS" in os.environ else None,
}
"""

_METRICS = """
from prometheus_client import Counter, Gauge, Histogram
class PrometheusLogger:
    _gauge_cls, _counter_cls, _histogram_cls = Gauge, Counter, Histogram
    def __init__(self, labelnames):
        self.hidden = self._gauge_cls(name="vllm:cache_usage", documentation="How full.", labelnames=labelnames)
        counter = self._counter_cls(name="vllm:requests", documentation="All  requests.",
                                    labelnames=labelnames + ["reason"])
        if self.show_hidden_metrics:
            old = self._gauge_cls(name="vllm:gpu_cache_usage", documentation="Old.", labelnames=labelnames)
        specs = [("vllm:drafts", "Drafts."), ("vllm:accepted", "Accepted.")]
        made = [self._counter_cls(name=name, documentation=doc, labelnames=labelnames) for name, doc in specs]
{many}
class Names:
    BYTES = "vllm:offload_bytes"
def definitions():
    return {{Names.BYTES: OffloadCounterMetadata(documentation="Bytes moved.")}}
"""

_TEXTS = """
from vllm.logger import init_logger
logger = init_logger(__name__)
def start(size, name):
    logger.info("The cache holds %d tokens.", size)
    logger.warning(f"The model {{name}} is {moved} slowly.")
    raise ValueError(f"There is no model called {{name}}; give another one.")
{many}
"""

_HAND = """
import argparse, json
from dataclasses import dataclass
from typing import Optional
from vllm.config import KINDS, LoadFormat
from vllm.utils import FlexibleArgumentParser
class StoreBoolean(argparse.Action):
    pass
def nullable_str(val):
    return val
@dataclass
class EngineArgs:
    model: str = "facebook/opt-125m"
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.90
    load_format: str = "auto"
    quantization: Optional[str] = None
    rope_scaling: Optional[dict] = None
    block_size: int = 16
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model", type=str, default=EngineArgs.model)
        parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=EngineArgs.tensor_parallel_size)
        parser.add_argument("--gpu-memory-utilization", type=float, default=EngineArgs.gpu_memory_utilization)
        parser.add_argument("--load-format", type=str, default=EngineArgs.load_format,
                            choices=[f.value for f in LoadFormat])
        parser.add_argument("--quantization", "-q", type=nullable_str, choices=[*KINDS, None],
                            default=EngineArgs.quantization)
        parser.add_argument("--rope-scaling", type=json.loads, default=None)
        parser.add_argument("--block-size", type=int, default=EngineArgs.block_size, choices=[8, 16, 32])
        parser.add_argument("--enforce-eager", action="store_true", help="Always eager.")
        parser.add_argument("--enable-chunked-prefill", action=StoreBoolean, default=None, nargs="?", const="True")
        parser.add_argument("--worker-use-ray", action="store_true",
                            help="Deprecated, use --distributed-executor-backend ray.")
        parser.add_argument("--distributed-executor-backend", choices=["ray", "mp"], default=None)
{many}
        return parser
@dataclass
class AsyncEngineArgs(EngineArgs):
    @staticmethod
    def add_cli_args(parser, async_args_only=False):
        if not async_args_only:
            parser = EngineArgs.add_cli_args(parser)
        parser.add_argument("--disable-log-requests", action="store_true")
        return parser
"""

_HAND_CONFIG = """
import enum
KINDS = {"awq": 1, "gptq": 2}
class LoadFormat(str, enum.Enum):
    AUTO = "auto"
    PT = "pt"
"""

_FIELDS = """
import argparse, functools, json
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal
import vllm.envs as envs
from vllm.config import CacheConfig, CompilationConfig, ModelConfig, get_field
from vllm.utils import FlexibleArgumentParser
def optional_type(kind):
    return kind
def union_dict_and_str(val):
    return val
def human_readable_int(val):
    return int(val)
def get_kwargs(cls):
    kwargs = {{}}
    for field in fields(cls):
        name = field.name
        if is_dataclass(field.type):
            kwargs[name] = {{"type": json.loads, "metavar": 1}}
        elif field.type == {{bool, str, type(None)}}:
            kwargs[name]["nargs"] = "?"
        human_readable_ints = {{
            "max_num_batched_tokens",
            "kv_cache_memory_bytes",
        }}
        if name in human_readable_ints:
            kwargs[name]["type"] = human_readable_int
    return kwargs
_MESSAGE = "--old-size is deprecated. Use --max-num-batched-tokens instead."
@dataclass
class EngineArgs:
    model: str = ModelConfig.model
    @staticmethod
    def add_cli_args(parser):
        model_kwargs = get_kwargs(ModelConfig)
        group = parser.add_argument_group(title="ModelConfig")
        if not ("serve" in __import__("sys").argv and "--help" in __import__("sys").argv):
            group.add_argument("--model", **model_kwargs["model"])
        group.add_argument("--quantization", "-q", **model_kwargs["quantization"])
        group.add_argument("--hf-token", **model_kwargs["hf_token"])
        group.add_argument("--runner", **model_kwargs["runner"])
        cache_kwargs = get_kwargs(CacheConfig)
        cache_kwargs["cache_dtype"]["choices"].remove("secret")
        group.add_argument("--kv-cache-dtype", **cache_kwargs["cache_dtype"])
        group.add_argument("--gpu-memory-utilization", "--device-memory-utilization",
                           **cache_kwargs["gpu_memory_utilization"])
        group.add_argument("--enable-prefix-caching", **{{**cache_kwargs["enable_prefix_caching"], "default": None}})
        group.add_argument("--kv-cache-memory-bytes", **cache_kwargs["kv_cache_memory_bytes"])
        group.add_argument("--capture-sizes", **cache_kwargs["capture_sizes"])
        group.add_argument("--compilation-config", "-cc", **cache_kwargs["compilation_config"])
        group.add_argument("--old-size", type=int, default=None, deprecated=True, help=_MESSAGE)
        group.add_argument("--max-num-batched-tokens", **cache_kwargs["max_num_batched_tokens"])
{many}
        return parser
@dataclass
class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False
    @staticmethod
    def add_cli_args(parser, async_args_only=False):
        if not async_args_only:
            parser = EngineArgs.add_cli_args(parser)
        parser.add_argument("--enable-log-requests", action=argparse.BooleanOptionalAction,
                            default=AsyncEngineArgs.enable_log_requests)
        return parser
"""

_FIELDS_CONFIG = """
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from pydantic import Field
from vllm.config.compilation import CompilationConfig
if TYPE_CHECKING:
    from vllm.quantization import QuantizationMethods
else:
    QuantizationMethods = str
CacheDType = Literal["auto", "fp8", "secret"]
RunnerOption = Literal["auto", "generate", "pooling"]
def config(cls):
    return cls
def get_field(cls, name):
    return getattr(cls, name)
@config
@dataclass
class ModelConfig:
    model: str = "Qwen/Qwen3-0.6B"
    quantization: QuantizationMethods | str | None = None
    hf_token: bool | str | None = None
    runner: RunnerOption = "auto"
@config
@dataclass
class CacheConfig:
    cache_dtype: CacheDType = "auto"
    gpu_memory_utilization: float = Field(default=0.92, gt=0, le=1)
    enable_prefix_caching: bool = True
    kv_cache_memory_bytes: int | None = None
    capture_sizes: list[int] | None = None
    compilation_config: CompilationConfig = Field(default_factory=CompilationConfig)
    max_num_batched_tokens: int = 8 * 1024
"""

_FRONTEND = """
import json
from dataclasses import field
from typing import Any, Literal
from vllm.config import config
from vllm.engine.arg_utils import AsyncEngineArgs, get_kwargs, optional_type
@config
class BaseFrontendArgs:
    lora_modules: list[str] | None = None
    enable_auto_tool_choice: bool = False
    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["lora_modules"]["type"] = optional_type(str)
        return frontend_kwargs
    @classmethod
    def add_cli_args(cls, parser):
        frontend_kwargs = cls._customize_cli_kwargs(get_kwargs(cls))
        group = parser.add_argument_group(title="Frontend")
        for key, value in frontend_kwargs.items():
            extra = value.pop("flags", [])
            group.add_argument(*extra, f"--{key.replace('_', '-')}", **value)
        return parser
@config
class FrontendArgs(BaseFrontendArgs):
    host: str | None = None
    port: int = 8000
    uvicorn_log_level: Literal["info", "debug"] = "info"
    allowed_origins: list[str] = field(default_factory=lambda: ["*"])
    middleware: list[str] = field(default_factory=list)
    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs = super()._customize_cli_kwargs(frontend_kwargs)
        frontend_kwargs["allowed_origins"]["type"] = json.loads
        del frontend_kwargs["allowed_origins"]["nargs"]
        frontend_kwargs["middleware"]["action"] = "append"
        if "nargs" in frontend_kwargs["middleware"]:
            del frontend_kwargs["middleware"]["nargs"]
        return frontend_kwargs
def make_arg_parser(parser):
    parser.add_argument("model_tag", type=str, nargs="?")
    parser.add_argument("--api-server-count", "-asc", type=int, default=None)
    parser = FrontendArgs.add_cli_args(parser)
    parser = AsyncEngineArgs.add_cli_args(parser)
    return parser
"""


def _many(line: str) -> str:
    return "\n".join(line.replace("#", str(number)) for number in range(_MANY))


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        for parent in path.parents:
            if parent == root:
                break
            (parent / "__init__.py").touch()
    return root


def _common(moved: str) -> dict[str, str]:
    metric = '        m# = self._gauge_cls(name="vllm:gauge_#", documentation="Number #.", labelnames=labelnames)'
    texts = '    logger.error("The part number # of the engine has failed at work: %s", name)'
    texts += '\n    raise RuntimeError("Part # of the worker cannot be used with this engine.")'
    return {
        "vllm/envs.py": _ENVS,
        "vllm/v1/metrics/loggers.py": _METRICS.replace("{many}", _many(metric)).replace("{{", "{").replace("}}", "}"),
        "vllm/v1/core.py": _TEXTS.replace("{moved}", moved)
        .replace("{many}", _many(texts) + "\n" + _many(texts.replace("number", "numeral")))
        .replace("{{", "{")
        .replace("}}", "}"),
        "vllm/logger.py": "def init_logger(name):\n    return None\n",
    }


def by_hand(root: Path, *, moved: str = "loading") -> Path:
    """As 0.4 to 0.8.2: every argument by hand, ``make_arg_parser`` makes the parser."""
    many = _many('        parser.add_argument("--extra-#", type=int, default=#)')
    own = """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils import FlexibleArgumentParser
    def make_arg_parser():
        parser = FlexibleArgumentParser(description="server")
        parser.add_argument("--host", type=str, default=None)
        parser.add_argument("--api-key", type=str, default=None)
        parser = AsyncEngineArgs.add_cli_args(parser)
        return parser
    """
    files = {
        **_common(moved),
        "vllm/engine/arg_utils.py": _HAND.replace("{many}", many),
        "vllm/config.py": _HAND_CONFIG,
        "vllm/utils.py": "class FlexibleArgumentParser:\n    pass\n",
        "vllm/entrypoints/openai/cli_args.py": own,
    }
    return _write(root, files)


def by_fields(root: Path, *, moved: str = "loading", extra: int = _MANY) -> Path:
    """As 0.10 on: arguments from the fields of configuration classes, the frontend's too, under ``vllm serve``."""
    lines = "\n".join(
        f'        group.add_argument("--extra-{number}", type=int, default={number})' for number in range(extra)
    )
    serve = """
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    class ServeSubcommand:
        name = "serve"
        def subparser_init(self, subparsers):
            serve_parser = subparsers.add_parser(self.name, help="serve")
            other = subparsers.add_parser("bench")
            other.add_argument("--not-of-serve", type=int)
            return make_arg_parser(serve_parser)
    """
    files = {
        **_common(moved),
        "vllm/engine/arg_utils.py": _FIELDS.replace("{many}", lines).replace("{{", "{").replace("}}", "}"),
        "vllm/config/__init__.py": _FIELDS_CONFIG,
        "vllm/config/compilation.py": """
            from dataclasses import dataclass
            @dataclass
            class CompilationConfig:
                mode: int = 0
                cudagraph_mode: str = "full"
                _private: int = 0
        """,
        "vllm/quantization.py": 'from typing import Literal\nQuantizationMethods = Literal["awq", "fp8"]\n',
        "vllm/utils/__init__.py": "class FlexibleArgumentParser:\n    dict_args = None\n",
        "vllm/entrypoints/openai/cli_args.py": _FRONTEND,
        "vllm/entrypoints/cli/serve.py": serve,
        "vllm/_version.py": 'version = "9.9.0"\n',
    }
    return _write(root, files)


def as_wheel(root: Path, target: Path) -> Path:
    """The package below ``root`` as an archive."""
    with zipfile.ZipFile(target, "w") as opened:
        for path in sorted((root / "vllm").rglob("*.py")):
            opened.write(path, path.relative_to(root).as_posix())
    return target
