"""What tests share: a coordinator in a process of its own, free of the machine's settings, and small GGUF files."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from forked import Forked, run, start

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
# The fake engine is a script for python3: ours, and not one that a version manager would have to look for first.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def need(program: str, folders: Sequence[Path] = ()) -> str:
    """The path of `program`, looked for in `folders` too; without it the test is skipped, or fails where
    FORBID_SKIPPED_TESTS is set."""
    import shutil

    found = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *map(str, folders)]))
    if found:
        return found
    _skip(f"the program '{program}' is not installed")


def need_packages(*names: str) -> None:
    """Packages that `make install-learning` installs; without one of them the test is skipped, or fails as above."""
    if missing := [name for name in names if not importlib.util.find_spec(name)]:
        _skip(f"{', '.join(missing)} not installed: make install-learning")


def _skip(message: str) -> NoReturn:
    if os.environ.get("FORBID_SKIPPED_TESTS"):
        pytest.fail(message)
    pytest.skip(message)


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """The first true value of `condition`, looked at every few milliseconds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {seconds} s")
        time.sleep(0.005)


@dataclass
class Served:
    """A running coordinator. The addresses are its own, on free ports."""

    process: Forked | subprocess.Popen[bytes]
    data_dir: Path
    rest: str
    grpc: str
    zmq: str
    log: Path

    def engines(self) -> list[psutil.Process]:
        """Every process below the coordinator, engines and their guards."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def serving(
    data_dir: Path,
    *,
    load: Sequence[str] = (),
    links: Sequence[tuple[str, Path]] = (),
    fake: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    fresh: bool = False,
) -> Iterator[Served]:
    """A coordinator on free ports with its own data folder.

    `links` are (name, file) hard-linked, or copied, into its models folder as name.gguf. With `fake` every engine is
    tests/fake_engine.py, a real process, with that behaviour. Engines get one thread: the machine may have two cores.
    A `fresh` one is started as users start it (see forked.py).
    """
    models = data_dir / "models"
    models.mkdir(parents=True, exist_ok=True)
    for name, file in links:
        put(file, models / f"{name}.gguf")
    settings = {
        "MODELOPS_DATA_DIR": str(data_dir),
        "MODELOPS_SERVER__REST_PORT": "0",
        "MODELOPS_SERVER__GRPC_PORT": "0",
        "MODELOPS_SERVER__ZMQ_PORT": "0",
        "MODELOPS_ENGINE__THREADS": "1",
        "MODELOPS_SERVER__DRAIN_NOTICE_S": "0",
        "PYTHONWARNINGS": "error",
    }
    if fake is not None:
        settings |= {"MODELOPS_ENGINE__EXECUTABLE": str(FAKE_ENGINE), "FAKE_ENGINE": json.dumps(fake)}
        settings["MODELOPS_ENGINE__PROBE"] = "false"  # it does not know how much memory it would take
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
    log = data_dir / "log.txt"
    argv = ["serve", "--json"]
    for name in load:
        argv += ["--load", name]
    ours, theirs = os.pipe()
    told = os.fdopen(ours)
    try:
        with log.open("w") as stderr:
            whole = clean | settings | (env or {})
            process = start(argv, whole, stdin=0, stdout=theirs, stderr=stderr, fresh=fresh)
    finally:
        os.close(theirs)
    try:
        line = told.readline()
        if not line:
            process.wait(10)
            pytest.fail(f"the coordinator did not start:\n{log.read_text()}")
        addresses = json.loads(line)
        yield Served(process, data_dir, addresses["rest"], addresses["grpc"], addresses["zmq"], log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        told.close()


def make_key(data_dir: Path, name: str, *options: str) -> str:
    """A new key's text, made by the command as a user makes it; a coordinator that runs notices within a second."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
    clean["PYTHONWARNINGS"] = "error"
    made = run(["keys", "create", name, *options, "--data-dir", str(data_dir), "--json"], clean)
    assert made.returncode == 0, made.stdout + made.stderr
    text = json.loads(made.stdout)["key"]
    return text or ""


def put(file: Path, target: Path) -> Path:
    """`file` as `target`, without copying where the file system can."""
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
    return target


def tiny_gguf(target: Path, *, tensor_type: int = 8, **entries: str | int) -> Path:
    """A whole, small GGUF of architecture "llama" that no real engine could run, but every check accepts.

    `entries` are added to its metadata, or replace it, with "__" for a dot.
    """
    values: dict[str, str | int] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": 2,
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.vocab_size": 128,
    }
    values |= {key.replace("__", "."): value for key, value in entries.items()}

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    data = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    for key, value in values.items():
        data += text(key)
        data += struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value)
    data += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 128, tensor_type, 0)
    data += b"\0" * (-len(data) % 32)
    size = {0: 64 * 128 * 4, 1: 64 * 128 * 2, 8: 64 * 128 // 32 * 34}[tensor_type]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data + b"\0" * size)
    return target
