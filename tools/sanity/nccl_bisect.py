"""One change of the environment at a time: which are worth trying for a fault, most telling first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: NCCL's own switches, from the one that tells most about the hardware to the one that tells least. Source: NCCL user
#: guide, environment variables; each says with the knowledge's sentence ``bisect-NAME`` what it costs.
NCCL_SWITCHES = (
    ("NCCL_P2P_DISABLE", "1"),
    ("NCCL_CUMEM_ENABLE", "0"),
    ("NCCL_NVLS_ENABLE", "0"),
    ("NCCL_SHM_DISABLE", "1"),
    ("NCCL_IB_DISABLE", "1"),
)
_GPU_STAGES = ("nccl", "vllm", "graph", "bandwidth")


@dataclass(frozen=True, slots=True)
class Change:
    """``value`` None takes the variable away."""

    name: str
    value: str | None

    @property
    def shown(self) -> str:
        return f"unset {self.name}" if self.value is None else f"{self.name}={self.value}"

    def on(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment with this change."""
        changed = dict(environment)
        if self.value is None:
            changed.pop(self.name, None)
        else:
            changed[self.name] = self.value
        return changed


def changes_for(stage: str, environment: Mapping[str, str], interfaces: Sequence[str]) -> list[Change]:
    """What to try for a fault in ``stage``; ``interfaces`` are those that are up, the likeliest first."""
    found: list[Change] = []
    if stage == "gloo":
        if "GLOO_SOCKET_IFNAME" in environment:
            found.append(Change("GLOO_SOCKET_IFNAME", None))
        found += [Change("GLOO_SOCKET_IFNAME", name) for name in interfaces[:3]]
    if stage in _GPU_STAGES:
        found += [Change(name, value) for name, value in NCCL_SWITCHES if environment.get(name) != value]
        if "NCCL_SOCKET_IFNAME" in environment:
            found.append(Change("NCCL_SOCKET_IFNAME", None))
        found += [Change("NCCL_SOCKET_IFNAME", name) for name in interfaces[:3]]
    return [change for change in found if environment.get(change.name) != change.value]
