"""What the assistant can do, declared once for all faces.

An action is one async function with a Pydantic input and a Pydantic output. Decorating it registers it; the MCP
schema, the HTTP route, the command's options and the Slack form are derived from what stands here. There is no list
of actions: :func:`discover` imports the modules of ``tools`` that declare some. Pydantic is imported when a schema or
a call is wanted, not with this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import inspect
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from tools.addresses import Policy

if TYPE_CHECKING:
    from pydantic import BaseModel

Effect = Literal["reads", "loads", "runs"]
Report = Callable[[float | None, str], None]
#: From a server's name or address to its address and the headers to send there.
FindServer = Callable[[str], tuple[str, Mapping[str, str]]]
Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])
#: Is told of every call that ran: the action's name, ``done``, ``refused``, ``late``, ``cancelled`` or ``failed``, and seconds.
Observer = Callable[[str, str, float], None]
OBSERVERS: list[Observer] = []

_NAME = re.compile(r"[a-z][a-z0-9_]{1,47}")
_DECLARES = re.compile(r"^\s*@(?:registry\.)?action\(", re.MULTILINE)
_PACKAGE = Path(__file__).parent


class ActionError(Exception):
    """An action could not be carried out. The message is a sentence for the person who asked."""


class UnknownActionError(ActionError):
    """No action has this name."""


class InputError(ActionError):
    """The arguments do not fit. ``problems`` holds one sentence for each."""

    def __init__(self, action: str, problems: tuple[str, ...]) -> None:
        super().__init__(f"{action}: " + " ".join(problems))
        self.problems = problems


class ConsentError(ActionError):
    """The action touches something and nobody has agreed to exactly this call."""


class DeadlineError(ActionError):
    """The action did not finish in time and was stopped."""


def _as_given(address: str) -> tuple[str, Mapping[str, str]]:
    return address, {}


def _say_nothing(fraction: float | None, text: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Consent:
    """That a person agreed to one call: to this action with these arguments, and to nothing else.

    Made by ``assistant.security`` after it has checked the person's role. ``arguments`` is the digest of
    :func:`digest_of`; ``until`` is seconds on the clock of ``time.time``.
    """

    action: str
    arguments: str
    by: str
    until: float

    def covers(self, action: str, arguments: Mapping[str, Any]) -> bool:
        """Whether this consent was given for exactly this call and has not run out."""
        return self.action == action and self.arguments == digest_of(arguments) and time.time() < self.until


@dataclass(frozen=True, slots=True)
class Context:
    """What a call brings along: where progress goes, what may be connected to, and who agreed.

    ``report(fraction, text)`` takes 0.0 to 1.0, or None where the share is not known; it returns at once.
    ``runbooks`` is the folder of the site's own Markdown files, empty where there is none.
    ``server(given)`` turns the name of a configured server into its address, and gives the credentials that the
    settings hold for it as headers: they are no argument of any action, so that no job or audit line carries them.
    """

    report: Report = _say_nothing
    policy: Policy = field(default_factory=Policy)
    consent: Consent | None = None
    runbooks: str = ""
    server: FindServer = _as_given


@dataclass(frozen=True)
class Action:
    """One declared action. ``deadline_s`` is the most seconds a call may take unless the caller gives fewer."""

    name: str
    title: str
    effect: Effect
    deadline_s: float
    function: Callable[..., Awaitable[Any]]

    @property
    def description(self) -> str:
        """The function's docstring, unindented."""
        return inspect.getdoc(self.function) or self.title

    @cached_property
    def _shape(self) -> tuple[type[BaseModel], type[BaseModel], bool]:
        from pydantic import BaseModel

        hints = get_type_hints(self.function)
        parameters = list(inspect.signature(self.function).parameters)
        given = [hints.get(parameter) for parameter in parameters]
        returned = hints.get("return")
        wants_context = len(parameters) == 2 and given[1] is Context
        if len(parameters) != 1 + wants_context or not (isinstance(given[0], type) and issubclass(given[0], BaseModel)):
            raise TypeError(f"the action {self.name} must take one Pydantic model, and at most a Context after it")
        if not (isinstance(returned, type) and issubclass(returned, BaseModel)):
            raise TypeError(f"the action {self.name} must return a Pydantic model")
        return given[0], returned, wants_context

    @property
    def input_model(self) -> type[BaseModel]:
        """The model of the arguments."""
        return self._shape[0]

    @property
    def output_model(self) -> type[BaseModel]:
        """The model of the result."""
        return self._shape[1]

    def input_schema(self) -> dict[str, Any]:
        """JSON schema of the arguments."""
        return self.input_model.model_json_schema()

    def output_schema(self) -> dict[str, Any]:
        """JSON schema of the result."""
        return self.output_model.model_json_schema(mode="serialization")

    def validate(self, arguments: Mapping[str, Any] | BaseModel) -> BaseModel:
        """The arguments as their model; raises :class:`InputError`. Unknown arguments are refused."""
        from pydantic import BaseModel, ValidationError

        if isinstance(arguments, self.input_model):
            return arguments
        plain = arguments.model_dump() if isinstance(arguments, BaseModel) else dict(arguments)
        known = {name for key, info in self.input_model.model_fields.items() for name in (key, info.alias) if name}
        problems = tuple(f"{name!r} is not an argument." for name in sorted(set(map(str, plain)) - known))
        if problems:
            raise InputError(self.name, problems)
        try:
            return self.input_model.model_validate(plain)
        except ValidationError as error:
            raise InputError(self.name, tuple(_problem(part) for part in error.errors())) from None

    async def call(
        self,
        arguments: Mapping[str, Any] | BaseModel,
        context: Context | None = None,
        *,
        deadline_s: float | None = None,
    ) -> BaseModel:
        """Validate, run and validate again.

        Raises :class:`InputError`, :class:`ConsentError` (only ``reads`` goes without consent), :class:`DeadlineError`
        and what the function raises. Cancelling the call cancels the function.
        """
        given = self.validate(arguments)
        context = context or Context()
        if self.effect != "reads":
            plain = given.model_dump(mode="json")
            if context.consent is None or not context.consent.covers(self.name, plain):
                raise ConsentError(
                    f"{self.name} {_touches(self.effect)}; somebody has to agree to this very call first."
                )
        seconds = min(self.deadline_s, deadline_s) if deadline_s is not None else self.deadline_s
        with _observed(self.name):
            return self.output_model.model_validate(await self._run(given, context, seconds))

    async def _run(self, given: BaseModel, context: Context, seconds: float) -> Any:
        try:
            async with asyncio.timeout(seconds) as clock:
                return await (self.function(given, context) if self._shape[2] else self.function(given))
        except TimeoutError:
            if not clock.expired():
                raise  # the function's own, about something smaller
            raise DeadlineError(f"{self.name} did not finish within {seconds:g} s and was stopped.") from None


@contextlib.contextmanager
def _observed(name: str) -> Iterator[None]:
    """Tell the observers how a call ended and how long it took."""
    began, outcome = time.monotonic(), "failed"
    try:
        yield
        outcome = "done"
    except DeadlineError:
        outcome = "late"
        raise
    except ActionError:
        outcome = "refused"  # it said in a sentence why it cannot
        raise
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        for observer in tuple(OBSERVERS):
            observer(name, outcome, time.monotonic() - began)


def digest_of(arguments: Mapping[str, Any]) -> str:
    """A digest of JSON-like arguments that does not depend on the order of their keys."""
    return hashlib.sha256(json.dumps(arguments, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_ACTIONS: dict[str, Action] = {}


def action(name: str, title: str, effect: Effect, deadline_s: float) -> Callable[[Function], Function]:
    """Register the decorated async function as an action; the function itself is returned unchanged.

    ``name`` is snake case and unique; ``deadline_s`` is in seconds. Raises :class:`ValueError` or :class:`TypeError`
    at import when the declaration cannot work, so a mistake is found by the first test and not by a user.
    """

    def register(function: Function) -> Function:
        if not _NAME.fullmatch(name):
            raise ValueError(f"the action name {name!r} is not snake case of 2 to 48 characters")
        if effect not in ("reads", "loads", "runs"):
            raise ValueError(f"the action {name} has the effect {effect!r}; expected reads, loads or runs")
        if deadline_s <= 0:
            raise ValueError(f"the action {name} has the deadline {deadline_s}; expected seconds above 0")
        is_async: bool = inspect.iscoroutinefunction(function)
        if not is_async:
            raise TypeError(f"the action {name} must be an async function")
        earlier = _ACTIONS.get(name)
        if earlier is not None and _where(earlier.function) != _where(function):
            raise ValueError(f"the action {name} is declared in {_where(earlier.function)} and in {_where(function)}")
        _ACTIONS[name] = Action(name, title, effect, float(deadline_s), function)
        return function

    return register


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def get(name: str) -> Action:
    """The action of this name; raises :class:`UnknownActionError` that names the nearest one."""
    found = _ACTIONS.get(name)
    if found is None:
        import difflib

        near = difflib.get_close_matches(name, _ACTIONS, n=1)
        raise UnknownActionError(f"There is no action {name!r}{f'; {near[0]} is meant perhaps' if near else ''}.")
    return found


def actions() -> tuple[Action, ...]:
    """Every registered action by name."""
    return tuple(_ACTIONS[name] for name in sorted(_ACTIONS))


def discover() -> tuple[str, ...]:
    """Import every module under ``tools`` that declares an action; returns one sentence for each that cannot be.

    Modules are found by their text, so that one which only helps others is not imported for nothing.
    """
    failures: list[str] = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        if path == Path(__file__) or not _DECLARES.search(path.read_text("utf-8")):
            continue
        parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            importlib.import_module(module)
        except ImportError as error:
            failures.append(f"The actions of {module} are not available: {error}.")
    return tuple(failures)


def _touches(effect: Effect) -> str:
    return "starts or traces processes" if effect == "runs" else "puts a load on the machine"


def _problem(part: Any) -> str:
    where = ".".join(str(step) for step in part["loc"]) or "the arguments"
    message = str(part["msg"])
    return f"{where}: {message[:1].lower()}{message[1:]}."
