"""`serve`: the HTTP API, MCP over HTTP, Slack events and pages in one process."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from assistant.faces.cli.options import fail

if TYPE_CHECKING:
    import uvicorn

    from assistant.settings import Settings


def mount(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(serve)
    app.command()(mcp)


def serve(
    host: Annotated[str | None, typer.Option("--host", help="address to listen on (server.host)")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="port; 0 takes a free one")] = None,
) -> None:
    """Serve the HTTP API, MCP, Slack events and web pages."""
    from assistant import own_log
    from assistant.faces.app import create_app
    from assistant.faces.patience import patient
    from assistant.faces.serving import Draining
    from assistant.reading_process import share_memory
    from assistant.settings import SettingsError
    from knowledge.errors import KnowledgeError

    share_memory()
    settings, listener = listening(host, port)
    try:
        application = create_app(settings, port=listener.getsockname()[1])
    except (SettingsError, KnowledgeError) as error:
        fail(str(error), 3)
    if sys.stderr.isatty():  # whoever sits at the terminal that started it; nobody else sees it
        from assistant.faces.web.mount import tell_local_user

        tell_local_user(application)
    name = settings.text("server.host")
    where = f"[{name}]" if listener.family == socket.AF_INET6 else name
    print(f"vllm-diagnose serves http://{where}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    own_log.begin(settings.text("server.log"))
    run(Draining(patient(application, settings, log_config=None), application.state.shared), listener)


def mcp() -> None:
    """Serve MCP over standard input and output, for an IDE or another client on this machine."""
    import gc

    gc.disable()  # the imports leave a hundred thousand objects that stay; looking for garbage among them takes a tenth
    from assistant.faces.mcp.server import run_stdio
    from assistant.settings import load_what_works

    settings, problems = load_what_works()
    for problem in problems:
        print(f"vllm-diagnose: {problem}", file=sys.stderr)
    gc.freeze()
    gc.enable()
    run_stdio(settings)


def listening(
    host: str | None, port: int | None, adapt: Callable[[Settings], Settings] = lambda settings: settings
) -> tuple[Settings, socket.socket]:
    """The settings with what the command line says and ``adapt`` makes of them, and a socket that listens by them.

    Ends the command with a sentence where the settings or the targets file are wrong or the address cannot be had.
    """
    from assistant.fleet.naming import known_targets
    from assistant.settings import SettingsError, load, override

    given = {"server.host": host, "server.port": port}
    try:
        settings = adapt(override(load(), {name: value for name, value in given.items() if value is not None}))
        known_targets(settings)  # read again by the application, where an error would be a traceback in its log
        return settings, listen(settings.text("server.host"), settings.whole("server.port"))
    except SettingsError as error:
        for problem in error.problems:
            print(f"vllm-diagnose: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        fail(f"{host or 'the address'} port {port or ''} cannot be listened on: {error.strerror or error}", 3)


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until the server is told to stop; a start that failed ends the command with status 3."""
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(3)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Made here and not by the server, so that the port is known before anybody is told of it."""
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener
