"""The client examples of docs/spec/api.md answer as they stand.

Each is taken out of the document and run in a process of its own: over TLS as it is written there, and without it. What
is replaced in it is listed beside each test: the host, the key, the model. That the certificate may be trusted, which
no authority vouches for, is told in the environment. Go is compiled for each run, which takes long: it is run once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.command import modelops
from support import Served, need, serving

ROOT = Path(__file__).parents[2]
API = ROOT / "docs/spec/api.md"

Replacements = Sequence[tuple[str, str]]
MODEL = ("llama-7b-chat", "smollm2")
KEY = "your-api-key-here"


@dataclass(frozen=True)
class Encrypted:
    """A coordinator with TLS, what to trust, and what opens it: a key, and the public key of its ZMQ socket."""

    served: Served
    certificate: Path
    key: str = ""
    curve: str = ""


@pytest.fixture(scope="module")
def tls(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """A coordinator that encrypts REST and gRPC, and asks nobody for a key."""
    data = tmp_path_factory.mktemp("tls")
    told(data, "tls", "self-signed")
    with serving(data, links=[("smollm2", smollm2)], load=["smollm2"], env=files(data)) as running:
        yield Encrypted(running, data / "tls/cert.pem")


@pytest.fixture(scope="module")
def guarded(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """A coordinator that encrypts all three transports, and wants a key."""
    data = tmp_path_factory.mktemp("guarded")
    told(data, "tls", "self-signed")
    key = told(data, "keys", "create", "example", "--scope", "infer", "--scope", "models")["key"]
    curve = told(data, "keys", "curve")["public_key"]
    env = files(data) | {"MODELOPS_TLS__CURVE_FILE": str(data / "curve.key")}
    links = [("smollm2", smollm2), ("new-model", smollm2)]
    with serving(data, links=links, load=["smollm2"], env=env) as running:
        yield Encrypted(running, data / "tls/cert.pem", key, curve)


def told(data: Path, *arguments: str) -> dict[str, Any]:
    done = modelops(*arguments, "--json", "--data-dir", str(data))
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def files(data: Path) -> dict[str, str]:
    return {"MODELOPS_TLS__CERT_FILE": f"{data}/tls/cert.pem", "MODELOPS_TLS__KEY_FILE": f"{data}/tls/key.pem"}


def example(language: str, mark: str, replacements: Replacements) -> str:
    """The one code block of `language` in the document that holds `mark`; each replacement must apply."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", API.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if mark in block)
    assert isinstance(block, str)
    for old, new in replacements:
        assert old in block
        block = block.replace(old, new)
    return block


def run(argv: Sequence[str], folder: Path, **env: str) -> str:
    """The program's output; it must succeed."""
    ended = subprocess.run(argv, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def run_python(source: str, folder: Path, **env: str) -> str:
    file = folder / "example.py"
    file.write_text(source)
    return run([sys.executable, str(file)], folder, **env)


@pytest.mark.engine
def test_python_grpc(served: Served, tmp_path: Path) -> None:
    source = example(
        "python",
        "ModelOpsStub",
        [
            ("moc.company.com:7212", served.grpc),
            MODEL,
            ("grpc.secure_channel(", "grpc.insecure_channel("),
            (", credentials)", ")"),
        ],
    )
    assert re.fullmatch(r"Response: .+\n", run_python(source, tmp_path), re.DOTALL)


@pytest.mark.engine
def test_python_grpc_over_tls(tls: Encrypted, tmp_path: Path) -> None:
    source = example("python", "ModelOpsStub", [("moc.company.com:7212", tls.served.grpc), MODEL])
    printed = run_python(source, tmp_path, GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=str(tls.certificate))
    assert re.fullmatch(r"Response: .+\n", printed, re.DOTALL)


HEALTH_AND_ANSWER = re.compile(r"Health: \{'status': 'healthy', .*\}\nOutput: .+\nLatency: [\d.]+ms\n", re.DOTALL)


@pytest.mark.engine
def test_python_requests(served: Served, tmp_path: Path) -> None:
    source = example("python", "import requests", [("https://moc.company.com:8008", served.rest), MODEL])
    assert HEALTH_AND_ANSWER.fullmatch(run_python(source, tmp_path))


@pytest.mark.engine
def test_python_requests_over_tls_with_a_key(guarded: Encrypted, tmp_path: Path) -> None:
    host = ("https://moc.company.com:8008", guarded.served.rest)
    assert guarded.served.rest.startswith("https://")
    source = example("python", "import requests", [host, (KEY, guarded.key), MODEL])
    printed = run_python(source, tmp_path, REQUESTS_CA_BUNDLE=str(guarded.certificate))
    assert HEALTH_AND_ANSWER.fullmatch(printed)
    without = run_python(source.replace(guarded.key, "none"), tmp_path, REQUESTS_CA_BUNDLE=str(guarded.certificate))
    assert "Error: 401 - " in without


@pytest.mark.engine
def test_python_zmq(served: Served, tmp_path: Path) -> None:
    source = example("python", "import zmq", [("tcp://moc.company.com:7211", served.zmq), MODEL])
    assert re.fullmatch(r"Success: True\nOutput: .+\n", run_python(source, tmp_path), re.DOTALL)


@pytest.mark.engine
def test_python_zmq_encrypted_with_a_key(guarded: Encrypted, tmp_path: Path) -> None:
    page = (ROOT / "docs/security.md").read_text()
    (lines,) = re.findall(r"^```python\n((?:socket|server_key)\b.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = re.sub(r'b".{40}"', lambda _: f'b"{guarded.curve}"', lines)
    connect = 'socket.connect("tcp://moc.company.com:7211")'
    source = example(
        "python",
        "import zmq",
        [
            (connect, lines + connect),
            ("tcp://moc.company.com:7211", guarded.served.zmq),
            MODEL,
            ('"action": "infer",', f'"action": "infer", "api_key": "{guarded.key}",'),
        ],
    )
    assert re.fullmatch(r"Success: True\nOutput: .+\n", run_python(source, tmp_path), re.DOTALL)


@pytest.mark.engine
@pytest.mark.program("curl")
def test_curl(smollm2: Path, tmp_path: Path) -> None:
    with serving(tmp_path, links=[("smollm2", smollm2), ("new-model", smollm2)]) as served:
        run_curl(served, tmp_path)


@pytest.mark.engine
@pytest.mark.program("curl")
def test_curl_over_tls_with_a_key(guarded: Encrypted, tmp_path: Path) -> None:
    run_curl(guarded.served, tmp_path, guarded.key, CURL_CA_BUNDLE=str(guarded.certificate))


def run_curl(served: Served, folder: Path, key: str = KEY, **env: str) -> None:
    """All three of its requests."""
    need("curl")
    script = example(
        "bash",
        "curl",
        [
            ("https://moc.company.com:8008", served.rest),
            (KEY, key),
            MODEL,
            ("/models/new-model.gguf", f"{served.data_dir}/models/new-model.gguf"),
        ],
    )
    printed = run(["bash", "-e", "-c", script], folder, **env)
    health, answer, load = documents(printed)
    assert health["status"] == "healthy"
    assert answer["success"] is True
    assert 0 < answer["tokens_generated"] <= 100
    assert answer["output_text"]
    assert (load["success"], load["model_version"]) == (True, "v1")
    assert load["memory_usage_mb"] > 90


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON documents that stand one after the other in `text`."""
    found = []
    while text:
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:].lstrip()
    return found


@pytest.mark.engine
@pytest.mark.program("go")
@pytest.mark.program("protoc")
def test_go_grpc_over_tls(tls: Encrypted, tmp_path: Path) -> None:
    for program in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"):
        need(program)
    packages = Path("/usr/share/gocode")  # where Debian puts the sources of Go libraries
    source = example(
        "go",
        "NewModelOpsClient",
        [
            ("moc.company.com:7212", tls.served.grpc),
            MODEL,
            # It uses two packages that it does not import.
            ('"crypto/tls"', '"crypto/tls"\n    "fmt"\n    "log"'),
        ],
    )
    package = tmp_path / "src/example"
    package.mkdir(parents=True)
    (package / "main.go").write_text(source)
    shutil.copy(ROOT / "tests/go/codec.go", package)
    stubs = "Mmodel_ops.proto=path/to/model_ops_pb"
    run(
        [
            *("protoc", f"--proto_path={ROOT / 'proto'}", "model_ops.proto"),
            *(f"--go_out={tmp_path / 'src'}", f"--go_opt={stubs}"),
            *(f"--go-grpc_out={tmp_path / 'src'}", f"--go-grpc_opt={stubs}"),
        ],
        tmp_path,
    )
    env = {
        "GO111MODULE": "off",
        "GOPATH": f"{tmp_path}:{packages}",
        "GOFLAGS": "",
        "SSL_CERT_FILE": str(tls.certificate),
    }
    printed = run(["go", "run", "example"], tmp_path, **env)
    assert re.fullmatch(r"Response: .+\n", printed, re.DOTALL)
