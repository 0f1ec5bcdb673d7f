"""Fetches over TLS: certificates, redirects between schemes, and proxies."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bad_http import Answer, BadServer, bad_server
from modelops.api.errors import InvalidRequest
from modelops.serving.sources import FetchFailed, Policy
from serving.sources.fetching import CONTENT, Fetching

Certify = Callable[[str], tuple[Path, ssl.SSLContext]]
HALF = len(CONTENT) // 2
pytestmark = pytest.mark.program("openssl")  # it makes the certificates


async def test_a_file_is_fetched_and_resumed_over_tls(fetching: Fetching, secure: BadServer) -> None:
    secure.answers["/m.gguf"] = Answer(CONTENT, cut=[HALF])
    await fetching.fetch(secure.url("/m.gguf", "https", "localhost"))
    assert fetching.files == {"m.gguf": CONTENT}
    assert secure.asked("range") == ["", f"bytes={HALF}-"]


async def test_more_than_declared_is_seen_through_tls(fetching: Fetching, secure: BadServer) -> None:
    secure.answers["/m.gguf"] = Answer(CONTENT[:1000], plus=b"more")
    with pytest.raises(FetchFailed, match="more than the 1000 bytes"):
        await fetching.fetch(secure.url("/m.gguf", "https"))


async def test_a_certificate_must_be_of_the_name(
    fetching: Fetching, certify: Certify, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, context = certify("DNS:another.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with bad_server(context) as server:
        server.answers["/m.gguf"] = Answer(CONTENT)
        with pytest.raises(FetchFailed, match="certificate that is not accepted: Hostname mismatch"):
            await fetching.fetch(server.url("/m.gguf", "https", "localhost"))
        assert server.requests == []


async def test_a_certificate_must_be_of_somebody_trusted(fetching: Fetching, certify: Certify) -> None:
    _, context = certify("DNS:localhost")
    with bad_server(context) as server:
        with pytest.raises(FetchFailed, match="certificate that is not accepted: self-signed certificate"):
            await fetching.fetch(server.url("/m.gguf", "https", "localhost"))
        assert server.requests == []


async def test_certificates_that_cannot_be_read_are_told(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(FetchFailed, match="SSL_CERT_FILE"):
        await fetching.fetch("https://127.0.0.1:1/m.gguf")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(fetching: Fetching, secure: BadServer, status: int) -> None:
    secure.answers["/m.gguf"] = Answer(status=status, headers={"Location": "other?x=1"})
    secure.answers["/other?x=1"] = Answer(CONTENT)
    await fetching.fetch(secure.url("/m.gguf", "https"))
    assert fetching.files == {"m.gguf": CONTENT}


async def test_a_redirect_away_from_tls_is_not_followed(
    fetching: Fetching, secure: BadServer, server: BadServer
) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT)
    secure.answers["/m.gguf"] = Answer(status=302, headers={"Location": server.url("/m.gguf")})
    with pytest.raises(FetchFailed, match="away from https://, which is not followed"):
        await fetching.fetch(secure.url("/m.gguf", "https"))
    assert server.requests == []


# --- proxies ---
@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy that joins to this machine's port whatever the name; what it was asked to join to."""
    asked: list[str] = []

    def carry(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # nobody came
            return
        head = client.recv(65536).decode()
        asked.append(head)
        port = int(head.split()[1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as upstream, client:
            client.sendall(b"HTTP/1.1 200 Joined\r\n\r\n")
            back = threading.Thread(target=carry, args=(upstream, client), daemon=True)
            back.start()
            carry(client, upstream)
            back.join()

    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:word@127.0.0.1:{listener.getsockname()[1]}")
        threading.Thread(target=serve, daemon=True).start()
        yield asked
        listener.shutdown(socket.SHUT_RDWR)


async def test_a_proxy_resolves_names(
    fetching: Fetching, certify: Certify, proxy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, context = certify("DNS:only-the-proxy.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with bad_server(context) as server:
        server.answers["/m.gguf"] = Answer(CONTENT)
        policy = Policy(reserve_bytes=0)
        await fetching.fetch(server.url("/m.gguf", "https", "only-the-proxy.test"), policy)
    assert fetching.files == {"m.gguf": CONTENT}
    assert proxy[0].startswith("CONNECT only-the-proxy.test:")
    assert "Proxy-Authorization: Basic bWU6d29yZA==" in proxy[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1"])
async def test_a_private_address_is_refused_before_the_proxy_is_asked(
    fetching: Fetching, proxy: list[str], host: str
) -> None:
    with pytest.raises(InvalidRequest, match="private network"):
        await fetching.fetch(f"https://{host}/m.gguf", Policy(reserve_bytes=0))
    assert proxy == []
