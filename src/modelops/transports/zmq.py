"""ZMQ: a ROUTER socket that speaks JSON. REQ clients ask one thing at a time; DEALER clients may pipeline, and stream.

A connection that closes ends its own requests: the library names the connection of each message, and tells of its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from modelops.api import types
from modelops.api.errors import InvalidRequest, ModelOpsError, TooLarge, shutting_down
from modelops.api.operations import OPERATIONS, Operation
from modelops.service import Call, Coordinator, internal
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: ZMQ answers carry the neutral code itself; the table exists so that one test covers all transports.
STATUS: dict[str, str] = {
    code: code
    for code in (
        *("invalid_request", "unauthenticated", "permission_denied", "not_found", "conflict", "too_large"),
        *("rate_limited", "internal", "not_implemented", "engine_failed", "overloaded", "deadline_exceeded"),
        "insufficient_memory",
    )
}

_ACTIONS: dict[str, Operation] = {operation.action: operation for operation in OPERATIONS}
_KINDS: dict[str, tuple[type, ...]] = {
    "action": (str,),
    "request_id": (str,),
    "timestamp": (str,),
    "stream": (bool,),
    "timeout_s": (int, float),
}
_ENVELOPE = (*_KINDS, "payload")
_FIND_REQUEST_ID = re.compile(rb'"request_id"\s*:\s*"([^"\\\x00-\x1f]{1,128})"')
#: What the library itself refuses, by closing the connection. Up to it a message is read, and refused with its reason.
_HARD_LIMIT = 64 * 2**20
_LONGEST_SEND_S = 10.0
_LAST_WORDS_S = 0.2  # for each caller that is told of the end


class _Gone(Exception):
    """The caller is gone, or reads nothing: nobody is left to answer."""


class _Peer:
    """Where an answer goes: the frames before the body, the connection that the request came over, and its id.

    Raises zmq.ZMQError for a peer of the first protocol (ZMTP 1.0), whose messages do not tell their connection.
    """

    def __init__(self, envelope: Sequence[bytes], body: zmq.Frame) -> None:
        self.envelope = list(envelope)
        self.connection = int(body.get(zmq.SRCFD))
        self.strict = body.get("Socket-Type") == "REQ"
        self.request_id = _find_request_id(body.bytes)


class ZmqServer:
    """Listens on one address; `start` returns when it accepts messages, `stop` when the last has been answered."""

    def __init__(self, coordinator: Coordinator, host: str, port: int, max_body_bytes: int) -> None:
        self._coordinator = coordinator
        self._host = f"[{host}]" if ":" in host else host
        self._port = port
        self._max_body_bytes = max_body_bytes
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._tasks = Tasks("zmq")
        # Which work belongs to which connection, so that it ends when its caller is gone.
        self._working: dict[int, dict[asyncio.Task[None], _Peer]] = {}
        self._connections: set[int] = set()
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
        router.setsockopt(zmq.IPV6, int(self._host.startswith("[")))
        self._monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        try:
            router.bind(f"tcp://{self._host}:{self._port or '*'}")
        except zmq.ZMQError as error:
            router.disable_monitor()
            self._monitor.close(0)
            router.close(0)
            raise OSError(error.errno, error.strerror) from None
        self._port = int(router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._socket = router
        self._receiving = self._tasks.start("receive", self._receive(router))
        self._tasks.start("watch connections", self._watch(self._monitor))

    async def stop(self) -> None:
        """End the work in flight, and listening; who still waits is told so."""
        gone = shutting_down()
        for peers in list(self._working.values()):
            for task, peer in list(peers.items()):
                task.cancel()
                with contextlib.suppress(zmq.ZMQError, _Gone):
                    async with asyncio.timeout(_LAST_WORDS_S):
                        await self._send(peer, _failed(Call(peer.request_id, "zmq"), gone))
        await self._tasks.close()
        if self._socket and self._monitor:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close()
            self._socket = None
        self._context.term()

    # --- in ---
    async def _receive(self, router: zmq.asyncio.Socket) -> None:
        while True:
            frames = await router.recv_multipart(copy=False)
            # First what happened to connections: a number may have ended with one and begun with another since.
            await self._look()
            try:
                peer = _Peer([frame.bytes for frame in frames[:-1]], frames[-1])
            except zmq.ZMQError:
                log.warning("a message of the first ZMQ protocol is dropped: it cannot be answered")
                continue
            if peer.connection not in self._connections:
                continue  # closed before its message was read: nobody is left to answer
            task = self._tasks.start("answer", self._answer(peer, frames[-1].bytes))
            self._working.setdefault(peer.connection, {})[task] = peer
            task.add_done_callback(partial(self._ended, peer.connection))

    def _ended(self, connection: int, task: asyncio.Task[None]) -> None:
        mine = self._working.get(connection, {})
        mine.pop(task, None)
        if not mine:
            self._working.pop(connection, None)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            await monitor.poll()
            await self._look()

    async def _look(self) -> None:
        """Take note of the connections made since the last look, and cancel the work of those that were closed."""
        assert self._monitor is not None
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(await self._monitor.recv_multipart(zmq.NOBLOCK))
                connection = event["value"]
                if event["event"] == zmq.EVENT_ACCEPTED:
                    self._connections.add(connection)
                else:
                    self._connections.discard(connection)
                    for task in self._working.pop(connection, {}):
                        task.cancel()

    # --- one message ---
    async def _answer(self, peer: _Peer, body: bytes) -> None:
        with contextlib.suppress(_Gone):
            call = Call(peer.request_id or uuid.uuid4().hex, "zmq")
            try:
                if len(body) > self._max_body_bytes:
                    raise TooLarge(f"the request is over {self._max_body_bytes} bytes")
                message = _envelope(types.from_json(body))
                peer.request_id = message.get("request_id", "")
                call = replace(call, request_id=peer.request_id or call.request_id, timeout_s=message.get("timeout_s"))
                await self._perform(peer, call, message)
                return
            except _Gone:
                raise
            except ModelOpsError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - the last line of defence: it answers, and logs all
                failure = internal(call, error)
            await self._send(peer, _failed(call, failure))

    async def _perform(self, peer: _Peer, call: Call, message: dict[str, Any]) -> None:
        action, payload = message["action"], message.get("payload", {})
        if action == "cancel":
            await self._send(peer, _done(call, self._cancel(peer, payload)))
            return
        operation = _ACTIONS[action]
        if "stream" in message and isinstance(payload, dict) and "stream" in operation.request.model_fields:
            payload = {"stream": message["stream"]} | payload
        request: Any = operation.request.parse(payload)
        if (stream := operation.stream) and (stream.always or getattr(request, "stream", False)):
            if peer.strict:
                raise InvalidRequest("a REQ socket takes one answer; stream over a DEALER socket")
            async with contextlib.aclosing(getattr(self._coordinator, stream.method)(call, request)) as chunks:
                async for chunk in chunks:
                    await self._send(peer, _piece(call, chunk))
            return
        answer = await getattr(self._coordinator, operation.name)(call, request)
        await self._send(peer, _done(call, answer.model_dump(mode="json")))

    def _cancel(self, peer: _Peer, payload: Any) -> dict[str, Any]:
        """Ends the caller's own request with that id: for clients that pipeline, and so cannot just hang up."""
        wanted = payload.get("request_id") if isinstance(payload, dict) and len(payload) == 1 else None
        if not isinstance(wanted, str):
            raise InvalidRequest("the payload of 'cancel' is {\"request_id\": the request to end}")
        found = [
            task
            for task, other in self._working.get(peer.connection, {}).items()
            if other.envelope[0] == peer.envelope[0] and other.request_id == wanted and other is not peer
        ]
        for task in found:
            task.cancel()
        return {"cancelled": len(found)}

    # --- out ---
    async def _send(self, peer: _Peer, answer: dict[str, Any]) -> None:
        """Send, waiting for a slow reader a while; one that reads nothing for longer is given up."""
        assert self._socket is not None
        answer["request_id"] = peer.request_id
        frames = [*peer.envelope, json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")]
        wait, left = 0.002, _LONGEST_SEND_S
        while True:
            try:
                await self._socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                if left <= 0:
                    log.warning("a ZMQ client has read nothing for %.0f s: its answer is dropped", _LONGEST_SEND_S)
                    raise _Gone from None
                await asyncio.sleep(wait)
                left -= wait
                wait = min(wait * 2, 0.25)
            except zmq.ZMQError as error:
                if error.errno == zmq.EHOSTUNREACH:
                    raise _Gone from None
                raise
            else:
                return


def _envelope(message: Any) -> dict[str, Any]:
    """The message, its own fields checked. Raises InvalidRequest."""
    if not isinstance(message, dict):
        raise InvalidRequest("a message is a JSON object with 'action' and 'payload'")
    for name in message:
        if name not in _ENVELOPE:
            raise InvalidRequest(f"unknown field '{str(name)[:64]}' beside the payload; known: {', '.join(_ENVELOPE)}")
    for name, kinds in _KINDS.items():
        if name in message and type(message[name]) not in kinds:
            raise InvalidRequest(f"'{name}' has the wrong type")
    if message.get("timeout_s", 1) <= 0:
        raise InvalidRequest("'timeout_s' must be above 0")
    if len(message.get("request_id", "")) > 128:
        raise InvalidRequest("'request_id' is over 128 characters")
    action = message.get("action", "")
    if action not in _ACTIONS and action != "cancel":
        known = ", ".join([*_ACTIONS, "cancel"])
        raise InvalidRequest(f"unknown action '{action[:64]}'; known: {known}")
    return message


def _find_request_id(body: bytes) -> str:
    """The request's id, found without reading the rest: it is echoed even when the rest is unreadable."""
    found = _FIND_REQUEST_ID.search(body[:4096]) or _FIND_REQUEST_ID.search(body[-4096:])
    return found[1].decode("utf-8", "replace") if found else ""


def _done(call: Call, result: Any) -> dict[str, Any]:
    return {
        "success": True,
        "result": result,
        "error": None,
        "latency_ms": call.latency_ms,
    }


def _piece(call: Call, chunk: Any) -> dict[str, Any]:
    """A chunk of a stream; the last one is marked, and fails where the answer was cut short."""
    answer = _done(call, chunk.model_dump(mode="json", exclude_none=True)) | {"done": chunk.done}
    if (final := getattr(chunk, "final", None)) and not final.success:
        answer |= {"success": False, "error": final.error_message}
    return answer


def _failed(call: Call, error: ModelOpsError) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "success": False,
        "result": None,
        "error": error.message,
        "code": STATUS[error.code],
        "latency_ms": call.latency_ms,
        "done": True,
    }
    if error.retry_after_s is not None:
        answer["retry_after_s"] = round(error.retry_after_s, 3)
    if error.details:
        answer["details"] = error.details
    return answer
