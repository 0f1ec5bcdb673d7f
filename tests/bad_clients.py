"""Clients that do not go on: half-open connections, and answers that are read by the byte.

All are plain sockets, so that one thread can hold hundreds of them.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import model_ops_pb2 as pb


def connect(address: str, *, buffer: int = 0) -> socket.socket:
    """A connection to "http://host:port" or "host:port"; `buffer` bounds what the system reads ahead."""
    host, port = address.rpartition("//")[2].split(":")
    made = socket.socket()
    if buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.settimeout(10)
    made.connect((host, int(port)))
    return made


def http_request(fields: dict[str, Any]) -> bytes:
    """A whole request to infer, as bytes."""
    body = json.dumps(fields).encode()
    head = (
        f"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


# --- the least HTTP/2 that gRPC takes (RFC 9113; header fields as literals, RFC 7541 section 6.2.2) ---
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without Huffman code or table; both parts under 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def grpc_request(rpc: str, message: bytes) -> bytes:
    """Preface, settings and one whole call, as bytes."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": f"/ModelOps/{rpc}".encode(),
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    headers = b"".join(literal(name, value) for name, value in fields.items())
    body = b"\0" + struct.pack(">I", len(message)) + message
    return (
        PREFACE
        + frame(_SETTINGS, 0, 0, b"")
        + frame(_HEADERS, _END_HEADERS, 1, headers)
        + frame(_DATA, _END_STREAM, 1, body)
    )


def asking(way: str, fields: dict[str, Any]) -> bytes:
    """A call that is answered in chunks, over REST or gRPC."""
    if way == "rest":
        return http_request(fields | {"stream": True})
    return grpc_request("InferStream", pb.InferenceRequest(**fields).SerializeToString())


class Crowd:
    """Many bad clients at once, kept up by one thread: those that were hung up on connect again."""

    def __init__(self, address: str, way: str, half_open: int, slow: int, fields: dict[str, Any]) -> None:
        self._address, self._way, self._fields = address, way, fields
        self._half_open, self._slow = half_open, slow
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"bad clients of {way}", daemon=True)
        self.connected = 0
        self.hung_up = 0

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number in range(self._half_open + self._slow):
                self._begin(selector, slow=number >= self._half_open, number=number)
            while not self._stop.wait(1.0):
                for key in list(selector.get_map().values()):
                    self._step(selector, key)
                self.connected = len(selector.get_map())
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr] # sockets all

    def _begin(self, selector: selectors.BaseSelector, *, slow: bool, number: int) -> None:
        with contextlib.suppress(OSError):
            made = connect(self._address, buffer=2048)
            if slow:
                made.sendall(asking(self._way, self._fields))
            elif number % 3:  # a third of them say nothing at all, the others begin
                made.sendall(
                    b"POST /inference HTTP/1.1\r\nHost:" if self._way == "rest" else PREFACE[: 8 * (number % 3)]
                )
            made.setblocking(False)
            selector.register(made, selectors.EVENT_READ, (slow, number))

    def _step(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        """One byte a second: read by the slow, and looked for by the half-open."""
        made, (slow, number) = key.fileobj, key.data
        assert isinstance(made, socket.socket)
        try:
            alive = bool(made.recv(1))
        except BlockingIOError:
            alive = True
        except OSError:
            alive = False
        if not alive:
            self.hung_up += 1
            selector.unregister(made)
            made.close()
            self._begin(selector, slow=slow, number=number)


def closed_after(connection: socket.socket, longest: float) -> float:
    """Seconds until the other side hangs up; fails where that takes longer."""
    began = time.monotonic()
    connection.settimeout(longest)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            connection.settimeout(max(0.01, longest - (time.monotonic() - began)))
    return time.monotonic() - began


@contextlib.contextmanager
def opened(address: str, count: int) -> Iterator[list[socket.socket]]:
    """As many connections, that say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(address)) for _ in range(count)]
