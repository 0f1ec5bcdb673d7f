"""Engines killed and stopped, connections cut, callers that vanish: whatever happens, every call ends, and all serves.

A list of operations is drawn from a seed (CHAOS_SEED) and done by several callers at once. CHAOS_FAULTS says how many:
here few; the long run is `make soak`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import zmq

from bad_clients import asking, connect
from chaos.callers import alive, model_of, programs
from contract import wires
from contract.wires import TRANSPORTS, Refused, Wire
from modelops.serving.breaker import COOL_DOWN_S
from support import Served, serving, tiny_gguf, wait_until

OPERATIONS = int(os.environ.get("CHAOS_FAULTS", "100"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
MODELS = ("a", "b", "c")
CALLERS = 8
#: What a caller may be told here; all else is a fault of ours.
TOLD = {"", "engine_failed", "overloaded", "deadline_exceeded", "conflict"}
DEADLINE_S, STALL_S = 20.0, 1.5
LONGEST_S = DEADLINE_S + 5  # from a call's begin to its end, whatever happened


class Chaos:
    """Does one operation after another, and remembers what came of each."""

    def __init__(self, served: Served, clients: dict[str, Wire]) -> None:
        self._served = served
        self._clients = clients
        self.codes: Counter[str] = Counter()
        self.longest = 0.0

    def do(self, kind: str, seed: int) -> None:
        chance = random.Random(seed)
        wire, model = self._clients[chance.choice(TRANSPORTS)], chance.choice(MODELS)
        began = time.monotonic()
        operation: Callable[[random.Random, Wire, str], str] = getattr(self, f"_{kind}")
        code = operation(chance, wire, model)
        self.longest = max(self.longest, time.monotonic() - began)
        self.codes[f"{kind}: {code or 'done'}"] += 1
        assert code in TOLD, f"{kind} over {wire.name}: {code}"

    # --- calls ---
    def _ask(self, chance: random.Random, wire: Wire, model: str) -> str:
        fields = {"model_name": model, "input_text": "Hello", "max_tokens": chance.randint(1, 40)}
        return wire.call("infer", fields, timeout_s=DEADLINE_S).code

    def _hurry(self, chance: random.Random, wire: Wire, model: str) -> str:
        fields = {"model_name": model, "input_text": "Hello", "max_tokens": 200}
        return wire.call("infer", fields, timeout_s=chance.uniform(0.01, 0.5)).code

    def _stream(self, chance: random.Random, wire: Wire, model: str) -> str:
        fields = {"model_name": model, "input_text": "Hello", "max_tokens": chance.randint(1, 60)}
        try:
            *_, last = wire.stream(fields, timeout_s=DEADLINE_S)
        except Refused as refused:
            return refused.answer.code
        assert last.done
        assert last.final.success or last.final.error_message
        return "" if last.final.success else "engine_failed"

    def _vanish(self, chance: random.Random, wire: Wire, model: str) -> str:
        """Hang up after some of the answer."""
        fields = {"model_name": model, "input_text": "Hello", "max_tokens": 500}
        chunks = wire.stream(fields, timeout_s=DEADLINE_S)
        try:
            for _ in range(chance.randint(1, 10)):
                if next(chunks).done:
                    break
        except Refused as refused:
            return refused.answer.code
        except StopIteration:
            pass
        finally:
            chunks.close()
        return ""

    def _cut(self, chance: random.Random, wire: Wire, model: str) -> str:
        """Ask over a plain connection, and reset it at any moment."""
        way = chance.choice(("rest", "grpc"))
        with connect(getattr(self._served, way)) as connection:
            request = asking(way, {"model_name": model, "input_text": "Hello", "max_tokens": 500})
            connection.sendall(request[: chance.randint(1, len(request))] if chance.random() < 0.3 else request)
            connection.settimeout(chance.uniform(0.001, 0.3))
            with contextlib.suppress(TimeoutError):
                connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return ""

    def _load(self, chance: random.Random, wire: Wire, model: str) -> str:
        return wire.call("load_model", {"model_name": model}, timeout_s=DEADLINE_S).code

    def _unload(self, chance: random.Random, wire: Wire, model: str) -> str:
        fields = {"model_name": model, "force": chance.random() < 0.5}
        return wire.call("unload_model", fields, timeout_s=DEADLINE_S).code

    def _reset(self, chance: random.Random, wire: Wire, model: str) -> str:
        """Ask over ZMQ, pipelined, and close the socket while the answers come."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket_:
            socket_.linger = 0
            socket_.connect(self._served.zmq)
            payload = {"model_name": model, "input_text": "Hello", "max_tokens": 500}
            for number in range(chance.randint(1, 5)):
                socket_.send_json({"action": "infer", "payload": payload, "stream": True, "request_id": str(number)})
            socket_.poll(chance.randint(1, 300))
        return ""

    # --- faults ---
    def _kill(self, chance: random.Random, wire: Wire, model: str) -> str:
        return self._signal(chance, signal.SIGKILL)

    def _stop(self, chance: random.Random, wire: Wire, model: str) -> str:
        return self._signal(chance, signal.SIGSTOP)

    def _guard(self, chance: random.Random, wire: Wire, model: str) -> str:
        """The keeper of an engine's processes is killed."""
        with contextlib.suppress(psutil.Error):
            if found := programs(self._served):
                chance.choice(found).parent().kill()  # type: ignore[union-attr] # an engine has one
        return ""

    def _signal(self, chance: random.Random, number: signal.Signals) -> str:
        with contextlib.suppress(psutil.Error):
            if found := programs(self._served):
                chance.choice(found).send_signal(number)
        return ""


KINDS = {"ask": 30, "stream": 20, "vanish": 10, "cut": 8, "reset": 6, "hurry": 6, "load": 3, "unload": 3}
KINDS |= {"kill": 7, "guard": 2, "stop": 5}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    links = [(name, tiny_gguf(tmp_path / name, general__name=name)) for name in (*MODELS, "sick")]
    fake = {"token_s": 0.01, "models": {"sick": {"sick_file": str(tmp_path / "sick is ill")}}}
    env = {
        "MODELOPS_ENGINE__SLOTS": "2",
        "MODELOPS_ENGINE__STALL_TIMEOUT_S": str(STALL_S),
        "MODELOPS_ENGINE__LOAD_TIMEOUT_S": "5",
        "MODELOPS_MODELS__MAX_QUEUE": "12",
    }
    with serving(tmp_path / "data", links=links, fake=fake, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()
        assert "task failed" not in running.log.read_text()


@pytest.mark.timeout(60 + 3 * OPERATIONS)
def test_whatever_happens_every_call_ends_and_all_serves_afterwards(served: Served, tmp_path: Path) -> None:
    print(f"CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    kinds = chance.choices([*KINDS], [*KINDS.values()], k=OPERATIONS)
    with wires.connected(served) as clients, ThreadPoolExecutor(CALLERS) as threads:
        chaos = Chaos(served, clients)
        running = [threads.submit(chaos.do, kind, chance.randrange(1 << 30)) for kind in kinds]
        for ended in running:
            ended.result()
        print(dict(sorted(chaos.codes.items())), f"longest {chaos.longest:.1f} s")
        assert chaos.longest < LONGEST_S
        # Whoever was stopped and not asked since is noticed by its next request; nothing is held by anybody else.
        rest = clients["rest"]
        wait_until(lambda: rest.ok("status").active_requests == 0 and rest.ok("status").queued_requests == 0, 30)
        for model in MODELS:
            for wire in clients.values():
                serves_again(wire, model)
        found = rest.ok("status")
        assert (found.active_requests, found.queued_requests) == (0, 0)
        assert rest.ok("health").status == "healthy"
        loaded = {one.model_name: one for one in rest.ok("list_models").models}
        assert set(loaded) == set(MODELS)
        wait_until(lambda: sorted(model_of(one) for one in programs(served) if alive(one)) == sorted(loaded))
        held = found.devices[0].reserved_mb  # of each model the whole MB are told, and of all together too
        assert 0 <= held - sum(one.memory_usage_mb for one in loaded.values()) < len(loaded)
        the_breaker_opens_tries_and_closes(served, clients, tmp_path / "sick is ill")
        # What the clients of this test keep open is all that there is: one connection each, and none of the others.
        process = psutil.Process(served.process.pid)
        wait_until(lambda: len(process.net_connections("tcp")) <= 3 + len(clients), 30)
    assert served.stop() == 0
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if str(served.data_dir) in " ".join(one.info["cmdline"] or ())
    ]


def the_breaker_opens_tries_and_closes(served: Served, clients: dict[str, Wire], illness: Path) -> None:
    """Live what its model says (serving/breaker.py): five failures in a row, a cool-down, one that tries, closed."""
    fields = {"model_name": "sick", "input_text": "Hello", "max_tokens": 2}
    rest = clients["rest"]
    assert rest.ok("infer", **fields).success
    illness.touch()
    codes = []
    while (answer := rest.call("infer", fields)).code != "overloaded":
        assert answer.code == "engine_failed", answer.seen
        codes.append(answer.code)
        assert len(codes) < 6
    opened = time.monotonic()
    assert len(codes) == 2  # each was asked twice, and of the third the first failure was the fifth
    for wire in clients.values():
        told = wire.call("infer", fields)
        assert (told.code, told.status) in {("overloaded", "503"), ("overloaded", "UNAVAILABLE"), ("overloaded", "")}
        assert told.retry_after_s is not None
        assert 10 < told.retry_after_s <= COOL_DOWN_S
    assert rest.ok("health").status == "degraded"
    illness.unlink()
    assert told.retry_after_s is not None
    time.sleep(told.retry_after_s)
    assert rest.ok("infer", **fields).success
    assert time.monotonic() - opened >= COOL_DOWN_S - 1
    assert rest.ok("health").status == "healthy"
    assert rest.ok("infer", **fields).success
    rest.ok("unload_model", model_name="sick", force=True)


def serves_again(wire: Wire, model: str) -> None:
    """The model answers; where its breaker is open it says until when, and then it does."""
    fields = {"model_name": model, "input_text": "Hello", "max_tokens": 2}
    deadline = time.monotonic() + 120
    while (answer := wire.call("infer", fields, timeout_s=DEADLINE_S)).code:
        assert answer.code in ("overloaded", "engine_failed"), answer.seen
        assert time.monotonic() < deadline, answer.seen
        time.sleep(answer.retry_after_s or 0.1)
    assert answer.result.output_text == "w0 w1 "
    info = wire.info(model)
    assert (info.status, info.message) == ("loaded", "")
