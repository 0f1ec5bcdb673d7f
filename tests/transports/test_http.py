"""What the HTTP server itself refuses, before any application has seen it: as well-formed as all other refusals."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS30Validator

from bad_clients import connect
from modelops.api.errors import Overloaded
from modelops.client import Client
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
