"""`modelops keys` and `modelops tls`, and a coordinator that wants what they make, as a terminal and a script see them.

Most are run in this process, which is ten times as fast; those that meet a coordinator, and the first, in their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import zmq
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import model_ops_pb2 as pb
from cli.command import modelops, started
from model_ops_pb2_grpc import ModelOpsStub
from modelops.api.errors import Unauthenticated
from modelops.cli import main
from modelops.client import Client
from modelops.store.database import open_database
from support import Served, need, serving, tiny_gguf, wait_until

TEXT = re.compile(r"mok_[0-9a-f]{8}_[0-9a-f]{48}")
NAMES = ["localhost", "127.0.0.1", "::1", "gpubox.example", "10.0.0.7"]
PORTS = [word for name in ("rest", "grpc", "zmq") for word in (f"--{name}-port", "0")]


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def on(data: Path, *arguments: str, **env: str) -> Done:
    """One of the commands that work on a data folder, without the settings of whoever runs the tests."""
    ours = dict.fromkeys(name for name in os.environ if name.startswith("MODELOPS_"))
    done = CliRunner(env=ours | env).invoke(main, [*arguments, "--data-dir", str(data)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def created(data: Path, *arguments: str) -> str:
    """The text of a new key."""
    done = on(data, "keys", "create", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def listed(data: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(on(data, "keys", "list", "--json", *arguments).stdout)["keys"]
    return found


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a certificate that signs itself and its key."""
    data = tmp_path_factory.mktemp("tls") / "data"
    hosts = ("--host", "gpubox.example", "--host", "10.0.0.7")
    assert on(data, "tls", "self-signed", *hosts, "--days", "30").returncode == 0
    return data / "tls"


@pytest.fixture(scope="module")
def key(data: Path) -> str:
    """The key 'full', of the scopes infer and models, made before the coordinator's first start."""
    return created(data, "full", "--scope", "infer", "--scope", "models")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the coordinator `guarded`."""
    return tmp_path_factory.mktemp("guarded") / "data"


@pytest.fixture(scope="module")
def guarded(data: Path, key: str, tls: Path) -> Iterator[Served]:
    """A coordinator with TLS that wants a key, and tells all that it does in its log."""
    env = {
        "MODELOPS_TLS__CERT_FILE": str(tls / "cert.pem"),
        "MODELOPS_TLS__KEY_FILE": str(tls / "key.pem"),
        "MODELOPS_LOG__LEVEL": "debug",
    }
    links = [("m", tiny_gguf(data.parent / "m.gguf"))]
    with serving(data, links=links, load=["m"], fake={"tokens": 3}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


# --- keys create ---
def test_a_key_is_shown_once_and_only_on_standard_output(tmp_path: Path) -> None:
    data = tmp_path / "not there yet"
    where = ("--data-dir", str(data))
    done = modelops("keys", "create", "alice", *where)
    assert done.returncode == 0
    assert TEXT.fullmatch(done.stdout.strip())
    assert done.stderr == (
        f"kept in {data}/state.db; the coordinator that uses this folder takes it at once\n"
        "This is shown once; keep it where only its user can read it.\n"
    )
    for options in ((), ("--json",), ("--all",)):
        again = modelops("keys", "list", *options, *where)
        assert (again.returncode, again.stderr) == (0, "")
        assert "alice" in again.stdout
        assert done.stdout.strip() not in again.stdout
        assert done.stdout.strip().rpartition("_")[2] not in again.stdout
    assert created(data, "bob") != done.stdout.strip()


def test_what_a_key_is_made_with_is_told_and_listed(tmp_path: Path) -> None:
    options = ("--scope", "models", "--scope", "infer", "--rate", "10/second", "--tokens", "60000/minute")
    done = on(tmp_path, "keys", "create", "ci", *options, "--priority", "high", "--expires", "90d", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    text = told.pop("key")
    assert told.pop("file") == str(tmp_path / "state.db")
    assert TEXT.fullmatch(text)
    assert told["id"] == text.split("_")[1]
    lasts = datetime.fromisoformat(told["expires"]) - datetime.fromisoformat(told["created"])
    assert lasts == timedelta(days=90)
    known = {key: value for key, value in told.items() if key not in ("id", "created", "expires")}
    assert known == {
        "name": "ci",
        "scopes": ["infer", "models"],
        "priority": "high",
        "rate": "10/second",
        "tokens": "60000/minute",
        "certificate": False,
        "state": "valid",
    }
    assert listed(tmp_path) == [told]


def test_without_options_a_key_may_ask_models_and_nothing_else(tmp_path: Path) -> None:
    created(tmp_path, "plain")
    [told] = listed(tmp_path)
    assert (told["scopes"], told["priority"], told["rate"], told["tokens"]) == (["infer"], "medium", "", "")
    assert told["expires"] is None


def test_a_key_for_a_certificate_has_no_text(tmp_path: Path) -> None:
    done = on(tmp_path, "keys", "create", "robot", "--certificate")
    assert (done.returncode, done.stdout) == (0, "Whoever shows a certificate of 'robot' may call now.\n")
    assert done.stderr == f"kept in {tmp_path}/state.db; the coordinator that uses this folder takes it at once\n"
    told = json.loads(on(tmp_path, "keys", "create", "robot2", "--certificate", "--json").stdout)
    assert (told["key"], told["certificate"]) == (None, True)


def test_a_date_is_its_beginning_in_utc(tmp_path: Path) -> None:
    created(tmp_path, "until", "--expires", "2099-01-31")
    [told] = listed(tmp_path)
    assert told["expires"] == "2099-01-31T00:00:00Z"


@pytest.mark.parametrize(
    ("arguments", "status", "code", "says"),
    [
        (("bad name",), 2, "invalid_request", "'bad name' is no name"),
        (("",), 2, "invalid_request", "'' is no name"),
        (("n" * 65,), 2, "invalid_request", "up to 64 letters"),
        (("x", "--rate", "often"), 2, "invalid_request", "'often' is no rate; one is written 10/second"),
        (("x", "--rate", "0/second"), 2, "invalid_request", "'0/second' is no rate"),
        (("x", "--rate", "1/second;9/minute"), 2, "invalid_request", "'1/second;9/minute' is no rate"),
        (("x", "--tokens", "-1/second"), 2, "invalid_request", "'-1/second' is no rate"),
        (("x", "--expires", "soon"), 2, "invalid_request", "'soon' is no time; one is written 90d"),
        (("x", "--expires", "0d"), 2, "invalid_request", "'0d' is over already"),
        (("x", "--expires", "2020-01-01"), 2, "invalid_request", "'2020-01-01' is over already"),
        (("x", "--expires", "999999999w"), 2, "invalid_request", "more than a hundred years ahead"),
        (("x", "--expires", "9999-12-31"), 2, "invalid_request", "more than a hundred years ahead"),
        (("taken",), 1, "conflict", "there is a key 'taken' already; revoke it first"),
        (("taken", "--certificate"), 1, "conflict", "there is a key 'taken' already; revoke it first"),
    ],
)
def test_a_mistake_makes_no_key(tmp_path: Path, arguments: tuple[str, ...], status: int, code: str, says: str) -> None:
    created(tmp_path, "taken")
    refused = on(tmp_path, "keys", "create", *arguments)
    assert (refused.returncode, refused.stdout) == (status, "")
    assert re.fullmatch(r"modelops: .*\n", refused.stderr)
    assert says in refused.stderr
    as_json = on(tmp_path, "keys", "create", *arguments, "--json")
    assert (as_json.returncode, as_json.stderr) == (status, "")
    assert json.loads(as_json.stdout)["code"] == code
    assert [one["name"] for one in listed(tmp_path, "--all")] == ["taken"]


@pytest.mark.parametrize("option", [("--scope", "everything"), ("--priority", "first")])
def test_a_word_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path, option: tuple[str, str]) -> None:
    refused = on(tmp_path, "keys", "create", "x", *option)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"'{option[1]}' is not one of " in refused.stderr
    assert list(tmp_path.iterdir()) == []


# --- keys list, keys revoke ---
@pytest.mark.parametrize("command", [("keys", "list"), ("keys", "revoke", "x")])
@pytest.mark.parametrize("there", [True, False], ids=["a folder", "no folder"])
def test_where_no_coordinator_keeps_anything_that_is_told_and_nothing_made(
    tmp_path: Path, there: bool, command: tuple[str, ...]
) -> None:
    data = tmp_path if there else tmp_path / "elsewhere"
    told = on(data, *command)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(f"modelops: there is no state file in {data}: no key was made in this folder")
    assert json.loads(on(data, *command, "--json").stdout)["code"] == "not_found"
    assert list(tmp_path.iterdir()) == []


def test_without_keys_the_list_says_what_that_means(tmp_path: Path) -> None:
    asyncio.run(asyncio.run(open_database(tmp_path / "state.db")).dispose())
    done = on(tmp_path, "keys", "list")
    assert done.stdout == "there are no keys: whoever reaches the coordinator may use it\n"
    assert listed(tmp_path) == []


def test_revoked_and_expired_keys_are_listed_where_all_are_wished(tmp_path: Path) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    created(tmp_path, "short", "--expires", soon)
    created(tmp_path, "gone")
    created(tmp_path, "here")
    assert on(tmp_path, "keys", "revoke", "gone").stdout == "'gone' is revoked\n"
    wait_until(lambda: [one["name"] for one in listed(tmp_path)] == ["here"], what="the end of 'short'")
    states = {one["name"]: one["state"] for one in listed(tmp_path, "--all")}
    assert states == {"short": "expired", "gone": "revoked", "here": "valid"}
    table = on(tmp_path, "keys", "list", "--all").stdout
    assert re.search(r"^gone +[0-9a-f]{8} +infer +medium +- +- +- +revoked *$", table, re.MULTILINE)
    assert "gone" not in on(tmp_path, "keys", "list").stdout


def test_a_row_is_one_line_however_long_for_programs_that_read_lines(tmp_path: Path) -> None:
    scopes = ("infer", "models", "learning", "goals", "metrics", "admin")
    name = "n" * 64
    created(tmp_path, name, *(word for scope in scopes for word in ("--scope", scope)), "--rate", "1000000/second")
    assert re.search(
        rf"^{name} +\w+ +{','.join(sorted(scopes))} +medium +1000000/second +- +- +valid *$",
        on(tmp_path, "keys", "list").stdout,
        re.MULTILINE,
    )


@pytest.mark.parametrize("name", ["nobody", "gone"])
def test_only_what_is_valid_can_be_revoked(tmp_path: Path, name: str) -> None:
    created(tmp_path, "gone")
    assert json.loads(on(tmp_path, "keys", "revoke", "gone", "--json").stdout) == {"name": "gone", "state": "revoked"}
    refused = on(tmp_path, "keys", "revoke", name)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr == f"modelops: there is no valid key '{name}'; 'modelops keys list' shows those that there are\n"
    )
    assert json.loads(on(tmp_path, "keys", "revoke", name, "--json").stdout)["code"] == "not_found"


def test_the_name_of_a_revoked_key_is_free_again(tmp_path: Path) -> None:
    first = created(tmp_path, "alice")
    on(tmp_path, "keys", "revoke", "alice")
    assert created(tmp_path, "alice") != first
    assert [one["state"] for one in listed(tmp_path, "--all")] == ["revoked", "valid"]


@pytest.mark.parametrize("command", [("keys", "list"), ("keys", "create", "x"), ("keys", "revoke", "x")])
def test_a_state_file_that_cannot_be_used_is_told_in_a_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "state.db").write_text("this is no database, and it is long enough to be taken for one" * 9)
    told = on(tmp_path, *command)
    assert (told.returncode, told.stdout) == (1, "")
    assert re.fullmatch(r"Error: the state file .* cannot be used: .*\n", told.stderr)


def test_a_data_folder_that_cannot_be_used_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (("keys", "create", "x"), ("keys", "list"), ("keys", "curve"), ("tls", "self-signed")):
        told = on(tmp_path / "file" / "data", *command)
        assert (told.returncode, told.stdout) == (1, ""), command
        assert re.fullmatch(r"Error: .* cannot be \w+: Not a directory\n", told.stderr), command


# --- keys curve ---
def test_the_curve_key_is_made_once_and_its_public_half_is_shown(tmp_path: Path) -> None:
    first = on(tmp_path, "keys", "curve")
    assert first.returncode == 0
    file = tmp_path / "curve.key"
    assert first.stderr == f"serve with it: modelops serve --curve-file {file}\n"
    public = first.stdout.removeprefix("public key: ").strip()
    secret = file.read_bytes().strip()
    assert zmq.curve_public(secret) == public.encode()
    assert secret.decode() not in first.stdout + first.stderr
    assert json.loads(on(tmp_path, "keys", "curve", "--json").stdout) == {"public_key": public, "file": str(file)}
    assert file.read_bytes().strip() == secret


def test_the_file_that_the_settings_name_is_the_one(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "mine"
    done = on(tmp_path, "keys", "curve", MODELOPS_TLS__CURVE_FILE=str(file))
    assert (done.returncode, done.stderr, file.exists()) == (0, "", True)
    assert not (tmp_path / "curve.key").exists()


def test_a_pair_for_a_client_is_kept_nowhere(tmp_path: Path) -> None:
    told = json.loads(on(tmp_path, "keys", "curve", "--client", "--json").stdout)
    assert zmq.curve_public(told["secret_key"].encode()) == told["public_key"].encode()
    typed = on(tmp_path, "keys", "curve", "--client").stdout
    assert re.fullmatch(r"public key: \S{40}\nsecret key: \S{40}\n", typed)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_holds_no_curve_key_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "curve.key").write_text("mine")
    told = on(tmp_path, "keys", "curve")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == f"Error: {tmp_path}/curve.key holds no CURVE key; 'modelops keys curve' makes one\n"
    assert (tmp_path / "curve.key").read_text() == "mine"


# --- files ---
def test_nobody_else_can_read_what_is_secret(tmp_path: Path) -> None:
    data = tmp_path / "data"
    text = created(data, "alice")
    on(data, "keys", "curve")
    on(data, "tls", "self-signed")
    assert {
        name: oct(mode(data / name)) for name in ("", "state.db", "curve.key", "tls", "tls/key.pem", "tls/cert.pem")
    } == {
        "": "0o700",
        "state.db": "0o600",
        "curve.key": "0o600",
        "tls": "0o700",
        "tls/key.pem": "0o600",
        "tls/cert.pem": "0o644",
    }
    assert holding(data, text, text.rpartition("_")[2]) == []
    assert [file.name for file in data.rglob(".*")] == []  # nothing half written is left


def test_a_data_folder_that_a_fetch_has_made_is_closed_too(tmp_path: Path) -> None:
    assert on(tmp_path / "data", "pull", "https://127.0.0.1/m.gguf").returncode == 2
    assert oct(mode(tmp_path / "data")) == "0o700"


def test_a_state_file_that_others_could_read_is_closed(tmp_path: Path) -> None:
    created(tmp_path, "alice")
    (tmp_path / "state.db").chmod(0o644)
    on(tmp_path, "keys", "list")
    assert mode(tmp_path / "state.db") == 0o600


def holding(folder: Path, *words: str) -> list[str]:
    """The files below `folder` that hold one of the words."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".gguf"]
    assert files
    return [file.name for file in files if any(word.encode() in file.read_bytes() for word in words)]


# --- tls self-signed ---
def test_the_certificate_is_for_these_names_and_this_long(tls: Path) -> None:
    made = x509.load_pem_x509_certificate((tls / "cert.pem").read_bytes())
    said = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = [str(name.value) for name in said]
    assert set(names) == {*NAMES, socket.gethostname()}
    lasts = made.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=30) - timedelta(minutes=10) < lasts < timedelta(days=30)
    assert made.not_valid_before_utc < datetime.now(UTC)


def test_what_was_made_is_told(tmp_path: Path) -> None:
    cert, key = tmp_path / "tls" / "cert.pem", tmp_path / "tls" / "key.pem"
    told = on(tmp_path, "tls", "self-signed", "--host", "gpubox.example")
    assert (told.returncode, told.stderr) == (0, "")
    assert f"modelops serve --tls-cert-file {cert} --tls-key-file {key}\n" in told.stdout
    assert f"--ca-file {cert}\n" in told.stdout
    first = cert.read_bytes()
    as_json = json.loads(on(tmp_path, "tls", "self-signed", "--json").stdout)
    assert (as_json["cert_file"], as_json["key_file"]) == (str(cert), str(key))
    assert "localhost" in as_json["names"]
    assert cert.read_bytes() != first


@pytest.mark.parametrize("host", ["münchen.example", "two words", "", "-", "x" * 64, f"{'a.' * 127}b"])
def test_a_name_that_no_certificate_can_hold_makes_none(tmp_path: Path, host: str) -> None:
    told = on(tmp_path, "tls", "self-signed", "--host", host)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"modelops: '{host}' is no host name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "gpubox.example", "10.0.0.7"])
def test_python_verifies_it_for_each_of_its_names(guarded: Served, tls: Path, name: str) -> None:
    context = ssl.create_default_context(cafile=tls / "cert.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as newer releases of Python do by themselves
    assert handshake(guarded, context, name) in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize(("trusted", "name"), [(True, "elsewhere.example"), (False, "localhost")])
def test_python_does_not_verify_it_for_another_name_or_unasked(
    guarded: Served, tls: Path, trusted: bool, name: str
) -> None:
    context = ssl.create_default_context(cafile=tls / "cert.pem" if trusted else None)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(guarded, context, name)


def test_nothing_older_than_tls_1_2_is_spoken(guarded: Served, tls: Path) -> None:
    context = ssl.create_default_context(cafile=tls / "cert.pem")
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(guarded, context, "localhost")


def handshake(served: Served, context: ssl.SSLContext, name: str) -> str | None:
    port = int(served.rest.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        return secured.version()


@pytest.mark.program("curl")
def test_curl_verifies_it(guarded: Served, tls: Path, key: str) -> None:
    need("curl")
    port = guarded.rest.rpartition(":")[2]
    asked = ["curl", "-sS", "--noproxy", "*", "--resolve", f"gpubox.example:{port}:127.0.0.1"]
    asked += ["-H", f"X-API-Key: {key}", f"https://gpubox.example:{port}/status"]
    trusting = subprocess.run([*asked, "--cacert", tls / "cert.pem"], capture_output=True, text=True, timeout=30)
    assert (trusting.returncode, trusting.stderr) == (0, "")
    assert json.loads(trusting.stdout)["models_loaded"] == 1
    assert subprocess.run(asked, capture_output=True, timeout=30).returncode == 60  # "cannot authenticate the peer"


# --- serve ---
def test_serve_does_not_open_itself_to_others_without_a_key(tmp_path: Path) -> None:
    refused = on(tmp_path, "serve", "--host", "0.0.0.0", *PORTS)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"Error: 0\.0\.0\.0 can be reached from other machines, .*\n", refused.stderr)
    assert "modelops keys create NAME" in refused.stderr
    assert "--insecure" in refused.stderr


def opened(data: Path, *arguments: str) -> tuple[dict[str, str], int, str]:
    """A coordinator open to others, started and ended: its addresses, exit status, and what it said."""
    argv = ("serve", "--data-dir", str(data), "--host", "0.0.0.0", "--json", *PORTS, *arguments)
    with started(*argv, url="") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert line, said
    return json.loads(line), process.returncode, said


def test_insecure_opens_it_and_is_warned_of(tmp_path: Path) -> None:
    addresses, status, said = opened(tmp_path, "--insecure")
    assert (addresses["rest"].startswith("http://0.0.0.0:"), status) == (True, 0)
    assert '"event": "listening on 0.0.0.0 without keys: whoever reaches it may use it; ' in said
    assert "without a certificate" in said
    assert "ZMQ is not encrypted" in said


def test_with_a_key_it_opens_and_says_what_can_be_read_on_the_way(tmp_path: Path) -> None:
    created(tmp_path, "alice")
    _, status, said = opened(tmp_path)
    assert status == 0
    assert "without keys" not in said
    assert "without a certificate" in said
    assert "ZMQ is not encrypted" in said


def test_with_key_certificate_and_curve_nothing_is_left_to_warn_of(tmp_path: Path) -> None:
    created(tmp_path, "alice")
    on(tmp_path, "tls", "self-signed")
    on(tmp_path, "keys", "curve")
    files = ("--tls-cert-file", str(tmp_path / "tls/cert.pem"), "--tls-key-file", str(tmp_path / "tls/key.pem"))
    addresses, status, said = opened(tmp_path, *files, "--curve-file", str(tmp_path / "curve.key"))
    assert (addresses["rest"].startswith("https://0.0.0.0:"), status) == (True, 0)
    assert '"level": "warning"' not in said


def test_a_revoked_key_keeps_the_door_shut(tmp_path: Path) -> None:
    created(tmp_path, "alice")
    on(tmp_path, "keys", "revoke", "alice")
    with serving(tmp_path, fake={}) as running, Client(running.rest) as client, pytest.raises(Unauthenticated):
        client.status()


@pytest.fixture(scope="module")
def files(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files to start with, by what they are called in the tests below: good ones, and bad ones of every kind."""
    tmp_path = tmp_path_factory.mktemp("files")
    key = (tls / "key.pem").read_bytes()
    found = {"cert": tls / "cert.pem", "key": tls / "key.pem", "folder": tmp_path, "missing": tmp_path / "missing"}
    for name in ("empty", "garbage", "truncated", "encrypted", "other"):
        found[name] = tmp_path / name
    found["empty"].touch()
    found["garbage"].write_bytes(b"\x00\xff" * 999)
    found["truncated"].write_bytes(key[: len(key) // 2])
    on(tmp_path / "another", "tls", "self-signed")
    shutil.copy(tmp_path / "another" / "tls" / "key.pem", found["other"])
    private = serialization.load_pem_private_key(key, None)
    found["encrypted"].write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    return {name: str(file) for name, file in found.items()}


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"cert": "cert"}, "tls.cert_file and tls.key_file belong together"),
        ({"key": "key"}, "tls.cert_file and tls.key_file belong together"),
        ({"ca": "cert"}, "tls.client_ca_file is for clients' certificates"),
        ({"cert": "missing", "key": "key"}, "/missing cannot be read: No such file or directory"),
        ({"cert": "cert", "key": "missing"}, "/missing cannot be read: No such file or directory"),
        ({"cert": "folder", "key": "key"}, "cannot be read: Is a directory"),
        ({"cert": "empty", "key": "key"}, "are no certificate with its key"),
        ({"cert": "garbage", "key": "key"}, "are no certificate with its key"),
        ({"cert": "key", "key": "key"}, "are no certificate with its key"),
        ({"cert": "cert", "key": "truncated"}, "are no certificate with its key"),
        ({"cert": "cert", "key": "other"}, "are no certificate with its key: key values mismatch"),
        ({"cert": "cert", "key": "encrypted"}, "/encrypted is encrypted with a password"),
        ({"cert": "cert", "key": "key", "ca": "missing"}, "/missing cannot be read: No such file or directory"),
        ({"cert": "cert", "key": "key", "ca": "garbage"}, "/garbage holds no certificate of an authority"),
        ({"cert": "cert", "key": "key", "ca": "key"}, "/key.pem holds no certificate of an authority"),
        ({"curve": "missing"}, "/missing cannot be read: No such file or directory"),
        ({"curve": "empty"}, "/empty holds no CURVE key; 'modelops keys curve' makes one"),
        ({"curve": "garbage"}, "/garbage holds no CURVE key; 'modelops keys curve' makes one"),
        ({"curve": "key"}, "/key.pem holds no CURVE key; 'modelops keys curve' makes one"),
    ],
    ids=lambda value: "-".join(f"{key}={name}" for key, name in value.items()) if isinstance(value, dict) else "",
)
def test_a_file_that_cannot_be_used_ends_the_start_with_one_line(
    tmp_path: Path, files: dict[str, str], named: dict[str, str], says: str
) -> None:
    flags = {"cert": "--tls-cert-file", "key": "--tls-key-file", "ca": "--client-ca-file", "curve": "--curve-file"}
    words = [word for kind, name in named.items() for word in (flags[kind], files[name])]
    refused = on(tmp_path / "data", "serve", *PORTS, *words)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"Error: .*\n", refused.stderr)
    assert says in refused.stderr


@pytest.mark.parametrize("address", ["nonsense", "http://host:6379", "redis://:secret@host:port", "redis://h:99999"])
def test_an_address_that_is_no_redis_ends_the_start_and_is_not_told_again(tmp_path: Path, address: str) -> None:
    refused = on(tmp_path, "serve", *PORTS, MODELOPS_RATES__REDIS_URL=address)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "Error: rates.redis_url is no address of a Redis; one is written redis://host:6379/0\n"


# --- clients ---
def test_the_door_is_shut_while_a_coordinator_runs(tmp_path: Path) -> None:
    with serving(tmp_path, fake={}) as running:
        assert modelops("status", url=running.rest).returncode == 0
        text = created(tmp_path, "ops", "--scope", "models")
        told = wait_until(lambda: _refused(running.rest), what="the closed door")
        assert told.startswith("modelops: this coordinator wants a key: ")
        assert "MODELOPS_API_KEY" in told
        assert modelops("status", url=running.rest, MODELOPS_API_KEY=text).returncode == 0
        on(tmp_path, "keys", "revoke", "ops")
        told = wait_until(lambda: _refused(running.rest, MODELOPS_API_KEY=text), what="the end of the key")
        assert told.startswith("modelops: the key 'ops' has been revoked")


def _refused(url: str, **env: str) -> str:
    told = modelops("status", url=url, **env)
    assert told.returncode in (0, 1)
    return told.stderr


@pytest.mark.parametrize("how", ["flags", "variables"])
def test_a_client_shows_its_key_and_trusts_the_certificate(guarded: Served, key: str, tls: Path, how: str) -> None:
    env = {"MODELOPS_API_KEY": key, "MODELOPS_CA_FILE": str(tls / "cert.pem")} if how == "variables" else {}
    flags = () if env else ("--api-key", key, "--ca-file", str(tls / "cert.pem"))
    status = modelops("status", *flags, url=guarded.rest, **env)
    assert (status.returncode, status.stderr) == (0, "")
    assert "models loaded: 1" in status.stdout
    answer = modelops("infer", "m", "hi", *flags, url=guarded.rest, **env)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "w0 w1 w2 \n", "")


# --- a key in a file ---
@pytest.mark.parametrize("how", ["file", "standard input"])
def test_a_key_is_read_from_the_first_line_of_a_file(
    guarded: Served, key: str, tls: Path, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "key"
    file.write_text(f"  {key}\r\nWhat is 2+2?\n")
    stdin = file.read_text() if how == "standard input" else ""
    flags = ("--api-key-file", "-" if stdin else str(file), "--ca-file", str(tls / "cert.pem"))
    # It wins over the variable, as every option does.
    status = modelops("status", *flags, url=guarded.rest, stdin=stdin, MODELOPS_API_KEY="mok_of_another")
    assert (status.returncode, status.stderr) == (0, "")
    # What follows on standard input is still there for who reads it.
    answer = modelops("infer", "m", "-" if stdin else "hi", *flags, url=guarded.rest, stdin=stdin)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "w0 w1 w2 \n", "")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty: there should be a key"),
        (b"\nmok_in_the_second_line\n", "is empty: there should be a key"),
        (b"\xff\xfe\0secret", "it holds characters that no key has"),
    ],
    ids=["missing", "empty", "second line", "garbage"],
)
def test_a_file_without_a_key_is_told_before_anything_is_sent(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    told = modelops("status", "--api-key-file", str(file), url="http://127.0.0.1:1")
    assert (told.returncode, told.stdout) == (2, "")
    assert says in told.stderr
    assert "secret" not in told.stderr
    as_json = modelops("status", "--json", "--api-key-file", str(file), url="http://127.0.0.1:1")
    assert (as_json.returncode, as_json.stderr, json.loads(as_json.stdout)["code"]) == (2, "", "invalid_request")


def test_an_empty_standard_input_is_no_key_and_a_folder_is_none_either(tmp_path: Path) -> None:
    told = modelops("status", "--api-key-file", "-", url="http://127.0.0.1:1")
    assert (told.returncode, "standard input is empty" in told.stderr) == (2, True)
    told = modelops("status", "--api-key-file", str(tmp_path), url="http://127.0.0.1:1")
    assert (told.returncode, "Is a directory" in told.stderr) == (2, True)


def test_two_keys_are_one_too_many(tmp_path: Path) -> None:
    told = modelops("status", "--api-key", "mok_a", "--api-key-file", str(tmp_path / "key"), url="http://127.0.0.1:1")
    assert (told.returncode, told.stdout) == (2, "")
    assert "leave one out" in told.stderr


def test_a_key_that_no_header_could_hold_is_told_so() -> None:
    told = modelops("status", "--api-key", "schlüssel", url="http://127.0.0.1:1")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "modelops: what was given as the key is none: it holds characters that no key has\n"


def test_a_key_without_the_scope_is_told_which_it_lacks(guarded: Served, data: Path, tls: Path) -> None:
    asks = created(data, "asks-only")
    wait_until(
        lambda: (
            "scope"
            in modelops("status", "--ca-file", str(tls / "cert.pem"), "--api-key", asks, url=guarded.rest).stderr
        )
    )
    told = modelops("status", "--ca-file", str(tls / "cert.pem"), "--json", "--api-key", asks, url=guarded.rest)
    assert told.returncode == 1
    assert json.loads(told.stdout)["code"] == "permission_denied"
    assert json.loads(told.stdout)["error"] == "'status' takes a key with the scope 'models'; it has infer"


def test_a_wrong_key_is_refused_and_health_tells_a_stranger_the_status_only(guarded: Served, tls: Path) -> None:
    ca = ("--ca-file", str(tls / "cert.pem"))
    told = modelops("infer", "m", "hi", *ca, "--api-key", f"mok_{'0' * 8}_{'0' * 48}", url=guarded.rest)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("modelops: the key is none of this coordinator's; ")
    assert modelops("health", *ca, url=guarded.rest).stdout == "healthy\n"


def test_a_client_that_does_not_trust_the_certificate_says_what_to_give_it(guarded: Served) -> None:
    told = modelops("status", url=guarded.rest)
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr == (
        f"modelops: the certificate of {guarded.rest} is not trusted; give its file, or its authority's: "
        "ca_file (--ca-file)\n"
    )


def test_http_at_an_https_port_is_told_what_may_be_wrong(guarded: Served) -> None:
    told = modelops("status", url=guarded.rest.replace("https://", "http://"))
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr.endswith("; perhaps it is https:// there\n")


@pytest.mark.parametrize("file", ["missing", "empty", "garbage", "folder"])
def test_a_ca_file_that_cannot_be_used_is_told_before_anything_is_sent(files: dict[str, str], file: str) -> None:
    told = modelops("status", "--ca-file", files[file], url="https://127.0.0.1:1")
    assert (told.returncode, told.stdout) == (2, "")
    assert re.fullmatch(rf"modelops: '{files[file]}' cannot be used as a certificate: .*\n", told.stderr)


# --- secrets ---
def test_no_key_and_no_prompt_stands_in_a_file_or_in_the_log(guarded: Served, data: Path, key: str, tls: Path) -> None:
    prompt = "zanzibar"
    wrong = f"{key[:-6]}c0ffee"
    ask = {"model_name": "m", "input_text": prompt}
    request = pb.InferenceRequest(model_name="m", input_text=prompt)
    ca = (tls / "cert.pem").read_bytes()
    for text in (key, wrong):
        status = []
        for headers in ({"X-API-Key": text}, {"Authorization": f"Bearer {text}"}):
            with httpx.Client(verify=ssl.create_default_context(cadata=ca.decode())) as client:
                status.append(client.post(f"{guarded.rest}/inference", json=ask, headers=headers).status_code)
        for name, value in (("x-api-key", text), ("authorization", f"Bearer {text}")):
            with grpc.secure_channel(guarded.grpc, grpc.ssl_channel_credentials(ca)) as channel:
                try:
                    stub: Any = ModelOpsStub(channel)  # type: ignore[no-untyped-call]
                    stub.Infer(request, metadata=[(name, value)], timeout=30)
                    status.append(200)
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.UNAUTHENTICATED
                    status.append(401)
        with zmq.Context() as context, context.socket(zmq.REQ) as asking:
            asking.connect(guarded.zmq)
            asking.send_json({"action": "infer", "payload": ask, "api_key": text})
            assert asking.poll(30_000)
            answer = asking.recv_json()
            assert isinstance(answer, dict)
            status.append(200 if answer["success"] else {"unauthenticated": 401}[answer["code"]])
        assert status == [200 if text == key else 401] * 5
    log = guarded.log.read_text()
    assert '"level": "debug"' in log
    secrets = [text.rpartition("_")[2] for text in (key, wrong)]
    assert holding(data, *secrets, prompt, (tls / "key.pem").read_text().splitlines()[1]) == []
    # The digest is what is kept, and the log has no use for it.
    with sqlite3.connect(data / "state.db") as state:
        digests = [row[0] for row in state.execute("SELECT digest FROM keys")]
    state.close()
    assert [digest for digest in digests if digest in log] == []


@pytest.mark.engine
def test_an_engine_at_the_most_talkative_writes_no_prompt_and_no_answer(smollm2: Path, tmp_path: Path) -> None:
    with serving(tmp_path, links=[("smollm2", smollm2)], env={"MODELOPS_LOG__LEVEL": "debug"}) as running:
        told = modelops("infer", "smollm2", "Repeat: zanzibar", "--temperature", "0", url=running.rest)
        assert "zanzibar" in told.stdout.lower()
        log = running.log.read_text().lower()
    assert "llama" in log
    assert "zanzibar" not in log
