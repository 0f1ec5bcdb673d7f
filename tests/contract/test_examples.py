"""The client examples of docs/spec/api.md answer as they stand.

Each is taken out of the document and run in a process of its own. What is replaced in it is listed beside each test:
the host, the key, the model, and TLS, which a coordinator on loopback does not speak.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support import Served, need, serving

ROOT = Path(__file__).parents[2]
API = ROOT / "docs/spec/api.md"

Replacements = Sequence[tuple[str, str]]
MODEL = ("llama-7b-chat", "smollm2")
KEY = ("your-api-key-here", "any-key")


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


def run_python(source: str, folder: Path) -> str:
    file = folder / "example.py"
    file.write_text(source)
    return run([sys.executable, str(file)], folder)


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
def test_python_requests(served: Served, tmp_path: Path) -> None:
    source = example("python", "import requests", [("https://moc.company.com:8008", served.rest), KEY, MODEL])
    assert re.fullmatch(
        r"Health: \{'status': 'healthy', .*\}\nOutput: .+\nLatency: [\d.]+ms\n", run_python(source, tmp_path), re.DOTALL
    )


@pytest.mark.engine
def test_python_zmq(served: Served, tmp_path: Path) -> None:
    source = example("python", "import zmq", [("tcp://moc.company.com:7211", served.zmq), MODEL])
    assert re.fullmatch(r"Success: True\nOutput: .+\n", run_python(source, tmp_path), re.DOTALL)


@pytest.mark.engine
@pytest.mark.program("curl")
def test_curl(smollm2: Path, tmp_path: Path) -> None:
    need("curl")
    with serving(tmp_path, links=[("smollm2", smollm2), ("new-model", smollm2)]) as served:
        script = example(
            "bash",
            "curl",
            [
                ("https://moc.company.com:8008", served.rest),
                KEY,
                MODEL,
                ("/models/new-model.gguf", f"{served.data_dir}/models/new-model.gguf"),
            ],
        )
        printed = run(["bash", "-e", "-c", script], tmp_path)
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
def test_go_grpc(served: Served, tmp_path: Path) -> None:
    for program in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"):
        need(program)
    packages = Path("/usr/share/gocode")  # where Debian puts the sources of Go libraries
    source = example(
        "go",
        "NewModelOpsClient",
        [
            ("moc.company.com:7212", served.grpc),
            MODEL,
            # Plaintext on loopback; the newer name of this, credentials/insecure, is not in Debian's package yet.
            ("google.golang.org/grpc/credentials", "google.golang.org/grpc/credentials/local"),
            ("credentials.NewTLS(config)", "local.NewCredentials()"),
            # Go refuses what is imported or declared and not used …
            ("config := &tls.Config{}", ""),
            # … and the example uses two packages that it does not import.
            ('"crypto/tls"', '"fmt"\n    "log"'),
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
    printed = run(["go", "run", "example"], tmp_path, GO111MODULE="off", GOPATH=f"{tmp_path}:{packages}", GOFLAGS="")
    assert re.fullmatch(r"Response: .+\n", printed, re.DOTALL)
