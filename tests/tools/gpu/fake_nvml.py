"""A pynvml without a GPU that answers and refuses as the real one does.

Errors are pynvml's own classes. It refuses what the real library refuses: calls before ``nvmlInit`` or after shutdown, a
handle of another session, an index that does not exist, functions that a card does not support.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 2**30
#: An idle, healthy card of the H100 kind; tests override single answers.
HEALTHY: dict[str, Any] = {
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetUUID": b"GPU-5c2b9f0e-1111-5222-8333-444455556666",
    "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:3B:00.0"),
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, free=79 * GIB, used=GIB // 2),
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlDeviceGetGraphicsRunningProcesses": [],
    "nvmlDeviceGetTotalEccErrors": 0,
    "nvmlDeviceGetRemappedRows": (0, 0, 0, 0),
    "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
    "nvmlDeviceGetClockInfo": 345,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetPowerUsage": 71_000,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetTemperature": 31,
    "nvmlDeviceGetTemperatureThreshold": 87,
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetNvLinkState": 1,
    "nvmlDeviceGetNvLinkVersion": 4,
    "nvmlDeviceGetMigMode": (0, 0),
    "nvmlDeviceGetComputeMode": 0,
}


class FakeNvml:
    """``cards`` are tables of answers; an answer that is an NVML error number is raised as that error."""

    def __init__(
        self, *cards: dict[str, Any], driver: str = "580.82.07", cuda: int = 13000, init: int | None = None,
        p2p: int = 0, lacks: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.cards = [{**HEALTHY, **card} for card in cards]
        self.driver, self.cuda, self.init_error, self.p2p, self.lacks = driver, cuda, init, p2p, lacks
        self.session = 0
        self.open = False

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("lacks", ()):
            raise AttributeError(name)
        if name.startswith("nvml"):
            if not hasattr(pynvml, name):
                raise AttributeError(name)  # the real module has no such function either
            return lambda *arguments: self._answer(name, *arguments)
        return getattr(pynvml, name)

    def _answer(self, name: str, *arguments: Any) -> Any:
        if name == "nvmlInit":
            if self.init_error is not None:
                raise pynvml.NVMLError(self.init_error)
            self.open, self.session = True, self.session + 1
            return None
        if not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if name == "nvmlShutdown":
            self.open = False
            return None
        if name in ("nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetCount"):
            table = {"nvmlSystemGetDriverVersion": self.driver, "nvmlDeviceGetCount": len(self.cards)}
            return table.get(name, self.cuda)
        if name == "nvmlSystemGetProcessName":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        if name == "nvmlDeviceGetHandleByIndex":
            if not 0 <= arguments[0] < len(self.cards):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
            return ("handle", self.session, arguments[0])
        card = self._card(arguments[0])
        if name == "nvmlDeviceGetP2PStatus":
            self._card(arguments[1])
            assert isinstance(arguments[2], int)  # ctypes refuses anything else
            return self.p2p
        if name == "nvmlDeviceGetTopologyCommonAncestor":
            self._card(arguments[1])
            return pynvml.NVML_TOPOLOGY_SYSTEM
        if name == "nvmlDeviceGetNvLinkState":
            down = card.get("links_down", ())
            if arguments[1] >= card.get("links", 18):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return 0 if arguments[1] in down else 1
        if name == "nvmlDeviceGetGpuFabricInfoV":
            state = card.get("fabric")
            if state is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            arguments[1]._obj.state, arguments[1]._obj.status = state
            return pynvml.NVML_SUCCESS
        if name not in card:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        answer = card[name]
        if isinstance(answer, Refusal):
            raise pynvml.NVMLError(answer.code)
        return answer

    def _card(self, handle: Any) -> dict[str, Any]:
        if not isinstance(handle, tuple) or handle[:2] != ("handle", self.session):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.cards[handle[2]]


class Refusal:
    """An answer that is an error."""

    def __init__(self, code: int) -> None:
        self.code = code
