"""Turns the intents of a cause into the user's own command for this version and these numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from assistant.advice.command import Change, VariableChange, Written, export, python_value, write
from assistant.advice.estimated import value_of
from assistant.advice.numbers import NUMBERS, Number, current
from assistant.advice.started import Argument, Started, fits, is_default, read_started
from assistant.advice.words import Word, reference, text_word, value_word
from assistant.diagnosis.model import Advice, Collect, Language
from assistant.diagnosis.truth import Facts, judge
from knowledge.catalog import Catalog
from knowledge.shapes import Cause, Fix, Intent, Spelling
from knowledge.versions import is_between
from knowledge.vllm_tables import Flag, flag, variables

#: What a restart destroys for every cause that names nothing of its own.
_ALWAYS_SAVE = "save-server-log"
_PLACE = re.compile(r"<<([a-z_]+(?:\.[a-z_]+)?)>>")
#: What may be filled into a command: names, paths and numbers. Nothing in here means anything to a shell or to JSON.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,252}|/[A-Za-z0-9._/-]{0,200}")


def advise(
    cause: Cause,
    facts: Facts,
    catalog: Catalog,
    version: str | None,
    language: Language,
    started: Started | None = None,
) -> tuple[Advice, ...]:
    """The fixes of a cause in order, without those that are known not to apply, not to suffice or to be done already.

    ``started`` is what :func:`read_started` gives for the same facts and version; pass it where it is at hand.
    """
    writer = _Writer(facts, catalog, version, language, started or read_started(facts, version))
    fixes = [writer.advice(fix, cause) for fix in cause.fixes if _applies(fix, facts)]
    given = [advice for advice in fixes if advice is not None]
    if given and writer.set_aside:
        given[0] = replace(given[0], notes=(*given[0].notes, *writer.set_aside))
    return tuple(given)


def collect_first(
    cause: Cause, catalog: Catalog, language: Language, version: str | None = None, facts: Facts | None = None
) -> tuple[Collect, ...]:
    """What a restart would destroy, for this cause; the log of the run where the cause names nothing of its own."""
    names = cause.collect
    if not names and _ALWAYS_SAVE in catalog.intents and any(f.impact in ("restart", "node") for f in cause.fixes):
        names = (_ALWAYS_SAVE,)
    intents = [catalog.intents[name] for name in names]
    known = facts or Facts()
    return tuple(
        Collect(i.action[language] if i.action else i.title[language], _filled(_command(i, version), None, known))
        for i in intents
    )


def _applies(fix: Fix, facts: Facts) -> bool:
    return fix.only_if is None or judge(fix.only_if, facts).truth is not False


@dataclass(slots=True)
class _Plan:
    """What one fix does to the command, and what is to be said about it."""

    changes: list[Change]
    variables: list[VariableChange]
    notes: list[str]
    flags: list[str]
    undo: list[str]
    to_fill: list[str]
    shown: list[str]
    python: str | None = None


class _Writer:
    """Renders the fixes of one cause; only holds what they share."""

    def __init__(
        self, facts: Facts, catalog: Catalog, version: str | None, language: Language, started: Started
    ) -> None:
        self.facts, self.catalog, self.language, self.started = facts, catalog, language, started
        self.stated = version
        self.version = started.version or version
        self.set_aside: list[str] = []
        self.done: list[tuple[str, ...]] = []

    def word(self, key: str, **places: object) -> str:
        return self.catalog.word(key, self.language, **places)

    def advice(self, fix: Fix, cause: Cause) -> Advice | None:
        """One fix, or ``None`` where it is done already, undoes nothing, or cannot suffice."""
        intent = self.catalog.intents[fix.intent]
        plan = _Plan([], [], [], [], [], [], [])
        number = self._value(fix.value if fix.value is not None else intent.value)
        title, lacking = intent.title[self.language], False
        command = _filled(_command(intent, self.version), number.value, self.facts)
        written: Written | None = None
        spelling = _spelling(intent, self.version)
        if spelling is not None and (known := flag(self.version, spelling.flag)) is not None:
            if not number.enough:
                self._put_aside(intent, number)
                return None
            if not self._set(intent, spelling, known, number, plan):
                return None
        elif intent.variable is not None and self._reads(intent):
            value = value_word(number.value) if number.value is not None else reference(_fill_name(intent.variable))
            if value.literal is not None and self._variable(intent.variable) == value.literal:
                self.set_aside.append(self.word("already-set", title=title, what=f"{intent.variable}={value.literal}"))
                return None
            self._set_variable(intent.variable, value, plan)
        elif intent.spelled or intent.variable:
            lacking = True
        elif intent.removes:
            self._remove(intent.removes, plan)
            if not plan.changes and not plan.variables and self.started.seen and not intent.action:
                return None
        elif intent.rewrites and (self.started.left_out or self.started.renamed) and self.started.seen:
            written = self._write(plan)
            command = written.text if written is not None else None
        if lacking:
            title = self._lacking(intent, title)
        elif plan.changes or plan.variables:
            if any(set(earlier) == set(plan.shown) for earlier in self.done):
                return None  # an earlier fix makes these very changes
            self.done.append(tuple(plan.shown))
            written = self._write(plan)
            command = written.text if written is not None else None
            key = "add-argument" if plan.changes and not self.started.seen else None
            key = "set-variable" if plan.variables and not plan.changes and not self.started.seen else key
            title = self.word(key, title=title) if key else title
        price = fix.price or intent.price
        expected = cause.check[self.language]
        effect = self.word(number.says, **number.places) if number.says and not lacking else None
        if effect:
            expected = self._joined(effect, expected)
        undo = intent.undo[self.language] if intent.undo else (" " if self.language == "en" else "").join(plan.undo)
        return Advice(
            title=title,
            why=self._joined(fix.why[self.language], self._action(intent, number)),
            command=command,
            flags=tuple(plan.flags),
            expected=expected,
            trade_off=price[self.language] if price else None,
            impact=fix.impact,
            undo=undo or self._nothing_to_undo(intent, fix, lacking),
            work_around=intent.work_around,
            changed=written.changed if written is not None else (),
            change=", ".join(plan.shown) if written is not None and self.started.seen else None,
            python=plan.python,
            effect=effect,
            notes=tuple(plan.notes),
        )

    def _joined(self, first: str, second: str) -> str:
        return f"{first} {second}".strip() if self.language == "en" else f"{first}{second}"

    def _action(self, intent: Intent, number: Number) -> str:
        """What to do in words; a sentence that needs a value is left out where there is none."""
        if intent.action is None or (number.value is None and "{value}" in intent.action[self.language]):
            return ""
        return intent.action[self.language].replace("{value}", number.value or "")

    # --- what to set

    def _value(self, value: str | None) -> Number:
        """The literal, or the result of the named calculation."""
        if value is None:
            return Number()
        calculation = NUMBERS.get(value)
        if calculation is None:
            return Number(str(value))
        number = calculation(self.facts, self.started)
        if number.enough and not number.says:  # the log's own figures decide where they do; a rule of thumb yields
            advised = value_of(value, self.facts)
            if advised is not None:
                return Number(advised, "number-estimate")
        return number

    def _set(self, intent: Intent, spelling: Spelling, known: Flag, number: Number, plan: _Plan) -> bool:
        """Adds the argument to the plan; false where it is there already or this version has no such value."""
        title = intent.title[self.language]
        if known.kind == "bool":
            wanted = spelling.flag != known.no_form
            if self._switch(intent, known) is wanted:
                self.set_aside.append(self.word("already-set", title=title, what=spelling.flag))
                return False
            values: tuple[Word, ...] = ()
        elif number.value is None:
            values = (reference(_fill_name(known.python)),)
            plan.to_fill.append(_fill_name(known.python))
        else:
            word = value_word(_spelled_for(known, number.value))
            if not word.is_safe or word.written.startswith("-"):
                return False
            if word.literal is None:
                plan.to_fill += [name for kind, name in word.parts if kind == "variable"]
            values = (word,)
            if not fits(known, values):
                shown = f"{spelling.flag} {word.written}"
                self.set_aside.append(self.word("version-lacks-value", title=title, version=self.version, what=shown))
                return False
            if self._is_set(intent, known, word):
                self.set_aside.append(self.word("already-set", title=title, what=f"{spelling.flag} {word.written}"))
                return False
            if self._is_wrong_way(intent, known, word):
                return False
        old = self.started.argument(known.python)
        self._push(Change(spelling.flag, known.python, values), old, plan)
        if not intent.server_only:
            value = python_value(Argument(spelling.flag, known.python, values))
            plan.python = f"{known.python}={value}"
        for name in intent.conflicts:
            other = self.started.argument(name)
            if other is not None:
                self._push(Change(other.name, name, remove=True), other, plan)
                plan.notes.append(self.word("conflict-removed", name=other.name, flag=spelling.flag))
        self._with(intent, plan)
        return True

    def _push(self, change: Change, old: Argument | None, plan: _Plan) -> None:
        plan.changes.append(change)
        if not change.remove:
            plan.flags.append(change.flag)
        new = " ".join(v.written for v in change.values)
        if old is not None:
            was = " ".join([old.name, *(v.written for v in old.values)])
            plan.undo.append(self.word("undo-restore", old=was))
            now = new if new and old.values else f"{change.flag} {new}".strip()
            plan.shown.append(f"− {was}" if change.remove else f"{was} → {now}")
        elif not change.remove:
            plan.undo.append(self.word("undo-remove" if self.started.seen else "undo-argument", flag=change.flag))
            plan.shown.append(f"+ {change.flag} {new}".rstrip())

    def _with(self, intent: Intent, plan: _Plan) -> None:
        """Arguments without which this one is refused, where the server does not have them yet."""
        for name in intent.needs:
            other = self.catalog.intents[name]
            spelling = _spelling(other, self.version)
            known = flag(self.version, spelling.flag) if spelling is not None else None
            if spelling is None or known is None or self.started.argument(known.python) is not None:
                continue
            number = self._value(other.value)
            word = value_word(number.value) if number.value is not None else reference(_fill_name(known.python))
            if word.literal is None and known.kind != "bool":
                plan.to_fill.append(_fill_name(known.python))
            self._push(Change(spelling.flag, known.python, () if known.kind == "bool" else (word,)), None, plan)

    def _switch(self, intent: Intent, known: Flag) -> bool | None:
        given = self.started.argument(known.python)
        if given is not None:
            return not given.name.startswith("--no-") and (
                not given.values or (given.values[0].literal or "").lower() != "false"
            )
        stated = self.facts.value(f"argument.{known.python}")
        if isinstance(stated, bool):
            return stated
        if isinstance(known.default, bool):
            return known.default
        text = self._by_default(intent)
        return None if text is None else text == "true"

    def _by_default(self, intent: Intent) -> str | None:
        return next((d.value for d in intent.by_default if is_between(self.version, d.since, d.until)), None)

    def _is_set(self, intent: Intent, known: Flag, word: Word) -> bool:
        """Whether the argument has that value, as given or by default; a reset waits to be shown what it resets."""
        given = self.started.argument(known.python)
        if given is not None:
            return len(given.values) == 1 and given.values[0].literal == word.literal
        stated = self.facts.value(f"argument.{known.python}")
        if stated is not None and not self.started.seen:
            return str(stated) == word.literal
        if intent.resets and not self.started.seen:
            return False
        default = known.default if known.default is not None else self._by_default(intent)
        same = default is not None and (str(default) == word.literal or is_default(known, word.literal))
        return same or (intent.resets and self.started.seen and default in (None, ""))

    def _is_wrong_way(self, intent: Intent, known: Flag, word: Word) -> bool:
        """A "higher" value that is not higher than the present one would not help."""
        if intent.direction is None or word.literal is None:
            return False
        now = current(self.facts, self.started, known.python)
        if known.python == "max_model_len" and now is None:
            stated = self.facts.value("engine.max_model_len")
            now = float(stated) if isinstance(stated, (int, float)) else None
        try:
            wanted = float(word.literal)
        except ValueError:
            return False
        return now is not None and (wanted <= now if intent.direction == "raise" else wanted >= now)

    def _reads(self, intent: Intent) -> bool:
        name = intent.variable or ""
        return not name.startswith("VLLM_") or name in variables(self.version)

    def _variable(self, name: str) -> str | None:
        for known, value in self.started.variables:
            if known == name:
                return value.literal
        found = self.facts.value(f"environment.{name}")
        return None if found is None else str(found)

    def _set_variable(self, name: str, value: Word, plan: _Plan) -> None:
        old = self._variable(name)
        plan.shown.append(f"{name}={old[:80]} → {value.written}" if old is not None else f"+ {name}={value.written}")
        plan.variables.append(VariableChange(name, value))
        plan.to_fill += [text for kind, text in value.parts if kind == "variable"]
        if old is None:
            plan.undo.append(self.word("undo-variable", name=name))
        else:
            plan.undo.append(self.word("undo-restore", old=f"{name}={old[:200]}"))

    def _remove(self, names: Iterable[str], plan: _Plan) -> None:
        """Takes away those of the named arguments and variables that the start command has."""
        for name in names:
            given = self.started.argument(name)
            if given is not None:
                self._push(Change(given.name, name, remove=True), given, plan)
            if any(known == name for known, _ in self.started.variables):
                plan.variables.append(VariableChange(name, None))
                plan.shown.append(f"− {name}={(self._variable(name) or '')[:80]}")
                plan.undo.append(self.word("undo-restore", old=f"{name}={self._variable(name) or ''}"))

    # --- what to say

    def _put_aside(self, intent: Intent, number: Number) -> None:
        if number.says:
            reason = self.word(number.says, **number.places)
            self.set_aside.append(self.word("not-enough", title=intent.title[self.language], why=reason))

    def _lacking(self, intent: Intent, title: str) -> str:
        name, since = (intent.spelled[0].flag, intent.spelled[0].since) if intent.spelled else (intent.variable, intent.since)  # fmt: skip
        if is_between(self.version, since, None):  # it was there before, and is gone
            return self.word("version-dropped", title=title, version=self.version, name=name)
        return self.word("version-lacks", title=title, version=self.version, name=name, since=since)

    def _nothing_to_undo(self, intent: Intent, fix: Fix, lacking: bool) -> str | None:
        if lacking:
            return None
        return self.word("undo-nothing" if fix.impact == "none" else "undo-by-hand")

    def _write(self, plan: _Plan) -> Written | None:
        started = self.started
        if not started.seen and not plan.changes and started.form not in ("compose", "kubernetes", "systemd", "python"):
            written = export(plan.variables[0]) if plan.variables else None
        else:
            written = write(started, plan.changes, plan.variables)
            if written is None and plan.variables and not plan.changes:
                written = export(plan.variables[0])
        if written is None:
            plan.notes.append(self.word("command-not-safe"))
            return None
        if written.model_unseen:
            key = "arguments-unseen" if not started.arguments else "model-unseen"
            plan.notes.append(self.word(key))
        fill = sorted(set(plan.to_fill))
        if fill:
            plan.notes.append(self.word("fill-in", names=", ".join(f"${name}" for name in fill)))
        if not written.text.startswith("export "):
            plan.notes += self._left_out()
        if started.assumed:
            plan.notes.append(self.word("version-assumed", version=started.version))
        return written

    def _left_out(self) -> list[str]:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.started.left_out:
            reasons.setdefault(reason, []).append(name)
        renamed = [
            self.word("renamed-flag", old=old, new=new, version=self.version) for old, new in self.started.renamed
        ]
        return renamed + [
            self.word(f"left-out-{reason}", names=", ".join(names), version=self.version)
            for reason, names in reasons.items()
        ]


def _filled(command: str | None, value: str | None, facts: Facts) -> str | None:
    """The command with its places filled; None where one is unknown or holds what no name of that kind holds.

    ``<<value>>`` is the fix's value, ``<<pod.name>>`` an observable. What is filled in comes from outside.
    """
    if command is None or "<<" not in command:
        return command
    places = {place: value if place == "value" else facts.value(place) for place in _PLACE.findall(command)}
    if any(filled is None or not _PLAIN.fullmatch(str(filled)) for filled in places.values()):
        return None
    return _PLACE.sub(lambda found: str(places[found.group(1)]), command)


def _command(intent: Intent, version: str | None) -> str | None:
    """The command that only looks, as this version has it."""
    return intent.command if is_between(version, intent.command_since, None) else intent.command_before


def _fill_name(name: str) -> str:
    return name.upper()


def _spelling(intent: Intent, version: str | None) -> Spelling | None:
    fitting = [s for s in intent.spelled if is_between(version, s.since, s.until)]
    return fitting[-1] if fitting else None


def _spelled_for(known: Flag, value: str) -> str:
    """A JSON object as this version takes it: before 0.8.5 such arguments were lists of ``name=value``."""
    if known.kind == "json" or not value.startswith("{"):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    if known.python == "limit_mm_per_prompt" and isinstance(parsed, dict):
        return ",".join(f"{key}={item}" for key, item in parsed.items())
    return value


def text_of(words: Iterable[Word]) -> str:
    """Words for reading."""
    return " ".join(w.written for w in words)


__all__ = ["advise", "collect_first", "read_started", "text_word"]
