"""The client of the Python SDK 1.x, run by the interpreter of an environment that has it. One JSON object each way."""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main() -> None:
    task = json.load(sys.stdin)
    headers = {"Authorization": f"Bearer {task['token']}"}
    async with (
        streamablehttp_client(task["url"], headers=headers) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        started = await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        results = [await session.call_tool(name, arguments) for name, arguments in task["calls"]]
        answers = [result.structuredContent for result in results]
    refused = None
    try:
        async with streamablehttp_client(task["url"]) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
    except* Exception as group:  # noqa: BLE001 (what it met is what the caller wants to see)
        refused = str(group.exceptions)
    print(json.dumps({"protocol": started.protocolVersion, "tools": tools, "answers": answers, "refused": refused}))


asyncio.run(main())
