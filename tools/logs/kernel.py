"""What the kernel's lines and a container's death state: XID errors of the GPU driver, killed processes."""

from __future__ import annotations

import re

from tools.evidence import Origin
from tools.logs.facts import Facts

#: ``NVRM: Xid (PCI:0000:3b:00): 79, pid=812, GPU has fallen off the bus.`` (NVIDIA, XID errors)
_XID = re.compile(r"NVRM: Xid \([^)]{1,60}\): (\d{1,3})\b")


def read_kernel(facts: Facts, body: str, origin: Origin, quote: str) -> None:
    """Take one kernel line."""
    found = _XID.search(body)
    if found:
        facts.state("gpu.xid", int(found.group(1)), origin, quote, keep=True)
    if "Killed process" in body or "out of memory" in body:
        facts.state("process.signal", "SIGKILL", origin, quote)
