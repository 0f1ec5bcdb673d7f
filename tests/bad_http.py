"""A web server that misbehaves as told: real sockets, real threads, and a record of what it was asked.

It owns nothing of HTTP beyond what the tests need: GET and HEAD, one request per connection, ranges.
"""

from __future__ import annotations

import re
import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_BLOCK = 16 * 1024


@dataclass
class Answer:
    """What one path answers.

    `status` instead of the file, the first `failures` times; or always. `declared`: the Content-Length that is told; -1
    for none. `cut`: bytes of the body after which the connection ends, one for each request, then none. `hold`: bytes
    after which the rest waits for `release`. `drip_s`: seconds between single bytes; `drip_head`: of the head instead
    of the body. `plus`: bytes sent behind the body. `raw`: this instead of everything. `blind`: any
    If-Range will do.
    """

    content: bytes = b""
    etag: str = '"1"'
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    failures: int = -1
    declared: int | None = None
    ranges: bool = True
    blind: bool = False
    chunked: bool = False
    cut: list[int] = field(default_factory=list)
    hold: int = -1
    release: threading.Event = field(default_factory=threading.Event)
    drip_s: float = 0.0
    drip_head: bool = False
    plus: bytes = b""
    raw: bytes = b""
    content_range: str = ""


@dataclass(frozen=True)
class Request:
    """What somebody asked; `headers` have names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class BadServer(socketserver.ThreadingTCPServer):
    """The server; `answers` by path, `requests` in order. `gone` is set when a client hangs up before all was sent."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 50

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), _Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self.gone = threading.Event()
        self.ending = threading.Event()
        self.tls: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def url(self, path: str, scheme: str = "http", host: str = "127.0.0.1") -> str:
        """The address of `path`."""
        return f"{scheme}://{host}:{self.port}{path}"

    def asked(self, header: str, path: str = "") -> list[str]:
        """The values of `header` in the requests so far (to `path`); empty texts where there was none."""
        return [request.headers.get(header, "") for request in self.requests if path in ("", request.path)]

    def get_request(self) -> tuple[socket.socket, object]:
        """The next connection; its handshake happens in its own thread."""
        connection, address = super().get_request()
        if self.tls:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests want."""


class _Handler(socketserver.StreamRequestHandler):
    server: BadServer

    def handle(self) -> None:
        first, *lines = self._head()
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer = self.server.answers.get(path)
        self.server.requests.append(Request(method, path, headers))
        if answer is None:
            self._send(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        elif answer.raw:
            self._send(answer.raw)
        elif answer.status != 200 and answer.failures:
            answer.failures -= 1
            told = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
            self._send(
                f"HTTP/1.1 {answer.status} As Told\r\nConnection: close\r\nContent-Length: 0\r\n{told}\r\n".encode()
            )
        else:
            self._file(answer, method, headers)

    def _head(self) -> list[str]:
        lines = []
        while line := self.rfile.readline(65536).strip():
            lines.append(line.decode("latin-1"))
        return lines

    def _file(self, answer: Answer, method: str, headers: Mapping[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        same = answer.blind or headers.get("if-range", answer.etag) == answer.etag
        start = int(asked[1]) if asked and answer.ranges and same else 0
        if start and start >= len(answer.content):
            self._send(b"HTTP/1.1 416 Range Not Satisfiable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return
        body = answer.content[start:]
        head = "HTTP/1.1 206 Partial Content\r\n" if start else "HTTP/1.1 200 OK\r\n"
        told = {"Connection": "close", **answer.headers}  # else a client may ask again on a connection that ends
        if answer.etag:
            told["ETag"] = answer.etag
        if start:
            told["Content-Range"] = (
                answer.content_range or f"bytes {start}-{len(answer.content) - 1}/{len(answer.content)}"
            )
        if answer.chunked:
            told["Transfer-Encoding"] = "chunked"
        elif answer.declared != -1:
            told["Content-Length"] = str(len(body) if answer.declared is None else answer.declared - start)
        head += "".join(f"{name}: {value}\r\n" for name, value in told.items()) + "\r\n"
        if method == "HEAD":
            self._send(head.encode())
            return
        if answer.drip_head:
            self._drip(head.encode(), answer.drip_s)
        cut = answer.cut.pop(0) if answer.cut else None
        if answer.hold < start and cut is None and not answer.drip_s and not answer.chunked:
            self._send(head.encode() + body + answer.plus)
            return
        self._send(head.encode())
        self._body(body[:cut], answer, answer.hold - start)

    def _body(self, body: bytes, answer: Answer, hold: int) -> None:
        if answer.drip_s:
            self._drip(body, answer.drip_s)
        elif answer.chunked:
            for at in range(0, len(body), _BLOCK):
                block = body[at : at + _BLOCK]
                self._send(f"{len(block):x}\r\n".encode() + block + b"\r\n")
            self._send(b"0\r\n\r\n")
        elif hold >= 0:
            self._send(body[:hold])
            while not answer.release.wait(0.01):
                self._look()
            self._send(body[hold:])
        else:
            self._send(body)

    def _drip(self, data: bytes, pause: float) -> None:
        for at in range(len(data)):
            self._send(data[at : at + 1])
            self.server.ending.wait(pause)
            self._look()

    def _send(self, data: bytes) -> None:
        try:
            self.connection.sendall(data)
        except OSError:
            self.server.gone.set()
            raise

    def _look(self) -> None:
        """Ends this answer when its client has hung up, or the server is to end."""
        if select.select([self.connection], [], [], 0)[0]:
            self.server.gone.set()
            raise ConnectionError("the client has hung up")
        if self.server.ending.is_set():
            raise ConnectionError("the server ends")


@contextmanager
def bad_server(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> Iterator[BadServer]:
    """A running server, over TLS when `tls` is given."""
    with BadServer(host, port) as server:
        server.tls = tls
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            for answer in server.answers.values():
                answer.release.set()
            with suppress(OSError):
                server.shutdown()
            thread.join()
