"""`memory` and `memory-explain`: what fits on a GPU before a start, and where the memory went after one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant.faces.cli.options import LangOption, Output, OutputOption, VersionOption, fail

if TYPE_CHECKING:
    from tools.memory.action import MemoryEstimate

#: A line of a batch file is refused beyond this many bytes.
_MOST_LINE = 16_000_000


def mount(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(name="memory")(memory)
    app.command(name="memory-explain")(explain)


def memory(
    model: Annotated[
        str | None, typer.Argument(help="a model's name, its config.json, or the folder of a checkpoint")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="the card, for example H100 or 'RTX 4090'")] = None,
    gpu_total_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory-gib", help="its memory in GiB (nvidia-smi's MiB / 1024), where the card is not known"
        ),
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option("--tensor-parallel-size", "-tp")] = 1,
    pipeline_parallel_size: Annotated[int, typer.Option("--pipeline-parallel-size", "-pp")] = 1,
    data_parallel_size: Annotated[int, typer.Option("--data-parallel-size", "-dp")] = 1,
    enable_expert_parallel: Annotated[bool, typer.Option("--enable-expert-parallel")] = False,
    decode_context_parallel_size: Annotated[int, typer.Option("--decode-context-parallel-size", "-dcp")] = 1,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option("--gpu-memory-utilization", help="that of the version unless given")
    ] = None,
    max_model_len: Annotated[
        str | None, typer.Option("--max-model-len", help="tokens; 32k and 1M are read; the model's own unless given")
    ] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option("--max-num-batched-tokens")] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype")] = None,
    quantization: Annotated[
        str | None,
        typer.Option("--quantization", "-q", help="fp8, awq, gptq, nvfp4, mxfp4, bitsandbytes, 'gguf q4_k_m' ..."),
    ] = None,
    kv_cache_dtype: Annotated[str, typer.Option("--kv-cache-dtype")] = "auto",
    block_size: Annotated[int | None, typer.Option("--block-size")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager")] = False,
    enable_prefix_caching: Annotated[
        bool | None, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching")
    ] = None,
    disable_hybrid_kv_cache_manager: Annotated[bool, typer.Option("--disable-hybrid-kv-cache-manager")] = False,
    num_gpu_blocks_override: Annotated[int | None, typer.Option("--num-gpu-blocks-override")] = None,
    kv_cache_memory_bytes: Annotated[
        str | None, typer.Option("--kv-cache-memory-bytes", help="bytes; 20G is read")
    ] = None,
    cpu_offload_gb: Annotated[float, typer.Option("--cpu-offload-gb")] = 0.0,
    max_loras: Annotated[int, typer.Option("--max-loras")] = 0,
    max_lora_rank: Annotated[int, typer.Option("--max-lora-rank")] = 0,
    num_speculative_tokens: Annotated[int, typer.Option("--num-speculative-tokens")] = 0,
    speculative_method: Annotated[
        str | None, typer.Option("--speculative-method", help="mtp, eagle3, ngram or draft_model")
    ] = None,
    speculative_model: Annotated[str | None, typer.Option("--speculative-model", help="the draft model")] = None,
    language_model_only: Annotated[bool, typer.Option("--language-model-only")] = False,
    offline: Annotated[
        bool, typer.Option("--offline-inference", help="the LLM class instead of a server: other defaults")
    ] = False,
    batch: Annotated[
        Path | None, typer.Option("--batch", metavar="FILE.jsonl", help="one estimate a line; - is standard input")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="also draw it, as .svg or .png")
    ] = None,
    vllm_version: VersionOption = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Estimate whether a model fits on a GPU, with which arguments, and how many requests at once."""
    given = {
        k: v
        for k, v in locals().items()
        if k not in ("model", "batch", "plot", "lang", "output", "max_model_len", "kv_cache_memory_bytes")
    }
    if batch is not None:
        if model is not None:
            fail("memory takes either a model or --batch FILE.jsonl, not both.")
        _batch(batch)
        return
    if model is None:
        fail("no model was given: vllm-diagnose memory Qwen/Qwen3-8B --gpu 'RTX 4090', or the path of a config.json.")
    given["max_model_len"] = _size(max_model_len, "--max-model-len")
    given["kv_cache_memory_bytes"] = _size(kv_cache_memory_bytes, "--kv-cache-memory-bytes")
    result = _estimate(model, given)
    if plot is not None:
        _plot(result, plot, lang.value if lang else "en")
    if output is Output.json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from assistant.faces.cli.answering import catalogue
    from assistant.render.memory import estimate_blocks

    known = catalogue()
    gpus = tensor_parallel_size * pipeline_parallel_size * data_parallel_size
    _show(estimate_blocks(result, known, lang.value if lang else "en", gpus), output)


def _estimate(model: str, given: dict[str, Any]) -> MemoryEstimate:
    from pydantic import ValidationError

    from tools.memory.action import MemoryInput, report
    from tools.memory.sources import UnreachableError
    from tools.registry import ActionError

    try:
        usual = {name: value for name, value in given.items() if name in MemoryInput.model_fields}
        others = {name: value for name, value in given.items() if name not in usual and value is not None}
        return report(MemoryInput(model=model, ask_hub=True, arguments=others, **usual), paths=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        fail(f"--{name} {first.get('input')!r}: {str(first['msg'])[:1].lower()}{str(first['msg'])[1:]}.")
    except ActionError as error:
        unreadable = isinstance(error.__cause__, (UnreachableError, OSError))
        fail(str(error), 3 if unreadable else 2)


def _size(text: str | None, option: str) -> int | None:
    """A number as vLLM reads it (``human_readable_int``): k, m, g are powers of 1000, K, M, G of 1024."""
    if text is None:
        return None
    unit = {"k": 1000, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(
        text[-1:], 0
    )
    try:
        value = int(float(text[:-1]) * unit) if unit else int(text)
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        fail(f"{option} {text!r} is no number of at least 1; write 32768, 32k (32,000) or 32K (32,768).")
    return value


def _batch(path: Path) -> None:
    from tools.memory.batch import answer_line, dumps

    try:
        stream = sys.stdin.buffer if str(path) == "-" else path.open("rb")
    except OSError as error:
        fail(f"{path}: {error.strerror}.", 3)
    with stream:
        while line := stream.readline(_MOST_LINE + 1):
            if line.strip():
                typer.echo(dumps(answer_line(line)))


def _plot(result: MemoryEstimate, path: Path, lang: str) -> None:
    from assistant.faces.cli.answering import catalogue
    from assistant.render.memory_figure import draw

    try:
        draw(result, catalogue(), "zh" if lang == "zh" else "en", path)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{path}: {error.strerror}.", 3)


def explain(
    log: Annotated[Path, typer.Argument(help="the log of a start; - is standard input")],
    model: Annotated[
        str | None, typer.Option("--model", help="the model's name or config.json, where the log's own does not tell")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="the card, where the log does not name it")] = None,
    vllm_version: VersionOption = None,
    lang: LangOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Explain where the memory of a real start went, and what a change would do."""
    from assistant.faces.cli.answering import catalogue
    from assistant.render.memory import explained_blocks
    from tools.logs import SourceError
    from tools.memory.config import ConfigError
    from tools.memory.explain import explain_log

    known = catalogue()
    try:
        found = explain_log(log, tuple(known.messages.values()), model=model, gpu=gpu, vllm_version=vllm_version)
    except ConfigError as error:
        fail(str(error))
    except (OSError, SourceError) as error:
        fail(f"{log}: {getattr(error, 'strerror', None) or error}.", 3)
    if output is Output.json:
        typer.echo(found.model_dump_json(indent=2))
        return
    _show(explained_blocks(found, known, lang.value if lang else "en"), output)


def _show(blocks: Any, output: Output) -> None:
    if output is Output.markdown:
        from assistant.render.markdown import to_markdown

        typer.echo(to_markdown(blocks), nl=False)
        return
    from assistant.faces.cli.terminal import draw

    draw(blocks)
