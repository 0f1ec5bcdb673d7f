"""The Python client: every operation over REST, typed, blocking (`Client`) or not (`AsyncClient`).

    from modelops import Client

    with Client() as client:
        print(client.infer("smollm2", "What is the capital of France?").output_text)

Errors are those of `modelops.api.errors`, each with its `code`, `retry_after_s` and `details`.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from modelops.api import chat as chats
from modelops.api import types
from modelops.api.errors import BY_CODE, InvalidRequest, ModelOpsError
from modelops.api.operations import OPERATIONS, Operation

DEFAULT_URL = "http://127.0.0.1:8008"

#: A turn of a conversation: `{"role": "user", "content": "Hello!"}`; its fields are those of ChatTurn.
Turn = Mapping[str, Any]

_BY_NAME = {operation.name: operation for operation in OPERATIONS}
_Answer = TypeVar("_Answer", bound=types.Response)


class Unreachable(ModelOpsError):
    """No coordinator answers at the address."""

    code = "unreachable"


@dataclass(frozen=True)
class _Trust:
    """Whom we trust, and what we show."""

    api_key: str | None
    ca_file: str | Path | None
    certificate: tuple[str | Path, str | Path] | None

    def context(self) -> ssl.SSLContext | bool:
        """What httpx takes as `verify`. Raises InvalidRequest for files that cannot be used."""
        if not self.ca_file and not self.certificate:
            return True
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate:
                context.load_cert_chain(*self.certificate)
        except OSError as error:  # ssl.SSLError is one
            named = self.ca_file or (self.certificate or ("",))[0]
            raise InvalidRequest(f"'{named}' cannot be used as a certificate: {error.strerror or error}") from None
        return context


class _Wire:
    """What both clients share: from a request to HTTP, and back."""

    def __init__(self, url: str, trust: _Trust, timeout_s: float | None) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidRequest(f"'{url}' is no address of a coordinator; one is written {DEFAULT_URL}")
        if trust.api_key and not (trust.api_key.isascii() and trust.api_key.isprintable()):
            raise InvalidRequest("what was given as the key is none: it holds characters that no key has")
        self.url = url.rstrip("/")
        self.options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"X-API-Key": trust.api_key} if trust.api_key else {},
            "verify": trust.context(),
            # The server bounds the answer; a connection that is not there should be noticed at once.
            "timeout": httpx.Timeout(timeout_s, connect=5.0),
        }

    def request(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The arguments of httpx for the operation `name`; checked here first, so that mistakes cost no round trip."""
        operation: Operation = _BY_NAME[name]
        given = {key: value for key, value in fields.items() if value is not None}
        operation.request.parse(given)
        path = operation.route.path
        for key in list(given):
            if f"{{{key}}}" in path:
                path = path.replace(f"{{{key}}}", quote(str(given.pop(key)), safe=""))
        query = {key: str(given.pop(key)).lower() for key in operation.route.query if key in given}
        arguments: dict[str, Any] = {"method": operation.route.method, "url": path, "params": query}
        if operation.route.method == "POST":
            arguments["json"] = given
        return arguments

    def unreachable(self, error: httpx.TransportError) -> ModelOpsError:
        """What a broken connection is told as."""
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return BY_CODE["deadline_exceeded"]("the coordinator did not answer in time")
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Unreachable(
                f"the certificate of {self.url} is not trusted; give its file, or its authority's: ca_file (--ca-file)"
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unreachable(f"no coordinator answers at {self.url}; start one with 'modelops serve'")
        maybe = "; perhaps it is https:// there" if self.url.startswith("http://") else ""
        return Unreachable(f"the connection to {self.url} broke: {type(error).__name__}{maybe}")


def _failure(status: int, body: bytes) -> ModelOpsError:
    try:
        told = json.loads(body)
        kind = BY_CODE.get(told["code"], ModelOpsError)
        return kind(told["detail"], retry_after_s=told.get("retry_after_s"), details=told.get("details"))
    except (ValueError, KeyError, TypeError):
        return _strange(status)


def _strange(status: int) -> ModelOpsError:
    return ModelOpsError(f"the answer was HTTP {status}, and not from a coordinator")


def _parsed(kind: type[_Answer], response: httpx.Response) -> _Answer:
    if not response.is_success:
        raise _failure(response.status_code, response.content)
    try:
        return kind.model_validate_json(response.content)
    except ValueError:
        raise _strange(response.status_code) from None


def _turns(messages: Sequence[Turn]) -> list[dict[str, Any]]:
    return [dict(turn) for turn in messages]


def _chunk(kind: type[_Answer], line: str) -> _Answer | None:
    return kind.model_validate_json(line[6:]) if line.startswith("data: ") else None


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
        self._wire = _Wire(url, _Trust(api_key, ca_file, certificate), timeout_s)
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

    def status(self) -> types.SystemStatus:
        """The machine and what runs on it."""
        return self._call("status", types.SystemStatus)

    def health(self) -> types.HealthResponse:
        """Whether the coordinator can serve, part by part."""
        return self._call("health", types.HealthResponse)

    def _stream(self, name: str, kind: type[_Answer], **fields: Any) -> Generator[_Answer]:
        try:
            with self._http.stream(**self._wire.request(name, fields)) as response:
                if not response.is_success:
                    raise _failure(response.status_code, response.read())
                for line in response.iter_lines():
                    if chunk := _chunk(kind, line):
                        yield chunk
        except httpx.TransportError as error:
            raise self._wire.unreachable(error) from error

    def _call(self, name: str, kind: type[_Answer], **fields: Any) -> _Answer:
        try:
            return _parsed(kind, self._http.request(**self._wire.request(name, fields)))
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
        self._wire = _Wire(url, _Trust(api_key, ca_file, certificate), timeout_s)
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

    async def status(self) -> types.SystemStatus:
        """As Client.status."""
        return await self._call("status", types.SystemStatus)

    async def health(self) -> types.HealthResponse:
        """As Client.health."""
        return await self._call("health", types.HealthResponse)

    async def _stream(self, name: str, kind: type[_Answer], **fields: Any) -> AsyncGenerator[_Answer]:
        try:
            async with self._http.stream(**self._wire.request(name, fields)) as response:
                if not response.is_success:
                    raise _failure(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if chunk := _chunk(kind, line):
                        yield chunk
        except httpx.TransportError as error:
            raise self._wire.unreachable(error) from error

    async def _call(self, name: str, kind: type[_Answer], **fields: Any) -> _Answer:
        try:
            return _parsed(kind, await self._http.request(**self._wire.request(name, fields)))
        except httpx.TransportError as error:
            raise self._wire.unreachable(error) from error
