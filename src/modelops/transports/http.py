"""The HTTP server below REST: uvicorn's, with bounds on what a client may hold and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from modelops.api.errors import DeadlineExceeded, InvalidRequest, ModelOpsError, Overloaded, TooLarge
from modelops.tasks import Tasks
from modelops.transports.listening import Listening
from modelops.transports.problems import problem

log = logging.getLogger(__name__)

#: Where the connection is found in a request's scope.
CONNECTION = "modelops.connection"

_LONGEST_HEAD = 64 * 1024  # bytes of request line and headers together
_MOST_AHEAD = 16  # requests that wait on a connection while the one before them is answered
_LAST_REQUESTS_S = 0.1  # at most, for what has been sent by the end
_LAST_ANSWERS_S = 1.0
_DATE_S = 1.0  # how often the time in the answers' heads is renewed


class HttpServer:
    """Serves an ASGI application on one address; `start` returns when it accepts connections.

    While it is `leaving`, each answer is its connection's last: the next request is for whoever comes after. `refused`
    is told what never reached the application: why, and the id that its sender was told.
    """

    def __init__(
        self,
        app: ASGIApp,
        listening: Listening,
        port: int,
        *,
        leaving: Callable[[], bool],
        refused: Callable[[ModelOpsError, str], None],
    ) -> None:
        self._app = app
        self._listening = listening
        self._leaving = leaving
        self._refused = refused
        self.port = port
        self._tasks = Tasks("rest")
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def listens(self) -> bool:
        """Whether connections are accepted."""
        return self._serving is not None and not self._serving.done()

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        host = self._listening.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, self.port), family=family, backlog=2048)
        self.port = listener.getsockname()[1]
        bounds, tell = self._listening, self._refused

        class Bounded(_Protocol):
            listening = bounds
            refused = staticmethod(tell)

        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            http=Bounded,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who calls, and how, is what we see: a header could say anything
            headers=[("x-content-type-options", "nosniff")],
            timeout_keep_alive=bounds.idle_timeout_s,  # type: ignore[arg-type] # it is given to call_later as it is
        )
        config.load()
        config.ssl = bounds.certificate.context if bounds.certificate else None
        self._server = _Server(config, bounds.client_timeout_s)
        self._serving = self._tasks.start("serve", self._server.serve(sockets=[listener]))
        # The listener accepts from its creation on: a connection that comes before the server's first turn waits.

    async def stop(self) -> None:
        """Close every connection and end."""
        if self._server and self._serving:
            await self._server.end()
            await asyncio.wait([self._serving])
        await self._tasks.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._leaving():
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, last)


class _Held(set[Any]):
    """A set whose end can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, item: Any, /) -> None:
        super().add(item)
        self._empty.clear()

    def discard(self, item: Any, /) -> None:
        super().discard(item)
        if not self:
            self._empty.set()

    async def emptied(self) -> None:
        """Returns when nothing is in it."""
        await self._empty.wait()


class _Server(uvicorn.Server):
    """uvicorn's, which is told of its end and of the connections', where that looks for them by the clock."""

    servers: list[asyncio.Server]

    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s
        self._ending = asyncio.Event()
        self._connections, self._answering = _Held(), _Held()
        self.server_state.connections, self.server_state.tasks = self._connections, self._answering

    async def end(self) -> None:
        """Listen no more; `serve` returns soon. What has been sent by now is read, before its connection ends."""
        for server in getattr(self, "servers", ()):
            server.close()
        for _ in range(3):  # turns of the loop, after which whoever was accepted is among the connections
            await asyncio.sleep(0)
        if self.config.ssl:
            await asyncio.sleep(_LAST_REQUESTS_S)  # a handshake may be under way, and is nowhere to be seen
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_REQUESTS_S):
                await self._connections.emptied()
        self._ending.set()

    async def main_loop(self) -> None:
        while not self._ending.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_S):
                    await self._ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self._connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(_LAST_ANSWERS_S):
                await self._connections.emptied()
                await self._answering.emptied()
                for server in self.servers:
                    await server.wait_closed()
        except TimeoutError:
            log.warning("%d requests were being answered at the end, and are cut short", len(self._answering))
            for task in self._answering:
                task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield  # signals are the application's

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, for sockets that are bound, with a bound on the time that a TLS handshake takes."""
        config, state = self.config, self.server_state

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]
            return made

        secured: dict[str, Any] = {"ssl": config.ssl, "ssl_handshake_timeout": self._handshake_s} if config.ssl else {}
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(protocol, sock=sock, backlog=config.backlog, **secured) for sock in sockets or ()
        ]
        self.started = True


class _TooManyAhead(Exception):
    """Ends the reading of a block."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds that it lacks: on the head's size, on the time that a request takes to arrive, on the time
    that an answer may lie unread, on the number of connections and of requests that are sent ahead.

    At each moment there is something that will end a connection. It is being answered, and the request has a deadline;
    or a request arrives (`_arriving`), or it is idle (uvicorn's keep-alive), or what was answered is still to be taken
    (`_untaken`): each of these is a timer.
    """

    listening: Listening
    refused: Callable[[ModelOpsError, str], None]
    _in_head = True
    _progress = 0  # heads, pieces of bodies and ends of messages that have arrived
    _uncounted = 0  # bytes that have arrived since the last of these
    _without_upgrade = b""  # the head that has just arrived, where it is to be read again
    _arriving: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None
    _answered: RequestResponseCycle | None = None  # the request that is; `cycle` is the last that has arrived

    @property
    def certificate_of(self) -> str:
        """The common name of the certificate that the client has shown, and that was verified; empty without one."""
        secured = self.transport.get_extra_info("ssl_object")
        found = secured.getpeercert() if secured else None
        pairs = [pair for part in (found or {}).get("subject", ()) for pair in part]
        return next((value for name, value in pairs if name == "commonName"), "")

    # --- what the transport calls ---
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        super().connection_made(transport)
        most = self.listening.max_connections
        if len(self.connections) > most:
            self._refuse(
                Overloaded(
                    f"all {most} connections of this server are in use", retry_after_s=1.0, reason="connection_limit"
                )
            )
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._taken()
        self._unset_keepalive_if_required()
        self._give_up()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._take_in_time()  # the transport closes now, but not before all that was written is taken

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # over TLS what had been received before is still handed over
        self._unset_keepalive_if_required()
        before = self._progress
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("what was sent is not HTTP/1.1"))
            return
        # A block in which something has ended, or a piece of a body was, is not one that anything grows by without
        # being counted elsewhere: heads, trailers, what stands beside the length of a chunk.
        if self._progress == before:
            self._uncounted += len(data)
            if self._uncounted > _LONGEST_HEAD:
                if self._in_head and not self._answers_earlier:
                    self._refuse(TooLarge(f"the request's head is over {_LONGEST_HEAD} bytes"), 431)
                else:
                    self._abort()
                return
        # What was just taken may have ended no wait but the keep-alive's: empty lines, the end of a body that nobody
        # waited for any more.
        if self._arriving is None and not self._answers:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._take_in_time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()
        if self.transport.is_closing():
            self._take_in_time()

    # --- what the parser calls ---
    def _feed(self, data: bytes) -> None:
        """Parse a block. There is nothing to upgrade to, so a request that asks for that is read again without."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:  # the parser takes what follows for another protocol
                data = self._without_upgrade + data[upgrade.args[0] :]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._arriving is None:
            self._expect()
        scope: Scope = self.scope  # type: ignore[assignment] # uvicorn's own type is narrower
        scope[CONNECTION] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # or it is a trailer, and nobody reads those
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # A block of small requests would become thousands of tasks' beginnings before the reading can be paused. Those
        # who send ahead at all send a few.
        if len(self.pipeline) >= _MOST_AHEAD:
            self._abort()
            raise _TooManyAhead
        method = self.parser.get_method()
        self._without_upgrade = b""
        if self.parser.should_upgrade() and method != b"CONNECT":
            line = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
            fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
            self._without_upgrade = line + b"".join(fields) + b"\r\n"
            return
        self._in_head = False
        self._progressed()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progressed()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._without_upgrade:
            return
        self._in_head = True
        self._progressed()
        self._arrived()
        super().on_message_complete()

    # --- what answers call ---
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._take_in_time()
        elif self._arriving is not None:
            self._unset_keepalive_if_required()  # the next request has begun already, and has its own time

    # --- what time does ---
    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self._abort()  # it does not even read what it was answered
        else:
            super().timeout_keep_alive_handler()

    def _expect(self) -> None:
        """A request is to arrive whole in time."""
        self._arriving = self.loop.call_later(self.listening.client_timeout_s, self._too_slow)

    def _arrived(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _too_slow(self) -> None:
        # Where we do not read, or the answer of an earlier request still runs, this one's time begins again.
        if self.flow.read_paused or self._answers_earlier:
            self._expect()
            return
        self._arriving = None
        patience_s = self.listening.client_timeout_s
        self._refuse(DeadlineExceeded(f"the request did not arrive within {patience_s:.0f} s"), 408)

    def _take_in_time(self) -> None:
        """What is written is to be taken in time: as far as more may be written, or to the end when closing."""
        self._taken()
        self._untaken = self.loop.call_later(self.listening.client_timeout_s, self._abort)

    def _taken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    # --- the end ---
    @property
    def _answers(self) -> bool:
        """Whether a request is being answered."""
        return self._answered is not None and not self._answered.response_complete

    @property
    def _answers_earlier(self) -> bool:
        """Whether the request that is arriving, or will, comes after one that is being answered."""
        return bool(self.pipeline) or (self._in_head and self._answers)

    def _progressed(self) -> None:
        self._progress += 1
        self._uncounted = 0

    def _refuse(self, error: ModelOpsError, status: int = 0) -> None:
        """Say why, if that cannot get into the middle of an answer, and close."""
        self._arrived()
        if self.transport.is_closing():
            return
        if self.pipeline or (self._answers and self._answered and self._answered.response_started):
            self._abort()
            return
        self._give_up()
        request_id = uuid.uuid4().hex
        told = problem(error, request_id, status)
        phrase = HTTPStatus(told.status_code).phrase
        fields = [(b"connection", b"close"), *self.server_state.default_headers, *told.raw_headers]
        head = f"HTTP/1.1 {told.status_code} {phrase}\r\n".encode()
        self.refused(error, request_id)
        self.transport.write(head + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n" + told.body)
        self.transport.close()
        self._take_in_time()

    def _abort(self) -> None:
        """Drop the connection, and what still waits to be sent."""
        self._give_up()
        self.transport.abort()

    def _give_up(self) -> None:
        """Nobody is left to answer: who works on a request is told so, and the rest does not begin."""
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (self._answered, *waiting):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
