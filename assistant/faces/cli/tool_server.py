"""`tool-server`: this node's tools over MCP, for an assistant on another machine."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assistant.faces.cli.options import fail

if TYPE_CHECKING:
    from assistant.settings import Settings


def mount(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("tool-server")(tool_server)


def tool_server(
    host: Annotated[str | None, typer.Option("--host", help="address to listen on (server.host)")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="port; 0 takes a free one")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="PEM file of the certificate")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file of its key")] = None,
) -> None:
    """Serve this node's tools over MCP; every call needs a token of `vllm-diagnose token create`."""
    import uvicorn

    from assistant.faces.app import create_app
    from assistant.faces.cli.serve import listening, run
    from assistant.faces.mcp.node import mount_node
    from assistant.faces.patience import patient
    from assistant.settings import SettingsError, override
    from knowledge.errors import KnowledgeError

    if (tls_cert is None) != (tls_key is None):
        fail("--tls-cert and --tls-key belong together; one of them is missing")
    for option, path in (("--tls-cert", tls_cert), ("--tls-key", tls_key)):
        if path is not None and not path.is_file():
            fail(f"{option} {path} is not a file")

    def of_a_node(settings: Settings) -> Settings:
        names = [*settings["server.allowed_hosts"], *_own_names(settings.text("server.host"))]
        # Two tests of the GPUs at once would disturb each other; looking needs no job and is never kept waiting.
        return override(settings, {"jobs.at_once": 1, "server.readers": 1, "server.allowed_hosts": names})

    settings, listener = listening(host, port, of_a_node)
    try:
        application = create_app(settings, port=listener.getsockname()[1], own=(mount_node,))
    except (SettingsError, KnowledgeError) as error:
        fail(str(error), 3)
    name = settings.text("server.host")
    where = f"[{name}]" if ":" in name else name
    scheme = "https" if tls_cert is not None else "http"
    print(f"vllm-diagnose serves this node's tools at {scheme}://{where}:{listener.getsockname()[1]}/mcp", file=sys.stderr, flush=True)  # fmt: skip
    config = patient(application, settings, ssl_certfile=tls_cert, ssl_keyfile=tls_key)
    run(uvicorn.Server(config), listener)


def _own_names(listening: str) -> tuple[str, ...]:
    """What a client may call this node: its names and addresses where it listens on all of them."""
    if listening not in ("0.0.0.0", "::", ""):  # noqa: S104 (it is compared, not bound)
        return (f"[{listening}]" if ":" in listening else listening,)
    from tools.network.interfaces import interfaces

    addresses = [address.partition("%")[0] for row in interfaces() for address in row.addresses]
    return (platform.node(), "localhost", *(f"[{a}]" if ":" in a else a for a in addresses))
