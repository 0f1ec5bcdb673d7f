"""ZMQ: a ROUTER socket that speaks JSON. REQ clients ask one thing at a time; DEALER clients may pipeline, and stream.

A connection that closes ends its own requests: the library names the connection of each message, and tells of its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from modelops.api.errors import InvalidRequest, ModelOpsError, Overloaded, shutting_down, too_large
from modelops.api.messages import from_json
from modelops.service import Call, Coordinator, Credentials, internal
from modelops.tasks import Tasks
from modelops.transports import messages
from modelops.transports.listening import Listening
from modelops.transports.peers import Peers

log = logging.getLogger(__name__)

#: What the library itself refuses, by closing the connection. Up to it a message is read, and refused with its reason.
_HARD_LIMIT = 64 * 2**20
#: Requests of one connection that are answered at once; more are refused. So many that are not taken end it.
_MOST_AT_ONCE, _MOST_WAITING = 1000, 4000
#: Frames before the body, which come back with every answer: a REQ socket's, behind a few brokers, and their bytes.
_MOST_FRAMES, _LONGEST_ENVELOPE = 16, 4096
#: Answers, or pieces of them, that may lie here for a client that does not read.
_MOST_UNREAD = 100
_HEARTBEAT_MS = 30_000
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_LAST_WORDS_S = 0.5  # for all callers that are told of the end
_LOOK_S = 0.25  # for unfinished messages
_PAUSE_MS = 10  # with nothing to read for so long, everything that was sent has been read


class _Gone(Exception):
    """The caller is gone, or reads nothing: nobody is left to answer."""


class _Peer:
    """Where an answer goes: the frames before the body, the connection that the request came over, its id; its call.

    Raises zmq.ZMQError for a message that does not tell its connection.
    """

    def __init__(self, envelope: Sequence[bytes], body: zmq.Frame) -> None:
        self.envelope = list(envelope)
        self.connection = int(body.get(zmq.SRCFD))
        self.strict = body.get("Socket-Type") == "REQ"
        self.request_id = messages.find_request_id(body.buffer)
        self.call = Call(self.request_id or uuid.uuid4().hex, "zmq", peer=str(body.get("Peer-Address")))


class ZmqServer:
    """Listens on one address; `start` returns when it accepts messages, `stop` when the last has been answered."""

    def __init__(self, coordinator: Coordinator, listening: Listening, port: int) -> None:
        self._coordinator = coordinator
        self._host = f"[{listening.host}]" if ":" in listening.host else listening.host
        self._port = port
        self._listening = listening
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._tasks = Tasks("zmq")
        # Which work belongs to which connection, so that it ends when its caller is gone.
        self._working: dict[int, dict[asyncio.Task[None], _Peer]] = {}
        self._peers: Peers | None = None
        self._sending: dict[int, asyncio.Lock] = {}  # by connection: of many answers, one waits for its reader
        self._ending = False
        self._receiving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where to reach it."""
        return f"tcp://{self._host}:{self._port}"

    @property
    def state(self) -> str:
        """For health."""
        return "healthy" if self._receiving and not self._receiving.done() else "unhealthy: not listening"

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        router: zmq.asyncio.Socket = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 500)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a caller that is gone is told apart from one that is slow
        router.setsockopt(zmq.MAXMSGSIZE, _HARD_LIMIT)
        router.setsockopt(zmq.SNDHWM, _MOST_UNREAD)
        router.setsockopt(zmq.IPV6, int(self._host.startswith("[")))
        # Peers that begin and do not go on, and peers that are gone without a word, hold nothing for long.
        patience_ms = int(self._listening.client_timeout_s * 1000)
        router.setsockopt(zmq.HANDSHAKE_IVL, patience_ms)
        # With a domain the library refuses its first protocols (nobody is asked about the others): for one of those it
        # would take whatever is no greeting, and wait for it without end.
        router.setsockopt(zmq.ZAP_DOMAIN, b"modelops")
        router.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_MS)
        if pair := self._listening.key_pair:
            router.curve_server = True
            router.curve_publickey, router.curve_secretkey = pair.public, pair.secret
        self._monitor = router.get_monitor_socket(_EVENTS)
        try:
            router.bind(f"tcp://{self._host}:{self._port or '*'}")
        except zmq.ZMQError as error:
            router.disable_monitor()
            self._monitor.close(0)
            router.close(0)
            raise OSError(error.errno, error.strerror) from None
        self._port = int(router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._peers = Peers(self._port, self._listening.max_connections, _HARD_LIMIT + 2**20, 4 * _HARD_LIMIT)
        self._socket = router
        self._receiving = self._tasks.start("receive", self._receive(router))
        self._tasks.start("watch connections", self._watch(self._monitor))
        self._tasks.start("watch unfinished messages", self._watch_unfinished(self._peers))

    async def stop(self) -> None:
        """End the work in flight, and listening; who still waits is told so."""
        self._ending = True
        await self._read_the_rest()
        waiting = [found for peers in self._working.values() for found in peers.items()]
        telling = []
        for task, peer in waiting:
            answer = messages.failed(peer.call, shutting_down())
            task.cancel()
            telling.append(self._tasks.start("last words", self._send_if_there(peer, answer)))
        if telling:
            await asyncio.wait(telling, timeout=_LAST_WORDS_S)
        await self._tasks.close()
        if self._socket and self._monitor:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close()
            self._socket = None
        self._context.term()

    async def _read_the_rest(self) -> None:
        """Take what has been sent already: it is answered, too."""
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LAST_WORDS_S
        while await self._socket.poll(_PAUSE_MS) and loop.time() < deadline:  # noqa: ASYNC110 - for a pause, no event
            await asyncio.sleep(_PAUSE_MS / 1000)

    # --- in ---
    async def _receive(self, router: zmq.asyncio.Socket) -> None:
        while True:
            frames = await router.recv_multipart(copy=False)
            # First what happened to connections: a number may have ended with one and begun with another since.
            await self._look()
            try:
                self._take(frames)
            except zmq.ZMQError:
                log.warning("a message that does not tell its connection is dropped: it cannot be answered")

    def _take(self, frames: Sequence[zmq.Frame]) -> None:
        """Begin to answer a message, whose frames but the last say where the answer goes."""
        assert self._peers is not None
        *envelope, body = frames
        connection = int(body.get(zmq.SRCFD))
        if connection not in self._peers:
            return  # closed before its message was read: nobody is left to answer
        self._peers.heard(connection)
        waiting = len(self._working.get(connection, ()))
        if waiting >= _MOST_WAITING or len(envelope) > _MOST_FRAMES or sum(map(len, envelope)) > _LONGEST_ENVELOPE:
            log.warning("a ZMQ client is hung up on: it asks without reading, or by way of too much")
            self._peers.hang_up(connection)
            return
        peer = _Peer([frame.bytes for frame in envelope], body)
        if waiting >= _MOST_AT_ONCE:
            work = self._tell(
                peer,
                Overloaded(
                    f"{_MOST_AT_ONCE} requests of this connection wait", retry_after_s=1.0, reason="connection_limit"
                ),
            )
        elif len(body) > self._listening.max_body_bytes:
            work = self._tell(peer, too_large(self._listening.max_body_bytes, messages.advice(body.buffer)))
        else:
            work = self._answer(peer, body.bytes)
        task = self._tasks.start("answer", work)
        self._working.setdefault(connection, {})[task] = peer
        task.add_done_callback(partial(self._ended, connection))

    def _ended(self, connection: int, task: asyncio.Task[None]) -> None:
        mine = self._working.get(connection, {})
        mine.pop(task, None)
        if not mine:
            self._working.pop(connection, None)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            await monitor.poll()
            await self._look()

    async def _watch_unfinished(self, peers: Peers) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            peers.look()

    async def _look(self) -> None:
        """Take note of the connections made since the last look, and cancel the work of those that were closed."""
        assert self._monitor is not None
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(await self._monitor.recv_multipart(zmq.NOBLOCK))
                self._note(event["event"], event["value"])

    def _note(self, event: int, connection: int) -> None:
        assert self._peers is not None
        if event == zmq.EVENT_ACCEPTED:
            self._peers.accepted(connection)
            if self._ending:
                self._peers.hang_up(connection)
        elif event == zmq.EVENT_DISCONNECTED:
            self._peers.closed(connection)
            self._sending.pop(connection, None)
            for task in self._working.pop(connection, {}):
                task.cancel()

    # --- one message ---
    async def _answer(self, peer: _Peer, body: bytes) -> None:
        with self._coordinator.following(peer.call):
            call = peer.call
            try:
                message = messages.envelope(from_json(body))
                shown = Credentials(message.get("api_key", ""))
                peer.request_id = message.get("request_id", "")
                call = replace(
                    call,
                    request_id=peer.request_id or call.request_id,
                    timeout_s=message.get("timeout_s"),
                    trace={name: message[name] for name in messages.TRACE if name in message},
                    idempotency_key=peer.request_id or None,
                )
                await self._perform(peer, call, message, shown)
                return
            except _Gone:
                call.gone()
                return
            except ModelOpsError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - the last line of defence: it answers, and logs all
                failure = internal(call, error)
            await self._send_if_there(peer, messages.failed(call, failure))

    async def _tell(self, peer: _Peer, error: ModelOpsError) -> None:
        with self._coordinator.following(peer.call):
            await self._send_if_there(peer, messages.failed(peer.call, error))

    async def _send_if_there(self, peer: _Peer, answer: dict[str, Any]) -> None:
        with contextlib.suppress(_Gone):
            await self._send(peer, answer)

    async def _perform(self, peer: _Peer, call: Call, message: dict[str, Any], shown: Credentials) -> None:
        action, payload = message["action"], message.get("payload", {})
        if action == "cancel":  # takes no key: it ends nothing but what was admitted over the same connection
            await self._send(peer, messages.done(call, self._cancel(peer, payload)))
            return
        operation = messages.ACTIONS[action]
        call = await self._coordinator.admit(call, operation, shown)
        if "stream" in message and isinstance(payload, dict) and "stream" in operation.request.model_fields:
            payload = {"stream": message["stream"]} | payload
        request: Any = operation.request.parse(payload)
        if (stream := operation.stream) and (stream.always or getattr(request, "stream", False)):
            if peer.strict:
                raise InvalidRequest("a REQ socket takes one answer; stream over a DEALER socket")
            async with contextlib.aclosing(self._coordinator.chunks(call, operation, request)) as chunks:
                async for chunk in chunks:
                    await self._send(peer, messages.piece(call, chunk))
            return
        answer = await self._coordinator.perform(call, operation, request)
        await self._send(peer, messages.done(call, answer.model_dump(mode="json")))

    def _cancel(self, peer: _Peer, payload: Any) -> dict[str, Any]:
        """Ends the caller's earlier requests with that id: for clients that pipeline, and so cannot just hang up."""
        wanted = payload.get("request_id") if isinstance(payload, dict) and len(payload) == 1 else None
        if not isinstance(wanted, str):
            raise InvalidRequest("the payload of 'cancel' is {\"request_id\": the request to end}")
        before = itertools.takewhile(lambda item: item[1] is not peer, self._working.get(peer.connection, {}).items())
        found = [task for task, other in before if other.envelope[0] == peer.envelope[0] and other.request_id == wanted]
        # One that has just been answered is still among them, and one that was cancelled just before.
        ended = [task for task in found if not task.cancelling() and task.cancel()]
        return {"cancelled": len(ended)}

    # --- out ---
    async def _send(self, peer: _Peer, answer: dict[str, Any]) -> None:
        """Send, waiting for a slow reader a while; one that reads nothing for longer is hung up on."""
        answer["request_id"] = peer.request_id
        assert self._peers is not None
        if peer.connection not in self._peers:
            raise _Gone
        frames = [*peer.envelope, json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")]
        async with self._sending.setdefault(peer.connection, asyncio.Lock()):
            wait, left = 0.002, self._listening.client_timeout_s
            while not await self._sent(frames):
                if left <= 0:
                    patience_s = self._listening.client_timeout_s
                    log.warning("a ZMQ client has read nothing for %.0f s: it is hung up on", patience_s)
                    self._peers.hang_up(peer.connection)
                    raise _Gone
                await asyncio.sleep(wait)
                left -= wait
                wait = min(wait * 2, 0.25)

    async def _sent(self, frames: Sequence[bytes]) -> bool:
        """Whether there was room for them. Raises _Gone where nobody is left to take them."""
        assert self._socket is not None
        try:
            await self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise _Gone from None
            raise
        return True
