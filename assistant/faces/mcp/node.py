"""The tools of one node over MCP: what `tool-server` serves to an assistant elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver import MCPServer

from assistant import __version__
from assistant.faces.mcp.server import mount
from assistant.faces.mcp.tools import ActionTool, JobTool
from tools import registry

if TYPE_CHECKING:
    from fastapi import FastAPI

    from assistant.faces.app import Shared
    from assistant.faces.mcp.door import Door

#: The actions that look at or test the machine they run on.
NODE_ACTIONS = (
    "describe_node",
    "check_gpu",
    "check_host",
    "check_network",
    "check_links",
    "run_nccl_test",
    "run_compile_test",
    "measure_loading",
    "capture",
    "parse_logs",
)
#: Characters of a result. The reader is the assistant and no model: it takes a report whole.
MOST_RESULT = 2_000_000


def build_node(door: Door) -> MCPServer[Any]:
    """The server with this node's tools behind ``door``."""
    registry.discover()
    known = {action.name: action for action in registry.actions()}
    tools = [ActionTool.of(known[name], door, most=MOST_RESULT) for name in NODE_ACTIONS if name in known]
    return MCPServer(
        "vllm-diagnose-node",
        title="vLLM Diagnose: a node's tools",
        description="Checks and tests of the machine that this runs on.",
        version=__version__,
        tools=[*tools, JobTool.made(door, most=MOST_RESULT)],
        log_level="WARNING",
        subscriptions=False,
    )


def mount_node(app: FastAPI, shared: Shared) -> None:
    """Mount the node's tools at ``/mcp``."""
    mount(app, shared, make=build_node)
