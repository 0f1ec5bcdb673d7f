"""Fixtures: a models folder, a hostile web server, certificates."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bad_http import BadServer, bad_server
from serving.sources.fetching import Fetching
from support import need


@pytest.fixture
def fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetching:
    """A models folder of its own, without a proxy."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "models"
    root.mkdir()
    return Fetching(root)


@pytest.fixture
def server() -> Iterator[BadServer]:
    """A web server without TLS, on loopback."""
    with bad_server() as running:
        yield running


@pytest.fixture(scope="session")
def certify(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, ssl.SSLContext]]:
    """Makes a certificate for names ("DNS:localhost,IP:127.0.0.1"): its file, and a server's context with it."""

    def make(names: str) -> tuple[Path, ssl.SSLContext]:
        folder = tmp_path_factory.mktemp("certificate")
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        subprocess.run(
            [
                *(need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-nodes", "-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={names}"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return certificate, context

    return make


@pytest.fixture
def secure(
    certify: Callable[[str], tuple[Path, ssl.SSLContext]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[BadServer]:
    """A web server over TLS whose certificate, for localhost and 127.0.0.1, is trusted."""
    certificate, context = certify("DNS:localhost,IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with bad_server(context) as running:
        yield running
