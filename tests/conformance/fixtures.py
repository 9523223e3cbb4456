"""The server that the conformance suite is run against: the product's own, from its `build_server`, with the suite's fixtures.

The suite asks for tools, resources and prompts of its own by name, with the words that they answer. They are nothing of the
product; what is tested is everything that they pass through. `python -m tests.conformance.fixtures` serves on a free port of
the loopback interface and prints the URL on stderr.
"""

import base64
import json
import os
from functools import partial
from typing import Annotated, Any

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import Prompt, PromptArgument, UserMessage
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CallToolResult,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    JSONRPCMessage,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    SetLevelRequestParams,
    TextContent,
    TextResourceContents,
)
from pydantic import Field

from snapshot_mcp import app
from snapshot_mcp.server.callers import Callers, Roll
from snapshot_mcp.server.http import listen, serve_http
from snapshot_mcp.settings import load_settings

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = base64.b64encode(
    b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x02\0\0\0\0\0"
).decode()
PAUSE_SECONDS = 0.05

SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def text(said: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=said)])


def embedded(uri: str, kind: str, said: str) -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=kind, text=said))


# Content


async def test_simple_text() -> CallToolResult:
    return text("This is a simple text response for testing.")


async def test_image_content() -> CallToolResult:
    return CallToolResult(content=[ImageContent(data=PNG, mime_type="image/png")])


async def test_audio_content() -> CallToolResult:
    return CallToolResult(content=[AudioContent(data=WAV, mime_type="audio/wav")])


async def test_embedded_resource() -> CallToolResult:
    return CallToolResult(
        content=[embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]
    )


async def test_multiple_content_types() -> CallToolResult:
    mixed = embedded("test://mixed-content-resource", "application/json", json.dumps({"test": "data", "value": 123}))
    image = ImageContent(data=PNG, mime_type="image/png")
    return CallToolResult(content=[TextContent(text="Multiple content types test:"), image, mixed])


async def test_error_handling() -> CallToolResult:
    raise ToolError("This tool intentionally returns an error for testing")


async def test_tool_with_logging(ctx: Context) -> CallToolResult:
    for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(said)
        await anyio.sleep(PAUSE_SECONDS)
    return text("Logged.")


async def test_tool_with_progress(ctx: Context) -> CallToolResult:
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
        await anyio.sleep(PAUSE_SECONDS)
    return text("Done.")


async def test_trigger_tool_change(ctx: Context) -> CallToolResult:
    await ctx.notify_tools_changed()
    return text("Told.")


async def test_trigger_prompt_change(ctx: Context) -> CallToolResult:
    await ctx.notify_prompts_changed()
    return text("Told.")


async def test_reconnection(ctx: Context) -> CallToolResult:
    await ctx.close_sse_stream()
    await anyio.sleep(PAUSE_SECONDS)
    return text("Reconnected.")


async def json_schema_2020_12_tool() -> CallToolResult:
    return text("Called.")


async def test_custom_header(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})],
    count: Annotated[int, Field(json_schema_extra={"x-mcp-header": "Count"})],
) -> CallToolResult:
    return text(f"Region {region}, {count}.")


async def test_missing_capability(ctx: Context) -> CallToolResult:
    has = ctx.client_capabilities
    if has is None or has.sampling is None:
        data = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs sampling.", data)
    return text("It is there.")


# Requests to the client, of older hosts during the call


async def test_sampling(prompt: str, ctx: Context) -> CallToolResult:
    message = SamplingMessage(role="user", content=TextContent(text=prompt))
    answer = await ctx.session.create_message([message], max_tokens=100)
    return text(f"LLM response: {getattr(answer.content, 'text', '')}")


def form(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


async def elicited(ctx: Context, message: str, schema: dict[str, Any], said: str) -> CallToolResult:
    answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return text(f"{said}: action={answer.action}, content={json.dumps(answer.content or {})}")


async def test_elicitation(message: str, ctx: Context) -> CallToolResult:
    username = {"type": "string", "description": "User's response"}
    email = {"type": "string", "description": "User's email address"}
    return await elicited(ctx, message, form(username=username, email=email), "User response")


async def test_elicitation_sep1034_defaults(ctx: Context) -> CallToolResult:
    schema = form(
        name={"type": "string", "default": "John Doe"},
        age={"type": "integer", "default": 30},
        score={"type": "number", "default": 95.5},
        status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        verified={"type": "boolean", "default": True},
    )
    return await elicited(ctx, "Please look at the defaults", schema | {"required": []}, "Elicitation completed")


async def test_elicitation_sep1330_enums(ctx: Context) -> CallToolResult:
    plain = ["option1", "option2", "option3"]
    titles = ("First", "Second", "Third")
    titled = [{"const": f"value{at}", "title": f"{title} Option"} for at, title in enumerate(titles, 1)]
    choices = [{"const": f"value{at}", "title": f"{title} Choice"} for at, title in enumerate(titles, 1)]
    legacy = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
    schema = form(
        untitledSingle={"type": "string", "enum": plain},
        titledSingle={"type": "string", "oneOf": titled},
        legacyEnum={"type": "string", **legacy},
        untitledMulti={"type": "array", "items": {"type": "string", "enum": plain}},
        titledMulti={"type": "array", "items": {"anyOf": choices}},
    )
    return await elicited(ctx, "Please choose", schema | {"required": []}, "Elicitation completed")


# Requests to the client, of modern hosts in rounds

Rounds = CallToolResult | InputRequiredResult
NAME = ElicitRequest(
    params=ElicitRequestFormParams(message="What is your name?", requested_schema=form(name={"type": "string"}))
)
ROOTS = ListRootsRequest()


def sample(prompt: str, max_tokens: int) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(text=prompt))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens))


def ask(state: str | None = None, **requests: Any) -> InputRequiredResult:
    return InputRequiredResult(input_requests=requests, request_state=state)


def given(ctx: Context, key: str, kind: type[Any]) -> Any:
    """The client's answer, None for none or one of another kind."""
    answer = (ctx.input_responses or {}).get(key)
    return answer if isinstance(answer, kind) else None


def accepted(ctx: Context, key: str, field: str) -> Any:
    answer = given(ctx, key, ElicitResult)
    return (answer.content or {}).get(field) if answer and answer.action == "accept" else None


async def test_input_required_result_elicitation(ctx: Context) -> Rounds:
    name = accepted(ctx, "user_name", "name")
    return text(f"Hello, {name}!") if name else ask(user_name=NAME)


async def test_input_required_result_sampling(ctx: Context) -> Rounds:
    answer = given(ctx, "capital_question", CreateMessageResult)
    if answer is None:
        return ask(capital_question=sample("What is the capital of France?", 100))
    return text(getattr(answer.content, "text", ""))


async def test_input_required_result_list_roots(ctx: Context) -> Rounds:
    answer = given(ctx, "client_roots", ListRootsResult)
    return text(f"Roots: {', '.join(str(one.uri) for one in answer.roots)}") if answer else ask(client_roots=ROOTS)


async def test_input_required_result_request_state(ctx: Context) -> Rounds:
    if ctx.request_state == "asked" and given(ctx, "confirm", ElicitResult):
        return text("state-ok")
    params = ElicitRequestFormParams(message="Please confirm", requested_schema=form(ok={"type": "boolean"}))
    return ask("asked", confirm=ElicitRequest(params=params))


async def test_input_required_result_tampered_state(ctx: Context) -> Rounds:
    return await test_input_required_result_request_state(ctx)


async def test_input_required_result_multiple_inputs(ctx: Context) -> Rounds:
    answers = ctx.input_responses or {}
    if ctx.request_state == "asked" and {"user_name", "greeting", "client_roots"} <= answers.keys():
        return text("All three were answered.")
    return ask("asked", user_name=NAME, greeting=sample("Generate a greeting", 50), client_roots=ROOTS)


async def test_input_required_result_multi_round(ctx: Context) -> Rounds:
    if ctx.request_state == "second" and (colour := accepted(ctx, "step2", "color")):
        return text(f"Your favorite color is {colour}.")
    if ctx.request_state == "first" and accepted(ctx, "step1", "name"):
        message, key, field, state = "Step 2: What is your favorite color?", "step2", "color", "second"
    else:
        message, key, field, state = "Step 1: What is your name?", "step1", "name", "first"
    params = ElicitRequestFormParams(message=message, requested_schema=form(**{field: {"type": "string"}}))
    return ask(state, **{key: ElicitRequest(params=params)})


async def test_input_required_result_capabilities(ctx: Context) -> Rounds:
    """Ask only for what the client has declared."""
    has = ctx.client_capabilities
    requests: dict[str, Any] = {}
    if has and has.elicitation:
        requests["user_name"] = NAME
    if has and has.sampling:
        requests["greeting"] = sample("Generate a greeting", 50)
    if has and has.roots:
        requests["client_roots"] = ROOTS
    return text("Nothing to ask.") if ctx.input_responses or not requests else ask(**requests)


TOOLS = [one for name, one in list(globals().items()) if name.startswith("test_") or name == "json_schema_2020_12_tool"]


# Resources and prompts


def static_text() -> str:
    return "This is the content of the static text resource."


def static_binary() -> bytes:
    return base64.b64decode(PNG)


def template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def simple_prompt() -> str:
    return "This is a simple prompt for testing."


def prompt_with_arguments(arg1: str, arg2: str) -> str:
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


def prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    content = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
    return [UserMessage(content=content), UserMessage("Please process the embedded resource above.")]


def prompt_with_image() -> list[UserMessage]:
    image = ImageContent(data=PNG, mime_type="image/png")
    return [UserMessage(content=image), UserMessage("Please analyze the image above.")]


async def input_required_result_prompt(ctx: Context) -> Any:
    if context := accepted(ctx, "user_context", "context"):
        return f"The context is {context}."
    params = ElicitRequestFormParams(
        message="What context should the prompt use?", requested_schema=form(context={"type": "string"})
    )
    return ask(user_context=ElicitRequest(params=params))


PROMPTS = {
    simple_prompt: (),
    prompt_with_arguments: ("arg1", "arg2"),
    prompt_with_embedded_resource: ("resourceUri",),
    prompt_with_image: (),
    input_required_result_prompt: (),
}


class Replay(EventStore):
    """The events of this short run, for a client that comes back."""

    def __init__(self) -> None:
        self.events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        stream_id = self.events[int(last_event_id) - 1][0]
        for at, (one, message) in enumerate(self.events, 1):
            if one == stream_id and at > int(last_event_id) and message is not None:
                await send_callback(EventMessage(message, str(at)))
        return stream_id


async def set_level(ctx: Any, params: SetLevelRequestParams) -> EmptyResult:
    """The product logs to stderr and offers hosts no level; the suite's tool logs to the client."""
    return EmptyResult()


def add_fixtures(server: MCPServer[Any]) -> None:
    """Add to a server of ours what the suite asks for by name."""
    for tool in TOOLS:
        server.add_tool(tool, description=f"A fixture of the suite: {tool.__name__}.", structured_output=False)
    schema_tool = server._tool_manager.get_tool("json_schema_2020_12_tool")
    assert schema_tool
    schema_tool.parameters = SCHEMA_2020
    server._lowlevel_server.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)
    for uri, kind, read in (
        ("test://static-text", "text/plain", static_text),
        ("test://static-binary", "image/png", static_binary),
        ("test://template/{id}/data", "application/json", template),
    ):
        server.resource(uri, description="A fixture of the suite.", mime_type=kind)(read)
    for prompt, names in PROMPTS.items():
        arguments = [PromptArgument(name=one, description="A test argument", required=True) for one in names]
        described = "A fixture of the suite."
        made = Prompt.from_function(prompt, name=f"test_{prompt.__name__}", description=described)
        server.add_prompt(made.model_copy(update={"arguments": arguments or made.arguments}))


def main() -> None:
    settings = load_settings(os.environ)
    callers = Callers(Roll(), Roll)
    with listen("127.0.0.1", 0) as listener:
        server = app.build_server(settings, callers=callers, url=f"http://127.0.0.1:{listener.getsockname()[1]}/mcp")
        add_fixtures(server)
        app_of = partial(server.streamable_http_app, event_store=Replay(), retry_interval=100)
        server.streamable_http_app = app_of  # type: ignore[method-assign]
        anyio.run(serve_http, server, listener, callers)


if __name__ == "__main__":
    main()
