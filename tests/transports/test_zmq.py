"""What only ZMQ has: REQ and DEALER sockets, envelopes, pipelining, and cancelling by request id."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import zmq

from bad_clients import closed_after
from support import Served, wait_until

Socket = zmq.Socket[bytes]
Connect = Callable[..., Socket]
LONG = {"model_name": "steady", "input_text": "Hello", "max_tokens": 2000}
SHORT = LONG | {"max_tokens": 2}


@pytest.fixture
def connect(steady: Served) -> Iterator[Connect]:
    """Opens sockets, and closes them after the test."""
    context = zmq.Context()
    opened = []

    def connect(kind: int = zmq.DEALER) -> Socket:
        made = context.socket(kind)
        opened.append(made)
        made.connect(steady.zmq)
        return made

    yield connect
    for made in opened:
        made.close(linger=0)
    context.term()


def send(socket: Socket, request_id: str, payload: dict[str, Any] | None = None, **envelope: Any) -> None:
    message = {"action": "infer", "request_id": request_id, "payload": payload or {}} | envelope
    body = json.dumps(message).encode()
    if socket.type == zmq.REQ:
        socket.send(body)
    else:
        socket.send_multipart([b"", body])


def receive(socket: Socket) -> dict[str, Any]:
    assert socket.poll(30_000), "no answer"
    answer = json.loads(socket.recv_multipart()[-1])
    assert isinstance(answer, dict)
    return answer


def active(served: Served) -> int:
    return int(httpx.get(f"{served.rest}/status").json()["active_requests"])


def test_a_req_socket_asks_one_thing_after_the_other(steady: Served, connect: Connect) -> None:
    socket = connect(zmq.REQ)
    for request_id in ("first", "second"):
        send(socket, request_id, SHORT)
        answer = receive(socket)
        assert {"success", "result", "error", "request_id", "latency_ms"} == set(answer)
        assert (answer["success"], answer["error"], answer["request_id"]) == (True, None, request_id)
        assert answer["result"]["output_text"] == "w0 w1 "


def test_a_req_socket_cannot_stream_and_is_told_so(steady: Served, connect: Connect) -> None:
    socket = connect(zmq.REQ)
    for envelope, payload in (({"stream": True}, SHORT), ({}, SHORT | {"stream": True})):
        send(socket, "s", payload, **envelope)
        answer = receive(socket)
        assert (answer["code"], answer["request_id"]) == ("invalid_request", "s")
        assert "DEALER" in answer["error"]
    send(socket, "after", SHORT)
    assert receive(socket)["success"]


@pytest.mark.parametrize("envelope", [[], [b""], [b"hop", b"", b"another", b""]], ids=["bare", "empty", "hops"])
def test_a_dealer_gets_its_own_envelope_back(envelope: list[bytes], steady: Served, connect: Connect) -> None:
    socket = connect()
    socket.send_multipart([*envelope, json.dumps({"action": "infer", "payload": SHORT, "stream": True}).encode()])
    for done in (False, False, True):
        assert socket.poll(30_000)
        *frames, body = socket.recv_multipart()
        assert frames == envelope
        assert json.loads(body)["done"] is done


def test_pipelined_requests_are_answered_as_they_are_done(steady: Served, connect: Connect) -> None:
    socket = connect()
    send(socket, "slow", SHORT | {"max_tokens": 100})
    send(socket, "steady", SHORT)
    send(socket, "wrong", {})
    send(socket, "health", action="health")
    answers = [receive(socket) for _ in range(4)]
    assert {answer["request_id"]: answer["success"] for answer in answers} == {
        "health": True,
        "wrong": False,
        "steady": True,
        "slow": True,
    }
    assert answers[-1]["request_id"] == "slow"


def test_requests_with_one_id_are_all_answered(steady: Served, connect: Connect) -> None:
    socket = connect()
    for _ in range(3):
        send(socket, "same", action="health")
    assert [receive(socket)["request_id"] for _ in range(3)] == ["same"] * 3


def test_cancel_ends_the_callers_own_request_and_no_others(steady: Served, connect: Connect) -> None:
    owner, stranger = connect(), connect()
    send(owner, "mine", LONG, stream=True)
    assert receive(owner)["result"]["text"] == "w0 "
    send(stranger, "c", {"request_id": "mine"}, action="cancel")
    assert receive(stranger)["result"] == {"cancelled": 0}
    assert receive(owner)["result"]["text"] == "w1 "

    send(owner, "c", {"request_id": "mine"}, action="cancel")
    answer = receive(owner)
    while answer["request_id"] == "mine":
        assert not answer["done"]
        answer = receive(owner)
    assert (answer["request_id"], answer["result"]) == ("c", {"cancelled": 1})
    wait_until(lambda: active(steady) == 0, what="the slot to be free")
    send(owner, "after", SHORT)
    while (answer := receive(owner))["request_id"] == "mine":  # what was on its way already
        assert not answer["done"]
    assert answer["success"]


def test_cancel_counts_those_that_get_no_answer_and_each_once(steady: Served, connect: Connect) -> None:
    """Of a burst some are answered already, others cancelled already, when a cancel is read."""
    socket, requests, cancels = connect(), 0, 0
    for number in range(300):
        asked = number % 3 == 0
        send(socket, "same", {}, action="health") if asked else send(
            socket, "c", {"request_id": "same"}, action="cancel"
        )
        requests, cancels = requests + asked, cancels + (not asked)
    told: list[dict[str, Any]] = []
    while sum(answer["request_id"] == "c" for answer in told) < cancels:
        told.append(receive(socket))
    send(socket, "last", {}, action="health")
    while (answer := receive(socket))["request_id"] != "last":
        told.append(answer)
    cancelled = sum(answer["result"]["cancelled"] for answer in told if answer["request_id"] == "c")
    assert cancelled + sum(answer["request_id"] == "same" for answer in told) == requests


def test_cancel_ends_nothing_that_comes_after_it(steady: Served, connect: Connect) -> None:
    socket = connect()
    for number in range(100):  # several are read at once
        send(socket, "c", {"request_id": f"r{number}"}, action="cancel")
        send(socket, f"r{number}", {}, action="health")
    answers = [receive(socket) for _ in range(200)]
    assert {f"r{number}" for number in range(100)} == {answer["request_id"] for answer in answers} - {"c"}
    assert all(answer["result"] == {"cancelled": 0} for answer in answers if answer["request_id"] == "c")


def test_cancel_of_what_is_not_running_cancels_nothing(steady: Served, connect: Connect) -> None:
    socket = connect()
    send(socket, "c", {"request_id": "c"}, action="cancel")
    assert receive(socket)["result"] == {"cancelled": 0}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_a_connection_that_closes_ends_its_requests(streamed: bool, steady: Served, connect: Connect) -> None:
    socket = connect()
    send(socket, "gone", LONG, stream=streamed)
    wait_until(lambda: active(steady) == 1, what="the request to run")
    socket.close()
    wait_until(lambda: active(steady) == 0, what="the slot to be free")


@pytest.mark.parametrize("timestamp", ["2024-01-01T12:00:00Z", "yesterday", ""])
def test_a_timestamp_is_taken_and_not_judged(timestamp: str, steady: Served, connect: Connect) -> None:
    socket = connect()
    send(socket, "t", action="health", timestamp=timestamp)
    assert receive(socket)["result"]["status"] == "healthy"


def test_a_message_over_the_librarys_limit_costs_its_own_connection_only(steady: Served, connect: Connect) -> None:
    huge, other = connect(), connect()
    send(other, "before", action="health")
    assert receive(other)["success"]
    watch = huge.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    huge.send_multipart([b"", b"x" * (65 * 2**20)])
    assert watch.poll(30_000), "the connection is still open"
    huge.disable_monitor()
    watch.close(0)
    send(other, "after", action="health")
    assert receive(other)["success"]


def test_a_peer_of_the_first_protocol_is_hung_up_on_and_harms_nobody(steady: Served) -> None:
    host, port = steady.zmq.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as old:
        old.sendall(b"\x01\x00\x01\x01\x03\x00hi")  # ZMTP 1.0: an identity, then a message
        closed_after(old, 10)
    assert httpx.get(f"{steady.rest}/health").json()["components"]["zmq"] == "healthy"
    with zmq.Context() as context, context.socket(zmq.REQ) as asked:
        asked.setsockopt(zmq.RCVTIMEO, 10_000)
        asked.setsockopt(zmq.LINGER, 0)
        asked.connect(steady.zmq)
        asked.send_json({"action": "health"})
        assert json.loads(asked.recv())["success"]


# --- who asks and does not read ---
def test_who_asks_without_reading_holds_nobody_up_and_is_hung_up_on(steady: Served) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as flood, context.socket(zmq.REQ) as other:
        for made in (flood, other):
            made.linger = 0
            made.connect(steady.zmq)
        flood.rcvhwm, flood.rcvbuf = 1, 2048
        flood.sndhwm = 0
        with hanging_up(flood) as gone:
            for number in range(20_000):
                flood.send_json({"action": "list_models", "payload": {"all": True}, "request_id": str(number)})
            began = time.monotonic()
            for _ in range(20):
                other.send_json({"action": "health"})
                assert other.poll(5000)
                other.recv_json()
            assert time.monotonic() - began < 10
            assert gone.poll(20_000), "it is still connected"


def test_what_comes_back_with_every_answer_is_bounded(steady: Served) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as asked:
        asked.linger = 0
        asked.connect(steady.zmq)
        asked.send_multipart([b"x"] * 8 + [b"", b'{"action": "health"}'])
        assert asked.poll(5000)
        assert asked.recv_multipart()[:9] == [b"x"] * 8 + [b""]
        with hanging_up(asked) as gone:
            for envelope in ([b"x" * 5000], [b"x"] * 20):
                asked.send_multipart([*envelope, b"", b'{"action": "health"}'])
                assert gone.poll(5000), "it is still connected"
                gone.recv_multipart()
        asked.send_multipart([b"", b'{"action": "health"}'])
        assert asked.poll(5000)


@contextlib.contextmanager
def hanging_up(asked: zmq.Socket[bytes]) -> Iterator[zmq.Socket[bytes]]:
    """Tells when the other side has ended the connection."""
    monitor = asked.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        yield monitor
    finally:
        asked.disable_monitor()
        monitor.close(0)
