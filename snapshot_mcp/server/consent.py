"""The guard's way to the person behind a client: a question through the host, in both protocol eras.

Modern hosts are asked in rounds: the call ends with a question (`AnswerNeeded`), comes again with the answer, and runs
from the start up to the same question. What was asked and answered travels in the request's state, which the SDK seals, so
an answer counts for exactly the question that it was given to. Older hosts are asked in the middle of the call, for a
bounded time, because they give the call up themselves after a minute.
"""

import hashlib
import json
from typing import Any

import anyio
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp.types import (
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequiredResult,
)

from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.guard import Question, QuestionAnswer, UrlAnswer

ROUNDS_SINCE = "2026-07-28"
"""The protocol version from which questions are asked in rounds."""
ASK_SECONDS = 55.0
"""How long a call may take with all that it waits for, an older host's person above all; hosts give it up after 60 seconds."""
KEY = "consent"
FIELD = "answer"


class AnswerNeeded(Exception):
    """The call ends here with a question; `result` asks it."""

    def __init__(self, result: InputRequiredResult) -> None:
        super().__init__("the host must ask its user")
        self.result = result


class HostClient:
    """The caller of one guarded call, as `guard.Client` wants it."""

    def __init__(self, ctx: Context[Any, Any]) -> None:
        self._ctx = ctx
        self._is_modern = (ctx.protocol_version or "") >= ROUNDS_SINCE
        self._answers = _answers_of(ctx)
        self._deadline = anyio.current_time() + ASK_SECONDS
        self._said_no = any(_answer(ElicitResult.model_validate(given)).is_no for given in self._answers.values())

    @property
    def principal(self) -> str:
        token = get_access_token()
        return token.client_id if token else "local"

    @property
    def name(self) -> str:
        params = self._ctx.session.client_params
        return clean_text(params.client_info.name) if params else ""

    @property
    def version(self) -> str:
        params = self._ctx.session.client_params
        return clean_text(params.client_info.version) if params else ""

    @property
    def said_no(self) -> bool:
        return self._said_no

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - anyio.current_time())

    @property
    def can_ask(self) -> bool:
        elicitation = self._elicitation
        return elicitation is not None and (elicitation.form is not None or elicitation.url is None)

    @property
    def can_open_url(self) -> bool:
        elicitation = self._elicitation
        return elicitation is not None and elicitation.url is not None

    async def ask(self, question: Question) -> QuestionAnswer:
        """Put the question to the person; in a round that has no answer to it, leave by AnswerNeeded."""
        params = ElicitRequestFormParams(message=question.message, requested_schema=_schema(question))
        if self._is_modern:
            return _answer(self._answered(params))
        with anyio.move_on_after(self.seconds_left):
            try:
                result = await self._ctx.session.elicit_form(
                    params.message, params.requested_schema, related_request_id=self._ctx.request_id
                )
            except MCPError:
                return QuestionAnswer("unanswered")
            answer = _answer(result)
            self._said_no |= answer.is_no
            return answer
        return QuestionAnswer("unanswered")

    async def open_url(self, approval_id: str, message: str, url: str) -> UrlAnswer:
        """Ask the person to open the approval page; that it was opened approves nothing."""
        if self._is_modern:
            result = self._answered(ElicitRequestURLParams(message=message, url=url))
            return _url_answer(result)
        with anyio.move_on_after(self.seconds_left):
            try:
                result = await self._ctx.session.elicit_url(
                    message, url, approval_id, related_request_id=self._ctx.request_id
                )
            except MCPError:
                return UrlAnswer("unanswered")
            return _url_answer(result)
        return UrlAnswer("unanswered")

    @property
    def _elicitation(self) -> Any:
        capabilities = self._ctx.client_capabilities
        is_reachable = self._is_modern or self._ctx.session.can_send_request
        return capabilities.elicitation if capabilities and is_reachable else None

    def _answered(self, params: ElicitRequestFormParams | ElicitRequestURLParams) -> ElicitResult:
        digest = _digest(params)
        if (given := self._answers.get(digest)) is not None:
            return ElicitResult.model_validate(given)
        raise AnswerNeeded(
            InputRequiredResult(
                input_requests={KEY: ElicitRequest(params=params)},
                request_state=json.dumps({"asked": digest, "answers": self._answers}),
            )
        )


def _answers_of(ctx: Context[Any, Any]) -> dict[str, Any]:
    """What was answered in this call's rounds, by the digest of the question."""
    if not ctx.request_state:
        return {}
    state = json.loads(ctx.request_state)
    answers: dict[str, Any] = state["answers"]
    response = (ctx.input_responses or {}).get(KEY)
    if isinstance(response, ElicitResult):
        answers[state["asked"]] = response.model_dump(mode="json", by_alias=True, exclude_none=True)
    return answers


def _digest(params: ElicitRequestFormParams | ElicitRequestURLParams) -> str:
    return hashlib.sha256(params.model_dump_json(by_alias=True, exclude_none=True).encode()).hexdigest()


def _schema(question: Question) -> dict[str, Any]:
    """One field without a default: hosts fill defaults in by themselves. Lists are shown with their first choice chosen."""
    destroy, keep = question.words
    field: dict[str, Any] = {"type": "string", "title": f"{destroy} or {keep}?", "enum": [keep, destroy]}
    if question.kind == "typed_name":
        title = f"Type the name to {destroy}, or “{keep}”"
        field = {"type": "string", "title": title, "description": f"The name is “{question.expected_name}”"}
    return {"type": "object", "properties": {FIELD: field}, "required": [FIELD]}


def _answer(result: ElicitResult) -> QuestionAnswer:
    if result.action != "accept":
        return QuestionAnswer("declined" if result.action == "decline" else "cancelled")
    text = (result.content or {}).get(FIELD)
    return QuestionAnswer("answered", text) if isinstance(text, str) else QuestionAnswer("unusable")


def _url_answer(result: ElicitResult) -> UrlAnswer:
    match result.action:
        case "accept":
            return UrlAnswer("accepted")
        case "decline":
            return UrlAnswer("declined")
        case _:
            return UrlAnswer("cancelled")
