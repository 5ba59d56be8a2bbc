"""`slack`: the assistant in Slack over Socket Mode, for places without a public address."""

from __future__ import annotations

import sys

import typer

from assistant.faces.cli.options import fail


def mount(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(slack)


def slack() -> None:
    """Serve Slack over Socket Mode; no address of this machine has to be reachable."""
    import asyncio

    from assistant.fleet.naming import known_targets
    from assistant.settings import SettingsError, load

    try:
        settings = load()
        known_targets(settings)  # read again by the service, where an error would be a traceback
    except SettingsError as error:
        for problem in error.problems:
            print(f"vllm-diagnose: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None
    if not settings.text("slack.app_token"):
        fail("slack.app_token is not set; Socket Mode needs the app-level token (xapp-) with connections:write.")
    if not (settings.text("slack.bot_token") or settings.text("slack.client_secret")):
        fail("slack.bot_token is not set; it is the bot user's token (xoxb-) of the workspace.")

    from assistant.faces.slack.socket import SocketError, run
    from assistant.store.database import StoreError
    from knowledge.errors import KnowledgeError

    try:
        asyncio.run(run(settings))
    except (SocketError, StoreError, KnowledgeError) as error:
        fail(str(error), 3)
