"""Test-only names that the MCP conformance suite expects, added to the product's own server as one more face.

``create_app(settings, faces=(fixtures.mount,))`` runs the product's whole HTTP stack, mount, limits and bearer check;
only what the scenarios call by name comes from here. Nothing outside the tests imports this module.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import warnings
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from mcp import MCPError
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.mcpserver.resources import BinaryResource, TextResource
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CallToolResult,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    SamplingCapability,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)

PAUSE_S = 0.05


def mount(app: Any, shared: Any) -> None:
    """Add the fixtures to the MCP server that the product has mounted into ``app``."""
    warnings.filterwarnings("ignore", message=".*deprecated.*")  # sampling, logging and roots are what is tested
    server = app.state.mcp
    for add in (_contents, _while_it_runs, _asks_in_a_session, _asks_by_returning, _prompts, _resources):
        add(server)


def _contents(server: Any) -> None:
    @server.tool(description="A line of text.")
    def test_simple_text() -> CallToolResult:
        return _said("This is a simple text response for testing.")

    @server.tool(description="A red dot.")
    def test_image_content() -> CallToolResult:
        return CallToolResult(content=[ImageContent(type="image", data=_png(), mime_type="image/png")])

    @server.tool(description="A moment of silence.")
    def test_audio_content() -> CallToolResult:
        return CallToolResult(content=[AudioContent(type="audio", data=_wav(), mime_type="audio/wav")])

    @server.tool(description="A resource inside the answer.")
    def test_embedded_resource() -> CallToolResult:
        return CallToolResult(content=[_embedded("test://embedded-resource", "This is an embedded resource content.")])

    @server.tool(description="Text, an image and a resource.")
    def test_multiple_content_types() -> CallToolResult:
        data = json.dumps({"test": "data", "value": 123})
        return CallToolResult(
            content=[
                TextContent(type="text", text="Multiple content types test:"),
                ImageContent(type="image", data=_png(), mime_type="image/png"),
                _embedded("test://mixed-content-resource", data, "application/json"),
            ]
        )

    @server.tool(description="Fails.")
    def test_error_handling() -> CallToolResult:
        raise ToolError("This tool intentionally returns an error for testing")


def _while_it_runs(server: Any) -> None:
    @server.tool(description="Logs three lines.")
    async def test_tool_with_logging(ctx: Context) -> CallToolResult:
        for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(text)
            await asyncio.sleep(PAUSE_S)
        return _said("Three lines were logged.")

    @server.tool(description="Reports progress three times.")
    async def test_tool_with_progress(ctx: Context) -> CallToolResult:
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
            await asyncio.sleep(PAUSE_S)
        return _said("Progress was reported.")

    @server.tool(description="Needs a client that samples.")
    def test_missing_capability(ctx: Context) -> CallToolResult:
        _require_sampling(ctx)
        return _said("The client samples.")

    async def level(ctx: Any, params: SetLevelRequestParams) -> EmptyResult:
        return EmptyResult()

    server._lowlevel_server.add_request_handler("logging/setLevel", SetLevelRequestParams, level)


def _asks_in_a_session(server: Any) -> None:
    @server.tool(description="Asks the client's model.")
    async def test_sampling(prompt: str, ctx: Context) -> CallToolResult:
        message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
        reply = await ctx.session.create_message([message], max_tokens=100, related_request_id=ctx.request_id)
        return _said(f"LLM response: {getattr(reply.content, 'text', '')}")

    async def ask(ctx: Context, message: str, schema: dict[str, Any]) -> ElicitResult:
        return await ctx.session.elicit_form(
            message=message, requested_schema=schema, related_request_id=ctx.request_id
        )

    @server.tool(description="Asks the person for a name and an address.")
    async def test_elicitation(message: str, ctx: Context) -> CallToolResult:
        reply = await ask(ctx, message, _form(username={"type": "string"}, email={"type": "string"}))
        return _said(f"User response: action={reply.action}, content={json.dumps(reply.content)}")

    @server.tool(description="Asks with a default for every kind of value.")
    async def test_elicitation_sep1034_defaults(ctx: Context) -> CallToolResult:
        schema = _form(
            name={"type": "string", "default": "John Doe"},
            age={"type": "integer", "default": 30},
            score={"type": "number", "default": 95.5},
            status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            verified={"type": "boolean", "default": True},
        )
        reply = await ask(ctx, "Please check what is filled in.", schema)
        return _said(f"Elicitation completed: action={reply.action}, content={json.dumps(reply.content)}")

    @server.tool(description="Asks with every form of a choice.")
    async def test_elicitation_sep1330_enums(ctx: Context) -> CallToolResult:
        plain = ["option1", "option2", "option3"]
        titled = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second"), 1)]
        schema = _form(
            untitledSingle={"type": "string", "enum": plain},
            titledSingle={"type": "string", "oneOf": titled},
            legacyEnum={"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
            untitledMulti={"type": "array", "items": {"type": "string", "enum": plain}},
            titledMulti={"type": "array", "items": {"anyOf": titled}},
        )
        reply = await ask(ctx, "Please choose.", schema)
        return _said(f"Elicitation completed: action={reply.action}, content={json.dumps(reply.content)}")


NAME = {
    "user_name": lambda: _question("What is your name?", name={"type": "string"}),
}
SAMPLE = {"capital_question": lambda: _sample("What is the capital of France?", 100)}


def _asks_by_returning(server: Any) -> None:
    def add(name: str, description: str, answer: Callable[[Context], Any]) -> None:
        async def tool(ctx: Context) -> CallToolResult | InputRequiredResult:
            return answer(ctx)

        server.add_tool(tool, name=f"test_input_required_result_{name}", description=description)

    def rounds(requests: dict[str, Callable[[], Any]], finish: str, state: str | None = None) -> Callable[..., Any]:
        """Ask ``requests`` until each has a usable answer, then finish."""

        def answer(ctx: Context) -> CallToolResult | InputRequiredResult:
            given = ctx.input_responses or {}
            missing = {key: make() for key, make in requests.items() if key not in given}
            if missing or (state is not None and ctx.request_state != state):
                asked = missing or {key: make() for key, make in requests.items()}
                return InputRequiredResult(input_requests=asked, request_state=state)
            return _said(finish.format(**{key: _reply(value) for key, value in given.items()}))

        return answer

    def two_rounds(ctx: Context) -> CallToolResult | InputRequiredResult:
        given = ctx.input_responses or {}
        if ctx.request_state == "named" and "step2" in given:
            return _said(f"Done: {_reply(given['step2'])}")
        if ctx.request_state == "asked" and "step1" in given:
            second = _question("Step 2: What is your favorite color?", color={"type": "string"})
            return InputRequiredResult(input_requests={"step2": second}, request_state="named")
        first = _question("Step 1: What is your name?", name={"type": "string"})
        return InputRequiredResult(input_requests={"step1": first}, request_state="asked")

    def what_the_client_can(ctx: Context) -> InputRequiredResult:
        can = ctx.client_capabilities or ClientCapabilities()
        asked: dict[str, Any] = {}
        if can.sampling is not None:
            asked |= {key: make() for key, make in SAMPLE.items()}
        if can.elicitation is not None:
            asked |= {key: make() for key, make in NAME.items()}
        return InputRequiredResult(input_requests=asked or None, request_state="nothing can be asked")

    confirm = {"confirm": lambda: _question("Please confirm", ok={"type": "boolean"})}
    roots = {"client_roots": lambda: ListRootsRequest()}
    greeting = {"greeting": lambda: _sample("Generate a greeting", 50)}
    add("elicitation", "Asks a name.", rounds(NAME, "Hello, {user_name}!"))
    add("sampling", "Asks the client's model.", rounds(SAMPLE, "{capital_question}"))
    add("list_roots", "Asks for the client's roots.", rounds(roots, "{client_roots}"))
    add("request_state", "Keeps a state.", rounds(confirm, "state-ok", "waiting"))
    add("multiple_inputs", "Asks three things.", rounds({**NAME, **greeting, **roots}, "All came.", "waiting"))
    add("multi_round", "Asks twice.", two_rounds)
    add("tampered_state", "Keeps a state that nobody may change.", rounds(confirm, "state-ok", "waiting"))
    add("capabilities", "Asks what the client can answer.", what_the_client_can)


def _prompts(server: Any) -> None:
    @server.prompt(description="A sentence.")
    def test_simple_prompt() -> str:
        return "This is a simple prompt for testing."

    @server.prompt(description="A sentence with two arguments.")
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt(description="A resource to process.")
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 (the suite's name)
        return [
            UserMessage(content=_embedded(resourceUri, "Embedded resource content for testing.")),
            UserMessage(content=TextContent(type="text", text="Please process the embedded resource above.")),
        ]

    @server.prompt(description="An image to look at.")
    def test_prompt_with_image() -> list[UserMessage]:
        return [
            UserMessage(content=ImageContent(type="image", data=_png(), mime_type="image/png")),
            UserMessage(content=TextContent(type="text", text="Please analyze the image above.")),
        ]

    @server.prompt(description="A prompt that asks first.")
    async def test_input_required_result_prompt(ctx: Context) -> Any:
        given = (ctx.input_responses or {}).get("user_context")
        if given is None:
            question = _question("What context should the prompt use?", context={"type": "string"})
            return InputRequiredResult(input_requests={"user_context": question})
        return f"The context is {_reply(given)}."


def _resources(server: Any) -> None:
    server.add_resource(
        TextResource(
            uri="test://static-text",
            name="static text",
            mime_type="text/plain",
            text="This is the content of the static text resource.",
        )
    )
    server.add_resource(
        BinaryResource(
            uri="test://static-binary", name="static binary", mime_type="image/png", data=base64.b64decode(_png())
        )
    )
    server.add_resource(
        TextResource(uri="test://watched-resource", name="watched", mime_type="text/plain", text="It never changes.")
    )

    @server.resource("test://template/{id}/data", name="template", mime_type="application/json")
    def template(id: str) -> str:  # noqa: A002 (the suite's name)
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    watched: set[str] = set()

    async def subscribe(ctx: Any, params: SubscribeRequestParams) -> EmptyResult:
        watched.add(str(params.uri))
        return EmptyResult()

    async def unsubscribe(ctx: Any, params: UnsubscribeRequestParams) -> EmptyResult:
        watched.discard(str(params.uri))
        return EmptyResult()

    low: Any = server._lowlevel_server
    handlers: list[tuple[str, Any, Callable[..., Awaitable[Any]]]] = [
        ("resources/subscribe", SubscribeRequestParams, subscribe),
        ("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe),
    ]
    for method, params, handler in handlers:
        low.add_request_handler(method, params, handler)


def _require_sampling(ctx: Context) -> None:
    can = ctx.client_capabilities
    if can is None or can.sampling is None:
        needs = ClientCapabilities(sampling=SamplingCapability())
        raise MCPError(
            code=MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="This tool needs a client that samples.",
            data={"requiredCapabilities": needs.model_dump(by_alias=True, exclude_none=True)},
        )


def _said(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)])


def _embedded(uri: str, text: str, mime_type: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _form(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _question(message: str, **properties: dict[str, Any]) -> ElicitRequest:
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=_form(**properties)))


def _sample(text: str, most: int) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=most))


def _reply(value: Any) -> str:
    """What a client answered, whatever it was asked."""
    return json.dumps(value.model_dump(mode="json", by_alias=True, exclude_none=True))


def _png() -> str:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00\xff\x00\x00")
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return base64.b64encode(whole).decode()


def _wav() -> str:
    """Eight samples of silence, 8 kHz, 8 bit, mono."""
    data = b"\x80" * 8
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", len(data)
    )
    return base64.b64encode(head + data).decode()
