"""What docs/security.md says to do works as it is written there."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import zmq

from cli.command import environment, modelops
from modelops.access import SCOPES
from modelops.api.errors import Unauthenticated
from modelops.api.operations import METRICS, OPERATIONS
from modelops.client import Client
from support import Served, need, serving, tiny_gguf

PAGE = (Path(__file__).parents[2] / "docs/security.md").read_text()
#: (name, scope, method, path) of everything that can be asked for.
DOORS: list[tuple[str, str | None, str, str]] = [
    *((each.name, each.scope, each.route.method, each.route.path) for each in OPERATIONS),
    (METRICS.name, METRICS.scope, "GET", METRICS.path),
]


def block(language: str, mark: str) -> str:
    """The one code block of `language` on the page that holds `mark`."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if mark in block)
    assert isinstance(found, str)
    return found


def test_every_operation_stands_beside_the_scope_that_opens_it() -> None:
    section = PAGE.partition("## Scopes")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `?(\w+)`? \| ((?:`\w+`(?:, )?)+) \|$", section, re.MULTILINE))
    told = {name: scope for scope, names in rows.items() for name in re.findall(r"\w+", names)}
    assert told == {name: scope or "none" for name, scope, _, _ in DOORS}
    assert set(SCOPES) - {*rows} == {"admin"}
    assert "| `admin` | everything |" in PAGE


# --- client certificates ---
@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A coordinator whose clients show certificates, and the folder in which the recipe was followed."""
    need("openssl")
    folder = tmp_path_factory.mktemp("recipe")
    data = folder / "data"
    made = modelops("tls", "self-signed", "--data-dir", str(data))
    assert made.returncode == 0, made.stderr
    command = f'modelops() {{ python -m modelops.cli "$@" --data-dir {data}; }}\n'
    script = command + block("sh", "openssl")
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Whoever shows a certificate of 'nightly' may call now.\n"
    env = {
        "MODELOPS_TLS__CERT_FILE": str(data / "tls/cert.pem"),
        "MODELOPS_TLS__KEY_FILE": str(data / "tls/key.pem"),
        "MODELOPS_TLS__CLIENT_CA_FILE": str(folder / "ca.pem"),
    }
    with serving(data, links=[("m", tiny_gguf(folder / "m.gguf"))], load=["m"], fake={"tokens": 2}, env=env) as running:
        yield running, folder


@pytest.mark.program("openssl")
def test_who_shows_a_certificate_is_who_it_names(shown: tuple[Served, Path]) -> None:
    served, folder = shown
    with Client(
        served.rest, ca_file=folder / "data/tls/cert.pem", certificate=(folder / "nightly.pem", folder / "nightly.key")
    ) as client:
        assert client.infer("m", "hi").output_text == "w0 w1 "


@pytest.mark.program("openssl")
def test_rest_does_without_a_certificate_and_grpc_does_not(shown: tuple[Served, Path]) -> None:
    served, folder = shown
    with Client(served.rest, ca_file=folder / "data/tls/cert.pem") as client:
        assert client.health().status == "healthy"
        with pytest.raises(Unauthenticated):
            client.infer("m", "hi")
    ca = (folder / "data/tls/cert.pem").read_bytes()
    without = grpc.ssl_channel_credentials(ca)
    key, cert = (folder / "nightly.key").read_bytes(), (folder / "nightly.pem").read_bytes()
    for credentials, reached in ((grpc.ssl_channel_credentials(ca, key, cert), True), (without, False)):
        with grpc.secure_channel(served.grpc, credentials) as channel:
            health: Any = channel.unary_unary("/ModelOps/HealthCheck")
            if reached:
                assert health(b"", timeout=30)
            else:
                with pytest.raises(grpc.RpcError) as refused:
                    health(b"", timeout=30)
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.program("openssl")
def test_the_recipe_leaves_its_keys_to_their_owner(shown: tuple[Served, Path]) -> None:
    _, folder = shown
    assert {oct(file.stat().st_mode & 0o777) for file in folder.glob("*.key")} == {"0o600"}


# --- what others see ---
@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator that wants keys, and encrypts ZMQ."""
    data = tmp_path_factory.mktemp("closed") / "data"
    assert modelops("keys", "create", "ops", "--data-dir", str(data)).returncode == 0
    assert modelops("keys", "curve", "--data-dir", str(data)).returncode == 0
    env = {"MODELOPS_TLS__CURVE_FILE": str(data / "curve.key")}
    with serving(data, fake={}, env=env) as running:
        yield running


def test_a_stranger_sees_what_the_page_says(closed: Served) -> None:
    health = httpx.get(f"{closed.rest}/health")
    written = re.escape(re.search(r"answers `(\{\"status\".*?\})`", PAGE)[1])  # type: ignore[index] # else it fails
    assert re.fullmatch(written.replace("…", '[^"]+'), health.text)
    open_to_all = ("/health/live", "/health/ready", "/openapi.json", "/docs")
    assert [httpx.get(f"{closed.rest}{path}").status_code for path in open_to_all] == [204, 204, 200, 200]
    for name, scope, method, path in DOORS:
        assert httpx.request(method, f"{closed.rest}{path}").status_code == (200 if scope is None else 401), name


def test_without_the_public_key_nobody_gets_in_over_zmq(closed: Served) -> None:
    public = json.loads(modelops("keys", "curve", "--json", "--data-dir", str(closed.data_dir)).stdout)["public_key"]
    lines = block("python", "curve_serverkey")
    written = re.search(r'b"(.{40})"', lines)
    assert written
    for encrypted in (True, False):
        with zmq.Context() as context, context.socket(zmq.REQ) as asking:
            asking.linger = 0
            if encrypted:
                exec(lines.replace(written[1], public), {"zmq": zmq, "socket": asking})
            asking.connect(closed.zmq)
            asking.send_json({"action": "health", "payload": {}})
            if encrypted:
                assert asking.poll(30_000)
                answer = asking.recv_json()
                assert isinstance(answer, dict)
                assert answer["result"]["status"] == "healthy"
            else:
                assert asking.poll(500) == 0
