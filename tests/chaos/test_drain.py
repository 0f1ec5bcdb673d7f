"""The end of a coordinator: told before it comes, bounded, at once where that is wished, unnoticed by who heeds it."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import model_ops_pb2 as pb
from chaos.callers import Reader
from contract import wires
from contract.wires import TRANSPORTS, Wire
from support import Served, serving, tiny_gguf, wait_until

ASK = {"model_name": "m", "input_text": "Hello", "max_tokens": 4}
LONG = {"max_tokens": 2000}


@contextlib.contextmanager
def coordinator(folder: Path, **env: str) -> Iterator[Served]:
    tiny_gguf(folder / "data" / "models" / "m.gguf")
    with serving(folder / "data", load=["m"], fake={"token_s": 0.02}, env=env) as served:
        yield served
        assert "Traceback" not in served.log.read_text()


def probe(served: Served, name: str) -> int:
    return httpx.get(f"{served.rest}/health/{name}").status_code


def grpc_health(served: Served) -> str:
    with grpc.insecure_channel(served.grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status = stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def test_the_end_is_told_new_work_refused_and_what_was_accepted_finished(tmp_path: Path) -> None:
    with coordinator(tmp_path) as served, wires.connected(served) as clients:
        assert (probe(served, "live"), probe(served, "ready"), grpc_health(served)) == (204, 204, "SERVING")
        readers = [Reader(served, transport, max_tokens=150) for transport in TRANSPORTS]
        wait_until(lambda: all(reader.chunks for reader in readers))
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: probe(served, "ready") == 503)
        assert probe(served, "live") == 204
        assert grpc_health(served) == "NOT_SERVING"
        assert "shutting down" in httpx.get(f"{served.rest}/health/ready").json()["detail"]
        for wire in clients.values():
            for operation, fields in (("infer", ASK), ("load_model", {"model_name": "m"})):
                answer = wire.call(operation, fields)
                assert (answer.code, bool(answer.retry_after_s)) == ("overloaded", True), answer.seen
            assert wire.ok("list_models").models  # looking costs nothing
        assert httpx.post(f"{served.rest}/inference", json=ASK).headers["connection"] == "close"
        assert all(reader.reading for reader in readers)
        for reader in readers:
            assert reader.ended()["success"]
        assert served.process.wait(15) == 0
        assert not served.engines()


def test_the_end_is_bounded_and_who_is_cut_short_is_told(tmp_path: Path) -> None:
    with coordinator(tmp_path, MODELOPS_SERVER__DRAIN_S="0.5") as served:
        readers = [Reader(served, transport, **LONG) for transport in TRANSPORTS]
        wait_until(lambda: all(reader.chunks for reader in readers))
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(15) == 0
        assert time.monotonic() - began < 6
        for reader in readers:
            final = reader.ended()
            assert not final["success"]
            assert "shutting down" in final["error_message"]
        assert not served.engines()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_still_watches_at_the_end_is_told(transport: str, tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "data" / "models" / "m.gguf")
    with serving(tmp_path / "data", fake={"load_s": 100}) as served, wires.connected(served) as clients:
        clients[transport].ok("load_model", model_name="m", wait=False)
        events = clients[transport].events("m")
        assert next(events).model.status == "loading"
        served.process.send_signal(signal.SIGTERM)
        if transport == "zmq":  # the others see their connection end
            with pytest.raises(wires.Refused, match="shutting down"):
                list(events)
        assert served.process.wait(15) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(second: signal.Signals, tmp_path: Path) -> None:
    with coordinator(tmp_path, MODELOPS_SERVER__DRAIN_S="100") as served:
        reader = Reader(served, "rest", **LONG)
        wait_until(lambda: bool(reader.chunks))
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: probe(served, "ready") == 503)
        began = time.monotonic()
        served.process.send_signal(second)
        assert served.process.wait(15) == 0
        assert time.monotonic() - began < 5
        assert "shutting down" in reader.ended()["error_message"]
        assert not served.engines()


def test_live_and_ready_depend_on_no_model(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "tiny.gguf"))]
    with (
        serving(tmp_path / "data", links=links, fake={"load_fails": "error: out of luck"}) as served,
        wires.connected(served) as clients,
    ):
        assert clients["rest"].call("load_model", {"model_name": "m"}).code == "engine_failed"
        assert clients["rest"].ok("health").status == "degraded"
        assert (probe(served, "live"), probe(served, "ready"), grpc_health(served)) == (204, 204, "SERVING")


def test_probes_take_no_body_and_know_no_other_name(tmp_path: Path) -> None:
    with coordinator(tmp_path) as served:
        assert httpx.get(f"{served.rest}/health/live").content == b""
        assert httpx.get(f"{served.rest}/health/alive").status_code == 404
        assert httpx.post(f"{served.rest}/health/live").status_code == 405


# --- restarted under load ---
class Patient:
    """Asks one thing after another over one transport. It heeds what it is told: refused, it waits as long as it was
    told; where nobody listens, it connects again. An answer that breaks off, or none, is a failure."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.stop = threading.Event()
        self.answered = 0
        self.refused = 0

    def run(self) -> None:
        while not self.stop.is_set():
            self._ask()
            self.answered += 1

    def _ask(self) -> None:
        while True:
            chunks: list[pb.InferenceChunk] = []
            try:
                for chunk in self._wire.stream(ASK, timeout_s=20):
                    chunks.append(chunk)
                assert chunks[-1].final.output_text == "w0 w1 w2 w3 ", chunks[-1]
                return
            except wires.Refused as error:
                answer = error.answer
                assert not chunks, "an answer broke off"
                if answer.code == "overloaded":
                    assert answer.retry_after_s
                    self.refused += 1
                    self.stop.wait(answer.retry_after_s)
                else:  # gRPC's library says so where nobody listens
                    assert (answer.code, answer.status) == ("", "UNAVAILABLE"), answer.seen
                    assert re.search(r"(?i)failed to connect|connection refused", answer.message), answer.message
                    time.sleep(0.05)
            except httpx.ConnectError:
                time.sleep(0.05)


def served_on(asking: list[Patient], running: list[Future[None]]) -> None:
    """Wait until each of them has been answered some more, or one has failed."""
    wanted = [one.answered + 3 for one in asking]
    wait_until(
        lambda: (
            all(one.answered > count for one, count in zip(asking, wanted, strict=True))
            or any(one.done() for one in running)
        ),
        seconds=60,
    )


def test_restarts_under_load_leave_no_request_unanswered(tmp_path: Path) -> None:
    with coordinator(tmp_path) as first:
        ports = {
            f"MODELOPS_SERVER__{name.upper()}_PORT": getattr(first, name).rpartition(":")[2] for name in TRANSPORTS
        }
    with wires.connected(first) as clients, ThreadPoolExecutor(9) as threads:
        asking = [Patient(clients[transport]) for transport in TRANSPORTS * 3]
        running: list[Future[None]] = []
        try:
            for turn in range(4):
                with coordinator(tmp_path, MODELOPS_SERVER__DRAIN_NOTICE_S="0.5", **ports) as served:
                    running = running or [threads.submit(one.run) for one in asking]
                    served_on(asking, running)
                    if turn == 3:  # the last one serves until all that was asked is answered
                        for one in asking:
                            one.stop.set()
                        for ended in running:
                            ended.result(60)
                    assert served.stop() == 0
        finally:
            for one in asking:
                one.stop.set()
    assert all(one.refused for one in asking)
