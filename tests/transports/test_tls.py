"""What crosses the network is encrypted: certificates, their exchange, clients' own, and CURVE."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import zmq

import model_ops_pb2 as pb
from bad_clients import closed_after, connect
from certificates import Authority, Pair, self_signed
from modelops.client import Client
from modelops.transports.listening import Certificate, CertificateError, KeyPair, key_pair
from support import Served, make_key, serving, tiny_gguf, wait_until

ASK: dict[str, Any] = {"model_name": "m", "input_text": "Hello", "max_tokens": 2}
BELOW_1_2 = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)


def install(made: Pair, used: Pair) -> None:
    """Exchange the files one after the other, as a renewal does; in between they do not fit together."""
    for source, target in ((made.cert, used.cert), (made.key, used.key)):
        partial = target.with_suffix(".new")
        shutil.copyfile(source, partial)
        partial.replace(target)


# --- the files ---
def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    one, two = self_signed(tmp_path / "one"), self_signed(tmp_path / "two")
    for cert, key in ((one.cert, two.key), (one.key, one.key), (one.cert, one.cert)):
        with pytest.raises(CertificateError, match=str(cert)):
            Certificate(cert, key)
    with pytest.raises(CertificateError, match=r"missing\.pem cannot be read: No such file"):
        Certificate(one.cert, tmp_path / "missing.pem")
    with pytest.raises(CertificateError, match="no certificate of an authority"):
        Certificate(one.cert, one.key, one.key)


def test_an_exchange_is_noticed_when_both_files_fit(tmp_path: Path) -> None:
    used, made = self_signed(tmp_path / "used"), self_signed(tmp_path / "made")
    certificate = Certificate(used.cert, used.key)
    assert not certificate.refresh()
    first = certificate.chain
    shutil.copyfile(made.cert, used.cert)
    assert not certificate.refresh()  # its key is still the other one's
    assert certificate.chain == first
    used.cert.unlink()
    assert not certificate.refresh()
    install(made, used)
    assert certificate.refresh()
    assert (certificate.chain, certificate.private_key) == (made.cert.read_bytes(), made.key.read_bytes())
    assert not certificate.refresh()


def test_a_certificate_is_whole_at_every_moment_of_an_exchange(tmp_path: Path) -> None:
    used, made = self_signed(tmp_path / "used"), [self_signed(tmp_path / name) for name in ("one", "two")]
    pairs = {(pair.key.read_bytes(), pair.cert.read_bytes()) for pair in (used, *made)}
    certificate = Certificate(used.cert, used.key)
    stop = threading.Event()

    def exchanging() -> None:
        for pair in itertools.cycle(made):
            install(pair, used)
            if stop.wait(0.001):
                return

    with ThreadPoolExecutor(1) as threads:
        threads.submit(exchanging)
        try:
            exchanged, deadline = 0, time.monotonic() + 60
            while exchanged < 100:
                before = certificate.pair
                taken = certificate.refresh()
                exchanged += taken
                assert (certificate.pair is before) is not taken
                assert certificate.pair in pairs
                assert offered(certificate.context) == ssl.PEM_cert_to_DER_cert(certificate.chain.decode())
                assert time.monotonic() < deadline
        finally:
            stop.set()


def offered(context: ssl.SSLContext) -> bytes | None:
    """The certificate that a server with this context shows, and proves to be its own."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 39, b"\xff" * 40])
def test_what_is_no_curve_key_is_told_so(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "curve.key"
    file.write_bytes(content)
    with pytest.raises(CertificateError, match="modelops keys curve"):
        key_pair(file)


def test_a_curve_key_has_its_public_half(tmp_path: Path) -> None:
    public, secret = zmq.curve_keypair()
    file = tmp_path / "curve.key"
    file.write_bytes(secret + b"\n")
    assert key_pair(file) == KeyPair(public, secret)
    assert secret.decode() not in repr(key_pair(file))


# --- a coordinator with a certificate ---
@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return self_signed(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.contextmanager
def encrypted(folder: Path, pair: Pair, **env: str) -> Iterator[Served]:
    tls = {"MODELOPS_TLS__CERT_FILE": str(pair.cert), "MODELOPS_TLS__KEY_FILE": str(pair.key)}
    links = [("m", tiny_gguf(folder / "tiny.gguf"))]
    with serving(folder / "data", links=links, load=["m"], fake={"token_s": 0.005}, env=tls | env) as served:
        yield served
        assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="module")
def impatient(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that is patient for a second."""
    with encrypted(tmp_path_factory.mktemp("impatient"), pair, MODELOPS_SERVER__CLIENT_TIMEOUT_S="1") as running:
        yield running


@pytest.fixture(scope="module")
def served(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with encrypted(tmp_path_factory.mktemp("tls"), pair) as running:
        yield running


def shown_by(address: str, versions: tuple[ssl.TLSVersion, ssl.TLSVersion] | None = None) -> tuple[bytes, str]:
    """The certificate that a server shows on a new connection, and the protocol's version."""
    host, port = address.rpartition("//")[2].split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if versions:
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # else the library itself does not ask for what is old
        context.minimum_version, context.maximum_version = versions
    with socket.create_connection((host, int(port)), timeout=10) as plain, context.wrap_socket(plain) as secured:
        found = secured.getpeercert(binary_form=True)
        assert found
        return ssl.DER_cert_to_PEM_cert(found).encode(), secured.version() or ""


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_both_show_the_one_certificate(way: str, served: Served, pair: Pair) -> None:
    assert shown_by(getattr(served, way))[0].split() == pair.cert.read_bytes().split()


@contextlib.contextmanager
def old_server(pair: Pair) -> Iterator[str]:
    """The address of a server that speaks nothing newer than TLS 1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version, context.maximum_version = BELOW_1_2
    context.load_cert_chain(pair.cert, pair.key)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1)  # until the client has gone

        serving = threads.submit(serve)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        serving.result(10)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_tls_below_1_2_is_refused(way: str, served: Served, pair: Pair) -> None:
    only_12 = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    assert shown_by(getattr(served, way), only_12)[1] == "TLSv1.2"
    assert shown_by(getattr(served, way))[1] == "TLSv1.3"
    with old_server(pair) as address:
        assert shown_by(address, BELOW_1_2)[1] == "TLSv1.1", "we can: it is the server that does not want to"
    with pytest.raises(ssl.SSLError, match=r"ALERT_PROTOCOL_VERSION|UNEXPECTED_EOF"):  # said, or only hung up
        shown_by(getattr(served, way), BELOW_1_2)
    assert shown_by(getattr(served, way), only_12)[1] == "TLSv1.2"


def test_the_client_trusts_who_it_is_told_to(served: Served, pair: Pair) -> None:
    assert served.rest.startswith("https://")
    with Client(served.rest, ca_file=pair.cert) as client:
        assert client.infer("m", "Hello", max_tokens=2).output_text == "w0 w1 "
    from modelops.api.errors import ModelOpsError

    with Client(served.rest) as client, pytest.raises(ModelOpsError, match="not trusted"):
        client.health()


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\0\1"], ids=["nothing", "half a greeting"])
@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_a_handshake_that_does_not_go_on_is_hung_up_on(way: str, said: bytes, impatient: Served) -> None:
    with connect(getattr(impatient, way)) as connection:
        connection.sendall(said)
        assert closed_after(connection, 15) < 8
    shown_by(getattr(impatient, way))


@pytest.mark.parametrize(
    "asked",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000,
        b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 15,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n\0",
        b"POST /inference HTTP/1.1\r\nX: " + b"x" * (1 << 20),
    ],
    ids=["too many at once", "many that are not read", "garbage behind", "a long head"],
)
def test_a_client_of_rest_that_behaves_badly_is_hung_up_on(asked: bytes, pair: Pair, impatient: Served) -> None:
    context = ssl.create_default_context(cafile=pair.cert)
    context.check_hostname = False
    coordinator = psutil.Process(impatient.process.pid)

    def connections() -> int:
        return len([one for one in coordinator.net_connections("tcp") if one.status != psutil.CONN_LISTEN])

    wait_until(lambda: not connections(), what="the end of those before")
    with connect(impatient.rest, buffer=2048) as plain, context.wrap_socket(plain) as client:
        assert connections() == 1
        with contextlib.suppress(OSError):
            client.sendall(asked)
        wait_until(lambda: not connections(), seconds=5)


def test_plain_text_is_not_understood(served: Served) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(served.rest.replace("https", "http") + "/health")
    with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError):
        rpc: Any = channel.unary_unary("/ModelOps/HealthCheck", None, None)
        rpc(b"", timeout=3)


# --- exchanged under load ---
def test_a_certificate_is_exchanged_under_load_without_a_failed_request(tmp_path: Path) -> None:
    used = self_signed(tmp_path / "used")
    others = [self_signed(tmp_path / f"made-{number}") for number in range(5)]
    everyone = tmp_path / "trusted.pem"
    everyone.write_bytes(b"".join(pair.cert.read_bytes() for pair in (used, *others)))
    trust = ssl.create_default_context(cafile=everyone)
    stop = threading.Event()
    counts = {"new rest": 0, "kept rest": 0, "new grpc": 0, "kept grpc": 0}

    def asking(name: str, connect: Callable[[], contextlib.AbstractContextManager[Callable[[], None]]]) -> None:
        kept = name.startswith("kept")
        with connect() if kept else contextlib.nullcontext(None) as present:
            while not stop.is_set():
                if present is not None:
                    present()
                else:
                    with connect() as ask:
                        ask()
                counts[name] += 1

    with encrypted(tmp_path, used) as served:

        @contextlib.contextmanager
        def rest() -> Iterator[Callable[[], None]]:
            with httpx.Client(base_url=served.rest, verify=trust) as client:

                def ask() -> None:
                    assert client.post("/inference", json=ASK).json()["output_text"] == "w0 w1 "

                yield ask

        @contextlib.contextmanager
        def rpc() -> Iterator[Callable[[], None]]:
            credentials = grpc.ssl_channel_credentials(everyone.read_bytes())
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(served.grpc, credentials, options) as channel:
                method: Any = channel.unary_unary("/ModelOps/Infer", None, pb.InferenceResponse.FromString)
                asked = pb.InferenceRequest(**ASK).SerializeToString()

                def ask() -> None:
                    assert method(asked, timeout=10).output_text == "w0 w1 "

                yield ask

        with ThreadPoolExecutor(4) as threads:
            running = [threads.submit(asking, name, rest if name.endswith("rest") else rpc) for name in counts]
            try:
                for pair in others:
                    before = dict(counts)
                    install(pair, used)
                    made = pair.cert.read_bytes().split()
                    for way in (served.rest, served.grpc):
                        wait_until(lambda way=way, made=made: shown_by(way)[0].split() == made)  # type: ignore[misc]
                    wait_until(
                        lambda before=before: (
                            all(counts[name] > before[name] + 2 for name in counts)  # type: ignore[misc]
                            or any(one.done() for one in running)
                        )
                    )
            finally:
                stop.set()
            for one in running:
                one.result()


# --- clients' certificates ---
def test_a_client_certificate_is_as_good_as_a_key(pair: Pair, authority: Authority, tmp_path: Path) -> None:
    box, stranger = authority.client("box"), authority.client("stranger")
    forged = Authority(tmp_path / "forged").client("box")
    make_key(tmp_path / "data", "box", "--scope", "infer", "--certificate")
    other = make_key(tmp_path / "data", "other", "--scope", "infer")
    with encrypted(tmp_path, pair, MODELOPS_TLS__CLIENT_CA_FILE=str(authority.file)) as served:

        def rest(shown: Pair | None, key: str = "", path: str = "/inference") -> httpx.Response:
            context = ssl.create_default_context(cafile=pair.cert)
            if shown:
                context.load_cert_chain(shown.cert, shown.key)
            headers = {"X-API-Key": key} if key else {}
            with httpx.Client(base_url=served.rest, verify=context, headers=headers) as client:
                return client.get(path) if path == "/models" else client.post(path, json=ASK)

        def rpc(shown: Pair | None, key: str = "") -> str:
            root = pair.cert.read_bytes()
            own = (shown.key.read_bytes(), shown.cert.read_bytes()) if shown else (None, None)
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(served.grpc, grpc.ssl_channel_credentials(root, *own), options) as channel:
                method: Any = channel.unary_unary("/ModelOps/ListModels", None, None)
                try:
                    method(b"", metadata=[("x-api-key", key)] if key else None, timeout=5)
                except grpc.RpcError as error:
                    return error.code().name
                return "OK"

        assert rest(box).status_code == 200
        assert rest(box, path="/models").status_code == 403
        assert rest(None).status_code == 401
        assert rest(None, other).status_code == 200
        assert rest(stranger).status_code == 401
        assert "'stranger' is known to nobody here" in rest(stranger).text
        with pytest.raises(httpx.TransportError):
            rest(forged)
        with Client(served.rest, ca_file=pair.cert, certificate=(box.cert, box.key)) as client:
            assert client.infer("m", "Hello", max_tokens=2).success
        # gRPC's library cannot ask for a certificate without requiring one.
        assert rpc(box) == "PERMISSION_DENIED"  # known, and without the scope
        assert rpc(stranger) == "UNAUTHENTICATED"
        for shown in (None, forged):
            assert rpc(shown, other) == "UNAVAILABLE"


# --- CURVE ---
def test_zmq_is_encrypted_with_curve_and_not_spoken_otherwise(tmp_path: Path) -> None:
    public, secret = zmq.curve_keypair()
    file = tmp_path / "curve.key"
    file.write_bytes(secret + b"\n")
    links = [("m", tiny_gguf(tmp_path / "tiny.gguf"))]
    env = {"MODELOPS_TLS__CURVE_FILE": str(file)}
    context = zmq.Context()

    def ask(server_key: bytes | None) -> Any:
        with context.socket(zmq.REQ) as asking:
            asking.linger = 0
            if server_key:
                asking.curve_serverkey = server_key
                asking.curve_publickey, asking.curve_secretkey = zmq.curve_keypair()
            asking.connect(running.zmq)
            asking.send_json({"action": "infer", "payload": ASK})
            return asking.recv_json() if asking.poll(5000 if server_key == public else 700) else None

    with serving(tmp_path / "data", links=links, load=["m"], fake={}, env=env) as running:
        answer = ask(public)
        assert answer["result"]["output_text"] == "w0 w1 "
        assert ask(None) is None
        assert ask(zmq.curve_keypair()[0]) is None
        assert ask(public)["success"]
    context.destroy(linger=0)
