"""`modelops doctor` on ports, on who could reach what listens there, and on what it is encrypted with."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from certificates import self_signed
from cli.command import modelops
from cli.examined import doctor, listing
from modelops.cli.certificates import make_self_signed
from modelops.cli.doctor.coordinator import find_coordinator
from support import FAKE_ENGINE, make_key, serving, tiny_gguf


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A data folder with a state file, as a coordinator leaves it."""
    make_key(tmp_path / "data", "alice")
    return tmp_path / "data"


# --- network ---
@pytest.mark.parametrize("name", ["rest", "grpc", "zmq"])
def test_a_port_that_somebody_else_has(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = doctor(tmp_path, **{f"MODELOPS_SERVER__{name.upper()}_PORT": str(port)})
    one = told.one("network", name)
    assert told.wrong == [("network", name)]
    assert f"port {port} is taken by " in one.found
    assert f"(process {os.getpid()})" in one.found
    assert f"--{name}-port" in one.mend
    assert told.status == 1


def test_two_transports_on_one_port(tmp_path: Path) -> None:
    told = doctor(tmp_path, MODELOPS_SERVER__REST_PORT="18099", MODELOPS_SERVER__ZMQ_PORT="18099")
    assert told.wrong == [("network", "rest"), ("network", "zmq")]


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_none_of_ours(tmp_path: Path, host: str) -> None:
    told = doctor(tmp_path, MODELOPS_SERVER__HOST=host, MODELOPS_SERVER__REST_PORT="18099")
    assert any(found.state == "wrong" and "--host" in found.mend for found in told.checks if found.area == "network")


def test_a_coordinator_that_runs_is_found_and_keeps_its_ports(tmp_path: Path) -> None:
    data = tmp_path / "data"
    links = [("m", tiny_gguf(tmp_path / "m.gguf"))]
    with serving(data, links=links, load=["m"], fake={}, fresh=True) as served:  # it is known by its command line
        ports = {name: address.rpartition(":")[2] for name, address in vars(served).items() if name in "rest grpc zmq"}
        env = {f"MODELOPS_SERVER__{name.upper()}_PORT": port for name, port in ports.items()}
        env |= {"MODELOPS_ENGINE__EXECUTABLE": str(FAKE_ENGINE)}
        names = set(listing(data))
        mine = doctor(data, **env)
        other = doctor(tmp_path / "another", **env)
        assert set(listing(data)) == names
        assert served.process.poll() is None
    assert f"process {served.process.pid} runs on this folder" in mine.one("data folder", "coordinator").found
    assert mine.wrong == []
    assert mine.one("network", "answer").state == "ok"
    assert mine.one("models", "m").state == "ok"
    assert other.wrong == [("network", "rest"), ("network", "grpc"), ("network", "zmq")]
    assert "another coordinator" in other.one("network", "rest").found
    assert find_coordinator(data) is None  # it has ended


def test_what_is_open_is_told_as_the_start_tells_it(tmp_path: Path, kept: Path) -> None:
    host = {"MODELOPS_SERVER__HOST": "0.0.0.0"}
    refused, *warnings = doctor(tmp_path / "empty", **host).of("network", "exposure")
    assert (refused.state, "modelops keys create" in refused.mend) == ("wrong", True)
    assert [one.state for one in warnings] == ["warning", "warning"]
    insecure = doctor(tmp_path / "empty", **host, MODELOPS_SERVER__INSECURE="true")
    assert [one.state for one in insecure.of("network", "exposure")] == ["warning"] * 3
    with_key = doctor(kept, **host)
    assert [one.state for one in with_key.of("network", "exposure")] == ["warning"] * 2


# --- encryption ---
def certified(folder: Path, days: int = 90, hosts: tuple[str, ...] = ("gpubox.example.com",)) -> dict[str, str]:
    """Settings with a new certificate that is valid for so long."""
    chain, key, _ = make_self_signed(hosts, days)
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(chain)
    key_file.write_bytes(key)
    key_file.chmod(0o600)
    return {"MODELOPS_TLS__CERT_FILE": str(cert_file), "MODELOPS_TLS__KEY_FILE": str(key_file)}


def test_a_certificate_tells_its_end_and_its_names(tmp_path: Path) -> None:
    told = doctor(tmp_path, **certified(tmp_path))
    assert "is valid until 2" in told.one("network", "certificate").found
    assert "gpubox.example.com" in told.one("network", "names").found
    assert told.wrong == []


@pytest.mark.parametrize(("days", "state"), [(0, "wrong"), (10, "warning")])
def test_a_certificate_that_is_over_or_soon(tmp_path: Path, days: int, state: str) -> None:
    one = doctor(tmp_path, **certified(tmp_path, days)).one("network", "certificate")
    assert (one.state, "modelops tls self-signed" in one.mend) == (state, True)


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    env = certified(tmp_path) | {"MODELOPS_TLS__KEY_FILE": str(self_signed(tmp_path / "other").key)}
    told = doctor(tmp_path, **env)
    assert told.wrong == [("network", "certificate")]
    assert "are no certificate with its key" in told.one("network", "certificate").found


def test_a_certificate_without_a_key_is_refused_as_the_start_does(tmp_path: Path) -> None:
    env = certified(tmp_path)
    del env["MODELOPS_TLS__KEY_FILE"]
    assert doctor(tmp_path, **env).one("network", "certificate").mend == "give both, or none"


def test_a_private_key_that_everybody_may_read(tmp_path: Path) -> None:
    env = certified(tmp_path)
    (tmp_path / "key.pem").chmod(0o644)
    assert doctor(tmp_path, **env).one("network", "private key").mend == f"chmod o= {tmp_path / 'key.pem'}"


def test_a_certificate_that_is_not_for_what_is_listened_on(kept: Path) -> None:
    told = doctor(kept, MODELOPS_SERVER__HOST="192.0.2.1", **certified(kept))
    assert told.one("network", "names").state == "warning"


def test_a_curve_key(tmp_path: Path) -> None:
    file = tmp_path / "curve.key"
    env = {"MODELOPS_TLS__CURVE_FILE": str(file)}
    assert doctor(tmp_path, **env).wrong == [("network", "CURVE key")]
    file.write_text("no key")
    assert doctor(tmp_path, **env).wrong == [("network", "CURVE key")]
    file.unlink()
    assert modelops("keys", "curve", **env).returncode == 0
    assert doctor(tmp_path, **env).one("network", "CURVE key").state == "ok"
    file.chmod(0o644)
    assert doctor(tmp_path, **env).one("network", "CURVE key").mend == f"chmod 600 {file}"
