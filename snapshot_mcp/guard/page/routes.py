"""The page's requests. Each is checked first: it is meant for this server (Host), it does not come from another site (Origin),
it carries the secret of its link, and a decision carries the token of the page that was shown.

    /approvals/{id}/{key}        GET the page, POST a decision
    /approvals/{id}/{key}/all    GET the list of what waits

Without the secret nothing is looked up, let alone counted. A rejected request gets a plain page without detail. Only the guard
decides.
"""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from snapshot_mcp.contract.errors import NotFound, ZoneError
from snapshot_mcp.ground.web import Gatekeeper, Refused, read_body
from snapshot_mcp.guard.consent.address import PageAddress
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.errors import GuardBroken, NotDecidable, PinLocked, WrongPin
from snapshot_mcp.guard.consent.states import OPEN, Door, State
from snapshot_mcp.guard.page.html import STYLE_HASH, render_approval, render_list, render_message, render_refresh
from snapshot_mcp.guard.page.watch import ApprovalWatch

if TYPE_CHECKING:
    from snapshot_mcp.guard.guard import Guard

MAX_BODY_BYTES = 4096
"""A decision has five short fields."""

HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src '{STYLE_HASH}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": under it a browser sends `Origin: null` with a form.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

STATUS_BY_ERROR: dict[type[ZoneError], int] = {
    NotFound: 404,
    PinLocked: 429,
    WrongPin: 403,
    NotDecidable: 409,
    GuardBroken: 500,
}

WORDS = {
    421: "This page has a different address.",
    403: "The request came from another site.",
    413: "The request is too long.",
}

MAX_FOLLOWED = 20
"""Pages that are kept up to date at a time; each holds a connection."""

LINK = "/approvals/{approval_id}/{key}"

Handler = Callable[[Request], Awaitable[Response]]


def build_app(guard: "Guard", address: PageAddress, watch: ApprovalWatch) -> Starlette:
    """Return the page's web application."""
    page = _Page(guard, address, watch)
    return Starlette(
        routes=[
            Route(LINK, page.checked(page.show), methods=["GET"]),
            Route(LINK, page.checked(page.decide), methods=["POST"]),
            Route(f"{LINK}/all", page.checked(page.show_list), methods=["GET"]),
        ],
        exception_handlers={404: _refuse, 405: _refuse},
    )


NOT_THERE = render_message("This page does not exist.", "Open the whole link, the newest that you were given.")
"""The answer without the secret, whatever was asked for."""


async def _refuse(request: Request, error: Exception) -> Response:
    return _answer(NOT_THERE, getattr(error, "status_code", 404))


class _Page:
    def __init__(self, guard: "Guard", address: PageAddress, watch: ApprovalWatch) -> None:
        self._guard = guard
        self._address = address
        self._watch = watch
        self._gatekeeper = Gatekeeper()
        self._followed = 0

    def checked(self, handler: Handler) -> Handler:
        """Reject requests that are not meant for this page, come from another site, or have no right to see it."""

        async def handle(request: Request) -> Response:
            try:
                self._gatekeeper.check(request.method, request.headers, needs_origin=True)
                if not self._address.has_key(request.path_params["approval_id"], request.path_params["key"]):
                    return _answer(NOT_THERE, 404)
                return await handler(request)
            except Refused as refused:
                return _answer(render_message(WORDS[refused.status]), refused.status)
            except ZoneError as error:
                return _answer(render_message(error.message, error.hint), STATUS_BY_ERROR.get(type(error), 400))

        return handle

    async def show_list(self, request: Request) -> Response:
        """Show what else waits for a decision on the same principal's requests: no link tells of another principal's."""
        approval = await self._guard.get_approval(request.path_params["approval_id"])
        waiting = [
            one
            for one in await self._guard.list_approvals()
            if one.state is State.PENDING and one.call.principal == approval.call.principal
        ]
        page = render_list([(one, self._address.path(one.id)) for one in waiting], phrase=await self._guard.phrase())
        return _answer(page)

    async def show(self, request: Request) -> Response:
        return await self._show(request)

    async def _show(self, request: Request, problem: str = "", status: int = 200) -> Response:
        """Show the approval; a browser that opens it is told when it is decided or used elsewhere."""
        approval = await self._present(request.path_params["approval_id"])
        page = await self._render(approval, problem)
        is_browser = request.headers.get("sec-fetch-mode") == "navigate"
        if is_browser and approval.state in OPEN and self._followed < MAX_FOLLOWED:
            return StreamingResponse(self._follow(approval, page), status, HEADERS, "text/html")
        return _answer(page, status)

    async def _follow(self, approval: Approval, page: str) -> AsyncIterator[str]:
        """Send the page, and hold back its end, which makes the browser load it again, until the approval changes.

        This needs no script, and leaves what is being typed alone.
        """
        self._followed += 1
        try:
            yield page
            if await self._watch.until_changed(approval.id, approval.state):
                yield render_refresh(self._address.path(approval.id))
        finally:
            self._followed -= 1

    async def decide(self, request: Request) -> Response:
        approval_id = request.path_params["approval_id"]
        form = await _read_form(request)
        if form is None:
            return _answer(render_message("The request is not a form."), 400)
        digest = form.get("digest", "")
        if not hmac.compare_digest(form.get("token", "").encode(), self._address.token(approval_id, digest).encode()):
            return await self._show(request, "Your page was out of date. Please review it and decide again.", 403)
        try:
            if form.get("decision") == "deny":
                await self._guard.deny(approval_id, door=Door.PAGE)
            elif form.get("decision") == "approve":
                await self._approve(approval_id, digest, form)
            else:
                return await self._show(request, "Choose either to approve or to deny.", 400)
        except (WrongPin, PinLocked, NotDecidable) as error:
            return await self._show(request, f"{error.message} {error.hint}", STATUS_BY_ERROR[type(error)])
        return Response(status_code=303, headers=HEADERS | {"Location": self._address.path(approval_id)})

    async def _approve(self, approval_id: str, digest: str, form: dict[str, str]) -> None:
        question = (await self._guard.get_approval(approval_id)).question
        if question.kind == "typed_name" and form.get("name", "").strip() != question.expected_name:
            raise NotDecidable("The name is wrong.", hint=f"To approve this, type {question.expected_name}.")
        await self._guard.approve(approval_id, form.get("pin", ""), digest=digest, door=Door.PAGE)

    async def _present(self, approval_id: str) -> Approval:
        """Return the approval, with the end of its job if its zone tells."""
        approval = await self._guard.get_approval(approval_id)
        if approval.state is State.SPENT and approval.job_end is None:
            await self._guard.note_all_ends()
            approval = await self._guard.get_approval(approval_id)
        return approval

    async def _render(self, approval: Approval, problem: str = "") -> str:
        return render_approval(
            approval,
            path=self._address.path(approval.id),
            token=self._address.token(approval.id, approval.plan.digest),
            has_pin=await self._guard.has_pin(),
            phrase=await self._guard.phrase(),
            command=self._guard.command,
            warning=self._address.warning,
            problem=problem,
        )


async def _read_form(request: Request) -> dict[str, str] | None:
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return None
    body = await read_body(request, MAX_BODY_BYTES)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=10)
    except ValueError:
        return None
    return {name: values[0] for name, values in fields.items() if len(values) == 1}


def _answer(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status_code=status, headers=HEADERS)
