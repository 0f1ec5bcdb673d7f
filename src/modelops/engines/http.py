"""The least HTTP/1.1 that an engine on a unix socket needs: one request for each connection, the answer as it comes.

A general client costs more time for each request than the rest of the coordinator together. Parsing is httptools'.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, cast

import httptools

#: Bytes of an answer that may wait for a slow reader before the engine is made to wait too.
_MOST_WAITING = 256 * 1024


class BrokenAnswer(ConnectionError):
    """The connection ended before the answer, or what came was no HTTP."""


class Listener(Protocol):
    """Is told of every answer, from the request on until nobody waits for it any more, and whenever anything comes."""

    def began(self, answer: Answer) -> None: ...  # noqa: D102
    def heard(self) -> None: ...  # noqa: D102
    def ended(self, answer: Answer) -> None: ...  # noqa: D102


class Answer(asyncio.Protocol):
    """An answer that is arriving. `status` is known when `request` hands it out.

    `awaited_since`: when, on the loop's clock, somebody began to wait for what comes next.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self.status = 0
        self.awaited_since = 0.0
        self._listener = listener
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._blocks: deque[bytes] = deque()
        self._waiting = 0
        self._complete = False
        self._broken: BrokenAnswer | None = None
        self._news: asyncio.Future[None] | None = None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for what comes next, or left while waiting, and it has not come."""
        return self._news is not None and (not self._news.done() or self._news.cancelled())

    async def read(self) -> bytes:
        """What has come of the body since the last call, at least a byte; empty at its end. Raises BrokenAnswer."""
        while not self._blocks:
            if self._complete:
                return b""
            await self._wait()
        body = b"".join(self._blocks)
        self._blocks.clear()
        self._waiting = 0
        if self._transport:
            self._transport.resume_reading()
        return body

    async def read_all(self, most: int) -> bytes:
        """The whole body, cut off after about `most` bytes."""
        body = b""
        while len(body) < most and (block := await self.read()):
            body += block
        return body

    async def headers_read(self) -> None:
        """Wait until the status is known. Raises BrokenAnswer."""
        while not self.status:
            await self._wait()

    async def _wait(self) -> None:
        if self._broken:
            raise self._broken
        loop = asyncio.get_running_loop()
        self.awaited_since = loop.time()
        self._news = loop.create_future()
        await self._news

    def _tell(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)

    # --- what asyncio calls ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, and another base

    def data_received(self, data: bytes) -> None:
        """Some of the answer."""
        if self._listener:
            self._listener.heard()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._broken = BrokenAnswer(f"the answer is no HTTP: {error}")
        if self._waiting > _MOST_WAITING and self._transport:
            self._transport.pause_reading()
        self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        """The end, whoever made it."""
        self._transport = None
        if not self._complete and not self._broken:
            self._broken = BrokenAnswer("the connection was closed in the middle of the answer")
        self._tell()

    # --- what httptools calls ---
    def on_headers_complete(self) -> None:
        """The status is known."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._blocks.append(body)
        self._waiting += len(body)

    def on_message_complete(self) -> None:
        """All of the body."""
        self._complete = True


@contextlib.asynccontextmanager
async def request(
    socket: Path, method: str, path: str, key: str, body: bytes = b"", listener: Listener | None = None
) -> AsyncIterator[Answer]:
    """Ask the engine on `socket`, with `body` as JSON; leaving the context hangs up, whatever is still to come.

    Raises OSError where nobody listens, BrokenAnswer (an OSError too) where the answer breaks off.
    """
    transport, answer = await asyncio.get_running_loop().create_unix_connection(
        functools.partial(Answer, listener), str(socket)
    )
    if listener:
        listener.began(answer)
    try:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: engine\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        transport.write(head.encode("ascii") + body)
        await answer.headers_read()
        yield answer
    finally:
        if listener:
            listener.ended(answer)
        transport.abort()
