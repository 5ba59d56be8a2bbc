"""How the server was started, as far as the evidence shows it: program, arguments, variables, and what was left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from assistant.advice.docker import DOCKER_SWITCHES, DOCKER_VALUES, IMAGE
from assistant.advice.words import Word, reference, split_at, split_words, text_word
from assistant.diagnosis.truth import Facts
from knowledge.versions import parse, release
from knowledge.vllm_tables import Flag, examined, flag, flag_range, renames, versions

Form = Literal["serve", "module", "docker", "compose", "kubernetes", "systemd", "python", "unknown"]
#: Why something of the user's command does not come back in the corrected one; keys of sentences.yaml.
Reason = Literal["unknown-flag", "wrong-value", "unreadable", "unsafe", "foreign"]

#: `vllm serve` exists since this version; before, the same arguments go to the module.
SERVE_SINCE = (0, 5, 2, 0)
#: The last examined version whose banner prints ``args: Namespace(...)`` (vllm/entrypoints/openai/api_server.py).
LAST_NAMESPACE = "0.8.5.post1"
MODULE = "vllm.entrypoints.openai.api_server"
_WRAPPERS = frozenset({"nohup", "time", "sudo", "env", "setsid", "uv", "run"})
_VARIABLE = re.compile(
    r"(?:VLLM|NCCL|CUDA|TORCH|PYTORCH|HF|HUGGING|TRANSFORMERS|RAY|GLOO|OMP|LD|TRITON|FLASHINFER|TOKENIZERS|HSA|ROCR|ROCM|HIP|NVIDIA|UCX"
    r"|MASTER|SAFETENSORS|XDG|TPU|MKL|KMP|NVSHMEM|MODELSCOPE|TMPDIR|HOME|PATH|PYTHON|HTTPS?|NO|https?|no)[A-Za-z0-9_]*"
)
#: Names in a banner that are no arguments, or that say the model a second time.
_NOT_ARGUMENTS = frozenset({"model", "model_tag", "subparser", "dispatch_function", "command", "func", "cmd"})
_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:token|api_key|secret|password)$")
_MASK = re.compile(r"\*{3,}|<secret[:\d]*>|\bx{6,}\b|…|\.{3}$", re.IGNORECASE)
_SECRET_VARIABLE = {"api_key": "VLLM_API_KEY", "hf_token": "HF_TOKEN"}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: ``name`` as the user spells it, ``python`` as vLLM calls it."""

    name: str
    python: str
    values: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The start command in pieces. ``seen`` is false where nothing of it was stated: then only a form may be known."""

    form: Form = "unknown"
    version: str = ""
    wrappers: tuple[Word, ...] = ()
    variables: tuple[tuple[str, Word], ...] = ()
    program: tuple[Word, ...] = ()
    docker: tuple[Word, ...] = ()
    image: Word | None = None
    model: Word | None = None
    arguments: tuple[Argument, ...] = ()
    left_out: tuple[tuple[str, Reason], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()  # (as the user wrote it, as this version calls it)
    model_by_flag: bool = False  # the user wrote --model, which an image's own entry point then takes too
    seen: bool = False
    assumed: bool = False  # the version follows from the arguments, nobody stated it

    def argument(self, python: str) -> Argument | None:
        """The last argument of that Python name: the one that counts for vLLM."""
        return next((a for a in reversed(self.arguments) if a.python == python), None)


@dataclass(slots=True)
class _Reading:
    version: str
    arguments: list[Argument] = field(default_factory=list)
    left_out: list[tuple[str, Reason]] = field(default_factory=list)
    model: Word | None = None
    model_by_flag: bool = False
    renamed: list[tuple[str, str]] = field(default_factory=list)

    def take_model(self, word: Word, name: str) -> None:
        """The model, unless it cannot be written or was cut off where somebody shortened the line."""
        if not word.is_safe or not word.written or word.written.startswith("-"):
            self.leave(name, "unsafe")
        elif word.written.endswith(("...", "…")) or _MASK.search(word.written):
            self.leave(name, "unreadable")
        else:
            self.model = word

    def leave(self, name: str, reason: Reason) -> None:
        shown = "".join(c for c in name if c.isprintable())[:60]
        if (shown, reason) not in self.left_out and len(self.left_out) < 12:
            self.left_out.append((shown, reason))


def read_started(facts: Facts, version: str | None) -> Started:
    """The start command of a case, for ``version`` (``None``: the newest that knows all its arguments)."""
    command, banner = facts.value("server.command"), facts.value("server.arguments")
    form = facts.value("server.launch")
    words = split_words(command) if isinstance(command, str) else []
    stated = _json(banner)
    wanted, assumed = (examined(version), False) if parse(version) else _version_of(words, stated)
    started = Started(form=form if form in _FORMS else "unknown", version=wanted, assumed=assumed)
    if words:
        started = _of_command(words, started)
    if stated:
        started = _with_banner(stated, started)
    return started


_FORMS = ("serve", "module", "docker", "compose", "kubernetes", "systemd", "python")


def _json(text: object) -> dict[str, Any]:
    if not isinstance(text, str):
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _version_of(words: Sequence[Word], stated: Mapping[str, Any]) -> tuple[str, bool]:
    """The newest version that still knows the arguments; true where that is not simply the newest."""
    newest = versions()[-1]
    # A Namespace with everything in it, unset arguments too, was printed before 0.9.
    newest = LAST_NAMESPACE if any(value is None for value in stated.values()) else newest
    names = [w.written.split("=")[0] for w in words if w.written.startswith("--")]
    names += ["--" + name.replace("_", "-") for name in stated if name not in _NOT_ARGUMENTS]
    oldest = newest
    for name in names[:100]:
        if flag(newest, name) is None:
            known = flag_range(name.replace("_", "-"))
            if known is not None and release(known[1]) < release(oldest):
                oldest = known[1]
    return oldest, oldest != versions()[-1]


# --- a command line


def _of_command(words: list[Word], started: Started) -> Started:
    plain = [w.literal or "" for w in words]
    reading = _Reading(started.version)
    docker: tuple[Word, ...] = ()
    image: Word | None = None
    form = started.form
    begin, program = _program(plain, words)
    run = next((i for i, p in enumerate(plain) if p == "run" and i and plain[i - 1] in ("docker", "podman", "nerdctl", "container")), None)  # fmt: skip
    if run is not None and (begin is None or run < begin):
        form = "docker"
        docker, image, rest = _docker(words, run, reading)
        begin, program = _program(plain[rest:], words[rest:])
        begin = rest if begin is None else rest + begin
        before = words[: run + 1]
        front = run - 1 if plain[run - 1] != "container" else run - 2
        wrappers, variables = _before(before[:front], reading)
        docker = (*words[front : run + 1], *docker)
        if image is None:
            return replace(started, left_out=tuple(reading.left_out))
    elif begin is None:
        if form not in ("compose", "kubernetes", "docker", "systemd"):
            return started
        begin, wrappers, variables = 0, (), ()  # arguments of a container, behind its image's own entry point
    else:
        wrappers, variables = _before(words[:begin], reading)
    _read_arguments(words[begin + len(program) :], reading)
    return replace(
        started,
        form=form if form != "unknown" else "serve",
        wrappers=wrappers,
        variables=variables,
        program=tuple(program),
        docker=docker,
        image=image,
        model=reading.model,
        model_by_flag=reading.model_by_flag,
        arguments=tuple(reading.arguments),
        left_out=tuple(reading.left_out),
        renamed=tuple(reading.renamed),
        seen=True,
    )


def _program(plain: Sequence[str], words: Sequence[Word]) -> tuple[int | None, list[Word]]:
    for place, word in enumerate(plain):
        if place > 60:
            break
        if word.rsplit("/", 1)[-1] == "vllm" and plain[place + 1 : place + 2] == ["serve"] and _PATH.fullmatch(word):
            return place, list(words[place : place + 2])
        if re.fullmatch(r"[\w./~-]*python[\d.]*", word):
            behind = place + 1
            while plain[behind : behind + 1] in (["-u"], ["-O"], ["-I"]):
                behind += 1
            if plain[behind : behind + 1] == ["-m"] and plain[behind + 1 : behind + 2] in ([MODULE], ["vllm.entrypoints.api_server"]):  # fmt: skip
                return place, list(words[place : behind + 2])
            if plain[behind : behind + 1] and plain[behind].endswith("api_server.py") and _PATH.fullmatch(plain[behind]):  # fmt: skip
                return place, list(words[place : behind + 1])
    return None, []


_PATH = re.compile(r"[\w./-]{1,300}")


def _before(words: Sequence[Word], reading: _Reading) -> tuple[tuple[Word, ...], tuple[tuple[str, Word], ...]]:
    """Wrappers and assignments that stand right before the program, read backwards; what is older is prose."""
    wrappers: list[Word] = []
    variables: list[tuple[str, Word]] = []
    for word in reversed(words):
        pair = split_at(word, "=")
        if pair is not None and pair[0].literal and re.fullmatch(r"[A-Za-z_]\w{0,60}", pair[0].literal):
            name, value = pair[0].literal, pair[1]
            if not _VARIABLE.fullmatch(name):
                reading.leave(name, "foreign")
            elif not value.is_safe:
                reading.leave(name, "unsafe")
            else:
                variables.append((name, _open(name.lower(), value)))
        elif word.literal == "exec":
            continue  # right in a script, but it would end the shell that the command is pasted into
        elif word.literal in _WRAPPERS:
            wrappers.append(word)
        else:
            break
    return tuple(reversed(wrappers)), tuple(reversed(variables))


def _docker(words: list[Word], run: int, reading: _Reading) -> tuple[tuple[Word, ...], Word | None, int]:
    """Options of ``docker run`` that are known, the image, and where its arguments begin."""
    kept: list[Word] = []
    place = run + 1
    while place < len(words):
        word = words[place]
        name, sign, value = word.written.partition("=")
        place += 1
        if not word.written.startswith("-"):
            if word.literal and IMAGE.fullmatch(word.literal):
                return tuple(kept), word, place
            reading.leave(word.written, "foreign")
            return (), None, len(words)
        if re.fullmatch(r"-[ditP]+", name) or name in DOCKER_SWITCHES:
            kept.append(word)
        elif name in DOCKER_VALUES:
            if not sign and place < len(words):
                option = words[place]
                place += 1
                if name in ("-e", "--env"):
                    option = _environment(option)
                if option.is_safe and not option.written.startswith("-"):
                    kept += [word, option]
                else:
                    reading.leave(name, "unsafe")
            elif sign and word.is_safe and value:
                kept.append(word)
            else:
                reading.leave(name, "unsafe")
        else:
            reading.leave(name, "foreign")
            if not sign and place < len(words) and not IMAGE.fullmatch(words[place].written):
                place += not words[place].written.startswith("-")
    return (), None, len(words)


def _environment(option: Word) -> Word:
    """``NAME=value`` of a container; a masked or secret value becomes the name alone, which docker reads outside."""
    pair = split_at(option, "=")
    if pair is None or pair[0].literal is None:
        return option
    secret = _SECRET_NAME.search(pair[0].literal.lower()) or _MASK.search(pair[1].written)
    return pair[0] if secret else option


def _open(python: str, value: Word) -> Word:
    """The value, or a reference in place of a secret or of the mask that a log shows for one."""
    if value.literal is None and all(kind != "text" or not text for kind, text in value.parts):
        return value  # a reference already
    if _SECRET_NAME.search(python) or _MASK.search(value.written):
        return reference(_SECRET_VARIABLE.get(python, re.sub(r"\W", "_", python.upper()) or "VALUE"))
    return value


def _is_boolean(words: Sequence[Word]) -> bool:
    return bool(words) and (words[0].literal or "").lower() in ("true", "false")


def _is_flag(word: Word) -> bool:
    first = word.parts[0] if word.parts else ("text", "")
    return first[0] == "text" and re.match(r"--?[A-Za-z]", first[1]) is not None


def _read_arguments(words: Sequence[Word], reading: _Reading) -> None:
    place = 0
    if words and not _is_flag(words[0]):
        reading.take_model(words[0], "model")
        place = 1
    while place < len(words):
        word = words[place]
        place += 1
        if not _is_flag(word):
            return  # a sentence goes on behind the command
        head, value = split_at(word, "=") or (word, None)
        name = head.written
        known = flag(reading.version, name)
        values: list[Word] = [] if value is None else [value]
        if value is None and not (known is not None and known.kind == "bool"):
            following: list[Word] = []
            while place + len(following) < len(words) and not _is_flag(words[place + len(following)]):
                following.append(words[place + len(following)])
            several = (known is None or known.kind == "list") and len(following) <= 4
            values = following if several else following[:1]
            place += len(values)
        elif value is None and known is not None and known.takes_literal_bool and _is_boolean(words[place : place + 1]):
            values = [words[place]]
            place += 1
        _take(name, known, values, reading)


def _take(name: str, known: Flag | None, values: Sequence[Word], reading: _Reading) -> None:
    shown = name if re.fullmatch(r"--?[A-Za-z][\w.-]{0,80}", name) else "?"
    new = _renamed(shown, reading.version) if known is None else None
    if new is not None:
        reading.renamed.append((shown, new))
        name, known = new, flag(reading.version, new)
        values = values or ([text_word("true")] if "." in new else [])
    if known is None or shown == "?":
        reading.leave(shown, "unknown-flag")
        return
    values = [_open(known.python, v) for v in values]
    if known.python == "model":
        reading.model_by_flag = True
        if values:
            reading.take_model(values[0], name)
        return
    if not all(v.is_safe for v in values):
        reading.leave(name, "unsafe")
    elif "." in name or fits(known, values):
        reading.arguments.append(Argument(name, known.python, tuple(values)))
    else:
        reading.leave(f"{name} {' '.join(v.written for v in values)}"[:60], "wrong-value")


def _renamed(name: str, version: str) -> str | None:
    """What this version calls an argument that it no longer knows, where the same value means the same."""
    plain = name.replace("_", "-")
    for row in renames():
        same = re.split(r"[-_.]", row.old)[-1] == re.split(r"[-_.]", row.new)[-1]
        if row.kind == "flag" and row.old == plain and same and not row.note and flag(version, row.new) is not None:
            return row.new
    return None


def fits(known: Flag, values: Sequence[Word]) -> bool:
    """Whether the values are of the type and among the choices that this version declares for the argument."""
    if known.kind == "bool":
        return not values or (known.takes_literal_bool and (values[0].literal or "").lower() in ("true", "false"))
    if known.kind == "optional-value":
        return len(values) <= 1
    if not values or (len(values) > 1 and known.kind != "list"):
        return False
    return all(value.literal is None or _is_of(known, value.literal) for value in values)


def _is_of(known: Flag, text: str) -> bool:
    kind = (known.element or "str") if known.kind == "list" else known.kind
    if kind == "int":
        human = known.accepts_human and re.fullmatch(r"-?\d+(?:\.\d+)?[kKmMgGtT]?|auto", text)
        return bool(human or re.fullmatch(r"-?\d{1,18}", text))
    if kind == "float":
        return re.fullmatch(r"-?(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][+-]?\d{1,3})?", text) is not None
    if kind == "json":
        if text[:1] not in "{[":
            return not text.startswith("-") and known.config is None
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True
    if known.choices is not None and not known.open_choices and kind != "list":
        return text in {str(choice) for choice in known.choices}
    return True


# --- a banner


def _with_banner(stated: Mapping[str, Any], started: Started) -> Started:
    """The command, completed by what the banner repeats; the banner alone where they are of different models."""
    model = stated.get("model_tag") or stated.get("model")
    model_word = text_word(model) if isinstance(model, str) else None
    same = started.seen and (started.model is None or model is None or started.model.literal in (None, model))
    reading = _Reading(started.version)
    if started.seen and same:
        reading.arguments, reading.left_out = list(started.arguments), list(started.left_out)
        reading.model = started.model
    elif model_word is not None:
        reading.take_model(model_word, "model")
    everything = any(value is None for value in stated.values())  # a Namespace, with what nobody set
    have = {a.python for a in reading.arguments} | {name.split()[0].lstrip("-").replace("-", "_") for name, _ in reading.left_out}  # fmt: skip
    for name, value in stated.items():
        if name in _NOT_ARGUMENTS or name in have or value is None:
            continue
        if started.form == "python" and name == "disable_log_stats":
            continue  # LLM() sets it itself
        _take_stated(name, value, reading, everything)
    form: Form = started.form
    if form in ("unknown", "module") and not started.seen:
        form = "serve" if (parse(started.version) or SERVE_SINCE) >= SERVE_SINCE else "module"
    if started.seen and not same:
        started = Started(form="serve", version=started.version, assumed=started.assumed)
        form = "serve"
    return replace(
        started,
        form=form,
        model=reading.model,
        arguments=tuple(reading.arguments),
        left_out=tuple(reading.left_out),
        seen=True,
    )


def _take_stated(name: str, value: object, reading: _Reading, everything: bool) -> None:
    known = flag(reading.version, name)
    if known is None:
        reading.leave(name, "unknown-flag")
        return
    if isinstance(value, dict) and value.get("unreadable") is True:
        if known.default_from is None:
            reading.leave(known.name, "unreadable")
        return
    if value in ("", []) or (everything and is_default(known, value)):
        return
    if isinstance(value, bool) and known.kind == "bool":
        if value:
            reading.arguments.append(Argument(known.name, known.python))
        elif known.no_form:
            reading.arguments.append(Argument(known.no_form, known.python))
        return
    rows = value if isinstance(value, list) and known.kind != "json" else [value]
    words = [_open(known.python, text_word(_spell(known, one))) for one in rows]
    if known.python == "middleware":
        for word in words:
            _take(known.name, known, [word], reading)
    else:
        _take(known.name, known, words, reading)


def _spell(known: Flag, value: object) -> str:
    """A value of the banner as it is typed."""
    if isinstance(value, dict) and known.kind != "json":
        return ",".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def is_default(known: Flag, value: object) -> bool:
    """Whether the value says nothing that the version would not do without it."""
    if value in (None, "", "None") or value == [] or value == {}:
        return True
    if value == known.default or str(value) == str(known.default):
        return True
    source = str(known.default_from or known.default or "").lower()
    return isinstance(value, str) and str(value).lower() in source.split(".")
