"""The unit for systemd: what it starts exists, and its end leaves the coordinator the time that it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.prometheus import DEPLOY
from modelops import settings
from modelops.cli import main

UNIT = DEPLOY / "systemd" / "modelops.service"


def sections() -> dict[str, dict[str, list[str]]]:
    """Section → key → its values; a key may stand more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            keys = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            keys.setdefault(key, []).append(value)
    return found


SERVICE = sections()["Service"]


def test_what_it_starts_is_the_command() -> None:
    ((program, *arguments),) = [line.split() for line in SERVICE["ExecStart"]]
    assert Path(program).is_absolute() and Path(program).name == "modelops"
    context = main.make_context("modelops", [*arguments, "--help"], resilient_parsing=True)
    _, command, rest = main.resolve_command(context, arguments)
    assert command is not None and command.name == "serve"
    command.make_parser(context).parse_args(rest)  # raises where it has no such option


def test_its_variables_are_settings() -> None:
    variables = dict(line.split("=", 1) for line in SERVICE["Environment"])
    assert variables
    settings.load(environ=variables)  # raises where one is unknown


def test_engines_are_not_told_to_end_before_what_was_accepted_is_finished() -> None:
    assert SERVICE["KillMode"] == ["mixed"]
    server, engine = settings.load(environ={}).server, settings.load(environ={}).engine
    needed_s = server.drain_s + server.drain_notice_s + engine.stop_timeout_s
    assert needed_s + 10 < float(SERVICE["TimeoutStopSec"][0])
    assert SERVICE["OOMPolicy"] == ["continue"]
    assert int(SERVICE["LimitNOFILE"][0]) > 3 * server.max_connections


def test_gpus_are_not_hidden() -> None:
    hiding = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"}
    assert not hiding & SERVICE.keys()


def test_its_folder_is_the_data_folder() -> None:
    assert SERVICE["StateDirectory"] == ["modelops"]
    assert "MODELOPS_DATA_DIR=%S/modelops" in SERVICE["Environment"]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not everywhere: the rest stands"
)
def test_systemd_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    (program, *_) = SERVICE["ExecStart"][0].split()
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(program, str(Path(sys.executable).with_name("modelops"))))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
