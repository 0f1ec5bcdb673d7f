"""What only REST has: headers, methods, query strings, statuses."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bad_clients import PREFACE, connect, http_request
from modelops.api.operations import METRICS, OPERATIONS
from support import Served, serving, tiny_gguf, wait_until

ASKED = {"model_name": "steady", "input_text": "Hello", "max_tokens": 2}


@pytest.fixture(scope="module")
def http(steady: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=steady.rest, timeout=30) as client:
        yield client


def methods() -> dict[str, set[str]]:
    """path → the methods that it offers."""
    offered: dict[str, set[str]] = {"/openapi.json": {"GET"}, "/docs": {"GET"}, METRICS.path: {"GET"}}
    for operation in OPERATIONS:
        offered.setdefault(operation.route.path, set()).add(operation.route.method)
    return offered


def refused(response: httpx.Response, status: int, code: str, *named: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["code"] == code
    for name in named:
        assert name in told["detail"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_a_body_that_does_not_say_it_is_json_is_refused(kind: str | None, http: httpx.Client) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = http.post("/inference", content=httpx.Response(200, json=ASKED).content, headers=headers)
    refused(response, 400, "invalid_request", "Content-Type")


@pytest.mark.parametrize("path", ["/goals/none/cancel", "/learning/jobs/none/cancel"])
def test_where_nothing_need_be_said_it_is_told_how_to_say_that(path: str, http: httpx.Client) -> None:
    refused(http.post(path), 400, "invalid_request", "send {} as JSON", "Content-Type: application/json")
    refused(http.post(path, json={}), 404, "not_found", "none")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_json_however_it_is_written(kind: str, http: httpx.Client) -> None:
    body = httpx.Response(200, json=ASKED).content
    assert http.post("/inference", content=body, headers={"Content-Type": kind}).json()["output_text"] == "w0 w1 "


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/inference", ASKED, 200),
        ("/inference", ASKED | {"stream": True}, 200),
        ("/inference", ASKED | {"max_tokens": 0}, 400),
        ("/nowhere", ASKED, 404),
        ("/goals", {}, 400),
        ("/health", {}, 405),
    ],
)
def test_the_callers_request_id_comes_back(
    path: str, fields: dict[str, object], status: int, http: httpx.Client
) -> None:
    response = http.post(path, json=fields, headers={"X-Request-Id": "mine-1/2"})
    assert response.status_code == status
    assert response.headers["x-request-id"] == "mine-1/2"


@pytest.mark.parametrize("given", [b"two words", b"x" * 129, b"\xff\xfe", b""])
def test_a_request_id_that_is_no_token_is_replaced(given: bytes, http: httpx.Client) -> None:
    response = http.get("/health", headers=[(b"x-request-id", given)])
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize(("path", "offered"), methods().items())
def test_a_method_that_is_not_offered_is_405_and_allow_tells_the_others(
    path: str, offered: set[str], http: httpx.Client
) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - offered:
        response = http.request(method, path.replace("{model_name}", "steady"))
        refused(response, 405, "invalid_request", method)
        allowed = set(response.headers["allow"].split(", "))
        assert allowed == offered | ({"HEAD"} if "GET" in offered else set())


@pytest.mark.parametrize("path", ["/health", "/models", "/models/steady", "/status", "/openapi.json", "/docs"])
def test_head_is_get_without_a_body(path: str, http: httpx.Client) -> None:
    head, get = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("value", "names"),
    [
        *((value, ["other", "steady"]) for value in ("true", "1", "TRUE")),
        *((value, ["steady"]) for value in ("false", "0")),
    ],
)
def test_a_query_is_a_boolean(value: str, names: list[str], http: httpx.Client) -> None:
    http.delete("/models/other?force=true")  # it may be loaded, or not
    listed = http.get(f"/models?all={value}").json()["models"]
    assert [model["model_name"] for model in listed] == names


@pytest.mark.parametrize(
    ("method", "query", "named"),
    [
        ("GET", "/models?all=yes", "'all'"),
        ("GET", "/models?all", "'all'"),
        ("GET", "/models?al=true", "'al'"),
        ("GET", "/health?verbose=1", "'verbose'"),
        ("DELETE", "/models/other?force=2", "'force'"),
        ("POST", "/inference?stream=true", "'stream'"),
    ],
)
def test_a_wrong_query_is_refused_and_named(method: str, query: str, named: str, http: httpx.Client) -> None:
    refused(http.request(method, query, json=ASKED if method == "POST" else None), 400, "invalid_request", named)


@pytest.mark.parametrize(("query", "field"), [("?wait=false", {}), ("", {"wait": False})], ids=["query", "body"])
def test_a_load_that_is_not_waited_for_is_202_and_the_state_tells_the_rest(
    query: str, field: dict[str, bool], http: httpx.Client
) -> None:
    http.delete("/models/other?force=true")
    response = http.post(f"/models{query}", json={"model_name": "other"} | field)
    assert response.status_code == 202, response.text
    assert response.json()["model_version"] == "v1"
    wait_until(lambda: http.get("/models/other").json()["status"] == "loaded")
    assert http.delete("/models/other").status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [("?dry_run=true", {}), ("", {"dry_run": True}), ("?wait=false&dry_run=true", {})],
    ids=["query", "body", "not waited for"],
)
def test_a_load_that_is_only_thought_of_creates_nothing(query: str, field: dict[str, bool], http: httpx.Client) -> None:
    http.delete("/models/other?force=true")
    response = http.post(f"/models{query}", json={"model_name": "other"} | field)
    assert response.status_code == 200, response.text
    assert response.json()["plan"]["devices"]
    assert http.get("/models/other").json()["status"] == "available"


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", "1,5"])
def test_a_deadline_that_is_no_number_of_seconds_is_refused(given: str, http: httpx.Client) -> None:
    refused(http.get("/health", headers={"X-Request-Timeout": given}), 400, "invalid_request", "X-Request-Timeout")


def test_a_stream_is_server_sent_events_that_nobody_stores(http: httpx.Client) -> None:
    response = http.post("/inference", json=ASKED | {"stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    assert len(events) == 3
    assert all(event.startswith("data: {") and "\n" not in event for event in events)


def test_a_models_name_is_decoded(http: httpx.Client) -> None:
    refused(http.get("/models/a%20b%3F"), 404, "not_found", "'a b?'")


def test_a_connection_serves_on_after_a_refusal(steady: Served) -> None:
    with httpx.Client(base_url=steady.rest, limits=httpx.Limits(max_connections=1)) as one:
        assert one.post("/inference", content=b"x" * 2**21, headers={"Content-Type": "application/json"}).is_error
        assert one.post("/inference", json=ASKED).json()["output_text"] == "w0 w1 "


def test_a_client_that_hangs_up_within_its_body_leaves_nothing_behind(steady: Served, http: httpx.Client) -> None:
    host, port = steady.rest.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /inference HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
    assert http.post("/inference", json=ASKED).status_code == 200
    assert http.get("/status").json()["active_requests"] == 0


def test_a_head_without_end_is_refused_and_the_rest_is_served(steady: Served) -> None:
    host, port = steady.rest.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                client.sendall(b"X-Long: " + b"x" * 8192 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert client.recv(100).startswith(b"HTTP/1.1 431 ")
    assert httpx.get(f"{steady.rest}/health").status_code == 200


CHUNKED = (
    b"POST /inference HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"2\r\n{}\r\n0\r\n", b"X-Long: " + b"x" * 8182 + b"\r\n"),
        (b"2\r\n{}\r\n0\r\nX-Long: ", b"x" * 8192),
        (b"2;ext=", b"x" * 8192),
    ],
    ids=["trailers", "a trailer", "beside a chunk's length"],
)
def test_what_is_neither_head_nor_body_and_has_no_end_is_hung_up_on(
    begins: bytes, goes_on: bytes, steady: Served
) -> None:
    with pytest.raises(OSError, match=r"(?i)pipe|reset"), connect(steady.rest) as client:
        client.sendall(CHUNKED + begins)
        for _ in range(4096):  # 32 MB
            client.sendall(goes_on)


def one_answer(client: socket.socket) -> bytes:
    """Head and body of the next answer, which has a Content-Length."""
    with client.makefile("rb") as read:
        head = b"".join(iter(read.readline, b"\r\n"))
        length = re.search(rb"(?im)^content-length: (\d+)\r$", head)
        assert length, head
        return head + b"\r\n" + read.read(int(length[1]))


def test_a_request_with_trailers_is_served(steady: Served) -> None:
    body = json.dumps(ASKED).encode()
    chunks = b"%x;ext=1\r\n%b\r\n0\r\nX-Api-Key: no\r\nX-Request-Id: none\r\n\r\n" % (len(body), body)
    with connect(steady.rest) as client:
        client.sendall(CHUNKED + chunks)
        answer = one_answer(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"w0 w1 " in answer


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def answers(address: str, asked: bytes) -> int:
    """How many answers come, until the other side hangs up or has answered a last request that asks it to."""
    received = b""
    with connect(address) as client, contextlib.suppress(ConnectionError):
        client.sendall(asked + HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        while piece := client.recv(65536):
            received += piece
    return received.count(b"HTTP/1.1 200 OK\r\n")


def test_a_few_requests_are_answered_that_were_sent_ahead_and_not_thousands(steady: Served) -> None:
    assert answers(steady.rest, HEALTH * 15) == 16
    assert answers(steady.rest, HEALTH * 5000) < 20
    assert httpx.get(f"{steady.rest}/health").status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\0\1",
        PREFACE,
        HEALTH.replace(b"HTTP/1.1", b"HTTP/1.1 \0"),
        CHUNKED + b"xyz\r\n",
    ],
    ids=["TLS", "HTTP/2", "NUL", "no chunk"],
)
def test_what_is_not_http_is_refused_as_everything_else_is(said: bytes, steady: Served) -> None:
    with connect(steady.rest) as client:
        client.sendall(said)
        head, _, body = one_answer(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "invalid_request"


def test_who_would_rather_speak_http_2_is_answered_in_http_1_and_nobody_warned(steady: Served) -> None:
    wish = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
    with httpx.Client(base_url=steady.rest, headers=wish) as client:
        assert client.get("/health").status_code == 200
        for _ in range(2):
            assert client.post("/inference", json=ASKED).json()["output_text"] == "w0 w1 "
    fields = "".join(f"{name}: {value}\r\n" for name, value in wish.items()).encode()
    assert answers(steady.rest, HEALTH.replace(b"Host:", fields + b"Host:") * 15) == 16
    log = steady.log.read_text()
    assert "upgrade" not in log
    assert "pip install" not in log


@pytest.mark.parametrize("host", [b"a/b", b"a?b", b"[", b"\xff", b"localhost:port", b""])
def test_a_path_that_is_not_there_is_told_so_whatever_the_host_is(host: bytes, steady: Served) -> None:
    with connect(steady.rest) as client:
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        answer = one_answer(client)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"'/nowhere'" in answer


def test_the_page_is_shown_in_no_frame_and_nothing_taken_for_what_it_is_not(http: httpx.Client) -> None:
    page = http.get("/docs").headers
    assert page["content-security-policy"] == "frame-ancestors 'none'"
    assert page["x-frame-options"] == "DENY"
    for path in ("/docs", "/docs/assets/swagger-ui.css", "/openapi.json", "/health", "/health/live", "/nowhere"):
        assert http.get(path).headers["x-content-type-options"] == "nosniff"
    assert http.post("/inference", json=ASKED | {"stream": True}).headers["x-content-type-options"] == "nosniff"


def test_while_it_ends_each_answer_is_the_last_of_its_connection(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "tiny"))]
    with (
        serving(tmp_path / "data", links=links, load=["m"], fake={"token_s": 0.02}) as served,
        connect(served.rest) as busy,
    ):
        busy.sendall(http_request({"model_name": "m", "input_text": "Hello", "max_tokens": 2000, "stream": True}))
        assert busy.recv(12) == b"HTTP/1.1 200"
        with httpx.Client(base_url=served.rest) as client:
            assert "connection" not in client.get("/health").headers
            served.process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            for path in ("/health", "/health/live", "/health/ready", "/goals/1", "/nowhere", "/docs", "/openapi.json"):
                assert client.get(path).headers["connection"] == "close", path
            assert client.post("/inference", json=ASKED).headers["connection"] == "close"
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(15) == 0


def test_a_large_body_on_a_kept_connection_is_no_head(steady: Served) -> None:
    with httpx.Client(base_url=steady.rest) as client:
        for _ in range(3):
            body = {"model_name": "nobody", "input_text": "x", "stop_sequences": ["y" * 900_000]}
            assert client.post("/inference", json=body).status_code == 404


def test_a_hundred_thousand_unknown_fields_are_refused_in_few_words(steady: Served) -> None:
    answer = httpx.post(f"{steady.rest}/inference", json={f"f{number}": 0 for number in range(60_000)})
    assert answer.status_code == 400
    assert len(answer.content) < 4096


# --- names ---
def test_without_keys_a_page_of_the_web_is_not_taken_for_a_program_of_this_machine(steady: Served) -> None:
    port = steady.rest.rpartition(":")[2]
    for name in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
    ):
        answer = httpx.get(f"{steady.rest}/models", headers={"Host": name})
        assert answer.status_code == 403
        assert answer.json()["code"] == "permission_denied"
        assert "modelops keys create" in answer.json()["detail"]
        assert httpx.get(f"{steady.rest}/health", headers={"Host": name}).status_code == 403
        assert httpx.get(f"{steady.rest}/health/ready", headers={"Host": name}).status_code == 204
    assert httpx.get(f"{steady.rest}/models", headers={"Host": "["}).status_code == 400
    for name in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"127.0.0.2:{port}", "[::1]", f"[::1]:{port}"):
        assert httpx.get(f"{steady.rest}/models", headers={"Host": name}).status_code == 200
