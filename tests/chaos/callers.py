"""The same call over each transport, in two forms: begun and cancelled as its clients would, or read as a stream."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import zmq
from google.protobuf import json_format

import model_ops_pb2 as pb
import model_ops_pb2_grpc
from modelops.client import Client
from support import Served, wait_until

Request = dict[str, Any]
Chunk = dict[str, Any]


class Refused(Exception):
    """The call ended with an error instead of an answer; `code` is the neutral one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def _stub(channel: grpc.Channel) -> Any:
    stub: Any = model_ops_pb2_grpc.ModelOpsStub
    return stub(channel)


# --- begun, and cancelled ---
def begin_rest(served: Served, request: Request) -> Callable[[], object]:
    connection = http.client.HTTPConnection(served.rest.removeprefix("http://"))
    connection.request("POST", "/inference", json.dumps(request), {"Content-Type": "application/json"})
    return connection.close


def begin_grpc(served: Served, request: Request) -> Callable[[], object]:
    channel = grpc.insecure_channel(served.grpc)
    call = _stub(channel).Infer.future(pb.InferenceRequest(**request))

    def cancel() -> None:
        call.cancel()
        channel.close()

    return cancel


def begin_zmq(served: Served, request: Request) -> Callable[[], object]:
    socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(served.zmq)
    socket.send_json({"action": "infer", "payload": request})
    return lambda: socket.close(linger=0)


def begin_zmq_with_action(served: Served, request: Request) -> Callable[[], object]:
    socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(served.zmq)
    socket.send_json({"action": "infer", "payload": request, "request_id": "1"})

    def cancel() -> None:
        socket.send_json({"action": "cancel", "payload": {"request_id": "1"}})
        answer: Any = socket.recv_json()
        assert answer["result"] == {"cancelled": 1}
        socket.close(linger=0)

    return cancel


BEGIN = {"rest": begin_rest, "grpc": begin_grpc, "zmq": begin_zmq, "zmq cancel": begin_zmq_with_action}


# --- read as a stream; closing the generator cancels ---
def stream_rest(served: Served, request: Request) -> Generator[Chunk]:
    with (
        httpx.Client(base_url=served.rest, timeout=60) as client,
        client.stream("POST", "/inference", json=request | {"stream": True}) as response,
    ):
        if response.is_error:
            told = json.loads(response.read())
            raise Refused(told["code"], told["detail"])
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


def stream_grpc(served: Served, request: Request) -> Generator[Chunk]:
    with grpc.insecure_channel(served.grpc) as channel:
        call = _stub(channel).InferStream(pb.InferenceRequest(**request), timeout=60)
        try:
            for chunk in call:
                yield json_format.MessageToDict(
                    chunk, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
        except grpc.RpcError:
            code = {grpc.StatusCode.INTERNAL: "engine_failed", grpc.StatusCode.UNAVAILABLE: "overloaded"}
            raise Refused(code.get(call.code(), str(call.code())), str(call.details())) from None
        finally:
            call.cancel()


def stream_zmq(served: Served, request: Request) -> Generator[Chunk]:
    socket: zmq.SyncSocket
    with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 60_000)
        socket.connect(served.zmq)
        socket.send_json({"action": "infer", "payload": request, "stream": True})
        done = False
        while not done:
            answer: Any = socket.recv_json()
            done = answer["done"]
            if answer["result"] is None:
                raise Refused(answer["code"], answer["error"])
            yield answer["result"]


STREAM = {"rest": stream_rest, "grpc": stream_grpc, "zmq": stream_zmq}


class Reader(threading.Thread):
    """Reads a stream to its end, or until it is told to hang up."""

    def __init__(self, served: Served, transport: str, **request: Any) -> None:
        super().__init__(name=transport, daemon=True)
        self.chunks: list[Chunk] = []
        self.error: Exception | None = None
        self.left = threading.Event()
        self._stream = STREAM[transport](served, {"model_name": "m", "input_text": "Hello", **request})
        self.start()

    def run(self) -> None:
        try:
            with closing(self._stream) as chunks:
                for chunk in chunks:
                    self.chunks.append(chunk)
                    if self.left.is_set():
                        return
        except Exception as error:
            self.error = error

    @property
    def reading(self) -> bool:
        """Whether the answer goes on."""
        return self.is_alive() and not (self.chunks and self.chunks[-1]["done"])

    def ended(self) -> Chunk:
        """The whole answer, which came with the last chunk."""
        self.join(30)
        assert not self.is_alive()
        assert self.error is None
        assert self.chunks[-1]["done"]
        final: Chunk = self.chunks[-1]["final"]
        assert final["output_text"] == "".join(chunk["text"] for chunk in self.chunks)
        return final

    def hang_up(self) -> None:
        """Leave after the next chunk."""
        self.left.set()
        self.join(30)
        assert not self.is_alive()


# --- the coordinator ---
def kill(served: Served, seconds: float = 5.0) -> None:
    """SIGKILL to the coordinator; all that it had started ends within so many seconds."""
    tree = served.engines()
    served.process.kill()
    served.process.wait(10)
    wait_until(lambda: not any(map(alive, tree)), seconds, "the end of all that it had started")


def until_noted(served: Served, model: str, *, wanted: bool) -> None:
    """Wait until the state file says whether a restart has to load it. Who has not been answered cannot know."""

    def noted() -> bool:
        with contextlib.closing(sqlite3.connect(served.data_dir / "state.db")) as state:
            rows = state.execute("SELECT wanted FROM models WHERE model_name = ?", [model]).fetchall()
        return rows == [(int(wanted),)]

    wait_until(noted, what=f"a note that '{model}' is {'' if wanted else 'not '}wanted")


# --- what the machine itself shows ---
def programs(served: Served) -> list[psutil.Process]:
    """The engines' own processes, without their guards."""
    found = []
    for process in served.engines():
        with contextlib.suppress(psutil.Error):
            argv = process.cmdline()
            if "--host" in argv and not any(part.endswith("guard.py") for part in argv):
                found.append(process)
    return found


def model_of(program: psutil.Process) -> str:
    """The model that the engine serves."""
    argv = program.cmdline()
    return argv[argv.index("--alias") + 1]


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that only waits for its parent to take notice does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def taken_mb(process: psutil.Process) -> float:
    """What it holds that the machine cannot take back: pages of files, which it can, do not count."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) / 1024
    return 0.0


@contextlib.contextmanager
def engine(served: Served) -> Iterator[httpx.Client]:
    """A client of the one engine itself, over its own socket and with its own key."""
    (program,) = programs(served)
    argv = program.cmdline()
    with httpx.Client(
        # The engine closes a kept connection after a while, just when it is used again.
        transport=httpx.HTTPTransport(
            uds=argv[argv.index("--host") + 1], limits=httpx.Limits(max_keepalive_connections=0)
        ),
        base_url="http://engine",
        headers={"Authorization": f"Bearer {program.environ()['LLAMA_API_KEY']}"},
        timeout=30,
    ) as client:
        yield client


def client(served: Served) -> Client:
    return Client(served.rest, timeout_s=60)


def visible(folder: Path) -> set[str]:
    """What can be seen of models, quantised copies included."""
    return {file.name for place in ("models", "quantised") for file in (folder / place).glob("*")} - {".partial"}
