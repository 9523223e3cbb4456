"""REST routes for approvers: `GET /approvals` and `POST /approvals/{id}`. They are not MCP, so that no tool leads to them.

An approver decides over what others want to destroy, never over requests of the same token.
"""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from snapshot_mcp.contract.errors import BadRequest, Forbidden, InternalError, Unauthorized, ZoneError
from snapshot_mcp.ground import web
from snapshot_mcp.guard import Door
from snapshot_mcp.server.callers import APPROVER, Caller, Callers, Roll
from snapshot_mcp.server.http import HEADERS

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from snapshot_mcp.guard import Approval, Guard

MAX_BODY_BYTES = 4096
"""Enough for a decision, which has two short fields."""

Handler = Callable[[Request], Awaitable[Response]]


def add_approvals(server: "MCPServer[Any]", callers: Callers, guard: "Callable[[], Awaitable[Guard]]") -> None:
    """Register the routes."""

    def for_approvers(handle: Callable[[Request, Caller, Roll], Awaitable[Any]]) -> Handler:
        async def checked(request: Request) -> Response:
            try:
                roll = await callers.present()
                return JSONResponse(await handle(request, _approver(request, roll), roll), headers=HEADERS)
            except web.Refused as refused:
                body = {"code": "bad_request", "message": refused.message}
                return JSONResponse(body, refused.status, headers=HEADERS)
            except ZoneError as error:
                body = {"code": error.code, "message": str(error)}
                challenge = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
                return JSONResponse(body, error.http_status, headers=HEADERS | challenge)

        return checked

    async def list_open(request: Request, caller: Caller, roll: Roll) -> Any:
        approvals = await (await guard()).list_approvals()
        return {"approvals": [_to_wire(one) for one in approvals if one.expires_at]}

    async def decide(request: Request, caller: Caller, roll: Roll) -> Any:
        body = await _read_body(request)
        approval_id = request.path_params["approval_id"]
        keeper = await guard()
        match body:
            case {"decision": "approve", "digest": str(digest), **rest} if not rest:
                _refuse_uncertain(roll)
                decided = await keeper.approve(approval_id, None, digest=digest, door=Door.APPROVER, by=caller.name)
            case {"decision": "deny", **rest} if rest.keys() <= {"digest"}:
                decided = await keeper.deny(approval_id, door=Door.APPROVER, by=caller.name)
            case _:
                raise BadRequest(
                    "The body is not a decision.",
                    hint='Send {"decision": "approve", "digest": the digest of the plan you read} or {"decision": "deny"}.',
                )
        return _to_wire(decided)

    server.custom_route("/approvals", methods=["GET"])(for_approvers(list_open))
    server.custom_route("/approvals/{approval_id}", methods=["POST"])(for_approvers(decide))


def _refuse_uncertain(roll: Roll) -> None:
    if roll.problem:
        raise InternalError(
            f"The operator's settings cannot be read ({roll.problem}), so it is not known who may approve.",
            hint="Nothing was done. The operator of this server must correct them.",
        )


def _approver(request: Request, roll: Roll) -> Caller:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    caller = roll.find(token.strip()) if scheme.lower() == "bearer" else None
    if caller is None:
        raise Unauthorized("No valid token.", hint="Send `Authorization: Bearer …`.")
    if APPROVER not in caller.roles:
        raise Forbidden(f"The token {caller.name!r} does not have the approver role.")
    return caller


async def _read_body(request: Request) -> Any:
    try:
        return json.loads(await web.read_body(request, MAX_BODY_BYTES))
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.") from None


def _to_wire(approval: "Approval") -> dict[str, Any]:
    return {**approval.to_json(), "digest": approval.plan.digest}
