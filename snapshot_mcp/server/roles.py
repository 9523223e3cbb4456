"""Who may do what over HTTP, once the operator has given out tokens: a viewer looks, an operator also changes, an approver also
decides over what others want to destroy (never over what the same token asked for).

The approver's door is beside MCP, so that no tool leads to it: `GET /approvals` and `POST /approvals/{id}`.
"""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.auth_context import get_access_token
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from snapshot_mcp.contract.errors import BadRequest, Forbidden, InternalError, Unauthorized, ZoneError
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.ground import web
from snapshot_mcp.guard import Door
from snapshot_mcp.server.callers import APPROVER, OPERATOR, UNCERTAIN, Caller, Callers, Roll
from snapshot_mcp.server.http import HEADERS

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from snapshot_mcp.guard import Approval, Guard

MAX_BODY_BYTES = 4096
"""A decision has two short fields."""

Handler = Callable[[Request], Awaitable[Response]]


def refuse_role(*, reads_only: bool) -> str:
    """Return why the present caller may not call a tool, "" if it may. Without tokens everybody who gets in is the operator."""
    token = get_access_token()
    if token is None or reads_only or OPERATOR in token.scopes:
        return ""
    if UNCERTAIN in token.scopes:
        return (
            "the operator's settings cannot be read, so nobody may change anything. The operator has to correct them."
        )
    return f"the token {token.client_id!r} may look only. The operator of this server gives out the roles."


def add_approvals(server: "MCPServer[Any]", callers: Callers, guard: "Callable[[], Awaitable[Guard]]") -> None:
    """Give the approvers their door."""

    def for_approvers(handle: Callable[[Request, Caller, Roll], Awaitable[Any]]) -> Handler:
        async def checked(request: Request) -> Response:
            try:
                roll = await callers.present()
                return JSONResponse(await handle(request, _approver(request, roll), roll), headers=HEADERS)
            except web.Refused as refused:
                return JSONResponse(
                    {"code": "bad_request", "message": refused.message}, refused.status, headers=HEADERS
                )
            except ZoneError as error:
                body = {"code": error.code, "message": str(error)}
                return JSONResponse(body, error.http_status, headers=HEADERS | _challenge(error))

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
                    "The body is no decision.",
                    hint='{"decision": "approve", "digest": the plan\'s that you read} or {"decision": "deny"}.',
                )
        return _to_wire(decided)

    server.custom_route("/approvals", methods=["GET"])(for_approvers(list_open))
    server.custom_route("/approvals/{approval_id}", methods=["POST"])(for_approvers(decide))


def _refuse_uncertain(roll: Roll) -> None:
    if roll.problem:
        raise InternalError(
            f"The operator's settings cannot be read ({roll.problem}), so it is not certain who may approve.",
            hint="Nothing was done. The operator of this server has to correct them.",
        )


def _approver(request: Request, roll: Roll) -> Caller:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    caller = roll.find(token.strip()) if scheme.lower() == "bearer" else None
    if caller is None:
        raise Unauthorized("No valid token.", hint="Send `Authorization: Bearer …`.")
    if APPROVER not in caller.roles:
        raise Forbidden(f"The token {caller.name!r} has not the role approver.")
    return caller


def _challenge(error: ZoneError) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}


async def _read_body(request: Request) -> Any:
    try:
        return json.loads(await web.read_body(request, MAX_BODY_BYTES))
    except (ValueError, RecursionError):
        raise BadRequest("The body is no JSON.") from None


def _to_wire(approval: "Approval") -> dict[str, Any]:
    return {
        "id": approval.id,
        "state": approval.state,
        "title": approval.title,
        "plan": list(approval.lines),
        "digest": approval.plan.digest,
        "zone": approval.call.zone,
        "principal": approval.call.principal,
        "client": approval.call.client,
        "opened_at": format_time(approval.opened.time),
        "expires_at": format_time(approval.expires_at),
    }
