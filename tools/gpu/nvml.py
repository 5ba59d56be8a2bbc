"""NVIDIA's management library, asked politely: what a card or driver does not support is None, not an exception.

Stands alone (standard library, Python 3.9, and pynvml), as everything that launchers bring to nodes.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any


class NoNvmlError(Exception):
    """The library cannot be used. ``code`` is NVML's number (12: no library, 9: no driver loaded)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Nvml:
    """One open NVML. ``module`` is pynvml, or one that behaves like it."""

    def __init__(self, module: Any) -> None:
        self.module = module
        # The second is no NVMLError: pynvml raises it where a driver is older than the newest form of a function.
        names = ("NVMLError", "NVMLLibraryMismatchError")
        self._refusals: tuple[type[Exception], ...] = tuple(getattr(module, n) for n in names if hasattr(module, n))
        self.refused: dict[str, str] = {}  # function -> why it gave nothing

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of an NVML function; None where this card, driver or user cannot have one.

        A card that is lost raises ``GpuLostError``: nothing it says can be trusted any more.
        """
        called: Callable[..., Any] | None = getattr(self.module, function, None)
        if called is None:  # an older pynvml
            self.refused[function] = "not in this pynvml"
            return None
        try:
            return called(*arguments)
        except self._refusals as error:
            number = getattr(error, "value", None)
            if number in (self.module.NVML_ERROR_GPU_IS_LOST, getattr(self.module, "NVML_ERROR_RESET_REQUIRED", -1)):
                raise GpuLostError(str(error)) from None
            self.refused[function] = str(error)
            return None

    def constant(self, *names: str) -> int | None:
        """The first of these constants that this pynvml has. Some releases define P2P_CAPS_INDEX_READ as a tuple."""
        for name in names:
            value = getattr(self.module, name, None)
            if value is not None:
                return int(value[0] if isinstance(value, tuple) else value)
        return None


class GpuLostError(Exception):
    """The driver has lost the card, or it needs a reset."""


@contextlib.contextmanager
def opened(module: Any = None) -> Iterator[Nvml]:
    """NVML, shut down again afterwards. Raises :class:`NoNvmlError`."""
    pynvml: Any = module if module is not None else importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoNvmlError(int(getattr(error, "value", 0)), str(error)) from None
    try:
        yield Nvml(pynvml)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
