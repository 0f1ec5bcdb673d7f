"""One file over HTTPS, resumed where it broke off. Owns requests, redirects, and what an answer must be to be believed.

Blocking, and without a deadline for a body that does not come: whoever runs this process watches its progress and ends
it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping

import httpcore
import httpx

from modelops.api.errors import InvalidRequest, NotFound
from modelops.serving.sources.addresses import Stream, certificate_fault, pool
from modelops.serving.sources.errors import FetchFailed
from modelops.serving.sources.files import Part, require_room
from modelops.serving.sources.report import Report
from modelops.serving.sources.source import Policy

_MOST_REDIRECTS = 5
_LOOK_EVERY = 64 << 20  # bytes between two looks at the disk, when nobody said how many there will be
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError, httpcore.ProxyError)


class _BrokenOffError(Exception):
    """What another try may mend; the text says what happened."""


class Download:
    """A file at `url`, to be brought into `part`.

    `name` is what messages call it. `digest` says that whoever called will compare digests. `headers` go to the first
    host only, which the operator chose when `trusted`.
    """

    def __init__(
        self,
        url: str,
        part: Part,
        policy: Policy,
        report: Report,
        *,
        name: str,
        digest: bool,
        headers: Mapping[str, str] | None = None,
        trusted: bool = False,
    ) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL:
            raise InvalidRequest(f"the address of '{name}' is none") from None
        self._part = part
        self._policy = policy
        self._report = report
        self._what = f"'{name}' from '{_host(self._url)}'"
        self._name = name
        self._digest = digest
        self._headers = dict(headers or {})
        self._trusted = trusted
        if self._url.scheme != "https" and not (trusted or policy.allow_private):
            raise InvalidRequest(f"http:// is refused, as anybody on the way could change '{name}'; use https://")

    def run(self) -> None:
        """Fetch what is missing. Raises ModelOpsError; what has come is kept, unless it cannot be right."""
        part, total = self._part, self._part.notes.get("total", 0)
        if total and part.size >= total:  # an earlier process ended between the last byte and noting so
            part.finish() if part.size == total else part.restart()
        if part.whole:
            return
        pause = self._policy.backoff_s
        for attempt in range(self._policy.retries + 1):
            try:
                self._report.begin(part.size, part.notes.get("total", 0))
                self._attempt()
            except _BrokenOffError as error:
                if attempt == self._policy.retries:
                    raise FetchFailed(
                        f"{self._what}: {error}, {attempt + 1} times; the same call goes on from byte {self._part.size}"
                    ) from None
                self._report.busy()
                time.sleep(pause)  # noqa: TID251 - time is what the other side needs
                pause *= 2
            else:
                return

    def _attempt(self) -> None:
        url = self._url
        for hop in range(_MOST_REDIRECTS + 1):
            with self._answer(url, hop) as answer:
                location = _header(answer, "location")
                if answer.status not in (301, 302, 303, 307, 308) or not location:
                    self._receive(answer)
                    return
            url = self._redirected(url, location)
        raise FetchFailed(f"{self._what}: the server redirects more than {_MOST_REDIRECTS} times")

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            target = url.join(location)
        except httpx.InvalidURL:
            raise FetchFailed(f"{self._what}: the server redirects to an address that is none") from None
        if target.scheme != "https" and target.scheme != self._url.scheme:
            raise FetchFailed(f"{self._what}: the server redirects away from https://, which is not followed")
        if target.userinfo or not _host(target):
            raise FetchFailed(f"{self._what}: the server redirects to an address with a password, or without a host")
        return target

    @contextlib.contextmanager
    def _answer(self, url: httpx.URL, hop: int) -> Iterator[httpcore.Response]:
        """The answer to a GET of what is missing. Every way in which a connection breaks becomes _BrokenOffError."""
        at_home = _origin(url) == _origin(self._url)
        headers: dict[bytes | str, bytes | str] = {"User-Agent": "modelops-coordinator", "Connection": "close"}
        headers["Accept-Encoding"] = "identity"
        headers.update(self._headers if at_home else {})
        size, validator = self._part.size, self._part.notes.get("validator", "")
        if size and (validator or self._digest):
            headers["Range"] = f"bytes={size}-"
            headers.update({"If-Range": validator} if validator else {})
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        timeouts = {"connect": self._policy.connect_s, "pool": None, "read": None, "write": self._policy.connect_s}
        try:
            with (
                pool(
                    url.scheme,
                    _host(url),
                    allow_private=self._policy.allow_private,
                    redirected=hop > 0,
                    trusted=self._trusted and at_home,
                ) as connections,
                connections.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as answer,
            ):
                yield answer
        except _BROKEN as error:
            if reason := certificate_fault(error):
                raise FetchFailed(f"'{_host(url)}' has a certificate that is not accepted: {reason}") from None
            raise _BrokenOffError(_said(error)) from None
        except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol):
            raise InvalidRequest(f"the address of '{self._name}' is none") from None

    # --- the answer ---
    def _receive(self, answer: httpcore.Response) -> None:
        self._refuse(answer)
        part, length = self._part, _number(_header(answer, "content-length"))
        chunked = "chunked" in _header(answer, "transfer-encoding").lower()
        if answer.status == 206:
            total = self._continued(answer, length)
        else:
            if part.size:
                part.restart()  # the server knows no ranges, or the file is another one by now
            total = length or 0
        if length is None and not chunked and not self._digest:
            raise FetchFailed(
                f"{self._what}: the server does not say how long the file is, so nobody could tell whether it is "
                "whole; name its digest (#sha256=…)"
            )
        require_room(part.path.parent, (total or part.size) - part.size, self._policy.reserve_bytes)
        if not part.size:
            part.note(validator=_validator(answer), total=total)
        self._store(answer, total)
        if not part.size:
            raise FetchFailed(f"{self._what}: the server says that the file is empty")
        stream = answer.extensions.get("network_stream")
        if length and not chunked and isinstance(stream, Stream) and stream.received > length:
            part.restart()
            raise FetchFailed(f"{self._what}: the server sends more than the {length} bytes that it declared")
        part.finish(total=part.size)

    def _store(self, answer: httpcore.Response, total: int) -> None:
        done, looked = self._part.size, self._part.size
        with self._part.appending() as write:
            for block in answer.iter_stream():
                done += len(block)
                if total and done > total:
                    break
                if not total and done - looked > _LOOK_EVERY:
                    require_room(self._part.path.parent, _LOOK_EVERY, self._policy.reserve_bytes)
                    looked = done
                write(block)
                self._report.progress(done, total)
        if total and done > total:
            self._part.restart()
            raise FetchFailed(f"{self._what}: the server sends more than the {total} bytes that it declared")
        if total and done < total:
            raise _BrokenOffError(f"the answer ended after {done} of {total} bytes")

    def _continued(self, answer: httpcore.Response, length: int | None) -> int:
        """The whole file's length, by an answer that goes on where we are. Anything else starts over."""
        part, told = self._part, _RANGE.fullmatch(_header(answer, "content-range"))
        total = int(told[3]) if told and told[3] != "*" else 0
        changed = _validator(answer) not in ("", part.notes.get("validator", ""))
        if not told or int(told[1]) != part.size or changed or (total and total != part.notes.get("total", total)):
            part.restart()
            raise _BrokenOffError("the server sent something else than the rest of the file")
        if total and length is not None and length != total - part.size:
            part.restart()
            raise FetchFailed(f"{self._what}: the server declares two lengths that contradict each other")
        return total or int(part.notes.get("total", 0))

    def _refuse(self, answer: httpcore.Response) -> None:
        """Raises unless the answer holds the file's own bytes."""
        status = answer.status
        if status in (404, 410):
            raise NotFound(f"'{_host(self._url)}' has no file '{self._name}' at that address (HTTP {status})")
        if status in (401, 403):
            raise FetchFailed(
                f"{self._what}: the server refuses it (HTTP {status}); the address may have run out, or need a sign-in"
            )
        if status == 416:
            self._part.restart()
        if status in (408, 416, 425, 429) or status >= 500:
            raise _BrokenOffError(f"the server answered HTTP {status}")
        if status not in (200, 206) or (status == 206 and not self._part.size):
            raise FetchFailed(f"{self._what}: the server answered HTTP {status} instead of the file")
        if (packed := _header(answer, "content-encoding").lower()) not in ("", "identity"):
            raise FetchFailed(f"{self._what}: the server packs the file ({packed[:20]}) although asked not to")


def _header(answer: httpcore.Response, name: str) -> str:
    return next((value.decode("latin-1") for key, value in answer.headers if key.decode().lower() == name), "").strip()


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,20}", text) else None


def _validator(answer: httpcore.Response) -> str:
    """What If-Range may hold: a strong ETag, or else a date. Weak ones do not say that the bytes are the same."""
    etag = _header(answer, "etag")
    return etag if etag.startswith('"') else _header(answer, "last-modified")


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, _host(url), url.port or (443 if url.scheme == "https" else 80)


def _host(url: httpx.URL) -> str:
    """The host as the resolver gets it; the library's own property fails for some names."""
    return url.raw_host.decode("ascii")


def _said(error: Exception) -> str:
    if isinstance(error, httpcore.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, httpcore.ConnectError):
        return "no connection"
    if isinstance(error, httpcore.ProxyError):
        return "the proxy refused"
    return "the connection broke off"
