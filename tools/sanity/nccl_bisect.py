"""One change at a time: which are worth trying for a fault, most telling first, and which fault accuses which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from knowledge.catalog import load
from knowledge.versions import is_between

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
#: The stage of vLLM's own all-reduce, which comes last: who fails there has passed NCCL and vLLM's use of it.
CUSTOM_STAGE = "custom"
#: What the trial without it is called among the names of variables: in ``bisect-NAME`` and in ``collective.cure``.
CUSTOM = "custom-all-reduce"
#: Kinds of a fault that the kernel itself can have caused. Leaving a stage out cures whatever happened there, so a rank
#: that somebody stopped or killed, or a card without memory, must not accuse it.
_OF_THE_KERNEL = ("stage-hang", "rank-behind", "wrong-result", "cuda-error", "stage-failed", "rank-died")
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")


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


@dataclass(frozen=True, slots=True)
class Trial:
    """What one more run does otherwise: a change of the environment, no custom all-reduce, or both."""

    change: Change | None = None
    custom: bool = True

    @property
    def name(self) -> str:
        return self.change.name if self.change is not None else CUSTOM

    @property
    def parts(self) -> tuple[str, ...]:
        """What has a price of its own."""
        return tuple(part for part in (self.change and self.change.name, None if self.custom else CUSTOM) if part)

    def shown(self, version: str | None) -> str:
        """As it is typed for that vLLM version: variables before the server, then the server's flag."""
        flag = None if self.custom else custom_flag(version)
        return " ".join(part for part in (self.change and self.change.shown, flag) if part)

    def on(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment of this run."""
        return dict(environment) if self.change is None else self.change.on(environment)

    def without_custom(self) -> Trial:
        """The same, and no custom all-reduce either."""
        return replace(self, custom=False)


def custom_flag(version: str | None) -> str:
    """The server's flag that turns the custom all-reduce off, as that version spells it."""
    spelled = load().intents["disable-custom-all-reduce"].spelled
    fitting = [spelling.flag for spelling in spelled if is_between(version, spelling.since, spelling.until)]
    return (fitting or [spelled[-1].flag])[-1]


def runs_without_custom(command: Sequence[str]) -> bool:
    """Whether a server was started without it; the last word on the matter counts, as it does for vLLM."""
    last = False
    for word in command:
        flag = word.replace("_", "-")
        if flag in ("--disable-custom-all-reduce", "--no-disable-custom-all-reduce"):
            last = flag.startswith("--disable")
    return last


def accuses_custom(stage: str, kind: str, said: str) -> bool:
    """Whether a fault is one of vLLM's own all-reduce; ``said`` is how a rank ended."""
    return stage == CUSTOM_STAGE and kind in _OF_THE_KERNEL and said not in _FROM_OUTSIDE


def trials_for(stage: str, kind: str, said: str, environment: Mapping[str, str], interfaces: Sequence[str]) -> list[Trial]:  # fmt: skip
    """What to try for a fault in ``stage``; ``interfaces`` are those that are up, the likeliest first."""
    if accuses_custom(stage, kind, said):
        return [Trial(custom=False)]  # NCCL has no part in it, so that no variable of NCCL's can cure it
    return [Trial(change) for change in changes_for(stage, environment, interfaces)]


def changes_for(stage: str, environment: Mapping[str, str], interfaces: Sequence[str]) -> list[Change]:
    """The changes of the environment that are worth trying for a fault in ``stage``."""
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
