"""Elicitation: the guard's questions to the person behind a client, through the host, in both protocol eras.

Modern hosts are asked in rounds: the call ends with a question (`AnswerNeeded`), is repeated with the answer, and runs from
the start up to the same question. Questions and answers travel in the request's state, which the SDK seals, so an answer
counts only for the question that it was given to. Older hosts are asked during the call, for a bounded time, because they
abandon the call after a minute.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from functools import cache
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
    InputResponse,
)
from pydantic import TypeAdapter, ValidationError

from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.guard import Question, QuestionAnswer, UrlAnswer
from snapshot_mcp.server.deadline import LOOKUP_SECONDS, seconds_left

ROUNDS_SINCE = "2026-07-28"
"""The first protocol version with questions in rounds."""
ASK_SECONDS = 48.0
"""Time limit for a person's answer, which leaves the call some time to say what came of it."""
KEY = "consent"
FIELD = "answer"


@cache
def _answers() -> TypeAdapter[Any]:
    """Return what reads whatever the protocol has as an answer, to a question of ours or not; building it takes its time."""
    return TypeAdapter(InputResponse)


NO_ANSWER = (MCPError, ValidationError)
"""What a question ends with if the host refuses it, has gone, or answers with something else than the protocol has."""


async def read_odd_answers(ctx: Any, call_next: Any) -> Any:
    """Take an answer that is none for a closed dialog (middleware): the SDK would refuse the whole call without a word."""
    given = (ctx.params or {}).get("inputResponses")
    if ctx.method == "tools/call" and isinstance(given, dict):
        ctx = replace(ctx, params={**ctx.params, "inputResponses": {key: _readable(one) for key, one in given.items()}})
    return await call_next(ctx)


def _readable(answer: Any) -> Any:
    try:
        _answers().validate_python(answer)
    except ValidationError:
        return {"action": "cancel"}
    return answer


class AnswerNeeded(Exception):
    """The call must end with a question; `result` asks it."""

    def __init__(self, result: InputRequiredResult) -> None:
        super().__init__("the host must ask its user")
        self.result = result


class HostClient:
    """The caller of a guarded call, as the guard's `Client`."""

    def __init__(self, ctx: Context[Any, Any]) -> None:
        self._ctx = ctx
        self._is_modern = (ctx.protocol_version or "") >= ROUNDS_SINCE
        self._answers = _answers_of(ctx)
        self._deadline = anyio.current_time() + min(ASK_SECONDS, max(0.0, seconds_left() - LOOKUP_SECONDS))
        self._said_no = any(_answer(ElicitResult.model_validate(given)).is_no for given in self._answers.values())

    @property
    def principal(self) -> str:
        """The name of the caller's token; `local` without one."""
        token = get_access_token()
        return token.client_id if token else "local"

    @property
    def name(self) -> str:
        """The client's name, as it reports it."""
        params = self._ctx.session.client_params
        return clean_text(params.client_info.name) if params else ""

    @property
    def version(self) -> str:
        """The client's version, as it reports it."""
        params = self._ctx.session.client_params
        return clean_text(params.client_info.version) if params else ""

    @property
    def process(self) -> str:
        """Empty: no host speaks for the person at a terminal."""
        return ""

    @property
    def said_no(self) -> bool:
        """Whether the person has declined a question of this call."""
        return self._said_no

    @property
    def seconds_left(self) -> float:
        """The time until the call must return."""
        return max(0.0, self._deadline - anyio.current_time())

    @property
    def can_ask(self) -> bool:
        """Whether the host can show a form."""
        elicitation = self._elicitation
        return elicitation is not None and (elicitation.form is not None or elicitation.url is None)

    @property
    def can_open_url(self) -> bool:
        """Whether the host can open a URL."""
        elicitation = self._elicitation
        return elicitation is not None and elicitation.url is not None

    async def ask(self, question: Question) -> QuestionAnswer:
        """Ask the person. Raises AnswerNeeded in a round without an answer to this question."""
        params = ElicitRequestFormParams(message=question.message, requested_schema=_schema(question))
        if self._is_modern:
            return _answer(self._answered(params))
        with suppress(*NO_ANSWER), anyio.move_on_after(self.seconds_left):
            result = await self._ctx.session.elicit_form(
                params.message, params.requested_schema, related_request_id=self._ctx.request_id
            )
            answer = _answer(result)
            self._said_no |= answer.is_no
            return answer
        return QuestionAnswer("unanswered")

    async def open_url(self, approval_id: str, message: str, url: str) -> UrlAnswer:
        """Ask the person to open the approval page; opening it approves nothing."""
        if self._is_modern:
            return _url_answer(self._answered(ElicitRequestURLParams(message=message, url=url)))
        with suppress(*NO_ANSWER), anyio.move_on_after(self.seconds_left):
            result = await self._ctx.session.elicit_url(
                message, url, approval_id, related_request_id=self._ctx.request_id
            )
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
    """Return the answers of this call's rounds by the digest of their question."""
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
    """Return a form with one field, without a default, which hosts would fill in; the first choice, preselected, is to keep."""
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
    if result.action == "accept":
        return UrlAnswer("accepted")
    return UrlAnswer("declined" if result.action == "decline" else "cancelled")
