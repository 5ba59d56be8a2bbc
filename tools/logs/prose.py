"""What a person wrote around the log lines that they pasted."""

from __future__ import annotations

import re

from tools.logs.blocks import exception_of
from tools.logs.prefix import clean, parse_prefix, strip_ansi
from tools.logs.stages import read_progress

_FRAME = re.compile(r'\s*(?:\||\+)?\s*File "[^"]+", line \d+')
_CARET = re.compile(r"[\s|]*[\^~]{2,}[\s^~]*$")
_TABLE = re.compile(r"[|+][-=+|\s]{6,}|\|.{10,}\|\s*$")
_NOISE = re.compile(
    r"Traceback \(most recent call last\)|During handling of the above exception|The above exception was the direct cause"
    r"|^\S+\.py:\d+: \w*Warning|^```|^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d|^\S+:\d+:\d+ \[\d+\] NCCL"
    r"|^huggingface/tokenizers: |^To disable this warning, you can either|^\s*- (?:Avoid using `tokenizers`|Explicitly set the environ)"
)
#: A command or one of its continuation lines: its flags are what was typed, not what the person says.
_COMMAND = re.compile(
    r"\s*(?:[$#>%] |\(\w+\) [$#] )?(?:sudo |nohup |time |exec )*(?:[A-Z_][A-Z0-9_]*=\S* )*"
    r"(?:vllm (?:serve|bench|chat|complete|run-batch)|python[\d.]* -m|python[\d.]* \S+\.py|docker (?:run|compose|exec|pull)"
    r"|podman run|kubectl |helm |curl |wget |torchrun |ray (?:start|status|stop)|pip3? install|uv pip|nvidia-smi(?: -|$)|srun )"
)
_CONTINUED = re.compile(
    r"\s*(?:--?[A-Za-z][\w.-]*(?:[ =]\S+)?\s*)+\\?$|.*\\$|\s*(?:export|set|ENV) \w+=\S*$|[A-Z][A-Z0-9_]+=\S*$"
)
#: What `collect_env` and `pip list` print.
_ENVIRONMENT = re.compile(
    r"(?:Collecting environment|PyTorch version|Is debug build|CUDA used to build|ROCM used to build|OS|GCC version|Clang version"
    r"|CMake version|Libc version|Python (?:version|platform)|Is (?:CUDA|XNNPACK) available|CUDA runtime version"
    r"|CUDA_MODULE_LOADING|GPU models|GPU \d+|Nvidia driver version|cuDNN version|HIP runtime|MIOpen runtime|CPU|Architecture"
    r"|Versions of relevant|\[(?:pip3|conda)\]|vLLM Version|vLLM Build Flags|GPU Topology|Neuron SDK)\b"
)


#: Characters before the bar of "Loading safetensors checkpoint shards:  23% Completed |", with room for stamps and process.
_LONGEST_LABEL = 160


def prose_of(text: str) -> str:
    """``text`` without its log lines, tracebacks and tables; blank lines in a row become one."""
    kept: list[str] = []
    in_traceback = False
    for raw in text.splitlines():
        line = clean(raw).rstrip()
        if "Traceback (most recent call last)" in line:
            in_traceback = True
            continue
        if in_traceback:
            if not line.strip() or line[:1] in " \t|":
                continue
            in_traceback = False
        if is_log_line(line) or is_typed(line):
            continue
        if line.strip() or (kept and kept[-1]):
            kept.append(line.strip())
    prose = "\n".join(kept).strip()
    return prose or _spoken_error(text)


def _spoken_error(text: str) -> str:
    """A message that is one or two lines beginning with an exception's name may be a person retelling it."""
    lines = [clean(line).strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 2:
        return ""
    return "\n".join(line for line in lines if exception_of(line) and parse_prefix(line).level is None)


def is_typed(line: str) -> bool:
    """Whether ``line`` is a command, a part of one, or a line of an environment report; words around it make it prose."""
    if not line.isascii():
        return False
    if _COMMAND.match(line):
        return " -" in line or len(line.split()) <= 6
    return bool(_CONTINUED.match(line) or _ENVIRONMENT.match(line))


def is_log_line(line: str) -> bool:
    """Whether a program printed ``line``, judged by its prefix and form alone."""
    text = strip_ansi(line)
    prefix = parse_prefix(text)
    if prefix.level is not None and (prefix.clock or prefix.origin in ("uvicorn", "nccl", "ray")):
        return True
    if (prefix.process and "pid=" in prefix.process) or prefix.origin == "kernel":
        return True
    if (prefix.process or "").startswith("rank"):
        return True
    return bool(
        _FRAME.match(text) or _CARET.match(text) or _TABLE.match(text) or _NOISE.search(text)
        or exception_of(text.strip()) or (read_progress(text) and not _tells_more(text))
    )  # fmt: skip


def _tells_more(text: str) -> bool:
    """Whether a person quotes a progress bar in the middle of a sentence: a bar's own label is short and Latin."""
    before = text[: text.find("%|")]
    return len(before) > _LONGEST_LABEL or not before.isascii()
