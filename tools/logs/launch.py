"""How the server was started: the command as somebody wrote it, the arguments as its banner repeats them, and the form.

Nothing here is evaluated or kept unredacted. What the pieces mean for a version is decided elsewhere; this module
only finds them: ``server.command`` is the start command as one line of shell words, ``server.arguments`` the banner's
arguments as a JSON object, ``server.launch`` the form (``serve``, ``module``, ``docker``, ``compose``,
``kubernetes``, ``systemd``, ``python``).
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator, Sequence

import re2

from tools.evidence import Origin
from tools.logs.facts import Facts
from tools.redaction import clean, redact

#: A start command longer than this is not repeated; nobody types one, a file with ten thousand adapters may hold one.
LONGEST_COMMAND = 8000
_LONGEST_LITERAL = 20_000
_MOST_ARGUMENTS = 200
#: What a banner prints as an object of Python's, which nobody can type again.
UNREADABLE = {"unreadable": True}

_PROGRAM = re.compile(
    r"(?:^|(?<=[\s\"'`=/]))(?:vllm[ \t]+serve\b|python[\d.]*[ \t](?:-\w+[ \t]+)*-m[ \t]+vllm\.entrypoints[\w.]*|[\w./-]{0,200}api_server\.py\b)"
    r"|\b(?:docker|podman|nerdctl)[ \t]+(?:container[ \t]+)?run\b"
)
#: One of these stands in every command of :data:`_PROGRAM`; looking for them costs next to nothing.
_PROGRAM_WORDS = (" serve", "\tserve", ".entrypoints", "api_server.py", " run", "\trun")
_FLAG = re.compile(r"(?:^|\s)-{1,2}[A-Za-z][\w-]*")
_MODEL_LIKE = re.compile(r"[~./$\w{}-]*(?:/|\d|\$)[\w./:$@{}~-]*$|[A-Za-z]:\\")
_KEY = re.compile(
    r"^([ \t]*)(?:-[ \t]+)?(command|args|entrypoint|CMD|ENTRYPOINT|ExecStart)[ \t]*(?::|=|(?=[ \t]*\[))[ \t]*(.*)$"
)
_ITEM = re.compile(r"^([ \t]*)-[ \t]+(.*)$")
_FLOW = re.compile(r"\"((?:[^\"\\]|\\.){0,2000})\"|'((?:[^']|''){0,2000})'|([^\s,\[\]\"'][^,\[\]]{0,400})")
_KUBERNETES = re2.compile(r"(?m)^[ \t]*(?:containers|apiVersion|initContainers):|^[ \t]*kind:[ \t]*(?:Pod|Deployment|StatefulSet|Infer|Ray|Leader)")  # fmt: skip
#: Words of which one stands in what the rule finds, and the rule.
_HINTS = (
    ("kubernetes", ("pod/", "Scheduled", "kubectl "), re2.compile(r"(?m)^\[?pod/[\w.-]+|^[ \t]*Normal[ \t]+Scheduled\b|\bkubectl (?:logs|describe|get)\b")),
    ("compose", ("| ", "docker"), re2.compile(r"(?m)^[\w.-]{1,60}[-_]\d{1,3}[ \t]+\| |\bdocker[ -]compose (?:up|logs|run)\b")),
    ("systemd", ("]: ", "ctl "), re2.compile(r"(?m)^\w{3} [ \d]\d [\d:]{8} [\w.-]+ vllm[\w@.-]*\[\d+\]: |\b(?:systemctl|journalctl) ")),
)  # fmt: skip
_CALL = re2.compile(r"\b(LLM\(\s*)[\"'\w]")
_LORA = re.compile(r"LoRAModulePath\(name=('[^']{1,200}'), path=('[^']{1,400}')")
_SECRET_OPTION = re.compile(
    r"(?i)((?:--(?:api[-_]key|hf[-_]token|[\w-]*(?:password|secret|token))[= ]+|\b[A-Z_]*(?:TOKEN|API_KEY|SECRET|PASSWORD)=)[\"']?)(?![\"']?\$)[^\s\"'$]{1,400}"
)


def read_launch(facts: Facts, lines: Sequence[tuple[int, str]], text: str, source: str) -> None:
    """States the start command that ``text`` holds; ``lines`` are those of its lines that speak
    of vLLM, continued ones joined, with their numbers."""
    manifest = next(_manifests(text), None)
    found: list[tuple[bool, int, str]] = []
    if manifest is not None:
        number, form, command = manifest
        _state(facts, command, form, Origin(source, number, None, None, number))
    else:
        for number, line in lines[:20_000]:
            started = _plausible(line)
            if started:
                found.append((not _FLAG.search(_after(started)), number, started))
        if found:
            _, number, command = min(found, key=lambda row: row[:2])
            _state(facts, command, None, Origin(source, number, None, None, number))
    if manifest is None and not found:
        _read_call(facts, text, source)
    head = text[:20_000]
    if "server.launch" not in facts:
        for form, words, rule in _HINTS:
            hit = rule.search(head) if any(word in head for word in words) else None
            if hit:
                number = head.count("\n", 0, hit.start()) + 1
                origin = Origin(source, number, None, None, number)
                facts.state("server.launch", form, origin, hit.group(0).strip()[:200], keep=True)
                break


def _state(facts: Facts, command: str, form: str | None, origin: Origin) -> None:
    shown = redact(_SECRET_OPTION.sub(r"\1***", clean(command)))[:LONGEST_COMMAND]
    facts.state("server.command", shown, origin, shown[:300], keep=True)
    if form is None:
        form = "docker" if re.search(r"\b(?:docker|podman|nerdctl)[ \t]", shown) else "serve"
        if form == "serve" and not re.search(r"\bvllm[ \t]+serve\b", shown):
            form = "module"
    facts.state("server.launch", form, origin, shown[:300], keep=True)


def _after(command: str) -> str:
    found = _PROGRAM.search(command)
    return command[found.end() :] if found else command


def _plausible(line: str) -> str | None:
    """The command in a line, from its first word on; ``None`` where the line only speaks of one."""
    if not any(word in line for word in _PROGRAM_WORDS):
        return None
    found = _PROGRAM.search(line)
    if found is None or len(line) > 4 * LONGEST_COMMAND:
        return None
    before, rest = line[: found.start()], line[found.end() :]
    if before.count("`") % 2 == 1:  # a command quoted in prose ends with its back-tick
        rest = rest.split("`")[0]
        before = before[before.rfind("`") + 1 :]
    else:
        before = before.split("`")[-1]
    before = re.split(r"[|&;<>()]", before)[-1]
    words = rest.split()
    first = words[0] if words else ""
    if "[" in first or first in ("--help", "-h") or first.startswith("<"):
        return None
    if not first.startswith("-") and not (_MODEL_LIKE.match(first) or (len(words) > 1 and words[1].startswith("-"))):
        return None
    return f"{before}{found.group(0)}{rest}".strip()


def _manifests(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, form, command) of YAML ``command``/``args``, of a Dockerfile's ``CMD`` and of a unit's ``ExecStart``."""
    if not any(key in text for key in ("command", "args", "CMD", "ENTRYPOINT", "ExecStart", "entrypoint")):
        return
    lines = text.splitlines()[:4000]
    in_kubernetes = bool(_KUBERNETES.search(text))
    words: list[str] = []
    began, form, place = 0, "compose", 0
    while place < len(lines):
        key = _KEY.match(lines[place])
        place += 1
        if key is None:
            continue
        indent, name, rest = len(key.group(1)), key.group(2), key.group(3).strip()
        if name == "ExecStart":
            if "vllm" in rest:
                yield place, "systemd", rest.lstrip("-@:+!")
            continue
        values, place, shell = _values(rest, lines, place, indent)
        if shell is not None and (_PROGRAM.search(shell) or (shell.startswith("--") and "vllm" in text)):
            yield place, "kubernetes" if in_kubernetes or name == "args" else "compose", shell[:LONGEST_COMMAND]
            return
        if values:
            began = began or place
            form = "docker" if name in ("CMD", "ENTRYPOINT") else form
            form = "kubernetes" if in_kubernetes or name == "args" else form
            words = [*values, *words] if name in ("command", "entrypoint", "ENTRYPOINT") and in_kubernetes else [*words, *values]  # fmt: skip
    script = next((w for w in words if "\n" in w or (" " in w and _PROGRAM.search(w))), None)
    if script is not None:
        yield began, form, " ".join(line.rstrip("\\ \t") for line in script.splitlines())
    elif any(w.startswith("--") for w in words) or _PROGRAM.search(" ".join(words)):
        joined = shlex.join(words)
        known = ("vllm" in joined or "--model" in words or "image:" in text) and len(joined) <= LONGEST_COMMAND
        if known:
            yield began, form, joined


def _values(rest: str, lines: list[str], place: int, indent: int) -> tuple[list[str], int, str | None]:
    """Items of a list, or the text of a string, that stand behind a key; and the line where reading goes on."""
    if rest.startswith("["):
        while "]" not in rest and place < len(lines) and len(rest) < LONGEST_COMMAND:
            rest += " " + lines[place].strip()
            place += 1
        return [_unquoted(m) for m in _FLOW.finditer(rest.strip()[1 : rest.rfind("]")])][:400], place, None
    if rest[:1] in ("|", ">") or not rest:
        items: list[str] = []
        block: list[str] = []
        while place < len(lines):
            line = lines[place]
            item = _ITEM.match(line)
            if not line.strip():
                place += 1
                continue
            depth = len(line) - len(line.lstrip())
            if not rest and item and len(item.group(1)) >= indent and _KEY.match(item.group(2)) is None:
                text = item.group(2).strip()
                place += 1
                if text[:1] in ("|", ">"):
                    script = []
                    while place < len(lines) and (
                        not lines[place].strip() or len(lines[place]) - len(lines[place].lstrip()) > depth
                    ):
                        script.append(lines[place].strip())
                        place += 1
                    items.append("\n".join(script))
                    continue
                items.append(_scalar(text))
            elif rest and depth > indent:
                block.append(line.strip().rstrip("\\").strip())
                place += 1
            else:
                break
        return items[:400], place, " ".join(block) if block else None
    return [], place, _scalar(rest)


def _scalar(text: str) -> str:
    found = re.match(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^']|'')*)'", text)
    if found:
        return _unquoted(found)
    return text.split(" #")[0].strip()


def _unquoted(found: re.Match[str]) -> str:
    double, single = found.group(1), found.group(2)
    if double is not None:
        return re.sub(r"\\(.)", lambda m: "\n" if m.group(1) == "n" else m.group(1), double)
    if single is not None:
        return single.replace("''", "'")
    return found.group(3).strip() if found.lastindex and found.lastindex >= 3 else ""


def _read_call(facts: Facts, text: str, source: str) -> None:
    """``llm = LLM("model", max_model_len=4096)`` in a script: its keywords, where they are literals."""
    at = _CALL.search(text) if "LLM(" in text else None
    if at is None:
        return
    began = at.end(1)
    body = ",".join(_split(text[began : began + LONGEST_COMMAND]))
    try:
        call = ast.parse(f"f({body})", mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    if not isinstance(call, ast.Call):
        return
    values = {k.arg: _literal(ast.unparse(k.value)) for k in call.keywords[:_MOST_ARGUMENTS] if k.arg}
    if call.args:
        values.setdefault("model", _literal(ast.unparse(call.args[0])))
    number = text.count("\n", 0, at.start()) + 1
    origin = Origin(source, number, None, None, number)
    kept = {name: "***" if _is_secret(name, value) else value for name, value in values.items()}
    facts.state("server.arguments", redact(clean(json.dumps(kept, ensure_ascii=False))), origin, at.group(1), keep=True)
    facts.state("server.launch", "python", origin, at.group(1), keep=True)


def banner_arguments(text: str) -> dict[str, object]:
    """The arguments of one banner line: a dictionary's or a ``Namespace``'s pairs, objects as :data:`UNREADABLE`.

    ``non-default args: {'model_tag': 'm', 'attention_config': AttentionConfig(backend=None)}``
    """
    for mark, separator in (("non-default args: {", ":"), ("args: Namespace(", "=")):
        at = text.find(mark)
        if at >= 0:
            return _pairs(text[at + len(mark) : at + len(mark) + _LONGEST_LITERAL], separator)
    return {}


def _pairs(text: str, separator: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for piece in _split(text):
        name, sign, value = piece.partition(separator)
        name = name.strip().strip("'\"")
        if not sign or not name.isidentifier() or len(found) >= _MOST_ARGUMENTS:
            continue
        found[name] = _literal(value.strip())
    return found


def _literal(text: str) -> object:
    adapters = _LORA.findall(text)
    if adapters:
        return [f"{ast.literal_eval(name)}={ast.literal_eval(path)}" for name, path in adapters]
    try:
        value = ast.literal_eval(text)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return UNREADABLE
    return value


def _split(text: str) -> Iterator[str]:
    """Pieces between the commas of the outermost level; ends where the level is left."""
    depth, quote, began, place = 0, "", 0, 0
    while place < len(text):
        sign = text[place]
        if quote:
            if sign == "\\":
                place += 1
            elif sign == quote:
                quote = ""
        elif sign in "'\"":
            quote = sign
        elif sign in "([{<":
            depth += 1
        elif sign in ")]}>":
            depth -= 1
            if depth < 0:
                break
        elif sign == "," and depth == 0:
            yield text[began:place]
            began = place + 1
        place += 1
    if not quote:
        yield text[began:place]


def read_banner_launch(facts: Facts, text: str, origin: Origin, quote: str) -> None:
    """States what one banner line tells of the start: its arguments, and whether a server or a script printed them."""
    arguments = banner_arguments(text)
    if not arguments:
        return
    kept = {name: "***" if _is_secret(name, value) else value for name, value in arguments.items()}
    body = redact(clean(json.dumps(kept, ensure_ascii=False, default=str)))
    if len(body) > _LONGEST_LITERAL:
        return
    facts.state("server.arguments", body, origin, quote)
    served = {"model_tag", "host", "port", "api_key", "api_server_count", "served_model_name", "subparser"} & set(
        arguments
    )
    by_server = served or (origin.process or "").startswith("APIServer") or "api_server" in text or "cli_args" in text
    if not by_server and "non-default args" in text and arguments.get("disable_log_stats") is True:
        # LLM() sets this argument itself; `vllm serve` and the modules leave it alone.
        facts.state("server.launch", "python", origin, quote, keep=True)


def _is_secret(name: str, value: object) -> bool:
    return bool(value) and bool(re.search(r"(?i)(?:^|_)(?:token|api_key|secret|password)$", name))
