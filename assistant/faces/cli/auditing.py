"""The audit table as commands use it: opened when there is something to write, and never in anybody's way."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assistant.store.audit import Audit, Outcome


class Notes:
    """Lines of one command. Without a database a note is lost, which is said once, and the call is not."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._lock = threading.Lock()  # calls to many nodes are written down from threads
        self._opened = False
        self._audit: Audit | None = None

    @property
    def audit(self) -> Audit | None:
        """The table, or None where it cannot be had."""
        with self._lock:
            if not self._opened:
                self._opened = True
                self._audit = self._open()
            return self._audit

    def _open(self) -> Audit | None:
        from assistant.settings import SettingsError, load
        from assistant.store.audit import Audit
        from assistant.store.database import StoreError
        from assistant.store.opening import open_store

        try:
            return Audit(self._stack.enter_context(open_store(load())))
        except (StoreError, SettingsError, OSError) as error:
            print(f"vllm-diagnose: this call could not be written down: {error}", file=sys.stderr)
            return None

    def note(self, did: str, effect: str, target: str, outcome: Outcome, detail: Mapping[str, Any]) -> None:
        """Add one line, about something that the person at this command line did to ``target``."""
        from assistant.nodes.looking import audited
        from assistant.security.roles import LOCAL

        if self.audit is not None:
            audited(self.audit, LOCAL, "cli")(did, effect, target, outcome, detail)


@contextlib.contextmanager
def noted() -> Iterator[Notes]:
    """The notes of one command."""
    with contextlib.ExitStack() as stack:
        yield Notes(stack)
