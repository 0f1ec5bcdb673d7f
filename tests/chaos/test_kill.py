"""Engines and coordinators that are killed, stopped and asked to end, as real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chaos.callers import STREAM, Reader, Refused, alive, client, programs
from modelops.api.errors import EngineFailed
from support import Served, serving, tiny_gguf, wait_until

ORPHAN_S = 2.0  # after `kill -9` of the coordinator nothing of it lives longer


@contextmanager
def faked(folder: Path, behaviour: dict[str, Any], **options: Any) -> Iterator[Served]:
    """A coordinator with the model `m` in a fake engine that behaves as told."""
    model = tiny_gguf(folder / "models" / "m.gguf")
    assert model.is_file()
    with serving(folder, fake=behaviour, **options) as served:
        yield served


# --- the engine ---
@pytest.fixture(scope="module")
def real(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator of our own with the real model: these tests kill its engine."""
    with serving(tmp_path_factory.mktemp("real"), links=[("m", smollm2)], load=["m"]) as served:
        yield served


@pytest.mark.engine
@pytest.mark.parametrize("transport", STREAM)
def test_killing_the_engine_costs_the_answer_in_flight_and_nothing_else(real: Served, transport: str) -> None:
    reader = Reader(real, transport, max_tokens=2000, raw=True)
    wait_until(lambda: len(reader.chunks) > 2, what="the beginning of an answer")
    (engine,) = programs(real)
    engine.kill()
    final = reader.ended()
    assert final["success"] is False
    assert "was killed by SIGKILL" in final["error_message"]
    assert final["output_text"]
    with client(real) as asked:
        assert asked.infer("m", "Hello", max_tokens=4).success
    (new,) = programs(real)
    assert new.pid != engine.pid
    assert len(real.engines()) == 2  # with its guard
    assert not alive(engine)


@pytest.mark.parametrize("transport", STREAM)
def test_an_engine_that_dies_before_it_says_anything_is_an_error(tmp_path: Path, transport: str) -> None:
    with faked(tmp_path, {"die_after": 0, "load_s": 0.1}) as served:
        with pytest.raises(Refused) as caught:
            list(STREAM[transport](served, {"model_name": "m", "input_text": "Hello"}))
        assert caught.value.code == "engine_failed"
        with client(served) as asked, pytest.raises(EngineFailed):
            asked.infer("m", "Hello")


# --- the coordinator, killed ---
@pytest.mark.parametrize("stopped", [None, "engine", "guard"])
def test_nothing_outlives_a_killed_coordinator_and_the_next_one_starts(tmp_path: Path, stopped: str | None) -> None:
    behaviour = {"child": True, "ignore_term": True, "token_s": 0.01}
    with faked(tmp_path, behaviour, load=["m"]) as served:
        reader = Reader(served, "rest", max_tokens=2000)
        wait_until(lambda: reader.chunks)
        tree = served.engines()
        guard, engine, _child = tree
        if stopped:
            (engine if stopped == "engine" else guard).suspend()
        served.process.kill()
        served.process.wait()
        if stopped != "guard":
            wait_until(lambda: not any(map(alive, tree)), ORPHAN_S, "the end of every orphan")
        reader.join(10)
    with faked(tmp_path, {}, load=["m"]) as again:
        # A guard that was stopped could not act; then the next coordinator does.
        assert not any(map(alive, tree))
        with client(again) as asked:
            assert asked.infer("m", "Hello", max_tokens=2).output_text == "w0 w1 "


# --- the coordinator, asked to end ---
def test_sigterm_finishes_the_streams_and_leaves_nothing(tmp_path: Path) -> None:
    with faked(tmp_path, {"token_s": 0.05, "child": True}, load=["m"]) as served:
        readers = [Reader(served, transport, max_tokens=30) for transport in STREAM]
        wait_until(lambda: all(reader.chunks for reader in readers))
        tree = served.engines()
        assert served.stop() == 0
        for reader in readers:
            final = reader.ended()
            assert final["success"]
            assert final["tokens_generated"] == 30
        assert not any(map(alive, tree))


def test_what_does_not_end_within_the_drain_bound_is_cut_short_and_told(tmp_path: Path) -> None:
    env = {"MODELOPS_SERVER__DRAIN_S": "0.3"}
    with faked(tmp_path, {"hang_after": 3}, load=["m"], env=env) as served:
        readers = [Reader(served, transport) for transport in STREAM]
        wait_until(lambda: all(len(reader.chunks) == 3 for reader in readers))
        tree = served.engines()
        assert served.stop() == 0
        for reader in readers:
            final = reader.ended()
            assert not final["success"]
            assert "shutting down" in final["error_message"]
        assert not any(map(alive, tree))


def test_a_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    env = {"MODELOPS_SERVER__DRAIN_S": "3600"}
    with faked(tmp_path, {"hang_after": 3}, load=["m"], env=env) as served:
        reader = Reader(served, "rest")
        wait_until(lambda: len(reader.chunks) == 3)
        tree = served.engines()
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "a second signal ends at once" in served.log.read_text())
        assert served.process.poll() is None
        assert served.stop() == 0
        assert not any(map(alive, tree))
        assert "shutting down" in reader.ended()["error_message"]


def test_sigterm_ends_a_load(tmp_path: Path) -> None:
    with faked(tmp_path, {"load_s": 3600, "child": True}) as served:
        with client(served) as asked:
            asked.load("m", wait=False)
        tree = wait_until(lambda: len(found := served.engines()) == 3 and found)
        assert served.stop() == 0
        assert not any(map(alive, tree))


# --- two coordinators ---
def refused(data_dir: Path, **env: str) -> str:
    """What a coordinator that cannot start says."""
    ports = {f"MODELOPS_SERVER__{name}_PORT": "0" for name in ("REST", "GRPC", "ZMQ")}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
    ended = subprocess.run(
        [sys.executable, "-m", "modelops.cli", "serve"],
        env=clean | ports | {"MODELOPS_DATA_DIR": str(data_dir)} | env,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


def test_a_second_coordinator_on_one_data_folder_is_refused(tmp_path: Path) -> None:
    with faked(tmp_path, {}) as served:
        message = refused(tmp_path)
        assert f"already running on {tmp_path}" in message
        assert "MODELOPS_DATA_DIR" in message
        with client(served) as asked:
            assert asked.health().status == "healthy"


@pytest.mark.parametrize("transport", ["rest", "grpc", "zmq"])
def test_a_port_in_use_is_refused_with_the_flag_that_chooses_another(tmp_path: Path, transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refused(tmp_path, **{f"MODELOPS_SERVER__{transport.upper()}_PORT": port})
    assert f":{port} is already in use" in message
    assert f"--{transport}-port" in message
