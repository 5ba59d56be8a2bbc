"""Arguments and environment as a log or a person states them: the banner's dictionary, command lines, YAML, Python calls.

Nothing is evaluated: dictionaries are read with :func:`ast.literal_eval` on bounded text, the rest with expressions.
"""

from __future__ import annotations

import ast
import json
import re

import re2

from tools.evidence import Origin, Value
from tools.logs.facts import Facts
from tools.logs.launch import read_banner_launch, read_launch
from tools.logs.prefix import Prefixes

_LONGEST_LITERAL = 20_000
_MOST_ARGUMENTS = 200

_PAIR = re.compile(
    r"'([A-Za-z_]\w{0,60})': ('[^']{0,400}'|\"[^\"]{0,400}\"|-?[\d.]{1,30}|True|False|\[[^\[\]]{0,400}\])"
)
_KEYWORD = re.compile(
    r"\b([a-z_]\w{0,60}) ?= ?('[^']{0,400}'|\"[^\"]{0,400}\"|-?\d[\d._e-]{0,30}|True|False|None|\[[^\[\]]{0,400}\]|[\w./:-]{1,200})"
)
_VERSION = re.compile(r"(?:version |engine \(v)(\d+\.\d+[\w.+-]{0,60})")
#: Values of the engine's configuration line that stand for the server's own arguments where no banner stated those.
_CONFIGURED = {
    "dtype": "dtype",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "enforce_eager": "enforce_eager",
    "tensor_parallel_size": "tensor_parallel_size",
    "pipeline_parallel_size": "pipeline_parallel_size",
    "trust_remote_code": "trust_remote_code",
}

_SERVE = re.compile(
    r"(?:\bvllm[ \t]+serve\b|-m[ \t]+vllm\.entrypoints[\w.]*|\bapi_server\.py\b|vllm/vllm-[\w.-]{1,40}(?::[\w.-]{1,60})?(?=[ \t]+-))(.*)"
)
#: One of these stands in everything that :data:`_SERVE` finds.
_SERVE_WORDS = ("serve", "entrypoints", "api_server.py", "vllm/vllm-")
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*$")
_SHORT = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "q": "quantization",
    "dcp": "decode_context_parallel_size",
    "n": "nnodes",
    "r": "node_rank",
}
_ASSIGNED = re.compile(
    r"(?<![\w$./=-])((?:VLLM|NCCL|CUDA|TORCH\w*|PYTORCH|HF|HUGGING\w*|TRANSFORMERS|RAY|GLOO|OMP|LD|TRITON|FLASHINFER|TOKENIZERS|HSA|ROCR"
    r"|ROCM|HIP|NVIDIA|XLA|UCX|MASTER|SAFETENSORS|XDG|TPU|DP|MKL|KMP|FI|NVSHMEM|MODELSCOPE|CC|CXX|HOME|TMPDIR|PATH"
    r"|(?:HTTPS?|NO|https?|no)_(?:PROXY|proxy))(?:_[A-Z0-9_]{1,60}|_proxy)?|HTTPS?_PROXY|NO_PROXY|https?_proxy)=(\"[^\"\n]{0,400}\"|'[^'\n]{0,400}'|[^\s\"']{0,400})"
)
#: A message that recommends a variable states nothing: "unhandled system error (run with NCCL_DEBUG=INFO for details)".
_ADVISED = re.compile(
    r"(?:run with|consider (?:passing|setting|using)|please (?:set|use)|try (?:setting|with)|env(?:ironment)? var(?:iable)?)\s+$",
    re.IGNORECASE,
)
_YAML_NAME = re.compile(r"^[ \t]*-?[ \t]*name:[ \t]*[\"']?([A-Z][A-Z0-9_]{2,60})[\"']?[ \t]*$")
_YAML_VALUE = re.compile(r"^[ \t]*value:[ \t]*[\"']?([^\"'\n]{0,400}?)[\"']?[ \t]*$")
_YAML_PAIR = re.compile(
    r"^[ \t]+((?:VLLM|NCCL|CUDA|HF|RAY|GLOO|TORCH|PYTORCH)_[A-Z0-9_]{1,60}):[ \t]*[\"']?([^\"'\n]{1,400}?)[\"']?[ \t]*$"
)
_YAML_ITEM = re.compile(
    r"^[ \t]*-[ \t]+[\"']?(--?[A-Za-z][\w.-]*(?:[= ].{0,400}?)?|[^\s\"':-][^\"':]{0,200}?)[\"']?,?[ \t]*$"
)
_JSON_ITEM = re.compile(r"[\"']((?:--?[A-Za-z])[\w.=/:-]{0,200})[\"'](?:[ \t]*,[ \t]*[\"']([^\"'\n]{1,200})[\"'])?")
# What is searched for in the whole text goes through RE2, which costs a tenth of what `re` takes for it.
_CALL = re2.compile(r"\b(?:LLM|AsyncEngineArgs|EngineArgs|VLLM)\(")
_SHM = re2.compile(
    r"--shm-size[= ][\"']?([\d.]{1,10}) ?([kKmMgG]?)[bB]?|\bshm_size:[ \t]*[\"']?([\d.]{1,10}) ?([kKmMgG]?)[bB]?"
)
_SHM_DF = re2.compile(r"(?m)^(?:shm|tmpfs)\s+([\d.]{1,10})([KMGT]?)\s.{0,80}/dev/shm")
#: What to look for in the whole text, where one of the words stands in it in small letters: most texts hold none.
_FACTS = (
    ("server.version", ("vllm-openai:v",), re2.compile(r"vllm/vllm-openai:v(\d+\.\d+\.\d+[\w.]{0,20})")),
    ("server.version", ("vllm=", "vllm ="), re2.compile(r"\bvllm ?==? ?(\d+\.\d+\.\d+[\w.+]{0,30})")),
    (
        "server.version",
        ("llm version", "llm 版本"),
        re2.compile(r"\bv(?:LLM|llm) (?:[Vv]ersion|版本) ?(?:[:：=]|is|为|是)? ?v?(\d+\.\d+(?:\.\d+)?[\w.+]{0,30})"),
    ),
    ("server.version", ("llm",), re2.compile(r"\bv(?:LLM|llm)[ :：-]{1,2}v?(\d+\.\d+\.\d+[\w.+]{0,30})")),
    ("gpu.driver", ("driver version: ",), re2.compile(r"Driver Version: (\d{3}\.[\d.]{1,12})")),
    ("gpu.driver", ("driver version: ",), re2.compile(r"[Nn]vidia driver version: (\d{3}\.[\d.]{1,12})")),
    ("gpu.name", ("\ngpu ",), re2.compile(r"(?m)^GPU \d+: ([A-Z][\w .\-]{3,60})")),
)


#: Names whose values are secrets.
_SECRET = re.compile(r"(?i)token$|api_?key|secret|passw|credential")


def _scalar(text: str) -> Value:
    text = text.strip()
    if text[:1] in "'\"" and text[-1:] == text[:1] and len(text) > 1:
        return text[1:-1]
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _plain(value: object) -> Value:
    """A literal as an observable's value: scalars as they are, lists of one as their element, the rest as JSON."""
    if isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], (str, int, float, bool)):
        return value[0]
    try:
        return json.dumps(value, default=str)[:1000]
    except (TypeError, ValueError):
        return str(value)[:1000]


def _argument(facts: Facts, name: str, value: Value, origin: Origin, quote: str) -> None:
    if value is None or value == "":
        return
    if _SECRET.search(name):
        value = "given"  # that there is one matters, what it is does not
    facts.state(f"argument.{name}", value, origin, quote)
    if name in ("model", "model_tag") and isinstance(value, str):
        facts.state("server.model", value, origin, quote)
    if name == "tensor_parallel_size" and isinstance(value, int):
        facts.state("parallel.tensor", value, origin, quote)


def _variable(facts: Facts, name: str, value: str, origin: Origin, quote: str) -> None:
    facts.state(f"environment.{name}", "given" if _SECRET.search(name) else value, origin, quote)


def read_banner(facts: Facts, text: str, origin: Origin, quote: str) -> None:
    """Take one banner line: version, model and arguments.

    ``non-default args: {'model': 'Qwen/Qwen3-0.6B', 'max_model_len': 1024}`` (0.9 and later),
    ``args: Namespace(host=None, model='facebook/opt-125m', tensor_parallel_size=2)`` (before),
    ``Initializing a V1 LLM engine (v0.11.0) with config: model='...', dtype=torch.bfloat16, max_seq_len=4096``
    """
    found = _VERSION.search(text)
    if found:
        facts.state("server.version", found.group(1).rstrip(".,)"), origin, quote)
    read_banner_launch(facts, text, origin, quote)
    at = text.find("non-default args: ")
    if at >= 0:
        for name, value in _dictionary(text[at + 18 :]).items():
            _argument(facts, name, value, origin, quote)
        return
    at = text.find("args: Namespace(")
    if at >= 0:
        for name, raw in _KEYWORD.findall(text[at + 16 : at + 16 + _LONGEST_LITERAL])[:_MOST_ARGUMENTS]:
            value = _scalar(raw)
            if value not in (None, "None", False, "[]"):
                _argument(facts, name, value, origin, quote)
        return
    at = text.find("LLM engine (v")
    if at >= 0:
        facts.state("server.engine", "V1" if "V1 LLM engine" in text else "V0", origin, quote)
        pairs = dict(_KEYWORD.findall(text[at : at + _LONGEST_LITERAL]))
        _engine_config(facts, {name: _scalar(raw) for name, raw in pairs.items()}, origin, quote)


def _engine_config(facts: Facts, values: dict[str, Value], origin: Origin, quote: str) -> None:
    model = values.get("model")
    if isinstance(model, str):
        facts.state("server.model", model, origin, quote, keep=True)
    length = values.get("max_seq_len")
    if isinstance(length, int):
        facts.state("engine.max_model_len", length, origin, quote)
    tensor, pipeline = values.get("tensor_parallel_size"), values.get("pipeline_parallel_size")
    if isinstance(tensor, int):
        facts.state("parallel.tensor", tensor, origin, quote)
        if isinstance(pipeline, int):
            facts.state("parallel.world_size", tensor * pipeline, origin, quote)
    if any(name.startswith("argument.") for name in facts.names()):
        return
    for name, argument in _CONFIGURED.items():
        value = values.get(name)
        if value not in (None, "None", False, "auto") and not (name.endswith("_size") and value == 1):
            shown = value.removeprefix("torch.") if isinstance(value, str) else value
            facts.state(f"argument.{argument}", shown, origin, quote)


def _dictionary(text: str) -> dict[str, Value]:
    end = text.rfind("}")
    literal = text[: end + 1][:_LONGEST_LITERAL]
    try:
        parsed = ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {name: _scalar(raw) for name, raw in _PAIR.findall(literal)[:_MOST_ARGUMENTS]}
    if not isinstance(parsed, dict):
        return {}
    return {str(name): _plain(value) for name, value in list(parsed.items())[:_MOST_ARGUMENTS]}


def read_text(facts: Facts, text: str, source: str, quote: str = "") -> None:
    """Commands, environment and versions anywhere in ``text`` (a person's message, or the head of a log)."""
    own: list[tuple[int, str]] = []
    prefixes = Prefixes()
    for number, line in _joined(text):
        speaks = "vllm" in line or "api_server" in line
        if not (speaks or "=" in line) or prefixes.read(line).level is not None:
            continue  # a program's own line states neither a command nor the environment
        if speaks:
            own.append((number, line))
        origin = Origin(source, number, None, None, number)
        shown = line.strip()[:300]
        served = _SERVE.search(line) if speaks and any(word in line for word in _SERVE_WORDS) else None
        if served:
            _read_words(facts, _words(served.group(1)), origin, shown)
        if "=" in line:
            for pair in list(_ASSIGNED.finditer(line))[:40]:
                if not _ADVISED.search(line, max(0, pair.start() - 40), pair.start()):
                    _variable(facts, pair.group(1), pair.group(2).strip("\"'"), origin, shown)
    _read_yaml(facts, text, source)
    _read_calls(facts, text, source)
    read_launch(facts, own, text, source)
    small = f"\n{text}".lower()
    for name, words, rule in _FACTS:
        found = rule.search(text) if name not in facts and any(word in small for word in words) else None
        if found:
            number = text.count("\n", 0, found.start()) + 1
            facts.state(
                name, found.group(1).strip(" ."), Origin(source, number, None, None, number), found.group(0)[:200]
            )
    _read_shm(facts, text, source)


def _joined(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers; a line that ends in a backslash (or PowerShell's back-tick) goes on in the next."""
    joined: list[tuple[int, str]] = []
    open_line = ""
    began = 1
    for number, line in enumerate(text.splitlines(), 1):
        if not open_line:
            began = number
        stripped = line.rstrip()
        if stripped.endswith(("\\", " `", " ^")) and len(open_line) < 20_000:  # of sh, PowerShell and cmd
            open_line += stripped[:-1] + " "
            continue
        joined.append((began, open_line + line))
        open_line = ""
    if open_line:
        joined.append((began, open_line))
    return joined


def _words(text: str) -> list[str]:
    import shlex

    text = text[:8000].split("`")[0]
    try:
        words = shlex.split(text, comments=False)
    except ValueError:
        words = text.split()
    for place, word in enumerate(words):
        if word in ("&&", "||", "|", ";", "&", ">", "2>&1", ">>") or word.startswith((">", "2>")):
            return words[:place]
    return words


def _read_words(facts: Facts, words: list[str], origin: Origin, shown: str) -> None:
    place = 0
    if words and not words[0].startswith("-") and re.match(r"[\w./~$-]", words[0]):
        _argument(facts, "model", words[0].rstrip(".,;:!?)"), origin, shown)
        place = 1
    while place < min(len(words), 400):
        word = words[place]
        place += 1
        flag, equals, value = word.partition("=")
        if not _FLAG.match(flag):
            if not word.startswith("-") and place > 1 and not words[place - 2].startswith("-"):
                return  # the sentence goes on after the command
            continue
        name = flag.lstrip("-").replace("-", "_")
        name = _SHORT.get(name, name) if not flag.startswith("--") else name
        if not equals and place < len(words) and not _FLAG.match(words[place]):
            value = words[place]
            place += 1
        if name.startswith("no_") and not value:
            _argument(facts, name[3:], False, origin, shown)
        else:
            _argument(facts, name, _scalar(value.rstrip(",;)")) if value else True, origin, shown)


def _read_yaml(facts: Facts, text: str, source: str) -> None:
    """Kubernetes and Compose: ``args`` as a list of items, ``env`` as name and value, ``environment`` as a mapping."""
    lines = text.splitlines()[:4000]
    items: list[str] = []
    began = 0
    for number, line in enumerate(lines, 1):
        item = _YAML_ITEM.match(line) if line.lstrip()[:1] == "-" else None
        if item and (items or item.group(1).startswith("-")):
            began = began or number
            items.extend(item.group(1).split(None, 1) if item.group(1).startswith("-") else [item.group(1)])
        elif items:
            _read_words(facts, items, Origin(source, began, None, None, began), " ".join(items)[:300])
            items, began = [], 0
        name = _YAML_NAME.match(line) if "name:" in line else None
        if name and number < len(lines):
            value = _YAML_VALUE.match(lines[number])
            if value:
                origin = Origin(source, number, None, None, number)
                _variable(facts, name.group(1), value.group(1), origin, line.strip()[:200])
        pair = _YAML_PAIR.match(line) if line[:1] in " \t" else None
        if pair:
            origin = Origin(source, number, None, None, number)
            _variable(facts, pair.group(1), pair.group(2), origin, line.strip()[:200])
        if '"--' in line or "'--" in line:
            for flag, value_text in _JSON_ITEM.findall(line)[:100]:
                following = [] if value_text.startswith("-") or not value_text else [value_text]
                origin = Origin(source, number, None, None, number)
                _read_words(facts, [flag, *following], origin, line.strip()[:200])
    if items:
        _read_words(facts, items, Origin(source, began, None, None, began), " ".join(items)[:300])


def _read_calls(facts: Facts, text: str, source: str) -> None:
    """``llm = LLM(model="...", tensor_parallel_size=2)`` in a script."""
    if "LLM(" not in text and "EngineArgs(" not in text:
        return
    for found in list(_CALL.finditer(text))[:4]:
        end = text.find(")\n", found.end(), found.end() + 4000)
        inside = text[found.end() : end if end > 0 else found.end() + 600]
        number = text.count("\n", 0, found.start()) + 1
        origin = Origin(source, number, None, None, number)
        for name, raw in _KEYWORD.findall(inside)[:60]:
            if raw != "None":
                _argument(facts, name, _scalar(raw), origin, inside.strip()[:200])


def _read_shm(facts: Facts, text: str, source: str) -> None:
    found = _SHM.search(text) if "shm-size" in text or "shm_size" in text else None
    size, unit = (found.group(1) or found.group(3), found.group(2) or found.group(4) or "") if found else ("", "")
    in_kib = found is None
    if in_kib:
        found = _SHM_DF.search(text) if "/shm" in text else None
        size, unit = (found.group(1), found.group(2)) if found else ("", "")
    if found is None or not size.replace(".", "", 1).isdigit():
        return
    factor = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}[unit.lower()]
    if in_kib and not unit:
        factor = 1024  # as df counts
    number = text.count("\n", 0, found.start()) + 1
    facts.state(
        "host.shm_bytes", int(float(size) * factor), Origin(source, number, None, None, number), found.group(0)[:200]
    )
