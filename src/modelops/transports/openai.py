"""What OpenAI's clients ask for, under /v1: another form of the same operations.

Everything is admitted, performed, counted and cancelled as over the other routes of REST; only the forms of requests,
answers and errors are OpenAI's.
"""

from __future__ import annotations

import abc
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from modelops.api import chat, types
from modelops.api.errors import InvalidRequest, ModelOpsError, NotFound
from modelops.api.operations import OPERATIONS, Operation
from modelops.service import Call, Coordinator, internal
from modelops.tasks import Tasks
from modelops.transports import openai_answers as answers
from modelops.transports import openai_requests as requests
from modelops.transports.endpoint import CALL, Endpoint, EventStream
from modelops.transports.listening import Listening
from modelops.transports.openai_answers import About, Body
from modelops.transports.openai_requests import Asked

PREFIX = "/v1"
#: How paths end that nobody but OpenAI's clients asks for, whatever stands in front.
_ONLY_THEIRS = ("/chat/completions", "/completions", "/responses")
_BY_NAME: dict[str, Operation] = {operation.name: operation for operation in OPERATIONS}


def routes(coordinator: Coordinator, listening: Listening, tasks: Tasks) -> list[Route]:
    """All that there is under /v1."""
    return [
        Route(path, kind(coordinator, _BY_NAME[kind.performs], listening, tasks), methods=[method])
        for (method, path), kind in ROUTES.items()
    ]


def theirs(path: str) -> bool:
    """Whether one of OpenAI's clients asks for `path`, be its base_url right or wrong."""
    return path.startswith(PREFIX) or path.rstrip("/").endswith(_ONLY_THEIRS)


def unrouted(scope: Scope, status: int, allow: str = "") -> Response:
    """What is told of a path, or a method, that there is not."""
    path = scope["path"][:100]
    said: ModelOpsError
    if status == 404:
        said = _missing(scope["path"])
    else:
        said = InvalidRequest(f"{scope['method']} is not offered at {path!r}; {allow or 'another method'} is")
    return _refusal(scope, said, status)


def _missing(path: str) -> NotFound:
    name = path.removeprefix(f"{PREFIX}/models/")
    if name not in ("", path):  # it holds a slash, which no model's name does
        return NotFound(f"there is no model {name[:128]!r}; GET {PREFIX}/models lists those that there are")
    return NotFound(f"there is nothing at {path[:100]!r}; {_meant(path)}", details={"param": ""})


def _meant(path: str) -> str:
    """What somebody is to ask for instead of `path`."""
    asked = path.rstrip("/")
    if asked.endswith("/responses"):
        return f"OpenAI's Responses API is not offered: ask POST {PREFIX}/chat/completions (client.chat.completions)"
    close = [offered for _, offered in ROUTES if asked.endswith(offered.removeprefix(PREFIX))]
    if not close:
        return "docs/openai.md lists what there is"
    return (
        f"it is at {max(close, key=len)!r}: a client's base_url is the coordinator's address with one {PREFIX}, no more"
    )


def _refusal(scope: Scope, error: ModelOpsError, status: int = 0) -> Response:
    call: Call = scope[CALL]
    call.failed(error)
    return answers.refusal(error, call.request_id, status)


class _Endpoint(Endpoint):
    """One operation in OpenAI's words."""

    performs: ClassVar[str]
    text: ClassVar[str] = ""  # the field that may be longer than the model's context

    async def fields(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The body, or what stands in the path."""
        if scope["query_string"]:
            raise InvalidRequest("there are no query parameters here")
        return await self.body(scope, receive) if scope["method"] == "POST" else dict(scope.get("path_params", {}))

    def refusal(self, scope: Scope, error: ModelOpsError) -> Response:
        """As OpenAI's clients expect it."""
        if self.text and error.details.get("limit") == "context_length":
            error.details.setdefault("param", self.text)
        return _refusal(scope, error)

    def told(self, call: Call, body: Body) -> Response:
        """The answer is `body`."""
        headers = {"x-request-id": call.request_id}
        return Response(_encoded(body), headers=headers, media_type="application/json")


class _Models(_Endpoint):
    performs = "list_models"

    async def answer(self, call: Call, fields: dict[str, Any], send: Send) -> Response:
        """All that are registered: each is loaded when it is asked."""
        asked = types.ListModelsRequest(all=True)
        return self.told(call, answers.models(await self.coordinator.perform(call, self.operation, asked)))


class _Model(_Endpoint):
    performs = "get_model"

    async def answer(self, call: Call, fields: dict[str, Any], send: Send) -> Response:
        """One of them."""
        asked = requests.model(fields)
        found = await self.coordinator.perform(call, self.operation, asked)
        return self.told(call, answers.model(found, asked.model_name))


class _Embeddings(_Endpoint):
    performs, text = "embed", "input"

    async def answer(self, call: Call, fields: dict[str, Any], send: Send) -> Response:
        """The vectors."""
        asked = requests.embedding(fields)
        found = await self.coordinator.perform(call, self.operation, asked)
        form = fields.get("encoding_format") or "float"
        return self.told(call, answers.embeddings(asked.model_name, found, form, fields.get("dimensions")))


class _Rerank(_Endpoint):
    performs, text = "rerank", "documents"

    async def answer(self, call: Call, fields: dict[str, Any], send: Send) -> Response:
        """The scores."""
        asked = requests.rerank(fields)
        return self.told(
            call, answers.scores(asked.model_name, await self.coordinator.perform(call, self.operation, asked))
        )


class _Generation(_Endpoint):
    """What answers in text, whole or in chunks; several answers are one call."""

    prefix: ClassVar[str]
    kinds: ClassVar[tuple[str, str]]  # of a whole answer, and of a chunk of one

    @abc.abstractmethod
    def asked(self, fields: dict[str, Any]) -> Asked:
        """What is asked for each of the answers."""

    @abc.abstractmethod
    def choice(self, number: int, answer: Any) -> Body:
        """An answer that is whole."""

    @abc.abstractmethod
    def pieces(self, number: int, chunk: Any, *, first: bool) -> list[Body]:
        """What a chunk of an answer adds to it."""

    async def answer(self, call: Call, fields: dict[str, Any], send: Send) -> Response | None:
        """All that is asked for."""
        asked, wants_usage = self.asked(fields), requests.wants_usage(fields)
        if asked.stream:
            await self._streamed(call, asked, wants_usage, send)
            return None
        found = []
        async with contextlib.aclosing(self._several(call, asked)) as chunks:
            async for _, chunk in chunks:
                found.append(chunk.final)
        choices = [self.choice(number, answer) for number, answer in enumerate(found)]
        told = self._about(call, asked).told(self.kinds[0], *choices)
        return self.told(call, told | {"usage": answers.usage(found, asked.n)})

    def _several(self, call: Call, asked: Asked) -> AsyncGenerator[tuple[int, Any]]:
        return self.coordinator.several(call, self.operation, asked.questions, asked.n, whole=not asked.stream)

    async def _streamed(self, call: Call, asked: Asked, wants_usage: bool, send: Send) -> None:
        """Send the answers, what they took where it is wanted, and the mark of the end.

        A stream that is cut short ends with an error instead. What fails before the first piece is raised.
        """
        events, found, begun = EventStream(call, send), [], -1
        more: Body = {"usage": None} if wants_usage else {}

        async def event(*choices: Body, more: Body = more) -> None:
            await events.event(_encoded(self._about(call, asked).told(self.kinds[1], *choices) | more))

        try:
            async with contextlib.aclosing(self._several(call, asked)) as chunks:
                async for number, chunk in chunks:
                    for piece in self.pieces(number, chunk, first=number > begun):
                        await event(piece)
                    begun = number
                    if chunk.final:
                        found.append(chunk.final)
            if call.record.error:
                raise call.record.error
            if wants_usage:
                await event(more={"usage": answers.usage(found, asked.n)})
            await events.event(b"[DONE]")
        except Exception as error:
            if not events.begun:
                raise
            told = error if isinstance(error, ModelOpsError) else internal(call, error)
            call.failed(told)
            await events.event(_encoded(answers.error(told)))
        await events.end()

    def _about(self, call: Call, asked: Asked) -> About:
        """What the parts of the answer to `call` have in common, as far as it is known now."""
        record = call.record
        return About(f"{self.prefix}-{call.request_id}", record.began_ns // 10**9, asked.model, record.version)


class _Chat(_Generation):
    performs, text = "chat", "messages"
    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def asked(self, fields: dict[str, Any]) -> Asked:
        """A conversation to go on with."""
        return requests.chat(fields)

    def choice(self, number: int, answer: chat.ChatResponse) -> Body:
        """What was said."""
        return answers.chat_choice(number, answer)

    def pieces(self, number: int, chunk: chat.ChatChunk, *, first: bool) -> list[Body]:
        """What is said; before all else, who says it."""
        beginning = [answers.chat_beginning(number)] if first else []
        if chunk.final and not chunk.final.success:
            return beginning
        return [*beginning, answers.chat_piece(number, chunk)]


class _Completions(_Generation):
    performs, text = "infer", "prompt"
    prefix, kinds = "cmpl", ("text_completion", "text_completion")

    def asked(self, fields: dict[str, Any]) -> Asked:
        """Texts to go on with."""
        return requests.completion(fields)

    def choice(self, number: int, answer: types.InferenceResponse) -> Body:
        """How the text goes on."""
        return answers.completion_choice(number, answer.output_text, answer.finish_reason)

    def pieces(self, number: int, chunk: types.InferenceChunk, *, first: bool) -> list[Body]:
        """The same, part by part."""
        if chunk.final and not chunk.final.success:
            return []
        why = chunk.final.finish_reason if chunk.final else None
        return [answers.completion_choice(number, chunk.text, why)]


def _encoded(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


#: Method and path → what answers there.
ROUTES: dict[tuple[str, str], type[_Endpoint]] = {
    ("GET", "/v1/models"): _Models,
    ("GET", "/v1/models/{model_name}"): _Model,
    ("POST", "/v1/chat/completions"): _Chat,
    ("POST", "/v1/completions"): _Completions,
    ("POST", "/v1/embeddings"): _Embeddings,
    ("POST", "/v1/rerank"): _Rerank,
}
