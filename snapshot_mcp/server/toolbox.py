"""Tools as this server wants them: strict arguments, small schemas, errors translated in one place.

The SDK's own tools ignore unknown arguments, convert types and publish pydantic's titles; ours refuse, insist and stay short.
"""

import re
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import ToolAnnotations
from pydantic import ConfigDict, ValidationError

from snapshot_mcp.contract.errors import (
    Forbidden,
    InternalError,
    NotFound,
    OutcomeUnknown,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    ZoneError,
)
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.server.face import face_of
from snapshot_mcp.server.roles import refuse_role

READ = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
WRITE = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
WRITE_AGAIN = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
DESTROY = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False)


THE_ZONES_OWN = (Unavailable, Unauthorized, Forbidden, TooManyRequests, InternalError, OutcomeUnknown, NotFound)
"""Errors that say something about the zone, or that would not be there in another one."""


class StrictTool(Tool):
    """A tool that says in one line each what is wrong with its arguments, and tells a zone's errors to the model."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        if reason := refuse_role(reads_only=bool(self.annotations and self.annotations.read_only_hint)):
            raise ToolError(f"{self.name} was not called: {reason}")
        try:
            return await super().run(arguments, context, convert_result)
        except UnexpectedToolError as error:
            if isinstance(cause := error.__cause__, ZoneError):
                raise ToolError(f"{self.name} failed: {_with_zone(cause, arguments, context)}") from cause
            raise
        except ToolError as error:
            if isinstance(cause := error.__cause__, ValidationError):
                raise ToolError(f"{self.name} was not called: {self._describe(cause)}") from cause
            raise

    def _describe(self, error: ValidationError) -> str:
        lines = []
        for one in error.errors(include_url=False, include_input=False):
            name = clean_text(".".join(str(part) for part in one["loc"]))
            match one["type"]:
                case "extra_forbidden":
                    known = ", ".join(self.fn_metadata.arg_model.model_fields)
                    lines.append(f"{name} is none of its arguments ({known}).")
                case "missing":
                    lines.append(f"{name} is missing.")
                case "string_pattern_mismatch":
                    lines.append(f"{name} has nothing but blanks.")
                case _:
                    lines.append(f"{name}: {clean_text(one['msg'].removeprefix('Input '), MESSAGE_CHARACTERS)}.")
        return " ".join(lines)


def _with_zone(error: ZoneError, arguments: dict[str, Any], context: Context[Any, Any]) -> str:
    """The error's text; what is the zone's own trouble names the zone, as far as the call meant one."""
    zones = face_of(context).zones
    meant = arguments.get("zone") or (
        zones.default if len(zones.names) == 1 or not {"job_id", "job_ids"} & arguments.keys() else ""
    )
    if not isinstance(error, THE_ZONES_OWN) or meant not in zones.names:
        return str(error)
    is_named = re.search(rf"\bzone ['“]?{re.escape(meant)}\b", error.message, re.IGNORECASE)
    text = str(error) if is_named else f"Zone {meant}: {error}"
    others = [name for name in zones.names if name != meant]
    return f"{text} Other zones: {', '.join(others)}." if others and isinstance(error, NotFound) else text


def build_tool(fn: Callable[..., Any], title: str, annotations: ToolAnnotations) -> Tool:
    """Make a tool of a module-level function: its name, its docstring, its annotated parameters and result."""
    tool = StrictTool.from_function(fn, title=title, description=_one_line(fn.__doc__ or ""), annotations=annotations)
    model = tool.fn_metadata.arg_model
    model.model_config |= ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    model.model_rebuild(force=True)
    tool.parameters = compact_schema(model.model_json_schema(by_alias=True))
    tool.fn_metadata.output_schema = compact_schema(tool.fn_metadata.output_schema or {})
    tool.fn_metadata.output_model = None  # a result is the dump of that very model: no need to validate it at each call
    return tool


def compact_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without what tells a model nothing: titles, empty defaults, the null beside a type.

    Results leave unset fields out (`results.Result`), so the null is never sent either.
    """
    return {key: _compact(value, key) for key, value in schema.items() if key not in {"title", "description"}}


def _compact(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_compact(one, "") for one in value]
    if not isinstance(value, dict):
        return value
    if key in {"properties", "$defs"}:
        return {name: _compact(one, "") for name, one in value.items()}
    out = {name: _compact(one, name) for name, one in value.items() if name != "title"}
    if out.get("default", 0) in (None, "", [], ()):
        del out["default"]
    arms = [arm for arm in out.get("anyOf", ()) if arm != {"type": "null"}]
    if len(arms) == 1:
        del out["anyOf"]
        out = {**arms[0], **out}
    return out


def _one_line(text: str) -> str:
    return " ".join(text.split())
