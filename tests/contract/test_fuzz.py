"""Thousands of messages made at random, over gRPC and ZMQ: none breaks anything, or leaves anything behind.

FUZZ_MESSAGES says how many, FUZZ_SEED which ones. For a seed the messages are the same; the order in which they arrive
is not, as they come over several connections at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import zmq

from contract import fuzzing, wires
from contract.fuzzing import House, Random, ZmqMessage
from contract.refusals import ERRORS
from contract.wires import Wire, refusal
from kept_goals import keep_goal
from kept_jobs import keep
from modelops.api.operations import OPERATIONS
from support import Served, make_key, serving, tiny_gguf, wait_until

MESSAGES = int(os.environ.get("FUZZ_MESSAGES", "5000"))
SEED = os.environ.get("FUZZ_SEED", "1")
#: Conversations at once: enough to meet each other, few enough for a machine with two cores.
WORKERS = 4
PATIENCE_S = 60.0
#: How much the coordinator's memory may grow from the first fifth of the messages to the last.
GROWTH_MB = 32
#: Those that the gRPC library and asyncio's executor start when there is more to do, and keep.
SPARE_THREADS = 8

MODELS = {"quick": "llm", "vectors": "embedding", "scores": "reranker"}
POOLING = {"llm": 0, "embedding": 1, "reranker": 4}
RPCS = [rpc for operation in OPERATIONS for rpc in [*operation.rpcs, operation.stream_rpc] if rpc]
HEALTH = "/grpc.health.v1.Health/Check"
STREAMS = {operation.stream_rpc for operation in OPERATIONS if operation.stream_rpc}

pytestmark = pytest.mark.timeout(180 + MESSAGES // 50)


@dataclass
class Target:
    """A coordinator with a key, and clients that show it."""

    served: Served
    house: House
    clients: dict[str, Wire]

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.served.process.pid)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzzed")
    for name, kind in {**MODELS, "other": "llm"}.items():
        tiny_gguf(folder / "files" / f"{name}.gguf", llama__pooling_type=POOLING[kind], general__name=name)
    env = {
        "MODELOPS_MODELS__ROOTS": str(folder / "files"),
        "MODELOPS_MEMORY__BUDGET_MB": "400",
        "MODELOPS_SERVER__REQUEST_TIMEOUT_S": "20",
        "MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0",
        "MODELOPS_GOALS__MAX_ACTIVE": "0",
        # What is held, and not what the allocator keeps in case that each of its threads needs it again.
        "MALLOC_ARENA_MAX": "1",
        "MODELOPS_SERVER__CLIENT_TIMEOUT_S": "5",
        # Nothing that is made up here is asked for over a network.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_RETRIES": "0",
    }
    keep(folder / "data")
    keep_goal(folder / "data")
    with serving(folder / "data", fake={"tokens": 2}, env=env) as served:
        key = make_key(served.data_dir, "fuzzer", "--scope", "admin")
        lacking = make_key(served.data_dir, "lacking", "--scope", "metrics")
        wrong = (lacking, key[:-1] + ("0" if key[-1] != "0" else "1"), key.upper(), "mok_", key + key, "x" * 3000, "*")
        paths = (*(f"{name}.gguf" for name in MODELS), "none.gguf", "../../etc/passwd", "https://127.0.0.1/m.gguf")
        house = House(models=MODELS | {"other": "llm"}, paths=paths, key=key, wrong_keys=wrong)
        with wires.connected(served, key) as clients:
            yield Target(served, house, clients)


# --- what is left behind ---
@dataclass(frozen=True)
class Census:
    """What the coordinator holds while it rests."""

    files: int
    threads: int
    engines: int
    memory_mb: float


def at_rest(target: Target) -> Census:
    """Bring the models back to what they were, wait until nothing goes on, and count."""
    rest = target.clients["rest"]
    wait_until(lambda: rest.call("status").code == "", what="the key being known")

    def quiet() -> bool:
        status = rest.ok("status")
        return bool(status.active_requests == status.queued_requests == 0)

    def alone() -> bool:
        listed = {model.model_name: model.status for model in rest.ok("list_models").models}
        for name in listed.keys() - MODELS.keys():
            rest.call("unload_model", {"model_name": name, "force": True})
        return listed == dict.fromkeys(MODELS, "loaded")

    wait_until(quiet, seconds=PATIENCE_S, what="no request being left")
    for name, kind in MODELS.items():
        # Plainly as the first time, whatever was wished for it meanwhile.
        rest.call("unload_model", {"model_name": name, "force": True})
        rest.call("load_model", {"model_name": name, "model_path": f"{name}.gguf", "model_type": kind, "pin": True})
    wait_until(alone, seconds=PATIENCE_S, what="the models being as they were")
    process = target.process
    return Census(
        files=open_files(target),
        threads=process.num_threads(),
        engines=len(target.served.engines()),
        memory_mb=process.memory_info().rss / 2**20,
    )


def open_files(target: Target) -> int:
    """Without the state file's: connections to it are kept, up to a number."""
    folder = Path(f"/proc/{target.process.pid}/fd")
    return sum("state.db" not in str(file.readlink()) for file in folder.iterdir() if file.is_symlink())


# --- gRPC ---
def talk_grpc(rng: Random, target: Target, seen: Counter[str]) -> int:
    """One channel with calls at once, some of which are cancelled. How many."""
    count = rng.randrange(1, 40)
    options = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target.served.grpc, options=options) as channel:
        calls = [call for _ in range(count) if (call := begin(rng, target, channel))]
        for call in calls:
            seen[call.end()] += 1
    return count


@dataclass
class Called:
    """A call that was begun, and how it must not end."""

    call: Any
    rpc: str
    raw: bytes
    may: bool  # it showed the right key, or needs none
    limit_s: float
    cancel_s: float | None
    read: int  # chunks of a stream that are read

    def end(self) -> str:
        """Its status, which is one that it may have."""
        began = time.monotonic()
        status = self._status()
        assert time.monotonic() - began < self.limit_s + PATIENCE_S / 2, f"{self} took too long"
        if status in ("OK", "CANCELLED"):
            assert self.may or status == "CANCELLED", f"{self} was granted"
            return f"{self.rpc} {status}"
        answer = refusal(self.call)
        if answer.code:
            assert answer.code in ERRORS, f"{self}: {answer.seen}"
            assert status in ERRORS[answer.code][1], f"{self}: {answer.seen}"
        else:  # the library's own: a deadline, a method that is not, metadata beyond its bounds
            assert status in ("DEADLINE_EXCEEDED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"), f"{self}: {answer.seen}"
        return f"{self.rpc} {status} {answer.code}"

    def _status(self) -> str:
        if self.cancel_s is not None:
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.RpcError, grpc.FutureCancelledError):
                self.call.result(self.cancel_s) if self.rpc not in STREAMS else next(self.call)
            self.call.cancel()
        try:
            if self.rpc in STREAMS:
                for number, _ in enumerate(self.call):
                    if number == self.read:
                        self.call.cancel()
            else:
                self.call.result(self.limit_s + PATIENCE_S)
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass
        return str(self.call.code().name)


def begin(rng: Random, target: Target, channel: grpc.Channel) -> Called | None:
    """A call of any rpc; None where the client's own library does not let it through."""
    rpc = rng.choice(RPCS)
    operation = next(one for one in OPERATIONS if rpc in one.rpcs or rpc == one.stream_rpc)
    if operation.name in fuzzing.SELDOM and rng.random() < 0.6:
        rpc, operation = "Infer", OPERATIONS[0]
    key = target.house.shown(rng)
    raw = fuzzing.protobuf(rng, target.house, rpc)
    method = f"/ModelOps/{rpc}"
    if rng.random() < 0.03:
        method = rng.choice(
            ("/ModelOps/Dance", "/ModelOps/", "/modelops/Infer", "/", "ModelOps/Infer", "/a/b/c", "/é/x")
        )
    limit = rng.choice((0.001, 0.005, 0.05)) if rng.random() < 0.2 else 20
    try:
        made: Any = (channel.unary_stream if rpc in STREAMS else channel.unary_unary)(method, None, None)
        told = fuzzing.metadata(rng, key)
        call = (made if rpc in STREAMS else made.future)(
            raw, timeout=limit, metadata=told, compression=rng.choice((None, grpc.Compression.Gzip))
        )
    except (ValueError, TypeError, UnicodeError):
        return None
    may = key == target.house.key or operation.scope is None or method == HEALTH
    cancel_s = rng.choice((0.0, 0.001, 0.005)) if rng.random() < 0.1 else None
    return Called(call, rpc, raw, may, limit, cancel_s, read=rng.randrange(10))


# --- ZMQ ---
def talk_zmq(rng: Random, target: Target, context: zmq.Context[Any], seen: Counter[str]) -> int:
    """One connection with a burst of messages, each of which is answered once; or one that closes before."""
    if rng.random() < 0.2:
        return talk_req(rng, target, context, seen)
    made: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    with contextlib.closing(made) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        if rng.random() < 0.2:
            dealer.setsockopt(zmq.IDENTITY, b"\1" + rng.randbytes(rng.choice((8, 200))))
        dealer.connect(target.served.zmq)
        burst = {}
        for number in range(rng.randrange(1, 40)):
            tag = b"%d" % number
            others = [rng.choice((b"", b"", b"x", rng.randbytes(300))) for _ in range(rng.choice((0, 1, 1, 1, 5)))]
            burst[tag] = fuzzing.zmq_message(rng, target.house, (tag, *others))
            dealer.send_multipart([*burst[tag].envelope, burst[tag].body])
        if rng.random() < 0.1:
            return len(burst)  # hung up in mid-use
        left, cancelled = dict(burst), 0
        while len(left) > cancelled:
            assert dealer.poll(int(PATIENCE_S * 1000)), f"no answer to {list(left.values())[:3]}"
            *envelope, body = dealer.recv_multipart()
            message = left.get(envelope[0])
            assert message, f"{body!r} is an answer too many, to {burst.get(envelope[0])}, with {cancelled} cancelled"
            assert tuple(envelope) == message.envelope
            answer = checked(target, message, body)
            cancelled += (answer["result"] or {}).get("cancelled", 0) if isinstance(answer["result"], dict) else 0
            if answer.get("done", True):
                del left[envelope[0]]
                seen[f"{message.action} {answer.get('code', 'OK')}"] += 1
        # After one more, which is the last, nothing else has come.
        dealer.send_multipart([b"last", b'{"action": "health"}'])
        assert dealer.poll(int(PATIENCE_S * 1000)), "no answer to the last"
        final = dealer.recv_multipart()
        assert final[0] == b"last", f"{final[-1]!r} came too many, to {left.get(final[0])}, with {cancelled} cancelled"
        return len(burst) + 1


def talk_req(rng: Random, target: Target, context: zmq.Context[Any], seen: Counter[str]) -> int:
    """A REQ socket, which asks one thing after the other; a relaxed one may not wait for the answer."""
    made: zmq.Socket[bytes] = context.socket(zmq.REQ)
    relaxed = rng.random() < 0.5
    count = rng.randrange(1, 10)
    with contextlib.closing(made) as req:
        req.setsockopt(zmq.LINGER, 0)
        req.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))  # a relaxed one skips late answers to what came before
        if relaxed:
            req.setsockopt(zmq.REQ_RELAXED, 1)
            req.setsockopt(zmq.REQ_CORRELATE, 1)
        req.connect(target.served.zmq)
        for _ in range(count):
            message = fuzzing.zmq_message(rng, target.house, ())
            req.send(message.body)
            if relaxed and rng.random() < 0.3:
                continue
            try:
                answer = checked(target, message, req.recv())
            except zmq.Again:
                raise AssertionError(f"no answer to {message}") from None
            assert answer.get("done", True)
            seen[f"{message.action} {answer.get('code', 'OK')}"] += 1
    return count


def checked(target: Target, message: ZmqMessage, body: bytes) -> dict[str, Any]:
    """The answer, which is one that the message may have."""
    answer = json.loads(body)
    assert isinstance(answer, dict)
    assert answer["latency_ms"] >= 0
    if message.asks is not None:
        assert answer["request_id"] == message.asks, f"{message}: {answer}"
    if answer["success"]:
        keyless = b"health" in message.body or b"cancel" in message.body
        assert keyless or target.house.key.encode() in message.body, f"{message} was granted"
    elif answer["result"] is None:
        assert answer["code"] in ERRORS, f"{message}: {answer}"
        assert answer["error"]
    return answer


# --- neither ---
def talk_raw(rng: Random, target: Target) -> int:
    """A connection that speaks badly, or not to the end."""
    address = rng.choice((target.served.zmq.removeprefix("tcp://"), target.served.grpc))
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection, contextlib.suppress(OSError):
        connection.sendall(fuzzing.connection(rng))
        if rng.random() < 0.5:
            connection.settimeout(0.02)
            connection.recv(4096)
    return 1


def test_no_message_breaks_anything_or_leaves_anything_behind(target: Target) -> None:
    began = time.monotonic()
    at_rest(target)
    seen: Counter[str] = Counter()
    sent = fuzz(target, "first", MESSAGES // 5, seen)
    before = at_rest(target)
    sent += fuzz(target, "further", MESSAGES - sent, seen)
    after = at_rest(target)
    print(f"{sent} messages in {time.monotonic() - began:.0f} s: {before} → {after}")
    for what, number in sorted(seen.items()):
        print(f"{number:7} {what}")
    log = target.served.log.read_text()
    assert "Traceback" not in log
    assert "task failed" not in log
    assert target.house.key not in log
    if MESSAGES >= 5000:  # enough for some of each sort to have been right
        often = [operation for operation in OPERATIONS if operation.name not in fuzzing.SELDOM]
        wanted = {
            name for operation in often for name in (operation.action, *operation.rpcs, operation.stream_rpc) if name
        }
        assert {name for name in wanted if not seen[f"{name} OK"]} == set()
    assert after.engines == before.engines
    assert after.memory_mb < before.memory_mb + GROWTH_MB
    assert after.threads <= before.threads + SPARE_THREADS
    wait_until(lambda: open_files(target) <= before.files, seconds=PATIENCE_S, what="no file being left open")
    for name, wire in target.clients.items():
        answer = wire.call("infer", {"model_name": "quick", "input_text": "Hello"})
        assert answer.code == "", f"{name}: {answer.seen}"


def fuzz(target: Target, part: str, count: int, seen: Counter[str]) -> int:
    """Hold conversations until `count` messages have been sent; returns how many were."""
    numbers = itertools.count()
    faults: list[str] = []
    sent, lock = 0, threading.Lock()

    def work() -> None:
        nonlocal sent
        while sent < count and not faults:
            with lock:
                conversation = f"{SEED} {part} {next(numbers)}"
            rng = Random(conversation)
            mine: Counter[str] = Counter()
            try:
                kind = rng.random()
                if kind < 0.1:
                    done = talk_raw(rng, target)
                elif kind < 0.5:
                    done = talk_grpc(rng, target, mine)
                else:
                    done = talk_zmq(rng, target, context, mine)
            except Exception as error:
                faults.append(f"conversation '{conversation}': {type(error).__name__}: {error}"[:6000])
                return
            with lock:
                sent += done
                seen.update(mine)

    with zmq.Context() as context:
        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        context.destroy(linger=0)
    assert not faults, "\n".join(faults)
    return sent
