"""What only ZMQ has: REQ and DEALER sockets, envelopes, pipelining, and cancelling by request id."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import zmq

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


def test_a_peer_of_the_first_protocol_harms_nobody(steady: Served) -> None:
    host, port = steady.zmq.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as old:
        old.sendall(b"\x01\x00\x01\x01\x03\x00hi")  # ZMTP 1.0: an identity, then a message
        wait_until(lambda: "first ZMQ protocol" in steady.log.read_text(), what="the message's arrival")
    assert httpx.get(f"{steady.rest}/health").json()["components"]["zmq"] == "healthy"
    with zmq.Context() as context, context.socket(zmq.REQ) as asked:
        asked.setsockopt(zmq.RCVTIMEO, 10_000)
        asked.setsockopt(zmq.LINGER, 0)
        asked.connect(steady.zmq)
        asked.send_json({"action": "health"})
        assert json.loads(asked.recv())["success"]
