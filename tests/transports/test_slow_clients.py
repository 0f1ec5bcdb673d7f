"""Clients that are slow, silent or too many hold nothing for long, and nobody else up."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import zmq

from bad_clients import PREFACE, asking, closed_after, connect, http_request, opened
from contract import wires
from contract.wires import TRANSPORTS
from support import Served, serving, tiny_gguf, wait_until

ASK = {"model_name": "m", "input_text": "Hello", "max_tokens": 2}
PATIENCE_S = 1.0
IDLE_S = 5.0  # longer than any test here lets a connection lie
MOST = 40


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator that is patient for a second, and has few places."""
    folder = tmp_path_factory.mktemp("impatient")
    env = {
        "MODELOPS_SERVER__CLIENT_TIMEOUT_S": str(PATIENCE_S),
        "MODELOPS_SERVER__IDLE_TIMEOUT_S": str(IDLE_S),
        "MODELOPS_SERVER__MAX_CONNECTIONS": str(MOST),
    }
    names = ("m", "big", "slow")
    links = [(name, tiny_gguf(folder / name, general__name=name)) for name in names]
    fake = {"models": {"big": {"token_bytes": 1 << 17}, "slow": {"token_s": 0.02}}}
    with serving(folder / "data", links=links, load=names, fake=fake, env=env) as running:
        yield running
        log = running.log.read_text()
        assert "Traceback" not in log
        assert "Exception" not in log


def at(served: Served, way: str) -> str:
    return str(getattr(served, way)).removeprefix("tcp://")


def connections(served: Served) -> int:
    """What the coordinator holds open towards clients."""
    found = psutil.Process(served.process.pid).net_connections("tcp")
    return len([one for one in found if one.status != psutil.CONN_LISTEN])


HALF = {
    "rest, nothing": ("rest", b""),
    "rest, half a line": ("rest", b"POST /infer"),
    "rest, half a head": ("rest", b"POST /inference HTTP/1.1\r\nHost: here\r\n"),
    "rest, half a body": ("rest", http_request(ASK)[:-5]),
    "rest, no body": ("rest", http_request(ASK).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"),
    "rest, half a second request": ("rest", http_request(ASK) + http_request(ASK)[:-5]),
    "grpc, nothing": ("grpc", b""),
    "grpc, half a preface": ("grpc", PREFACE[:10]),
    "grpc, something else": ("grpc", b"GET / HTTP/1.1\r\n\r\n"),
    "zmq, nothing": ("zmq", b""),
    "zmq, half a greeting": ("zmq", b"\xff\0\0\0\0"),
    "zmq, something else": ("zmq", b"GET / HTTP/1.1\r\n\r\n" * 8),
}


def test_half_a_request_is_hung_up_on(served: Served) -> None:
    """All at once, as each takes the patience that there is."""

    def ended_after(way: str, said: bytes) -> float:
        with connect(at(served, way)) as connection:
            connection.sendall(said)
            return closed_after(connection, 10 * PATIENCE_S)

    with ThreadPoolExecutor(len(HALF)) as threads:
        ended = {name: threads.submit(ended_after, *half) for name, half in HALF.items()}
    assert {name: after.result() for name, after in ended.items() if after.result() >= 8 * PATIENCE_S} == {}


AFTER_AN_ANSWER = {
    "nothing": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
    "an empty line": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
    "the body that was not waited for": (
        b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n",
        b"{}",
    ),
    "a part of it": (b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n", b"{"),
}


def test_who_was_answered_and_asks_nothing_more_is_hung_up_on(served: Served) -> None:
    """All at once, too."""

    def ended_after(asked: bytes, then: bytes) -> float:
        with connect(served.rest) as connection:
            connection.sendall(asked)
            assert connection.recv(65536).startswith(b"HTTP/1.1 ")
            connection.sendall(then)
            return closed_after(connection, 3 * IDLE_S)

    with ThreadPoolExecutor(len(AFTER_AN_ANSWER)) as threads:
        ended = {name: threads.submit(ended_after, *said) for name, said in AFTER_AN_ANSWER.items()}
    assert {name: after.result() for name, after in ended.items() if after.result() >= 2 * IDLE_S} == {}


def test_a_request_that_arrives_by_the_byte_is_hung_up_on(served: Served) -> None:
    with connect(served.rest) as connection:
        began = time.monotonic()
        request = http_request(ASK | {"input_text": "Hello" * 20})
        with pytest.raises(OSError, match=r"(?i)pipe|reset"):
            for number in range(len(request)):
                connection.sendall(request[number : number + 1])
                time.sleep(0.05)
        assert time.monotonic() - began < 5 * PATIENCE_S


def test_a_slow_request_is_told_why_before_anything_was_answered(served: Served) -> None:
    with connect(served.rest) as connection:
        connection.sendall(b"POST /inference HTTP/1.1\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n")


def streaming(most: int) -> bytes:
    """A request that is answered for a while, 20 ms a token."""
    return asking("rest", {"model_name": "slow", "input_text": "Hello", "max_tokens": most})


def test_an_answer_is_not_disturbed_by_a_next_request_that_is_slow(served: Served) -> None:
    with connect(served.rest) as connection:
        connection.sendall(streaming(150))
        received = connection.recv(65536)
        connection.sendall(b"GET /health HTTP/1.1\r\nHos")
        while piece := connection.recv(65536):
            received += piece
    answer, end, rest = received.partition(b"\r\n0\r\n\r\n")
    assert end
    assert b'"done":true' in answer
    assert b"HTTP/1.1" not in answer[1:]
    assert rest.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "then", [b"GET /health HTTP/1.1\r\nX: " + b"x" * (1 << 20), b"\0\0\0\0"], ids=["head", "garbage"]
)
def test_an_answer_is_ended_but_not_written_into_when_what_follows_cannot_be_taken(then: bytes, served: Served) -> None:
    with connect(served.rest) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(streaming(2000))
        received = connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200 ")
        connection.sendall(then)
        while piece := connection.recv(65536):
            received += piece
            assert b"HTTP/1.1 4" not in received
    with wires.connected(served) as clients:
        wait_until(lambda: clients["rest"].info("slow").active_requests == 0)


def test_who_asks_ahead_and_hangs_up_holds_no_slot(served: Served) -> None:
    with wires.connected(served) as clients:
        with connect(served.rest) as connection:
            connection.sendall(http_request({"model_name": "slow", "input_text": "Hello", "max_tokens": 2000}) * 2)
            wait_until(lambda: clients["rest"].info("slow").active_requests == 1)
        wait_until(lambda: clients["rest"].info("slow").active_requests == 0)


UNREAD = {
    "what is no operation": b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 12,
    "the last of a connection": http_request({"model_name": "big", "input_text": "Hello", "max_tokens": 100}).replace(
        b"Host: localhost", b"Host: localhost\r\nConnection: close"
    ),
}


@pytest.mark.parametrize("asked", UNREAD.values(), ids=UNREAD)
def test_who_does_not_read_an_answer_is_hung_up_on(asked: bytes, served: Served) -> None:
    """12 MB each: more than the system keeps for a connection."""
    wait_until(lambda: connections(served) == 0, seconds=20)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(served.rest, buffer=2048)).sendall(asked)
        wait_until(lambda: connections(served) == 4)
        wait_until(lambda: connections(served) == 0, seconds=4 * PATIENCE_S)


def test_who_closes_one_half_and_does_not_read_is_hung_up_on(served: Served) -> None:
    """What is to be sent still keeps a connection open, whoever has closed it."""
    wait_until(lambda: connections(served) == 0, seconds=20)
    with connect(served.rest, buffer=2048) as reader:
        reader.sendall(asking("rest", {"model_name": "big", "input_text": "Hello", "max_tokens": 2000}))
        reader.shutdown(socket.SHUT_WR)
        wait_until(lambda: connections(served) == 0, seconds=4 * PATIENCE_S)


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_who_reads_by_the_byte_holds_no_slot(way: str, served: Served) -> None:
    readers = [connect(at(served, way), buffer=2048) for _ in range(8)]
    try:
        for reader in readers:
            reader.sendall(asking(way, ASK | {"max_tokens": 2000}))
            assert reader.recv(12) == b"HTTP/1.1 200" if way == "rest" else reader.recv(1)
        with wires.connected(served) as clients:
            # The answers are made although nobody takes them: they lie in buffers, and the slots are free.
            wait_until(lambda: clients["rest"].info("m").active_requests == 0)
            for wire in clients.values():
                assert wire.ok("infer", **ASK).success
    finally:
        for reader in readers:
            reader.close()


@pytest.mark.parametrize("way", TRANSPORTS)
def test_who_does_not_read_what_no_buffer_holds_is_given_up_and_its_slot_freed(way: str, served: Served) -> None:
    """256 MB for each: whoever takes nothing for a while holds a slot no longer than that."""
    fields = {"model_name": "big", "input_text": "Hello", "max_tokens": 2000}
    with wires.connected(served) as clients, contextlib.ExitStack() as stack:
        rest = clients["rest"]
        readers = []
        for number in range(4):  # as many as there are slots
            if way == "zmq":
                context = stack.enter_context(zmq.Context())
                asked = stack.enter_context(context.socket(zmq.DEALER))
                asked.linger, asked.rcvhwm, asked.rcvbuf = 0, 1, 2048
                asked.connect(served.zmq)
                asked.send_json({"action": "infer", "payload": fields, "stream": True, "request_id": str(number)})
            else:
                reader = stack.enter_context(connect(at(served, way), buffer=2048))
                reader.sendall(asking(way, fields))
                assert way != "rest" or reader.recv(12) == b"HTTP/1.1 200"
                readers.append(reader)
        wait_until(lambda: rest.info("big").active_requests == 4)
        wait_until(lambda: rest.info("big").active_requests == 0, seconds=10 * PATIENCE_S)
        for wire in clients.values():
            assert wire.ok("infer", **fields | {"max_tokens": 1}).success
        if way == "rest":
            for reader in readers:
                closed_after(reader, 5)


def test_a_connection_too_many_is_told_so(served: Served) -> None:
    wait_until(lambda: connections(served) == 0, seconds=20)
    with opened(at(served, "rest"), MOST), connect(served.rest) as another:
        answer = another.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n")
    assert b"\r\nretry-after: 1\r\n" in head
    told = json.loads(body)
    assert (told["code"], told["status"], told["retry_after_s"]) == ("overloaded", 503, 1.0)
    assert str(MOST) in told["detail"]


@pytest.mark.parametrize("way", TRANSPORTS)
def test_more_connections_than_there_are_places(way: str, served: Served) -> None:
    wait_until(lambda: connections(served) == 0, seconds=20)
    with opened(at(served, way), 3 * MOST) as crowd:
        wait_until(lambda: connections(served) <= MOST, seconds=30)
        for connection in crowd:
            connection.setblocking(False)
        wait_until(lambda: sum(map(_is_closed, crowd)) >= 2 * MOST, what="the end of those that are too many")
        with wires.connected(served) as clients:
            others = [wire for name, wire in clients.items() if name != way]
            for wire in others:
                assert wire.ok("infer", **ASK).success
    with wires.connected(served) as clients:
        wait_until(lambda: clients[way].call("infer", ASK).code == "", seconds=20)


def _is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_who_says_nothing_between_two_requests_is_left_in_peace(served: Served) -> None:
    with wires.connected(served) as clients, zmq.Context() as context, context.socket(zmq.REQ) as idle:
        idle.linger = 0
        idle.connect(served.zmq)

        def ask() -> None:
            idle.send_json({"action": "health"})
            assert idle.poll(5000)
            idle.recv_json()
            for name in ("rest", "grpc"):
                clients[name].ok("health")

        ask()
        wait_until(lambda: connections(served) == 3)
        pids = {(one.raddr, one.laddr) for one in psutil.Process(served.process.pid).net_connections("tcp")}
        time.sleep(3 * PATIENCE_S)
        ask()
        assert {(one.raddr, one.laddr) for one in psutil.Process(served.process.pid).net_connections("tcp")} == pids


def test_a_connection_that_asks_for_too_much_at_once_is_refused_the_rest(served: Served) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket_:
        socket_.linger = 0
        socket_.sndhwm = socket_.rcvhwm = 0
        socket_.connect(served.zmq)
        count = 3000
        for number in range(count):
            socket_.send_json({"action": "infer", "payload": ASK, "request_id": str(number)})
        answers: list[Any] = []
        while len(answers) < count and socket_.poll(30_000):
            answers.append(socket_.recv_json())
        assert {answer["request_id"] for answer in answers} == {str(number) for number in range(count)}
        assert {answer.get("code", "") for answer in answers} == {"", "overloaded"}
        assert any("of this connection" in answer["error"] for answer in answers if not answer["success"])


def test_a_zmq_message_that_never_ends_is_hung_up_on(served: Served) -> None:
    """The library bounds frames and hands out whole messages: what is between is seen by who counts the bytes."""
    for _ in range(3):
        endless_message(at(served, "zmq"))
        wait_until(lambda: connections(served) == 0)
        with wires.connected(served) as clients:
            assert clients["zmq"].ok("infer", **ASK).success


def endless_message(address: str) -> None:
    """Send parts of a message, each with more to come, until the other side hangs up."""
    greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0" + b"NULL".ljust(20, b"\0") + b"\0" * 32
    ready = b"\5READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + b"\x08Identity" + struct.pack(">I", 0)
    with connect(address) as connection:
        connection.settimeout(3)
        connection.sendall(greeting + b"\4" + bytes([len(ready)]) + ready)
        part = b"\3" + struct.pack(">Q", 1 << 20) + b"x" * (1 << 20)
        # Where the other side had read everything when it hung up, ours may wait before it takes notice.
        with pytest.raises(OSError, match=r"(?i)pipe|reset|timed out"):
            for _ in range(4000):
                connection.sendall(part)
