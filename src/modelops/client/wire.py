"""Between the clients and HTTP: from a request to what httpx takes, and from what comes back to answers and errors."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from modelops.api.errors import BY_CODE, InvalidRequest, ModelOpsError
from modelops.api.messages import Response
from modelops.api.operations import OPERATIONS, Operation

DEFAULT_URL = "http://127.0.0.1:8008"

_BY_NAME = {operation.name: operation for operation in OPERATIONS}
Answer = TypeVar("Answer", bound=Response)


class Unreachable(ModelOpsError):
    """No coordinator answers at the address."""

    code = "unreachable"


@dataclass(frozen=True)
class Trust:
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


class Wire:
    """What both clients share: from a request to HTTP, and back."""

    def __init__(self, url: str, trust: Trust, timeout_s: float | None) -> None:
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

    def request(self, name: str, fields: dict[str, Any], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
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
        told = dict(headers or {})
        if operation.route.method == "POST":
            arguments["content"] = _body(given)
            told["Content-Type"] = "application/json"
        arguments["headers"] = told
        return arguments

    def parsed(self, name: str, kind: type[Answer], response: httpx.Response) -> Answer:
        """The answer to the operation `name`. Raises what it says where it is none."""
        if not response.is_success:
            raise self.failure(response.status_code, response.content)
        array, content = _BY_NAME[name].route.array, response.content
        try:
            return kind.model_validate_json(b'{"%b": %b}' % (array.encode(), content) if array else content)
        except ValueError:
            raise self._strange(response.status_code) from None

    def failure(self, status: int, body: bytes) -> ModelOpsError:
        """What a refusal is raised as."""
        try:
            told = json.loads(body)
            kind = BY_CODE.get(told["code"], ModelOpsError)
            return kind(told["detail"], retry_after_s=told.get("retry_after_s"), details=told.get("details"))
        except (ValueError, KeyError, TypeError):
            return self._strange(status)

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

    def _strange(self, status: int) -> ModelOpsError:
        theirs = "; /v1 is for OpenAI's clients: leave it out of the address"
        hint = theirs if self.url.endswith("/v1") else ""
        return ModelOpsError(f"the answer was HTTP {status}, and not from a coordinator{hint}")


def _body(fields: Mapping[str, Any]) -> bytes:
    """As JSON. Raises InvalidRequest for what has no place in it."""
    try:
        written = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_written)
        return written.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            "a text in the request is not valid Unicode: it has half of a surrogate pair, or bytes that are no UTF-8"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from None


def _written(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in it")


def chunk(kind: type[Answer], line: str) -> Answer | None:
    """What a line of server-sent events holds; None where that is nothing."""
    return kind.model_validate_json(line[6:]) if line.startswith("data: ") else None
