"""Tools with strict arguments, small schemas, and one place where errors are translated.

The SDK's own tools ignore unknown arguments, convert types and publish pydantic's titles.
"""

from collections.abc import Callable
from functools import cache
from math import inf
from typing import Annotated, Any, get_args, get_origin

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import func_metadata
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, ConfigDict, ValidationError

from snapshot_mcp.contract import errors
from snapshot_mcp.contract.models import MAX_DESCRIPTION_CHARACTERS, MAX_IDS
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.server import card
from snapshot_mcp.server.callers import refuse_role
from snapshot_mcp.server.deadline import CALL_SECONDS, begin_call
from snapshot_mcp.server.state import state_of

READ = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
WRITE = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
WRITE_AGAIN = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
DESTROY = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False)

ZONE_SPECIFIC = (
    errors.Unavailable,
    errors.Unauthorized,
    errors.Forbidden,
    errors.TooManyRequests,
    errors.InternalError,
    errors.OutcomeUnknown,
    errors.NotFound,
)
"""Errors that might not occur in another zone, so their texts name the zone."""


class StrictTool(Tool):
    """A tool that takes arguments as hosts send them, explains wrong ones, and reports a zone's errors to the model."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Call the tool. An expected error is a result without structure; an unexpected exception passes unchanged."""
        begin_call()
        if reason := refuse_role(reads_only=bool(self.annotations and self.annotations.read_only_hint)):
            return error_result(errors.Forbidden.code, f"{self.name} was not called: {reason}")
        if reason := _too_long(arguments):
            return error_result(errors.BadRequest.code, f"{self.name} was not called: {reason}")
        reads = bool(self.annotations and self.annotations.read_only_hint)
        try:
            with anyio.move_on_after(CALL_SECONDS if reads else inf):
                return await super().run(self._as_meant(arguments), context, convert_result)
            return error_result(
                errors.Unavailable.code, f"{self.name} failed: no answer within {CALL_SECONDS:g} s. Try again."
            )
        except UnexpectedToolError as error:
            if isinstance(cause := error.__cause__, errors.ZoneError):
                return error_result(cause.code, f"{self.name} failed: {_text_of(cause, arguments, context)}")
            raise
        except ToolError as error:
            if isinstance(cause := error.__cause__, ValidationError):
                return error_result(errors.BadRequest.code, f"{self.name} was not called: {self._describe(cause)}")
            raise

    def _as_meant(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments without those that mean unset, and integers where a host sent floats."""
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() and self._is_integer(name) else value
            for name, value in arguments.items()
            if not self._means_unset(name, value)
        }

    def _means_unset(self, name: str, value: Any) -> bool:
        """Whether a host filled in an optional argument with null or ""."""
        is_optional = name in self.parameters["properties"] and name not in self.parameters.get("required", ())
        return is_optional and (value is None or value == "")

    def _is_integer(self, name: str) -> bool:
        return bool(self.parameters["properties"].get(name, {}).get("type") == "integer")

    def _describe(self, error: ValidationError) -> str:
        lines = []
        for one in error.errors(include_url=False, include_input=False):
            name = clean_text(".".join(str(part) for part in one["loc"]))
            match one["type"]:
                case "extra_forbidden":
                    known = ", ".join(self.fn_metadata.arg_model.model_fields)
                    lines.append(f"Unknown argument {name}; expected one of: {known}.")
                case "missing":
                    lines.append(f"{name} is missing.")
                case "too_short" if one["ctx"]["min_length"] == 1:
                    lines.append(f"{name} must not be empty.")
                case "string_pattern_mismatch":
                    lines.append(f"{name} must not be blank.")
                case _:
                    lines.append(f"{name}: {clean_text(one['msg'].removeprefix('Input '), MESSAGE_CHARACTERS)}.")
        return " ".join(lines)


def _too_long(arguments: dict[str, Any]) -> str:
    """Return which text is longer than any that the tools take, "" if none is: ids and zones have no limit of their own."""
    for name, value in arguments.items():
        for text in value[:MAX_IDS] if isinstance(value, list) else [value]:
            if isinstance(text, str) and len(text) > MAX_DESCRIPTION_CHARACTERS:
                return f"{clean_text(name)} has {len(text):,} characters; at most {MAX_DESCRIPTION_CHARACTERS:,} are possible."
    return ""


def error_result(code: str, text: str) -> CallToolResult:
    """Return an error: its text, and its code in `_meta`. Hosts check a structure against the output schema, so it has none."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True, meta={"code": code})


def _text_of(error: errors.ZoneError, arguments: dict[str, Any], context: Context[Any, Any]) -> str:
    """Return the error's text, with the zone if it is about the zone and the call concerned a single one."""
    zones = state_of(context).zones
    zone = arguments.get("zone") or (
        zones.default if len(zones.names) == 1 or not {"job_id", "job_ids"} & arguments.keys() else ""
    )
    if not isinstance(error, ZONE_SPECIFIC) or zone not in zones.names:
        return str(error)
    text = str(error.within(zone))
    others = [name for name in zones.names if name != zone]
    return f"{text} Other zones: {', '.join(others)}." if others and isinstance(error, errors.NotFound) else text


def build_tool(fn: Callable[..., Any], title: str, annotations: ToolAnnotations) -> Tool:
    """Build a tool from a module-level function: its name, docstring, annotated parameters and result.

    `Tool.from_function` would generate each schema twice, and start-up counts.
    """
    metadata = func_metadata(fn, skip_names=[CONTEXT], structured_output=False)
    model = metadata.arg_model
    model.model_config |= ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    model.model_rebuild(force=True)
    metadata.output_schema = _result_schema(_result_model(fn))
    parameters = compact_schema(model.model_json_schema(by_alias=True))
    del parameters["additionalProperties"]  # unknown arguments are refused in words; some converters crash on it
    return StrictTool(
        fn=fn,
        name=fn.__name__,
        title=title,
        description=" ".join((fn.__doc__ or "").split()),
        parameters=parameters,
        fn_metadata=metadata,
        is_async=True,
        context_kwarg=CONTEXT,
        annotations=annotations,
        meta=card.META if fn.__name__ in card.TOOLS else None,
    )


CONTEXT = "ctx"
"""The parameter of each tool's function that takes the request's context."""


def _result_model(fn: Callable[..., Any]) -> type[BaseModel]:
    """Return the model in a function's `Annotated[CallToolResult, Model]`, which may be one arm of a union."""
    returned = fn.__annotations__["return"]
    arms = (returned, *get_args(returned))
    model: type[BaseModel] = next(get_args(arm)[1] for arm in arms if get_origin(arm) is Annotated)
    return model


@cache
def _result_schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = compact_schema(model.model_json_schema(mode="serialization"))
    return {key: _without_needless(value) for key, value in schema.items()}


def _without_needless(value: Any) -> Any:
    """Return a part of a result's schema without defaults, and without types beside the only values that there can be."""
    if not isinstance(value, dict):
        return value
    needless = {"default", "type"} if isinstance(value.get("enum"), list) or "const" in value else {"default"}
    return {key: _without_needless(one) for key, one in value.items() if key not in needless or isinstance(one, dict)}


def compact_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without titles, docstrings, empty defaults and the null of a field that results omit when unset."""
    return {key: _compact(value, key) for key, value in schema.items() if key not in {"title", "description"}}


def _compact(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_compact(one, "") for one in value]
    if not isinstance(value, dict):
        return value
    if key == "$defs":
        return {name: compact_schema(one) for name, one in value.items()}
    if key == "properties":
        return {name: _compact(one, "") for name, one in value.items()}
    out = {name: _compact(one, name) for name, one in value.items() if name != "title"}
    if not out.get("default", True):
        del out["default"]
    arms = [arm for arm in out.get("anyOf", ()) if arm != {"type": "null"}]
    if len(arms) == 1:
        del out["anyOf"]
        out = {**arms[0], **out}
    return out
