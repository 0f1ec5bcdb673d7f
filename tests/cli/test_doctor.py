"""`modelops doctor`: what it finds, what it says to do about it, and that it changes nothing."""

from __future__ import annotations

import os
import shlex
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import ggufs
import seeing
from cli.command import environment, modelops
from cli.examined import AREAS, FREE_PORTS, Told, doctor, listing, parsed
from modelops.cli.doctor import engine, machine, models
from modelops.cli.doctor.examination import carefully
from modelops.cli.doctor.findings import Area, Finding
from modelops.serving.devices import Device, ThisMachine
from modelops.serving.gguf import read_header
from modelops.settings import ModelEntry, Settings
from modelops.store.tables import MIGRATIONS
from support import FAKE_ENGINE, make_key, tiny_gguf

SECRET = "s3cr3t"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A data folder with a state file, as a coordinator leaves it."""
    make_key(tmp_path / "data", "alice")
    return tmp_path / "data"


# --- the whole ---
def test_on_a_fresh_machine_nothing_is_wrong_and_the_first_step_is_told(tmp_path: Path) -> None:
    done = modelops("doctor", HOME=str(tmp_path), XDG_DATA_HOME="", **FREE_PORTS)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in AREAS] == AREAS
    at = next(index for index, line in enumerate(lines) if line.startswith("  warning  models: none is found in "))
    assert lines[at + 1].startswith("           mend: modelops pull smollm2 ")
    assert lines[-1].startswith("Nothing is wrong; ")
    assert "\x1b" not in done.stdout  # no colours where nobody sees them
    assert listing(tmp_path) == {}


def test_as_json_it_is_one_line_with_the_same_findings(tmp_path: Path) -> None:
    done = modelops("doctor", "--json", HOME=str(tmp_path), XDG_DATA_HOME="", **FREE_PORTS)
    told = parsed(done)
    assert done.stdout.count("\n") == 1
    assert list(dict.fromkeys(found.area for found in told.checks)) == AREAS
    assert told.one("models", "models").state == "warning"
    assert listing(tmp_path) == {}


def test_what_is_wrong_is_counted_and_makes_the_status_1(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    done = modelops("doctor", "--data-dir", str(tmp_path / "data"), **FREE_PORTS)
    assert done.returncode == 1
    assert "  wrong    folder: " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 thing is wrong")


def test_a_folder_in_use_is_left_as_it_was(kept: Path) -> None:
    tiny_gguf(kept / "models" / "m.gguf")
    before = listing(kept)
    told = doctor(kept)
    assert told.one("data folder", "state file").state == "ok"
    assert listing(kept) == before


def test_a_check_that_breaks_by_itself_is_a_finding() -> None:
    def breaks() -> Iterator[Finding]:
        yield Area("a").ok("first", "well")
        raise ZeroDivisionError("by nothing")

    first, second = carefully(Area("a"), "b", breaks)
    assert (first.name, second.name, second.state) == ("first", "b", "warning")
    assert "ZeroDivisionError: by nothing" in second.found


# --- configuration ---
@pytest.mark.parametrize(
    ("content", "env", "found", "mend"),
    [
        ("[server]\nrest_prot = 1", {}, "did you mean 'server.rest_port'?", "correct it in {file}"),
        ("[server", {}, "is not valid TOML", "--config"),
        ("", {"MODELOPS_ENGINE__SLOTS": "0"}, "setting 'engine.slots'", "unset MODELOPS_ENGINE__SLOTS"),
        ("", {"MODELOPS_ENGIN__SLOTS": "1"}, "unknown setting 'engin'", "docs/settings.md"),
    ],
)
def test_settings_that_cannot_be_used(
    tmp_path: Path, content: str, env: Mapping[str, str], found: str, mend: str
) -> None:
    file = tmp_path / "modelops.toml"
    file.write_text(content)
    told = doctor(tmp_path, "--config", str(file), **env)
    one = told.one("configuration", "settings")
    assert one.state == "wrong"
    assert found in one.found
    assert mend.format(file=file) in one.mend
    assert told.of("machine", "cores")  # what needs no settings is looked at all the same


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    one = doctor(tmp_path, "--config", str(tmp_path / "none.toml")).one("configuration", "settings")
    assert (one.state, "No such file" in one.found, "MODELOPS_CONFIG" in one.mend) == ("wrong", True, True)


def test_where_the_settings_come_from_is_told(tmp_path: Path) -> None:
    file = tmp_path / "modelops.toml"
    file.write_text("[server]\ndrain_s = 1\n")
    one = doctor(tmp_path, "--config", str(file)).one("configuration", "settings")
    assert (one.state, one.found) == ("ok", f"valid, from {file} and 3 variables")


@pytest.mark.parametrize(
    ("name", "right"),
    [("modelops_server__host", "MODELOPS_SERVER__HOST"), ("MODEL_OPS_ENGINE__SLOTS", "MODELOPS_ENGINE__SLOTS")],
)
def test_variables_that_only_look_like_settings(tmp_path: Path, name: str, right: str) -> None:
    one = doctor(tmp_path, **{name: SECRET}).one("configuration", "variables")
    assert (one.state, one.mend) == ("warning", f"call it {right}")
    assert SECRET not in one.found


def test_a_catalogue(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_text('[a]\nfile = "a.gguf"\n[b]\nsource = "ftp://nowhere/b.gguf"\n')
    first, *rest = doctor(tmp_path, MODELOPS_MODELS__CATALOGUE=str(file)).of("configuration", "catalogue")
    assert (first.state, first.found) == ("ok", f"2 models in {file}")
    assert [(one.state, one.found.partition(" ")[0]) for one in rest] == [("warning", "'a'"), ("warning", "'b'")]
    file.write_text("[a]\nslotz = 1\n")
    [wrong] = doctor(tmp_path, MODELOPS_MODELS__CATALOGUE=str(file)).of("configuration", "catalogue")
    assert wrong.state == "wrong"
    assert "slotz" in wrong.found


def test_a_redis_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        told = doctor(tmp_path, MODELOPS_RATES__REDIS_URL=f"redis://:{SECRET}@{where}/0")
    one = told.one("configuration", "rates")
    assert one.state == "warning"
    assert f"Redis at {where} does not answer" in one.found
    assert SECRET not in str(told)


def test_a_collector_of_traces_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as bound:  # nobody listens, and nobody else will
        bound.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{bound.getsockname()[1]}"
        settings = {"MODELOPS_TRACING__OTLP_ENDPOINT": f"http://{where}"}
        silent = doctor(tmp_path, **settings)
        bound.listen()
        answering = doctor(tmp_path, **settings)
    assert (silent.one("configuration", "traces").state, silent.status) == ("warning", 0)
    assert f"the collector at {where} does not answer" in silent.one("configuration", "traces").found
    assert answering.one("configuration", "traces").state == "ok"
    nowhere = doctor(tmp_path, MODELOPS_TRACING__OTLP_ENDPOINT="nowhere")
    assert nowhere.one("configuration", "traces").state == "wrong"


def test_what_is_no_redis_is_refused_as_the_start_does(tmp_path: Path) -> None:
    told = doctor(tmp_path, MODELOPS_RATES__REDIS_URL=f"http://:{SECRET}@host")
    assert told.one("configuration", "rates").state == "wrong"
    assert SECRET not in str(told)


# --- data folder ---
def as_others_do(*argv: str, data: Path) -> Told:
    """The command without root's right to open everything, where root runs the tests."""
    drop = "import ctypes, os, sys; c = ctypes.CDLL(None); c.prctl(24, 1, 0, 0, 0); c.prctl(24, 2, 0, 0, 0); "
    argv = (sys.executable, "-c", f"{drop}os.execv(sys.executable, sys.argv[1:])", sys.executable, *argv)
    env = environment(**FREE_PORTS, MODELOPS_DATA_DIR=str(data))
    return parsed(subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60))


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_folder_that_is_closed_to_us(tmp_path: Path, inside: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    told = as_others_do("-m", "modelops.cli", "doctor", "--json", data=closed / inside)
    one = told.one("data folder", "folder")
    assert (one.state, f"chmod u+rwx {closed}" in one.mend) == ("wrong", True)


def test_a_state_file_that_is_closed_to_us(kept: Path) -> None:
    (kept / "state.db").chmod(0)
    told = as_others_do("-m", "modelops.cli", "doctor", "--json", data=kept)
    one = told.one("data folder", "state file")
    assert (one.state, "Permission denied" in one.found) == ("wrong", True)


def test_a_state_file_of_a_newer_release(kept: Path) -> None:
    with sqlite3.connect(kept / "state.db") as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    one = doctor(kept).one("data folder", "state file")
    assert one.state == "wrong"
    assert "was written by a newer release" in one.found
    assert one.mend == "use that release, or another data_dir"


@pytest.mark.parametrize("damage", ["no database", "half of one", "a page of it"])
def test_a_state_file_that_is_damaged(kept: Path, damage: str) -> None:
    file = kept / "state.db"
    whole = file.read_bytes()
    if damage == "no database":
        file.write_bytes(b"not a database, but long enough to look at" * 50)
    elif damage == "half of one":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        file.write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    before = listing(kept)
    one = doctor(kept).one("data folder", "state file")
    assert (one.state, f"mv {file}* {kept}/damaged/" in one.mend) == ("wrong", True)
    assert listing(kept) == before


def test_a_state_file_that_others_may_read(kept: Path) -> None:
    (kept / "state.db").chmod(0o644)
    first, second = doctor(kept).of("data folder", "state file")
    assert (first.state, first.mend, second.state) == ("warning", f"chmod 600 {kept / 'state.db'}", "ok")


# --- engine ---
def program(file: Path, script: str, mode: int = 0o755) -> str:
    file.write_text(script)
    file.chmod(mode)
    return str(file)


LLAMA = """#!/bin/sh
case "$1" in
--version) echo "version: 9876 (abcdef0)" >&2;;
--list-devices) echo "Available devices:"; %s;;
esac
"""


@pytest.mark.parametrize(
    ("script", "mode", "found"),
    [
        (LLAMA, 0o644, "which is no executable program"),
        ("no program", 0o755, "cannot be started: Exec format error"),
        ("#!/bin/sh\necho 'error while loading shared libraries: libcuda.so.1' >&2; exit 127\n", 0o755, "libcuda.so.1"),
        ("#!/bin/sh\nkill -ILL $$\n", 0o755, "built for another processor"),
    ],
)
def test_an_engine_that_does_not_start(tmp_path: Path, script: str, mode: int, found: str) -> None:
    path = program(tmp_path / "llama-server", script, mode)
    told = doctor(tmp_path, MODELOPS_ENGINE__EXECUTABLE=path)
    one = told.one("engine", "engine")
    assert told.wrong == [("engine", "engine")]
    assert found in one.found
    assert "engine.executable" in one.mend


@pytest.mark.parametrize(
    ("built", "flags", "unused"),
    [
        ("CPU : AVX2 = 1 | FMA = 1 | ", "avx2 avx512f avx512_bf16", ["AVX512", "AVX512_BF16"]),
        ("CPU : AVX2 = 1 | AVX512 = 1 | ", "avx2 avx512f", []),
        ("CPU : AVX2 = 1 | ", "avx2 fma", []),
        pytest.param("", "avx512f", [], id="it does not tell"),
        pytest.param("CPU : AVX2 = 1 | ", None, [], id="no Linux"),
    ],
)
def test_what_the_processor_has_and_the_engine_does_not_use(built: str, flags: str | None, unused: list[str]) -> None:
    processor = "" if flags is None else f"processor : 0\nflags : fpu {flags} rdpid\n"
    assert engine.instructions_unused(built, processor) == unused


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    told = doctor(tmp_path, MODELOPS_ENGINE__EXECUTABLE="/nowhere/llama-server")
    assert told.wrong == [("engine", "engine")]


def test_an_engine_tells_its_version_and_its_gpus(tmp_path: Path) -> None:
    listed = 'echo "  CUDA0: NVIDIA H100 80GB HBM3 (81079 MiB, 80557 MiB free)"'
    path = program(tmp_path / "llama-server", LLAMA % listed)
    told = doctor(tmp_path, MODELOPS_ENGINE__EXECUTABLE=path)
    assert told.one("engine", "engine").found == f"{path}, version: 9876 (abcdef0)"
    assert "the engine sees CUDA0" in told.one("engine", "GPU").found


def test_an_engine_that_does_not_tell_its_version_may_be_one(tmp_path: Path) -> None:
    told = doctor(tmp_path, MODELOPS_ENGINE__EXECUTABLE=str(FAKE_ENGINE))
    assert (told.one("engine", "engine").state, told.status) == ("warning", 0)


@pytest.mark.parametrize(
    ("usable", "state", "found"),
    [
        ([], "warning", "the engine sees none of it"),
        (None, "warning", "is unknown"),
        (["CUDA0"], "ok", "the engine sees CUDA0 of 1 GPU (NVIDIA H100)"),
    ],
)
def test_a_gpu_that_the_engine_cannot_use(usable: list[str] | None, state: str, found: str) -> None:
    [one] = engine.gpus([Device("gpu0", "NVIDIA H100", 80 << 30, 79 << 30)], usable)
    assert (one.state, found in one.found) == (state, True)
    assert state == "ok" or "MODELOPS_ENGINE__EXECUTABLE" in one.mend


def test_where_models_fit_is_told_by_what_the_engine_can_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing.a_gpu(monkeypatch)
    for listed, there in (("", {"cpu"}), (seeing.CUDA, {"cpu", "gpu0"})):
        path = seeing.engine(tmp_path / f"engine{len(there)}", listed)
        settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"executable": path}})
        assert models.Scene.now(settings, ThisMachine(), None).free.keys() == there


# --- machine ---
def test_few_open_files(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "modelops.cli", "doctor", "--json", "--data-dir", str(tmp_path)]
    argv = ["sh", "-c", f"ulimit -n 1024; exec {shlex.join(words)}"]
    env = environment(**FREE_PORTS)
    told = parsed(subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60))
    one = told.one("machine", "open files")
    assert (one.state, "1024" in one.found, "LimitNOFILE" in one.mend) == ("warning", True, True)


def test_what_others_hold_of_a_gpu_is_told() -> None:
    gpu = Device("gpu0", "NVIDIA H100", 80 << 30, 70 << 30, used_by={os.getpid(): 6 << 30, 1: 4 << 30})
    [one] = machine.graphics([gpu], ours={1})
    assert f"(process {os.getpid()}) 6,144 MB" in one.found
    assert "process 1)" not in one.found


@pytest.mark.parametrize(
    ("written", "state"),
    [("", "ok"), ("-1", "ok"), (" -1,0", "ok"), ("3", "warning"), ("3,0", "warning"), ("GPU-x", "warning")],
)
def test_a_choice_of_gpus_that_names_none(monkeypatch: pytest.MonkeyPatch, written: str, state: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", written)
    [one] = machine.graphics([], ours=set())
    assert (one.state, f"CUDA_VISIBLE_DEVICES is '{written}'" in one.found) == (state, True)
    assert ("nvidia-smi -L" in one.mend) is (state == "warning")


def test_a_choice_of_gpus_that_names_one_is_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,7")
    [one] = machine.graphics([Device("gpu0", "NVIDIA H200", 140 << 30, 139 << 30)], ours=set())
    assert one.state == "ok"


# --- models ---
def test_models_that_fit_are_told_with_what_they_need(tmp_path: Path) -> None:
    ggufs.make(tmp_path / "models" / "small.Q8_0.gguf")
    told = doctor(tmp_path, MODELOPS_ENGINE__SLOTS="2", MODELOPS_ENGINE__CONTEXT_LENGTH="512")
    one = told.one("models", "small.Q8_0")
    assert one.state == "ok"
    assert "llama, Q8_0; 2 slots of 512 tokens: fits, with " in one.found


def test_a_model_that_is_too_large_is_told_with_what_would_fit(tmp_path: Path) -> None:
    ggufs.make(tmp_path / "models" / "huge.gguf", layers=80, width=8192, feed_forward=28672, heads=64, kv_heads=8)
    ggufs.make(tmp_path / "models" / "long.gguf", layers=16, width=512, heads=8, kv_heads=8, words=512)
    env = {"MODELOPS_MEMORY__BUDGET_MB": "400", "MODELOPS_ENGINE__CONTEXT_LENGTH": "32768"}
    told = doctor(tmp_path, **env)
    huge, long = told.one("models", "huge"), told.one("models", "long")
    assert (huge.state, long.state, told.status) == ("warning", "warning", 0)
    assert "does not fit, it needs " in huge.found
    assert "and 400 MB of RAM are free" in huge.found
    assert "it would fit with context_length " in long.mend


def test_a_model_that_fits_when_what_is_loaded_gives_way(tmp_path: Path) -> None:
    file = ggufs.make(tmp_path / "m.gguf")
    scene = models.Scene(Settings(data_dir=tmp_path), 1, {"cpu": 1 << 20}, {"cpu": 8 << 30})
    one = models.fits("m", file, read_header(file), scene, ModelEntry())
    assert (one.state, "fits after what is loaded has given way" in one.found) == ("ok", True)


def test_files_that_are_no_models_are_told_each_with_its_reason(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tiny_gguf(tmp_path / "outside" / "out.gguf")
    folder = data / "models"
    whole = tiny_gguf(folder / "whole.gguf").read_bytes()
    tiny_gguf(folder / "my model.gguf")
    tiny_gguf(folder / "lora.gguf", general__type="adapter")
    tiny_gguf(tmp_path / "more" / "whole.gguf")
    (folder / "cut.gguf").write_bytes(whole[:1000])
    (folder / "text.gguf").write_text("no model")
    (folder / "out.gguf").symlink_to(outside)
    (folder / "nowhere.gguf").symlink_to(tmp_path / "gone")
    (folder / ".partial" / "big.gguf").mkdir(parents=True)
    roots = f"{tmp_path / 'more'}:{tmp_path / 'missing'}"
    told = doctor(data, MODELOPS_MODELS__ROOTS=roots)
    expected: dict[str, Any] = {
        "cut": ("cut short", f"rm {folder}/cut.gguf"),
        "text": ("letters GGUF", f"rm {folder}/text.gguf"),
        "my model": ("is not found by itself", "my-model.gguf"),
        "lora": ("is an adapter", "move it"),
        "out": ("leads out of the model roots", f"MODELOPS_MODELS__ROOTS={roots}:{outside.parent}"),
        "nowhere": ("leads nowhere", "rm "),
        "roots": ("missing is no folder", "mkdir -p"),
        "fetches": ("big.gguf", "fetch it again"),
    }
    for name, (found, mend) in expected.items():
        one = told.one("models", name)
        assert (one.state, found in one.found, mend in one.mend) == ("warning", True, True), one
    fits, hidden = sorted(told.of("models", "whole"), key=lambda one: one.state)
    assert (fits.state, hidden.state, "is hidden by" in hidden.found) == ("ok", "warning", True)
    assert told.status == 0
