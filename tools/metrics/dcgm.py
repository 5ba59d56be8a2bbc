"""GPUs as NVIDIA's dcgm-exporter shows them: how busy, held back by what, and the last Xid.

Field names: dcgm-exporter's etc/default-counters.csv; bits of the clock reasons: nvml.h, nvmlClocksEventReasons. One
series a GPU, for example ``DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-…",modelName="…"} 93``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tools.evidence import Evidence, LookedAt, Origin, Reading, Value
from tools.redaction import clean

_FIELDS = ("GPU_UTIL", "CLOCK_THROTTLE_REASONS", "CLOCKS_EVENT_REASONS", "XID_ERRORS", "GPU_TEMP")
_SAMPLE = re.compile(
    rb"^DCGM_FI_DEV_(" + "|".join(_FIELDS).encode() + rb")\{([^\n}]*)\} ([0-9][0-9.eE+]*)[^\n]*$", re.MULTILINE
)
_GPU = re.compile(rb'(?:^|,)\s*gpu="([0-9]{1,4})"')
#: Bits that mean trouble rather than a choice or a normal limit (nvml.h): the software power cap is reached by every
#: busy GPU, so it is no sign by itself.
_HELD = ((0x8 | 0x40, "heat"), (0x20, "heat"), (0x80, "power-brake"))
MOST_GPUS = 4096
_MOST_BYTES = 16 << 20


def evidence_of_gpus(source: str, pages: Sequence[bytes]) -> Reading:
    """The facts of one node's GPUs from its exporter's pages, oldest first. Empty where no page has DCGM's series."""
    values: dict[tuple[str, bytes], list[float]] = {}
    for page in pages:
        for field, labels, number in _SAMPLE.findall(page[:_MOST_BYTES]):
            gpu = _GPU.search(labels)
            key = (field.decode(), gpu[1] if gpu else b"")
            if key not in values and len(values) >= MOST_GPUS * len(_FIELDS):
                continue
            try:
                values.setdefault(key, []).append(float(number))
            except ValueError:
                continue
    items: list[Evidence] = []

    def state(name: str, value: Value, field: str) -> None:
        shown = " ".join(f"gpu{g.decode()}={row[-1]:g}" for (f, g), row in sorted(values.items()) if f == field)
        quote = clean(f"DCGM_FI_DEV_{field}: {shown}")[:400]
        items.append(Evidence(name, "present", value, Origin(clean(source), order=len(items)), quote))

    busy = [sum(row) / len(row) for (field, _), row in values.items() if field == "GPU_UTIL"]
    if busy:
        state("gpu.utilization_percent", round(sum(busy) / len(busy), 1), "GPU_UTIL")
    for field in ("CLOCKS_EVENT_REASONS", "CLOCK_THROTTLE_REASONS"):
        masks = [int(row[-1]) for (name, _), row in values.items() if name == field]
        if masks:
            held = next((word for bits, word in _HELD if any(mask & bits for mask in masks)), "no")
            state("gpu.clocks_held", held, field)
            break
    xids = [int(row[-1]) for (field, _), row in values.items() if field == "XID_ERRORS" and row[-1] > 0]
    if xids:
        state("gpu.xid", xids[0], "XID_ERRORS")
    looked = (LookedAt(clean(source), bytes=sum(map(len, pages))),) if pages else ()
    return Reading(tuple(items), (), looked)
