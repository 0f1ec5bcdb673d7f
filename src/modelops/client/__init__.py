"""The Python client: every operation over REST, typed, blocking (`Client`) or not (`AsyncClient`).

    from modelops import Client

    with Client() as client:
        print(client.infer("smollm2", "What is the capital of France?").output_text)

Errors are those of `modelops.api.errors`, each with its `code`, `retry_after_s` and `details`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx

from modelops.api import chat as chats
from modelops.api import goals, learning, types
from modelops.api.errors import InvalidRequest
from modelops.client.wire import DEFAULT_URL, Answer, Trust, Unreachable, Wire, chunk

#: A turn of a conversation: `{"role": "user", "content": "Hello!"}`; its fields are those of ChatTurn.
Turn = Mapping[str, Any]

#: Between the beginnings of two watches: a coordinator that shuts down ends each at once, until it is away.
_SOONEST_S = 0.5

Event = TypeVar("Event", learning.JobEvent, goals.GoalEvent)

__all__ = ["DEFAULT_URL", "AsyncClient", "Client", "Turn", "Unreachable"]


def _turns(messages: Sequence[Turn]) -> list[dict[str, Any]]:
    return [dict(turn) for turn in messages]


def _key(idempotency_key: str | None) -> dict[str, str]:
    if idempotency_key is None:
        return {}
    if not (idempotency_key.isascii() and idempotency_key.isprintable()):  # no header could hold it
        raise InvalidRequest("an idempotency key is 1 to 255 printable characters of ASCII")
    return {"Idempotency-Key": idempotency_key}


def _goes_on(event: learning.JobEvent | goals.GoalEvent) -> bool:
    """Whether that is the last one only because the time is up."""
    about = event.job if isinstance(event, learning.JobEvent) else event.goal
    return event.done and about is not None and about.completed_at is None


class Client:
    """A blocking client. One may be shared by threads; close it, or use it in a `with`.

    `ca_file` holds the server's certificate or its authority's, where no public authority vouches for it; `certificate`
    is a client certificate and its key, an alternative to a key.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        ca_file: str | Path | None = None,
        certificate: tuple[str | Path, str | Path] | None = None,
    ) -> None:
        self._wire = Wire(url, Trust(api_key, ca_file, certificate), timeout_s)
        self._http = httpx.Client(**self._wire.options)
        #: Where the coordinator is.
        self.url = self._wire.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def infer(self, model: str, text: str, **options: Any) -> types.InferenceResponse:
        """The answer to one user turn; `options` are the other fields of InferenceRequest."""
        return self._call("infer", types.InferenceResponse, model_name=model, input_text=text, **options)

    def stream(self, model: str, text: str, **options: Any) -> Generator[types.InferenceChunk]:
        """As `infer`, chunk by chunk as the answer is made; the last is `done`. Closing the iterator cancels."""
        fields = {"model_name": model, "input_text": text, **options, "stream": True}
        yield from self._stream("infer", types.InferenceChunk, **fields)

    def chat(self, model: str, messages: Sequence[Turn], **options: Any) -> chats.ChatResponse:
        """How the conversation goes on; `options` are the other fields of ChatRequest."""
        return self._call("chat", chats.ChatResponse, model_name=model, messages=_turns(messages), **options)

    def chat_stream(self, model: str, messages: Sequence[Turn], **options: Any) -> Generator[chats.ChatChunk]:
        """As `chat`, chunk by chunk as the answer is made; the last is `done`. Closing the iterator cancels."""
        fields = {"model_name": model, "messages": _turns(messages), **options, "stream": True}
        yield from self._stream("chat", chats.ChatChunk, **fields)

    def embed(self, model: str, inputs: list[str], **options: Any) -> types.EmbedResponse:
        """Each input as a vector of length 1, by a model of type `embedding`."""
        return self._call("embed", types.EmbedResponse, model_name=model, inputs=inputs, **options)

    def rerank(self, model: str, query: str, documents: list[str], **options: Any) -> types.RerankResponse:
        """The documents by how well they answer the query, best first, by a model of type `reranker`."""
        return self._call("rerank", types.RerankResponse, model_name=model, query=query, documents=documents, **options)

    def load(self, model: str, path: str = "", **options: Any) -> types.ModelLoadReply:
        """Load `model`, from `path` where it is not registered; returns when it answers, unless `wait=False`."""
        return self._call("load_model", types.ModelLoadReply, model_name=model, model_path=path or None, **options)

    def unload(self, model: str, *, force: bool = False) -> types.ModelUnloadReply:
        """Unload `model` after its requests in flight, or at once with `force`."""
        return self._call("unload_model", types.ModelUnloadReply, model_name=model, force=force)

    def models(self, *, all: bool = False) -> list[types.ModelInfo]:
        """What is resident or on its way, or with `all` everything that is registered."""
        return self._call("list_models", types.ModelList, all=all).models

    def model(self, model: str) -> types.ModelInfo:
        """One model as it stands."""
        return self._call("get_model", types.ModelInfo, model_name=model)

    def watch(self, model: str) -> Generator[types.ModelEvent]:
        """The model whenever something about it has changed, until it rests: loaded, available or failed."""
        yield from self._stream("watch_model", types.ModelEvent, model_name=model)

    def explain(self, model: str) -> types.ModelExplanation:
        """Where the model's memory goes."""
        return self._call("explain_model", types.ModelExplanation, model_name=model)

    def versions(self, model: str) -> list[types.ModelVersion]:
        """The model's versions, oldest first."""
        return self._call("list_versions", types.VersionList, model_name=model).versions

    def register(self, model: str, path: str, **options: Any) -> types.ModelVersion:
        """Register the file or source as the model's next version, without loading it."""
        return self._call("register_version", types.ModelVersion, model_name=model, model_path=path, **options)

    def activate(self, model: str, version: str, *, drain_first: bool = False) -> types.ModelInfo:
        """Let `version` answer from now on; where the model is loaded, without a failed request."""
        return self._call(
            "activate_version", types.ModelInfo, model_name=model, model_version=version, drain_first=drain_first
        )

    def roll_back(self, model: str, *, drain_first: bool = False) -> types.ModelInfo:
        """Let the version that was active before answer again."""
        return self._call("roll_back", types.ModelInfo, model_name=model, drain_first=drain_first)

    def remove(self, model: str, version: str = "all") -> types.Removal:
        """Forget a version, or all, and delete the files that are the coordinator's own."""
        return self._call("remove_version", types.Removal, model_name=model, model_version=version)

    def prune(self) -> types.Removal:
        """Remove what nothing needs."""
        return self._call("prune", types.Removal)

    # --- learning jobs ---
    def create_job(
        self, job_type: learning.JobType, model: str, *, idempotency_key: str | None = None, **options: Any
    ) -> learning.LearningJob:
        """A learning job, waiting for its turn; `options` are the other fields of CreateJobRequest.

        Repeated with the same key, it is the job that was created first.
        """
        fields = {"job_type": job_type, "model_name": model, **options}
        return self._call("create_job", learning.LearningJob, _key(idempotency_key), **fields)

    def list_jobs(self, status: learning.JobStatus | None = None) -> list[learning.LearningJob]:
        """The learning jobs, the newest first."""
        return self._call("list_jobs", learning.JobList, status=status).jobs

    def get_job(self, job_id: str) -> learning.LearningJob:
        """One learning job as it stands."""
        return self._call("get_job", learning.LearningJob, job_id=job_id)

    def watch_job(self, job_id: str, *, after: int = 0, follow: bool = True) -> Generator[learning.JobEvent]:
        """What has happened to the job after the event of that number, and what happens until it has ended.

        The last event is `done` and holds the `job`. Without `follow` that is the last one so far. Where the
        coordinator ends a long watch, it is taken up again. Raises Unreachable where the coordinator goes away: the
        job goes on after its restart, and so does a watch `after` the last event's number.
        """
        yield from self._watch("watch_job", learning.JobEvent, after, follow, job_id=job_id)

    def cancel_job(self, job_id: str, reason: str = "") -> learning.LearningJob:
        """The job, which ends soon if it has not yet."""
        return self._call("cancel_job", learning.LearningJob, job_id=job_id, reason=reason)

    # --- goals ---
    def create_goal(
        self, title: str, objective: Mapping[str, Any], *, idempotency_key: str | None = None, **options: Any
    ) -> goals.Goal:
        """A goal, to be pursued; `objective` has a `type` and its fields, `options` are the other fields of
        CreateGoalRequest.

        Repeated with the same key, it is the goal that was created first.
        """
        fields = {"title": title, "objective": dict(objective), **options}
        return self._call("create_goal", goals.Goal, _key(idempotency_key), **fields)

    def list_goals(self, status: goals.GoalStatus | Literal["all"] | None = None) -> list[goals.Goal]:
        """The goals, the newest first; without a status those that have not ended."""
        return self._call("list_goals", goals.GoalList, status=status).goals

    def get_goal(self, goal_id: str) -> goals.Goal:
        """One goal as it stands."""
        return self._call("get_goal", goals.Goal, goal_id=goal_id)

    def watch_goal(self, goal_id: str, *, after: int = 0, follow: bool = True) -> Generator[goals.GoalEvent]:
        """What has happened to the goal after the event of that number, and what happens until it has ended, as
        `watch_job` tells it; the last event holds the `goal`."""
        yield from self._watch("watch_goal", goals.GoalEvent, after, follow, goal_id=goal_id)

    def cancel_goal(self, goal_id: str, reason: str = "") -> goals.Goal:
        """The goal, which ends soon if it has not yet."""
        return self._call("cancel_goal", goals.Goal, goal_id=goal_id, reason=reason)

    # --- the whole ---
    def status(self) -> types.SystemStatus:
        """The machine and what runs on it."""
        return self._call("status", types.SystemStatus)

    def health(self) -> types.HealthResponse:
        """Whether the coordinator can serve, part by part."""
        return self._call("health", types.HealthResponse)

    def _watch(self, name: str, kind: type[Event], after: int, follow: bool, **which: str) -> Generator[Event]:
        """The events after that number; a watch that has ended only because the time is up is taken up again."""
        while True:
            event, soonest = None, time.monotonic() + _SOONEST_S
            for event in self._stream(name, kind, **which, after=after, follow=follow):
                after = event.number
                if not (follow and _goes_on(event)):
                    yield event
            if event is None or not (follow and _goes_on(event)):
                return
            threading.Event().wait(max(0.0, soonest - time.monotonic()))  # nobody sets it

    def _stream(self, name: str, kind: type[Answer], **fields: Any) -> Generator[Answer]:
        try:
            with self._http.stream(**self._wire.request(name, fields)) as response:
                if not response.is_success:
                    raise self._wire.failure(response.status_code, response.read())
                for line in response.iter_lines():
                    if found := chunk(kind, line):
                        yield found
        except httpx.TransportError as error:
            raise self._wire.unreachable(error) from error

    def _call(
        self, name: str, kind: type[Answer], headers: Mapping[str, str] | None = None, /, **fields: Any
    ) -> Answer:
        try:
            return self._wire.parsed(name, kind, self._http.request(**self._wire.request(name, fields, headers)))
        except httpx.TransportError as error:
            raise self._wire.unreachable(error) from error


class AsyncClient:
    """The same without blocking: every method is awaited, `stream` is an async iterator."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        ca_file: str | Path | None = None,
        certificate: tuple[str | Path, str | Path] | None = None,
    ) -> None:
        self._wire = Wire(url, Trust(api_key, ca_file, certificate), timeout_s)
        self._http = httpx.AsyncClient(**self._wire.options)
        #: Where the coordinator is.
        self.url = self._wire.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def infer(self, model: str, text: str, **options: Any) -> types.InferenceResponse:
        """As Client.infer."""
        return await self._call("infer", types.InferenceResponse, model_name=model, input_text=text, **options)

    async def stream(self, model: str, text: str, **options: Any) -> AsyncGenerator[types.InferenceChunk]:
        """As Client.stream; to cancel, close the generator (`contextlib.aclosing`)."""
        fields = {"model_name": model, "input_text": text, **options, "stream": True}
        async with contextlib.aclosing(self._stream("infer", types.InferenceChunk, **fields)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def chat(self, model: str, messages: Sequence[Turn], **options: Any) -> chats.ChatResponse:
        """As Client.chat."""
        return await self._call("chat", chats.ChatResponse, model_name=model, messages=_turns(messages), **options)

    async def chat_stream(
        self, model: str, messages: Sequence[Turn], **options: Any
    ) -> AsyncGenerator[chats.ChatChunk]:
        """As Client.chat_stream; to cancel, close the generator (`contextlib.aclosing`)."""
        fields = {"model_name": model, "messages": _turns(messages), **options, "stream": True}
        async with contextlib.aclosing(self._stream("chat", chats.ChatChunk, **fields)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, model: str, inputs: list[str], **options: Any) -> types.EmbedResponse:
        """Each input as a vector of length 1, by a model of type `embedding`."""
        return await self._call("embed", types.EmbedResponse, model_name=model, inputs=inputs, **options)

    async def rerank(self, model: str, query: str, documents: list[str], **options: Any) -> types.RerankResponse:
        """The documents by how well they answer the query, best first, by a model of type `reranker`."""
        return await self._call(
            "rerank", types.RerankResponse, model_name=model, query=query, documents=documents, **options
        )

    async def load(self, model: str, path: str = "", **options: Any) -> types.ModelLoadReply:
        """As Client.load."""
        return await self._call(
            "load_model", types.ModelLoadReply, model_name=model, model_path=path or None, **options
        )

    async def unload(self, model: str, *, force: bool = False) -> types.ModelUnloadReply:
        """As Client.unload."""
        return await self._call("unload_model", types.ModelUnloadReply, model_name=model, force=force)

    async def models(self, *, all: bool = False) -> list[types.ModelInfo]:
        """As Client.models."""
        return (await self._call("list_models", types.ModelList, all=all)).models

    async def model(self, model: str) -> types.ModelInfo:
        """As Client.model."""
        return await self._call("get_model", types.ModelInfo, model_name=model)

    async def watch(self, model: str) -> AsyncGenerator[types.ModelEvent]:
        """As Client.watch."""
        async with contextlib.aclosing(self._stream("watch_model", types.ModelEvent, model_name=model)) as events:
            async for event in events:
                yield event

    async def explain(self, model: str) -> types.ModelExplanation:
        """Where the model's memory goes."""
        return await self._call("explain_model", types.ModelExplanation, model_name=model)

    async def versions(self, model: str) -> list[types.ModelVersion]:
        """The model's versions, oldest first."""
        return (await self._call("list_versions", types.VersionList, model_name=model)).versions

    async def register(self, model: str, path: str, **options: Any) -> types.ModelVersion:
        """Register the file or source as the model's next version, without loading it."""
        return await self._call("register_version", types.ModelVersion, model_name=model, model_path=path, **options)

    async def activate(self, model: str, version: str, *, drain_first: bool = False) -> types.ModelInfo:
        """Let `version` answer from now on; where the model is loaded, without a failed request."""
        return await self._call(
            "activate_version", types.ModelInfo, model_name=model, model_version=version, drain_first=drain_first
        )

    async def roll_back(self, model: str, *, drain_first: bool = False) -> types.ModelInfo:
        """Let the version that was active before answer again."""
        return await self._call("roll_back", types.ModelInfo, model_name=model, drain_first=drain_first)

    async def remove(self, model: str, version: str = "all") -> types.Removal:
        """Forget a version, or all, and delete the files that are the coordinator's own."""
        return await self._call("remove_version", types.Removal, model_name=model, model_version=version)

    async def prune(self) -> types.Removal:
        """Remove what nothing needs."""
        return await self._call("prune", types.Removal)

    # --- learning jobs ---
    async def create_job(
        self, job_type: learning.JobType, model: str, *, idempotency_key: str | None = None, **options: Any
    ) -> learning.LearningJob:
        """As Client.create_job."""
        fields = {"job_type": job_type, "model_name": model, **options}
        return await self._call("create_job", learning.LearningJob, _key(idempotency_key), **fields)

    async def list_jobs(self, status: learning.JobStatus | None = None) -> list[learning.LearningJob]:
        """As Client.list_jobs."""
        return (await self._call("list_jobs", learning.JobList, status=status)).jobs

    async def get_job(self, job_id: str) -> learning.LearningJob:
        """As Client.get_job."""
        return await self._call("get_job", learning.LearningJob, job_id=job_id)

    async def watch_job(self, job_id: str, *, after: int = 0, follow: bool = True) -> AsyncGenerator[learning.JobEvent]:
        """As Client.watch_job."""
        watching = self._watch("watch_job", learning.JobEvent, after, follow, job_id=job_id)
        async with contextlib.aclosing(watching) as events:
            async for event in events:
                yield event

    async def cancel_job(self, job_id: str, reason: str = "") -> learning.LearningJob:
        """As Client.cancel_job."""
        return await self._call("cancel_job", learning.LearningJob, job_id=job_id, reason=reason)

    # --- goals ---
    async def create_goal(
        self, title: str, objective: Mapping[str, Any], *, idempotency_key: str | None = None, **options: Any
    ) -> goals.Goal:
        """As Client.create_goal."""
        fields = {"title": title, "objective": dict(objective), **options}
        return await self._call("create_goal", goals.Goal, _key(idempotency_key), **fields)

    async def list_goals(self, status: goals.GoalStatus | Literal["all"] | None = None) -> list[goals.Goal]:
        """As Client.list_goals."""
        return (await self._call("list_goals", goals.GoalList, status=status)).goals

    async def get_goal(self, goal_id: str) -> goals.Goal:
        """As Client.get_goal."""
        return await self._call("get_goal", goals.Goal, goal_id=goal_id)

    async def watch_goal(self, goal_id: str, *, after: int = 0, follow: bool = True) -> AsyncGenerator[goals.GoalEvent]:
        """As Client.watch_goal."""
        watching = self._watch("watch_goal", goals.GoalEvent, after, follow, goal_id=goal_id)
        async with contextlib.aclosing(watching) as events:
            async for event in events:
                yield event

    async def cancel_goal(self, goal_id: str, reason: str = "") -> goals.Goal:
        """As Client.cancel_goal."""
        return await self._call("cancel_goal", goals.Goal, goal_id=goal_id, reason=reason)

    # --- the whole ---
    async def status(self) -> types.SystemStatus:
        """As Client.status."""
        return await self._call("status", types.SystemStatus)

    async def health(self) -> types.HealthResponse:
        """As Client.health."""
        return await self._call("health", types.HealthResponse)

    async def _watch(
        self, name: str, kind: type[Event], after: int, follow: bool, **which: str
    ) -> AsyncGenerator[Event]:
        while True:
            event, soonest = None, time.monotonic() + _SOONEST_S
            async with contextlib.aclosing(self._stream(name, kind, **which, after=after, follow=follow)) as events:
                async for event in events:
                    after = event.number
                    if not (follow and _goes_on(event)):
                        yield event
            if event is None or not (follow and _goes_on(event)):
                return
            await asyncio.sleep(max(0.0, soonest - time.monotonic()))

    async def _stream(self, name: str, kind: type[Answer], **fields: Any) -> AsyncGenerator[Answer]:
        try:
            async with self._http.stream(**self._wire.request(name, fields)) as response:
                if not response.is_success:
                    raise self._wire.failure(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if found := chunk(kind, line):
                        yield found
        except httpx.TransportError as error:
            raise self._wire.unreachable(error) from error

    async def _call(
        self, name: str, kind: type[Answer], headers: Mapping[str, str] | None = None, /, **fields: Any
    ) -> Answer:
        try:
            response = await self._http.request(**self._wire.request(name, fields, headers))
            return self._wire.parsed(name, kind, response)
        except httpx.TransportError as error:
            raise self._wire.unreachable(error) from error
