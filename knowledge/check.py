"""The checker: says of every wrong knowledge file which file, line and key, what is wrong, and what to do.

It checks the files by themselves and against each other. Whether the examples are diagnosed right is checked by the
diagnosis engine (``vllm-diagnose kb check`` runs both).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from knowledge import schema
from knowledge.errors import KnowledgeError
from knowledge.sources import (
    ROOT,
    Document,
    Key,
    cause_files,
    cause_id,
    merged_files,
    read_yaml,
    vllm_messages,
)
from knowledge.templates import compile_template
from knowledge.versions import is_between, release
from knowledge.vllm_tables import flag as known_flag
from knowledge.vllm_tables import flag_range, variable_range, versions

MOST_WORDS = 60
MOST_CHINESE = 150
TESTS = frozenset({"is", "is_not", "at_most", "at_least", "above", "below", "one_of", "matches", "absent"})
#: What belongs into intents: vLLM's own names in a sentence go stale with the next version.
_OWN_NAMES = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]+|VLLM_[A-Z_]+|vllm:[a-z_]+)")
#: Options of other programs may stand in a sentence.
_OTHER_OPTIONS = frozenset("--ipc --shm-size --gpus --ulimit --cap-add --privileged --runtime --no-cache-dir --upgrade --num-gpus --address --include --force-reinstall --no-deps --user --device --network --memory".split())  # fmt: skip
_CHINESE = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend."""

    where: str  # "causes/memory/x.yaml:12"
    key: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.what}. {self.remedy}"


@dataclass(slots=True)
class Names:
    """All ids that files may refer to."""

    causes: set[str] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)
    concepts: set[str] = field(default_factory=set)
    observables: set[str] = field(default_factory=set)
    intents: set[str] = field(default_factory=set)

    def has_observable(self, name: str) -> bool:
        return name in self.observables or name.split(".", 1)[0] + ".*" in self.observables


class _Checker:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = Names()
        self.problems: list[Problem] = []
        self.sentences: dict[str, str] = {}
        self.table: dict[str, dict[str, Any]] = {}
        self.restarting: set[str] = set()  # intents that take effect when the server starts

    def add(self, document: Document, key: Key, what: str, remedy: str) -> None:
        try:
            name = document.path.relative_to(self.root).as_posix()
        except ValueError:
            name = str(document.path)
        self.problems.append(
            Problem(f"{name}:{document.line_of(key)}", ".".join(map(str, key)) or "file", what, remedy)
        )

    def read(self, path: Path) -> Document | None:
        try:
            return read_yaml(path, with_lines=True)
        except KnowledgeError as error:
            self.problems.append(Problem(str(path), "file", str(error), "Mend the YAML"))
            return None

    def validate(self, model: type[BaseModel], data: Any, document: Document, at: Key = ()) -> bool:
        try:
            model.model_validate(data)
        except ValidationError as error:
            for row in error.errors():
                key = (*at, *row["loc"])
                what = row["msg"].removeprefix("Value error, ")
                remedy = "See the cause file in CONTRIBUTING"
                if row["type"] == "extra_forbidden":
                    what, remedy = (
                        f"the key {row['loc'][-1]!r} is not known",
                        f"Known keys: {', '.join(_known_keys(model, row['loc']))}",
                    )
                elif row["type"] == "missing":
                    what, remedy = f"the key {row['loc'][-1]!r} is missing", "Add it"
                self.add(document, key, what, remedy)
            return False
        return True

    def mapping(
        self, path: Path, model: type[BaseModel], into: set[str] | None
    ) -> Iterator[tuple[Document, str, dict[str, Any]]]:
        document = self.read(path)
        if document is None:
            return
        if not isinstance(document.data, dict):
            self.add(document, (), "this file is no mapping of ids", "Write `id:` lines with their entries below")
            return
        for name, entry in document.data.items():
            if into is not None:
                if name in into:
                    self.add(document, (name,), f"{name!r} is defined twice", "Rename one or merge both")
                into.add(name)
            if self.validate(model, entry, document, (name,)):
                yield document, name, entry

    def condition(self, condition: Any, document: Document, at: Key) -> None:
        if not isinstance(condition, Mapping) or len(condition) != 1:
            self.add(document, at, "a condition has exactly one key", "Combine several with all: [...] or any: [...]")
            return
        ((key, test),) = condition.items()
        if key in ("all", "any"):
            if not isinstance(test, list) or not test:
                self.add(
                    document, (*at, key), f"{key} needs a list of conditions", "Write one condition a line below it"
                )
                return
            for index, part in enumerate(test):
                self.condition(part, document, (*at, key, index))
        elif key == "after":
            if not isinstance(test, list) or len(test) != 2:
                self.add(document, (*at, key), "after needs two conditions", "Write what came, then after what it came")
                return
            for index, part in enumerate(test):
                self.condition(part, document, (*at, key, index))
        elif key == "not":
            self.condition(test, document, (*at, key))
        elif key == "message":
            self.refer(test, self.names.messages, "message", document, at)
        elif key == "said":
            self.refer(test, self.names.concepts, "concept", document, at)
        elif not self.names.has_observable(key):
            self.add(
                document,
                at,
                f"the observable {key!r} does not exist",
                f"Did you mean {_nearest(key, self.names.observables)}? New ones go into observables.yaml",
            )
        elif not isinstance(test, Mapping) or not test or not set(test) <= TESTS:
            self.add(document, (*at, key), f"{test!r} is no test", f"Tests are {', '.join(sorted(TESTS))}")

    def refer(self, name: Any, known: set[str], what: str, document: Document, at: Key) -> None:
        if name not in known:
            self.add(document, at, f"the {what} {name!r} does not exist", f"Did you mean {_nearest(str(name), known)}?")

    def words(self, words: Mapping[str, str], document: Document, at: Key, *, most: bool = False) -> None:
        for lang, sentence in words.items():
            key = (*at, lang)
            count = len(_CHINESE.findall(sentence)) if lang == "zh" else len(sentence.split())
            if most and count > (MOST_CHINESE if lang == "zh" else MOST_WORDS):
                self.add(
                    document,
                    key,
                    f"{count} words or characters are too many",
                    f"At most {MOST_WORDS} words, {MOST_CHINESE} Chinese characters",
                )
            if lang == "zh" and not _CHINESE.search(sentence):
                self.add(document, key, "no Chinese stands in the Chinese text", "Write it in Chinese")
            for name in _OWN_NAMES.findall(sentence):
                if name not in _OTHER_OPTIONS:
                    self.add(
                        document,
                        key,
                        f"{name} is a name of vLLM's",
                        "Name an intent instead; intents are spelled per version",
                    )
            if len(sentence) < 25:
                continue
            for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", sentence.strip()):
                place = f"{document.path.name}:{document.line_of(key)}"
                if len(part) >= 25 and self.sentences.setdefault(part, place) != place:
                    self.add(
                        document,
                        key,
                        f"this sentence also stands in {self.sentences[part]}",
                        "Say what is particular here",
                    )

    def cause(self, document: Document) -> None:
        data = document.data
        if not self.validate(schema.CauseFile, data, document):
            return
        order = list(data)
        wanted = [k for k in schema.CAUSE_ORDER if k in data]
        if order != wanted:
            self.add(document, (), "the keys are in another order", f"Order: {', '.join(wanted)}")
        self.words(data["title"], document, ("title",))
        self.words(data["explanation"], document, ("explanation",), most=True)
        self.words(data["check"], document, ("check",))
        for index, signal in enumerate(data["signals"]):
            at: Key = ("signals", index)
            if "message" in signal:
                self.refer(signal["message"], self.names.messages, "message", document, (*at, "message"))
            elif "prints" in signal:
                self.templates(document, {"says": signal["prints"]}, (*at, "prints"))
            elif "when" in signal:
                self.condition(signal["when"], document, (*at, "when"))
            for concept in signal.get("said", ()):
                self.refer(concept, self.names.concepts, "concept", document, (*at, "said"))
        for index, exclusion in enumerate(data.get("ruled_out", ())):
            self.condition(exclusion["when"], document, ("ruled_out", index, "when"))
            self.words(exclusion["because"], document, ("ruled_out", index, "because"))
        for index, name in enumerate(data.get("explains", ())):
            self.refer(name, self.names.messages, "message", document, ("explains", index))
        for index, name in enumerate(data.get("near", ())):
            self.refer(name, self.names.causes, "cause", document, ("near", index))
        for index, name in enumerate(data.get("collect", ())):
            self.refer(name, self.names.intents, "intent", document, ("collect", index))
        for index, fix in enumerate(data.get("fixes", ())):
            at = ("fixes", index)
            self.refer(fix["intent"], self.names.intents, "intent", document, (*at, "intent"))
            if fix["intent"] in self.restarting and fix["impact"] not in ("restart", "node"):
                self.add(
                    document,
                    (*at, "impact"),
                    "an argument or variable only takes effect at a start",
                    "Write impact: restart",
                )
            self.words(fix["why"], document, (*at, "why"), most=True)
            if "price" in fix:
                self.words(fix["price"], document, (*at, "price"))
            if "only_if" in fix:
                self.condition(fix["only_if"], document, (*at, "only_if"))
        for index, example in enumerate(data["examples"]["near_miss"]):
            belongs = example["belongs_to"]
            if belongs not in ("unknown", "healthy"):
                self.refer(belongs, self.names.causes, "cause", document, ("examples", "near_miss", index))
        for kind in ("match", "near_miss"):
            for index, example in enumerate(data["examples"][kind]):
                for name in example.get("facts") or ():
                    if not self.names.has_observable(name):
                        near = _nearest(name, self.names.observables)
                        at = ("examples", kind, index, "facts")
                        self.add(document, at, f"the observable {name!r} does not exist", f"Did you mean {near}?")
        if document.path.parent.name != "normal" and not data.get("fixes"):
            self.add(document, (), "a cause without a fix helps nobody", "Add at least one fix")

    def templates(self, document: Document, entry: dict[str, Any], at: Key) -> None:
        captured: set[str] = set()
        for index, template in enumerate(entry.get("says", ())):
            try:
                captured |= set(compile_template(template).captures)
            except ValueError as error:
                self.add(document, (*at, index), str(error), "Use a longer piece of the text that is printed")
        for known in self.table.get(str(at[0]), {}).get("says", ()):
            try:
                captured |= set(compile_template(known).captures)
            except ValueError:
                continue  # too short to be looked for; vLLM's table is taken as it is
        for name, observable in entry.get("captures", {}).items():
            if name not in captured:
                self.add(
                    document,
                    at,
                    f"no template captures {name!r}",
                    f"Captured: {', '.join(sorted(captured)) or 'nothing'}",
                )
            if not self.names.has_observable(observable):
                self.add(
                    document, at, f"the observable {observable!r} does not exist", "Declare it in observables.yaml"
                )

    def tree(self, document: Document) -> None:
        if not self.validate(schema.TreeFile, document.data, document):
            return
        nodes = document.data["nodes"]
        self.condition(document.data["healthy"], document, ("healthy",))
        if document.data["start"] not in nodes:
            self.add(document, ("start",), "the start is no node", f"Nodes: {', '.join(nodes)}")
        for name, node in nodes.items():
            if not self.names.has_observable(node["observe"]):
                self.add(
                    document,
                    ("nodes", name, "observe"),
                    f"{node['observe']!r} is no observable",
                    "See observables.yaml",
                )
            for answer, target in node["next"].items():
                if target != "decide" and target not in nodes:
                    self.add(
                        document, ("nodes", name, "next", answer), f"{target!r} is no node", "Use a node or `decide`"
                    )

    def events(self, document: Document) -> None:
        seen: set[tuple[int | None, int | None]] = set()
        for index, entry in enumerate(document.data or ()):
            if not self.validate(schema.EventEntry, entry, document, (index,)):
                continue
            code = (entry.get("xid"), entry.get("sxid"))
            if code in seen:
                self.add(document, (index,), "this code is described twice", "Keep one")
            seen.add(code)
            if entry["cause"] is not None:
                self.refer(entry["cause"], self.names.causes, "cause", document, (index, "cause"))

    def run(self) -> None:
        root = self.root
        self.names.causes = {cause_id(path, root) for path in cause_files(root)}
        for _, name, entry in self.mapping(root / "observables.yaml", schema.ObservableEntry, self.names.observables):
            if "person" in entry["from"] and "ask" not in entry:
                self.problems.append(
                    Problem("observables.yaml", name, "a person is asked, but no question stands here", "Add ask")
                )
        for document, name, entry in self.mapping(root / "intents.yaml", schema.IntentEntry, self.names.intents):
            for key in ("title",):
                if not _CHINESE.search(entry[key]["zh"]):
                    self.add(
                        document, (name, key, "zh"), "no Chinese stands in the Chinese text", "Write it in Chinese"
                    )
            self.spelling(document, name, entry)
            for other in entry.get("needs", ()):
                if other not in document.data:
                    self.add(document, (name, "needs"), f"the intent {other!r} does not exist", "Name another one")
            if entry.get("spelled") or entry.get("variable"):
                self.restarting.add(name)
        self.table = vllm_messages(root)
        self.names.messages = set(self.table)
        entries = []
        own: set[str] = set()
        for path in merged_files("messages", root):
            entries += list(self.mapping(path, schema.MessageEntry, own))
        known = set(self.names.messages)
        self.names.messages |= own
        for document, name, entry in entries:
            if name not in known and not entry.get("says"):
                self.add(document, (name,), "this message has no text and is not in vLLM's table", "Add says: [...]")
            if name not in known and "kind" not in entry:
                self.add(document, (name,), "the kind is missing", "Add kind: failure, consequence, ...")
            self.templates(document, entry, (name, "says"))
        for path in merged_files("concepts", root):
            for document, name, entry in self.mapping(path, schema.ConceptEntry, self.names.concepts):
                self.patterns(document, name, entry)
                for observable in entry.get("means") or {}:
                    if not self.names.has_observable(observable):
                        self.add(document, (name, "means"), f"{observable!r} is no observable", "See observables.yaml")
        events = self.read(root / "gpu_events.yaml")
        if events is not None:
            self.events(events)
        self.defects(root / "defects.yaml")
        self.styles(root / "line_styles.yaml")
        tree = self.read(root / "tree.yaml")
        if tree is not None:
            self.tree(tree)
        for path in cause_files(root):
            document_ = self.read(path)
            if document_ is not None:
                self.cause(document_)

    def defects(self, path: Path) -> None:
        """Defects point to causes and conditions that exist; what they advise exists in the versions they affect."""
        table = versions(self.root)
        for document, name, entry in self.mapping(path, schema.DefectEntry, set()):
            if not (release(str(entry["since"])) < release(str(entry["fixed"]))):
                self.add(document, (name, "fixed"), "fixed does not come after since", "Swap them")
            if ("cause" in entry) != ("when" in entry):
                self.add(document, (name,), "cause and when go together", "Give both, or neither")
            if "cause" in entry:
                self.refer(entry["cause"], self.names.causes, "cause", document, (name, "cause"))
                self.condition(entry["when"], document, (name, "when"))
            for key in ("title", "work_around"):
                if not _CHINESE.search(entry[key]["zh"]):
                    self.add(
                        document, (name, key, "zh"), "no Chinese stands in the Chinese text", "Write it in Chinese"
                    )
            affected = [v for v in table if is_between(v, str(entry["since"]), str(entry["fixed"]))]
            for text in entry["work_around"].values():
                for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
                    if not any(known_flag(v, flag, self.root) for v in affected):
                        self.add(
                            document, (name, "work_around"), f"no affected version knows {flag}", "See vllm/flags.json"
                        )

    def styles(self, path: Path) -> None:
        document = self.read(path)
        for index, entry in enumerate(document.data if document is not None else ()):
            if document is not None and self.validate(schema.LineStyleEntry, entry, document, (index,)):
                import re2

                try:
                    re2.compile(entry.get("line") or entry.get("process") or "")
                except re2.error as error:
                    self.add(document, (index,), f"not a valid pattern ({error})", "RE2 syntax")

    def spelling(self, document: Document, name: str, entry: dict[str, Any]) -> None:
        """Every spelling must exist in vLLM's own tables, for the versions that it is given for."""
        table = versions(self.root)
        for index, spelled in enumerate(entry.get("spelled", ())):
            at: Key = (name, "spelled", index)
            found = flag_range(spelled["flag"], self.root)
            if found is None:
                self.add(document, at, f"no examined vLLM version knows {spelled['flag']}", "See vllm/flags.json")
                continue
            wanted = [v for v in table if is_between(v, str(spelled["since"]), spelled.get("until"))]
            missing = [v for v in wanted if not (release(found[0]) <= release(v) <= release(found[1]))]
            if missing:
                self.add(
                    document,
                    at,
                    f"{spelled['flag']} is given for {missing[0]}, but exists from {found[0]} to {found[1]}",
                    "Correct since or until",
                )
        for key in ("removes", "conflicts"):
            for other in entry.get(key, ()):
                is_variable = other.isupper()
                if is_variable and not other.startswith("VLLM_"):
                    continue  # of another program: no table to hold it against
                if (variable_range(other, self.root) if is_variable else _argument_range(other, self.root)) is None:
                    self.add(document, (name, key), f"no examined vLLM version knows {other}", "See knowledge/vllm")
        variable = entry.get("variable", "")
        if variable.startswith("VLLM_") and variable_range(variable, self.root) is None:
            self.add(
                document, (name, "variable"), f"no examined vLLM version reads {variable}", "See vllm/environment.json"
            )

    def patterns(self, document: Document, name: str, entry: dict[str, Any]) -> None:
        import re2

        options = re2.Options()
        options.log_errors = False
        for lang in ("en", "zh"):
            for index, pattern in enumerate(entry.get(lang, ())):
                try:
                    re2.compile(pattern, options)
                except re2.error as error:
                    self.add(
                        document,
                        (name, lang, index),
                        f"not a valid pattern ({error})",
                        "RE2 syntax: no look-around, no back-references",
                    )


def _argument_range(python: str, root: Path) -> tuple[str, str] | None:
    """The versions that have an argument of this Python name."""
    return flag_range("--" + python.replace("_", "-"), root)


def _known_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    current: Any = model
    for part in location[:-1]:
        if isinstance(part, int) or not hasattr(current, "model_fields"):
            continue
        found = current.model_fields.get(part)
        current = _inner_model(found.annotation) if found is not None else current
    return list(getattr(current, "model_fields", {}))


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _inner_model(argument)
        if found is not None:
            return found
    return None


def _nearest(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, known, 1, 0.3)
    return repr(found[0]) if found else "another one"


def check_files(root: Path = ROOT) -> list[Problem]:
    """All problems of all files below ``root``; empty when the knowledge can be used."""
    checker = _Checker(root)
    checker.run()
    return checker.problems
