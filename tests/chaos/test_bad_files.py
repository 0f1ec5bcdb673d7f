"""Servers that misbehave, disks that take nothing, files that are no models: each is one clear error, and the model
that is loaded answers all the while."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bad_http import Answer, BadServer
from chaos.callers import visible
from modelops import Client
from modelops.api.errors import ModelOpsError
from support import serving, tiny_gguf

FAKE = {"tokens": 3}
LOCAL = {"MODELOPS_MODELS__ALLOW_PRIVATE_SOURCES": "true", "MODELOPS_MODELS__FETCH_STALL_S": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's, with the model `good`."""
    tiny_gguf(tmp_path / "data" / "models" / "good.gguf")
    return tmp_path / "data"


def refusal(client: Client, source: str, name: str = "bad") -> ModelOpsError:
    """Why `name` cannot be loaded."""
    with pytest.raises(ModelOpsError) as caught:
        client.load(name, source)
    return caught.value


def test_whatever_a_server_does_the_rest_goes_on_serving(folder: Path, web: BadServer, model: bytes) -> None:
    junk = b"<html>not a model</html>" * 100
    web.answers |= {
        "/gone.gguf": Answer(status=404),
        "/junk.gguf": Answer(junk),
        "/short.gguf": Answer(model, declared=len(model) + 1000),
        "/cut.gguf": Answer(model, cut=[1000] * 9, ranges=False),
        "/wrong.gguf": Answer(model),
        "/plain.gguf": Answer(status=302, headers={"Location": "http://models.example/x.gguf"}),
        "/huge.gguf": Answer(model, declared=1 << 50),
        "/stall.gguf": Answer(model, hold=len(model) // 2),
    }
    faults = {
        web.url("/gone.gguf"): "not_found",
        web.url("/junk.gguf"): "invalid_request",
        web.url("/short.gguf"): "engine_failed",
        web.url("/cut.gguf"): "engine_failed",
        web.url("/wrong.gguf") + "#sha256=" + "0" * 64: "engine_failed",
        web.url("/plain.gguf"): "engine_failed",
        web.url("/huge.gguf"): "insufficient_memory",
        "https://127.0.0.1:1/x.gguf": "engine_failed",
        web.url("/stall.gguf"): "engine_failed",
    }
    with serving(folder, fake=FAKE, env=LOCAL, load=["good"]) as served, Client(served.rest) as client:

        def refused(source: str, name: str) -> ModelOpsError:
            with Client(served.rest) as other:
                error = refusal(other, source, name)
                assert other.infer("good", "Hello").success
                return error

        with ThreadPoolExecutor(len(faults)) as threads:  # most of them are tried again and again, after longer pauses
            waiting = {source: threads.submit(refused, source, f"bad-{at}") for at, source in enumerate(faults)}
            while not all(one.done() for one in waiting.values()):
                assert client.infer("good", "Hello").success
        for source, code in faults.items():
            error = waiting[source].result()
            assert error.code == code, (source, error.message)
            assert str(folder) not in error.message
        assert "stalled" in waiting[web.url("/stall.gguf")].result().message
        assert client.infer("good", "Hello").success
        assert [found.model_name for found in client.models(all=True)] == ["good"]
    assert visible(folder) == {"good.gguf"}


def test_addresses_of_this_machine_and_of_private_networks_are_refused(
    folder: Path, web: BadServer, model: bytes
) -> None:
    web.answers["/m.gguf"] = Answer(model)
    with serving(folder, fake=FAKE, load=["good"]) as served, Client(served.rest) as client:
        for source in ("https://127.0.0.1/m.gguf", "https://10.0.0.1/m.gguf", "https://169.254.169.254/m.gguf"):
            error = refusal(client, source)
            assert "private" in error.message, error.message
            assert "allow_private_sources" in error.message
        assert refusal(client, web.url("/m.gguf")).code == "invalid_request"  # not even https
        assert web.requests == []
        assert client.infer("good", "Hello").success


def test_what_claims_to_be_absurdly_large_is_refused_soon_and_in_little_memory(folder: Path) -> None:
    head, text = b"GGUF" + struct.pack("<I", 3), struct.pack("<Q", 1) + b"t"
    absurd = {
        "tensors": head + struct.pack("<QQ", 2**63, 0),
        "entries": head + struct.pack("<QQ", 1, 2**63),
        "negative": head + struct.pack("<QQ", 1, 0) + text + struct.pack("<IqIQ", 1, -1, 0, 0),
        "text": head + struct.pack("<QQ", 1, 1) + text + struct.pack("<IQ", 8, 10 * 2**30),
    }
    for name, content in absurd.items():
        (folder / "models" / f"{name}.gguf").write_bytes(content + bytes(4096))
    with serving(folder, fake=FAKE, load=["good"]) as served, Client(served.rest) as client:
        process = psutil.Process(served.process.pid)
        before = process.memory_info().rss
        for name in absurd:
            began = sum(process.cpu_times()[:2])
            with pytest.raises(ModelOpsError) as caught:
                client.load(name)
            assert caught.value.code == "invalid_request", caught.value.message
            assert "no usable GGUF" in caught.value.message
            assert sum(process.cpu_times()[:2]) - began < 1
            assert client.infer("good", "Hello").success
        assert process.memory_info().rss - before < 100_000_000


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A disk of 8 MB of its own at `folder`, where that may be had."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("to mount a disk takes rights that this user does not have")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(("what", "code"), [("full", "insufficient_memory"), ("read-only", "internal")])
def test_a_disk_that_takes_nothing_is_told(tmp_path: Path, web: BadServer, model: bytes, what: str, code: str) -> None:
    web.answers |= {"/m.gguf": Answer(model), "/unknown.gguf": Answer(model, declared=-1)}
    folder = tmp_path / "data"
    with mounted(folder / "models") as disk:
        tiny_gguf(disk / "good.gguf")
        if what == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with serving(folder, fake=FAKE, env=LOCAL, load=["good"]) as served, Client(served.rest) as client:
            digest = hashlib.sha256(model).hexdigest()
            for path in ("/m.gguf", f"/unknown.gguf#sha256={digest}"):
                error = refusal(client, web.url(path))
                assert error.code == code, error.message
                assert str(tmp_path) not in error.message
                assert error.details.get("resource", "") == ("disk" if what == "full" else "")
                assert client.infer("good", "Hello").success
        assert {file.name for file in disk.iterdir()} - {".partial"} == {"good.gguf"}
