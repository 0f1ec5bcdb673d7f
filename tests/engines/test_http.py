"""The least HTTP, against a server on a unix socket that answers what each test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from modelops.engines.http import BrokenAnswer, request

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engine(folder: Path, serve: Serve) -> AsyncIterator[Path]:
    socket = folder / "s"
    async with await asyncio.start_unix_server(serve, str(socket)):
        yield socket


def says(answer: bytes) -> Serve:
    """A server that reads a request's head, says `answer` and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return serve


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, b"hello"),
        (b"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\n\r\n", 503, b""),
    ],
    ids=["sized", "chunked", "empty"],
)
async def test_an_answer_is_read_whole(tmp_path: Path, answer: bytes, status: int, body: bytes) -> None:
    async with engine(tmp_path, says(answer)) as socket, request(socket, "GET", "/", "key") as arriving:
        assert arriving.status == status
        assert await arriving.read_all(1000) == body
        assert await arriving.read() == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"this is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    ],
    ids=["nothing", "no HTTP", "cut in the head", "cut in the body", "cut in a chunk", "no chunk"],
)
async def test_an_answer_that_breaks_off_is_told_so(tmp_path: Path, answer: bytes) -> None:
    async with engine(tmp_path, says(answer)) as socket:
        with pytest.raises(BrokenAnswer):
            async with request(socket, "GET", "/", "key") as arriving:
                while await arriving.read():
                    pass


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        async with request(tmp_path / "none", "GET", "/", "key"):
            pass


async def test_the_request_carries_its_key_and_body(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.extend([head, await reader.readexactly(4)])
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    async with engine(tmp_path, serve) as socket, request(socket, "POST", "/v1", "secret", b"body"):
        pass
    assert seen[0].startswith(b"POST /v1 HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in seen[0]
    assert seen[1] == b"body"


async def test_leaving_early_hangs_up(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello")
        with suppress(ConnectionResetError):
            await reader.read()
        gone.set()
        writer.close()

    async with engine(tmp_path, serve) as socket:
        async with request(socket, "GET", "/", "key") as arriving:
            assert await arriving.read() == b"hello"
        await gone.wait()


async def test_a_slow_reader_makes_the_engine_wait(tmp_path: Path) -> None:
    size, sent = 64 * 2**20, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 2**16)
            await writer.drain()
            sent += 2**16
        writer.close()

    async with engine(tmp_path, serve) as socket, request(socket, "GET", "/", "key") as arriving:
        before = -1
        while sent != before:  # until it does not move any more
            before = sent
            await asyncio.sleep(0.05)
        assert 0 < sent < size
        total = 0
        while block := await arriving.read():
            total += len(block)
        assert total == size
