"""What the HTTP server itself refuses, before any application has seen it: as well-formed as all other refusals."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS30Validator
from starlette.types import Receive, Scope, Send

from bad_clients import connect
from modelops.api.errors import Overloaded
from modelops.client import Client
from modelops.transports.http import HttpServer
from modelops.transports.listening import Listening
from modelops.transports.openapi import document
from support import Served, serving, wait_until

MOST = 8


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with few places, that waits for a second."""
    env = {"MODELOPS_SERVER__CLIENT_TIMEOUT_S": "1", "MODELOPS_SERVER__MAX_CONNECTIONS": str(MOST)}
    with serving(tmp_path_factory.mktemp("bounded"), env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def told(connection: socket.socket, status: int, code: str) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
    """The refusal, after which the connection is closed."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.status == status
    assert response.headers["connection"] == "close"
    assert response.headers["content-type"] == "application/problem+json"
    body = json.loads(response.read())
    assert connection.recv(1) == b""
    schema = document()["components"]["schemas"]["Problem"]
    assert [error.message for error in OAS30Validator(schema).iter_errors(body)] == []
    assert set(body) <= set(schema["properties"])
    assert (body["status"], body["code"], body["title"]) == (status, code, response.reason)
    assert body["request_id"] == response.headers["x-request-id"]
    return response, body


def test_one_connection_too_many_is_told_when_to_come_back(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MOST):  # between two requests nobody is hurried
            assert stack.enter_context(httpx.Client(base_url=served.rest)).get("/health").status_code == 200
        with connect(served.rest) as connection:
            response, body = told(connection, 503, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert body["retry_after_s"] == 1.0
        assert f"{MOST} connections" in body["detail"]
        for _ in range(20):  # also who has sent a request by then reads it
            with Client(served.rest) as client, pytest.raises(Overloaded) as refused:
                client.health()
            assert refused.value.retry_after_s == 1.0

    def serves() -> bool:
        with Client(served.rest) as client:
            try:
                return client.health().status == "healthy"
            except Overloaded:
                return False

    wait_until(serves, what="a place")


def test_a_head_that_does_not_arrive_and_one_that_does_not_end(served: Served) -> None:
    with connect(served.rest) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        response, body = told(connection, 408, "deadline_exceeded")
        assert "within 1 s" in body["detail"]
        assert "retry-after" not in response.headers
    with connect(served.rest) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Long: ".ljust(64 * 1024 + 1, b"x"))
        _, body = told(connection, 431, "too_large")
        assert "65536 bytes" in body["detail"]


# --- the end ---
async def _slow(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after as many seconds as the query says."""
    await asyncio.sleep(float(scope["query_string"] or 0))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})


@contextlib.asynccontextmanager
async def ending() -> AsyncIterator[tuple[HttpServer, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server, and a connection on which one request has been answered."""
    listening = Listening(
        host="127.0.0.1",
        max_body_bytes=1000,
        max_connections=MOST,
        client_timeout_s=5,
        idle_timeout_s=60,
        certificate=None,
        key_pair=None,
    )
    server = HttpServer(_slow, listening, 0, leaving=lambda: False, refused=lambda *_: None)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")
    try:
        yield server, reader, writer
    finally:
        await server.stop()
        writer.close()


@pytest.mark.parametrize(("query", "status"), [("0", 200), ("0.3", 200), ("60", 500)])
async def test_what_was_sent_before_the_end_is_answered_unless_it_takes_too_long(query: str, status: int) -> None:
    async with ending() as (server, reader, writer):
        writer.write(b"GET /?%b HTTP/1.1\r\nHost: here\r\n\r\n" % query.encode())
        await server.stop()
        assert not server.listens
        assert (await reader.read()).startswith(b"HTTP/1.1 %d " % status)


async def test_the_end_closes_a_connection_that_asks_nothing() -> None:
    async with ending() as (server, reader, _):
        await server.stop()
        assert await reader.read() == b""
        with pytest.raises(OSError, match=r"Connect"):
            await asyncio.open_connection("127.0.0.1", server.port)


async def test_a_server_that_has_hardly_begun_ends_as_well() -> None:
    async with ending() as (server, _, _):
        again = HttpServer(_slow, server._listening, 0, leaving=lambda: False, refused=lambda *_: None)
        await again.start()
        await again.stop()
        assert not again.listens
