"""Many stand-ins at once, each on a port of its own, for the test of a large fleet.

python -m tests.tools.metrics.many 950      # prints their ports as one JSON list, then serves until it is ended
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from functools import cache

from tests.tools.metrics.pages import State, page
from tests.tools.metrics.serving import Servers
from tests.tools.metrics.states import QUEUED, WORKING, one

STATES = (one(WORKING), one(QUEUED))


@cache
def drawn(number: int, second: float) -> bytes:
    """Pages of the same second are the same, so that the stand-ins leave the processors to what is tested."""
    return page(STATES[number], second).encode()


class Rooted(Servers):
    """One state at the root of every port; each twentieth has a queue."""

    def __init__(self, number: int) -> None:
        super().__init__({"x": STATES[number % 20 == 0]})

    def page(self, state: State, t: float) -> bytes:
        return drawn(STATES.index(state), round(t * 2) / 2)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readline():
                path = request.split()[1].decode()
                while (await reader.readline()).strip():
                    pass
                await self.answer(writer, "x", path.lstrip("/"))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def main(count: int) -> None:
    ports = []
    for number in range(count):
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        ports.append(listening.getsockname()[1])
        await asyncio.start_server(Rooted(number).serve, sock=listening)
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
