"""From `modelops serve` to the first answer and to the end: order, leftovers, and what a start that fails says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import forked
import kept_jobs
from modelops.app import StartError, running
from modelops.client import Client
from modelops.settings import Settings
from modelops.store.jobs import JobQueries, JobRow
from support import serving, tiny_gguf, wait_until

START_S = 5.0  # the promise is 2 s on a machine that does nothing else


def settings(data_dir: Path, **server: object) -> Settings:
    """Free ports, unless given."""
    ports = {"rest_port": 0, "grpc_port": 0, "zmq_port": 0} | server
    return Settings.model_validate({"data_dir": data_dir, "server": ports})


@contextlib.contextmanager
def bystander(*words: str) -> Iterator[psutil.Popen]:
    """A process with `words` in its command line."""
    process = psutil.Popen([sys.executable, "-c", "import time; time.sleep(1000)", *words])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_first_healthy_answer_comes_soon(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    began = time.monotonic()
    with serving(tmp_path, fresh=True) as served, Client(served.rest) as client:
        assert client.health().status == "healthy"
        took = time.monotonic() - began
        record_property("start_s", round(took, 3))
        assert took < START_S
        assert served.stop() == 0


async def test_all_is_released_at_the_end(tmp_path: Path) -> None:
    for _ in range(2):  # the second start finds nothing of the first
        async with running(settings(tmp_path)) as parts:
            folder = Path((tmp_path / "runtime").read_text())
            assert folder.is_dir()
            assert folder.stat().st_mode & 0o77 == 0
            ports = [int(part.address.rpartition(":")[2]) for part in (parts.rest, parts.grpc, parts.zmq)]
            assert len(set(ports)) == 3
            assert {part.state for part in (parts.rest, parts.grpc, parts.zmq)} == {"healthy"}
        assert not folder.exists()
        assert not (tmp_path / "runtime").exists()
        for port in ports:
            with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                pass


@pytest.mark.parametrize("before", ["nothing", "opened to others"])
async def test_only_the_owner_may_read_what_a_coordinator_keeps(tmp_path: Path, before: str) -> None:
    names = ("lock", "runtime", "state.db", "state.db-shm", "state.db-wal")
    data = tmp_path / "data"
    umask = os.umask(0)
    try:
        if before == "opened to others":
            data.mkdir(mode=0o755)
            async with running(settings(tmp_path / "killed")):
                for name in names:  # as a kill leaves them
                    shutil.copyfile(tmp_path / "killed" / name, data / name)
            (data / "runtime").write_text("nowhere")
            assert {(data / name).stat().st_mode & 0o777 for name in names} == {0o666}
        async with running(settings(data)):
            modes = {file.name: oct(file.stat().st_mode & 0o777) for file in data.iterdir() if file.is_file()}
    finally:
        os.umask(umask)
    assert modes == dict.fromkeys(names, "0o600")
    assert data.stat().st_mode & 0o777 == (0o700 if before == "nothing" else 0o755)


@pytest.mark.parametrize("transport", ["rest", "grpc", "zmq"])
async def test_a_start_that_fails_halfway_releases_what_it_has(tmp_path: Path, transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"{port} is already in use.*--{transport}-port"):
            async with running(settings(tmp_path, **{f"{transport}_port": port})):
                pass
    assert not (tmp_path / "runtime").exists()
    async with running(settings(tmp_path)):
        pass


async def test_what_a_killed_coordinator_left_behind_is_removed(tmp_path: Path) -> None:
    left = Path(tempfile.mkdtemp(prefix="modelops-"))
    (left / "1.sock").touch()
    (tmp_path / "runtime").write_text(str(left))
    with bystander("--host", f"{left}/1.sock") as engine, bystander("--host", f"{left.parent}/other.sock") as other:
        async with running(settings(tmp_path)):
            assert engine.wait(5) == -9
            assert other.is_running()
            assert not left.exists()
            assert (tmp_path / "runtime").read_text() != str(left)


async def test_a_note_that_is_not_ours_harms_nobody(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "runtime").write_text(str(precious))
    with bystander(str(precious)) as other:
        async with running(settings(tmp_path)):
            assert precious.exists()
            assert other.is_running()


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("models", {"catalogue": "{folder}/none.toml"}, "cannot read the configuration file"),
        ("models", {"catalogue": "{folder}/wrong.toml"}, "did you mean 'context_length'"),
        ("memory", {"simulated_devices": ["gpu1=1000"]}, "memory.simulated_devices: GPUs are numbered from gpu0 on"),
        ("memory", {"simulated_devices": ["tpu0=1000"]}, "'tpu0=1000' is no simulated device"),
    ],
)
async def test_what_is_wrong_with_the_models_or_the_devices_is_told_at_the_start(
    tmp_path: Path, section: str, values: dict[str, object], said: str
) -> None:
    (tmp_path / "wrong.toml").write_text("[m]\ncontext_lenght = 1")
    written = {
        name: str(value).format(folder=tmp_path) if name == "catalogue" else value for name, value in values.items()
    }
    found = settings(tmp_path).model_dump() | {section: written}
    with pytest.raises(StartError, match=re.escape(said)):
        async with running(Settings.model_validate(found)):
            pass
    assert not (tmp_path / "runtime").exists()


def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    """`modelops serve`, to its end."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
    argv = [sys.executable, "-m", "modelops.cli", "serve", "--rest-port=0", "--grpc-port=0", "--zmq-port=0", *flags]
    return subprocess.run(argv, env=clean, capture_output=True, text=True, timeout=30, check=False)


def test_a_start_that_fails_is_one_line_and_a_status(tmp_path: Path) -> None:
    ended = serve("--data-dir", str(tmp_path / "data"), "--load", "nobody")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "'nobody' could not be loaded: there is no model 'nobody'" in ended.stderr.splitlines()[-1]
    (tmp_path / "file").touch()
    ended = serve("--data-dir", str(tmp_path / "file"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "cannot be used" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_models_named_at_the_start_answer_when_the_addresses_are_told(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "models" / "m.gguf")
    with serving(tmp_path, load=["m"], fake={"load_s": 0.3}, fresh=True) as served, Client(served.rest) as client:
        assert [(model.model_name, model.status) for model in client.models()] == [("m", "loaded")]


def test_models_named_at_the_start_may_be_ones_that_were_loaded_before(tmp_path: Path) -> None:
    for name in ("m", "n", "o"):
        tiny_gguf(tmp_path / "models" / f"{name}.gguf")
    with serving(tmp_path, fake={}) as served, Client(served.rest) as client:
        for name in ("o", "n", "m"):
            client.load(name, slots=3)
        assert served.stop() == 0
    fake = {"models": {"m": {"load_s": 0.5}}}  # meanwhile the others are loaded
    with serving(tmp_path, load=["m", "n", "n"], fake=fake) as served, Client(served.rest) as client:
        models = {model.model_name: (model.status, model.slots) for model in client.models()}
        assert models == dict.fromkeys(("m", "n", "o"), ("loaded", 3))


def test_a_stop_while_models_come_back_leaves_learning_jobs_in_the_queue(tmp_path: Path) -> None:
    waiting = replace(kept_jobs.JOB, model_name="m", status="pending", result={}, completed_at=None, attempts=0)
    kept_jobs.keep(tmp_path, waiting, ())
    tiny_gguf(tmp_path / "models" / "m.gguf")
    (tmp_path / "models.toml").write_text("[m]\npreload = true")
    engine, asked, goes_on, log = (tmp_path / name for name in ("engine", "asked", "goes-on", "log.txt"))
    engine.write_text(f"#!/bin/sh\ntouch {asked}\nwhile [ ! -e {goes_on} ]; do sleep 0.01; done\n")
    engine.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")} | {
        "PYTHONWARNINGS": "error",
        "MODELOPS_DATA_DIR": str(tmp_path),
        "MODELOPS_ENGINE__EXECUTABLE": str(engine),
        "MODELOPS_MODELS__CATALOGUE": str(tmp_path / "models.toml"),
        "MODELOPS_SERVER__DRAIN_NOTICE_S": "1",  # in which a job that is begun all the same would fail
    }
    argv = ["serve", "--rest-port=0", "--grpc-port=0", "--zmq-port=0"]
    with log.open("w") as stderr, Path(os.devnull).open("r+") as nothing:
        process = forked.start(argv, env, stdin=nothing, stdout=nothing, stderr=stderr)
        try:
            wait_until(asked.exists, what="the engine to be asked what the model takes")
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: "finishing what has been accepted" in log.read_text(), what="the end to begin")
            goes_on.touch()
            assert process.wait(15) == 0
        finally:
            process.kill()
    kept: list[JobRow] = []

    async def read(queries: JobQueries) -> None:
        kept.extend(await queries.all())

    asyncio.run(kept_jobs.written(tmp_path, read))
    assert [(row.status, row.attempts, row.error) for row in kept] == [("pending", 0, "")]
