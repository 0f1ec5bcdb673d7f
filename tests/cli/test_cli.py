"""The command `modelops`, as a terminal and as a script see it: what it prints, where, and its exit status."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli.command import environment, modelops, started
from modelops.api import types
from modelops.api.messages import Response
from modelops.cli import main
from modelops.client import Client
from support import FAKE_ENGINE, Served, put, serving, tiny_gguf, wait_until

LONG = "2000"  # tokens of an answer that no test waits for
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def below(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by what is typed for it, groups and what is in them."""
    for part, command in group.commands.items():
        yield (whole := f"{name} {part}".strip()), command
        if isinstance(command, click.Group):
            yield from below(command, whole)


COMMANDS = dict(below(main))
#: The others work on this machine's files.
CLIENTS = sorted(
    name
    for name, command in COMMANDS.items()
    if name.split()[0] not in {"serve", "pull", "keys", "tls", "doctor"}
    and (not isinstance(command, click.Group) or command.invoke_without_command)
)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator whose model `slow` says "w0 w1 w2 …", 50 words a second."""
    folder = tmp_path_factory.mktemp("slow")
    links = [("slow", tiny_gguf(folder / "slow.gguf"))]
    with serving(folder / "data", links=links, load=["slow"], fake={"token_s": 0.02}) as running:
        yield running


# --- the commands and what they print ---
def test_infer_writes_the_answer_and_nothing_else(served: Served) -> None:
    done = modelops("infer", "smollm2", "What is 2+2?", "--temperature", "0", "--max-tokens", "16", url=served.rest)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 4.\n")


def test_infer_reads_standard_input_for_a_dash(served: Served) -> None:
    asked = ("infer", "smollm2", "--temperature", "0", "--max-tokens", "16")
    typed = modelops(*asked, "What is 2+2?", url=served.rest)
    assert modelops(*asked, "-", url=served.rest, stdin="What is 2+2?").stdout == typed.stdout != "\n"


def test_infer_writes_text_as_it_is_made(slow: Served) -> None:
    with started("infer", "slow", "hi", "--max-tokens", LONG, url=slow.rest) as process:
        assert process.stdout is not None
        first = process.stdout.read(len("w0 w1 w2 "))
        running = process.poll() is None  # the whole answer takes 40 s
        process.send_signal(signal.SIGINT)
    assert (first, running) == ("w0 w1 w2 ", True)
    assert process.returncode == 130
    _freed(slow)


def test_infer_passes_its_options_on(slow: Served) -> None:
    assert modelops("infer", "slow", "hi", "--max-tokens", "3", url=slow.rest).stdout == "w0 w1 w2 \n"


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (("infer", "slow", "hi", "--max-tokens", "2"), types.InferenceResponse),
        (("status",), types.SystemStatus),
        (("health",), types.HealthResponse),
    ],
)
def test_json_is_the_answer_of_the_api(slow: Served, arguments: tuple[str, ...], shape: type[Response]) -> None:
    done = modelops(*arguments, "--json", url=slow.rest)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)) == set(shape.model_fields)
    shape.model_validate_json(done.stdout)


def test_models_lists_what_is_loaded(slow: Served) -> None:
    told = modelops("models", url=slow.rest).stdout
    assert re.search(r"^slow +v1 +loaded +\d+ MB +0 +0 +slow\.gguf *$", told, re.MULTILINE)
    [model] = json.loads(modelops("models", "--json", url=slow.rest).stdout)
    assert types.ModelInfo.model_validate_json(json.dumps(model)).status == "loaded"


def test_status_and_health_are_told_in_words(slow: Served) -> None:
    told = modelops("status", url=slow.rest).stdout
    assert "models loaded: 1, requests active: 0, waiting: 0\nlearning jobs running: 0, goals pursued: 0\n" in told
    assert modelops("health", url=slow.rest).stdout.splitlines()[0] == "healthy"


def test_a_model_is_unloaded_and_loaded(slow: Served) -> None:
    assert re.fullmatch(
        r"'slow' is unloaded: \d+ MB are free again\n", modelops("unload", "slow", url=slow.rest).stdout
    )
    assert "--all" in modelops("models", url=slow.rest).stdout
    [model] = json.loads(modelops("models", "--all", "--json", url=slow.rest).stdout)
    assert model["status"] == "available"
    assert re.fullmatch(r"'slow' is loaded: v1, \d+ MB\n", modelops("load", "slow", url=slow.rest).stdout)
    unloaded = modelops("unload", "slow", "--force", "--json", url=slow.rest).stdout
    assert types.ModelUnloadReply.model_validate_json(unloaded).memory_freed_mb > 0
    loading = modelops("load", "slow", "--no-wait", "--json", url=slow.rest).stdout
    assert types.ModelLoadReply.model_validate_json(loading).success
    with Client(slow.rest) as client:
        wait_until(lambda: client.model("slow").status == "loaded", what="the model")


def test_an_engine_that_breaks_is_told_and_health_fails(tmp_path: Path) -> None:
    fake = {"load_fails": ["error: no luck today"], "count_file": str(tmp_path / "starts"), "die_after": 2}
    with serving(tmp_path / "data", links=[("m", tiny_gguf(tmp_path / "m.gguf"))], fake=fake) as running:
        refused = modelops("load", "m", url=running.rest)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("modelops: ")
        assert "no luck today" in refused.stderr
        sick = modelops("health", "--json", url=running.rest)
        assert (sick.returncode, json.loads(sick.stdout)["status"]) == (1, "degraded")
        assert modelops("load", "m", url=running.rest).returncode == 0
        short = modelops("infer", "m", "hi", url=running.rest)
        assert (short.returncode, short.stdout.strip()) == (1, "w0 w1")
        assert re.fullmatch(r"modelops: the answer was cut short: .*SIGKILL.*\n", short.stderr)


# --- pull ---
@pytest.fixture
def pulled(tmp_path: Path, smollm2: Path) -> Path:
    """A data folder that holds the default model."""
    put(smollm2, tmp_path / "models" / "smollm2.gguf")
    return tmp_path


def test_pull_leaves_what_is_there(pulled: Path) -> None:
    file = pulled / "models" / "smollm2.gguf"
    written = file.stat().st_mtime_ns
    told = modelops("pull", "smollm2", "--data-dir", str(pulled))
    assert (told.returncode, told.stdout) == (0, f"smollm2 is already there: {file}\n")
    assert modelops("pull", "smollm2", "--quiet", "--data-dir", str(pulled)).stdout == ""
    as_json = modelops("pull", "smollm2", "--json", "--data-dir", str(pulled))
    assert json.loads(as_json.stdout) == {"model_name": "smollm2", "file": str(file), "fetched": False}
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("nonsense", 2, "invalid_request"),
        ("ftp://somewhere/file.gguf", 2, "invalid_request"),
    ],
)
def test_pull_refuses_a_source_it_does_not_know(tmp_path: Path, source: str, status: int, code: str) -> None:
    told = modelops("pull", source, "--data-dir", str(tmp_path))
    assert (told.returncode, told.stdout) == (status, "")
    assert "pypi://" in told.stderr
    as_json = modelops("pull", source, "--json", "--data-dir", str(tmp_path))
    assert (as_json.returncode, as_json.stderr, json.loads(as_json.stdout)["code"]) == (status, "", code)
    assert list(tmp_path.iterdir()) == []


# --- what goes wrong ---
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("infer", "nobody", "hi"), 1, "there is no model 'nobody'"),
        (("load", "nobody"), 1, "there is no model 'nobody'"),
        (("unload", "nobody"), 1, "there is no model 'nobody'"),
        (("load", "slow"), 1, "'slow' is already loaded"),
        (("infer", "slow", "hi", "--max-tokens", "0"), 2, "max_tokens"),
        (("infer", "slow", ""), 2, "input_text"),
    ],
)
def test_a_refusal_is_one_line_and_a_status(slow: Served, arguments: tuple[str, ...], status: int, says: str) -> None:
    told = modelops(*arguments, url=slow.rest)
    assert (told.returncode, told.stdout) == (status, "")
    assert re.fullmatch(r"modelops: .*\n", told.stderr)
    assert says in told.stderr
    as_json = modelops(*arguments, "--json", url=slow.rest)
    assert (as_json.returncode, as_json.stderr) == (status, "")
    assert set(json.loads(as_json.stdout)) == {"code", "error", "details"}
    assert says in json.loads(as_json.stdout)["error"]


ARGUMENTS = {"infer": ("m", "hi"), "embed": ("m", "hi"), "rerank": ("m", "hi", "there"), "activate": ("m", "v2")}
ARGUMENTS |= dict.fromkeys(("load", "unload", "explain", "versions", "rollback", "rm", "chat", "models show"), ("m",))
ARGUMENTS |= {f"jobs {name}": ("x",) for name in ("show", "watch", "logs", "cancel")}
ARGUMENTS |= {f"goals {name}": ("x",) for name in ("show", "watch", "cancel")}
ARGUMENTS |= {f"goals create {name}": ("m",) for name in ("serving", "availability")}
ARGUMENTS |= {"goals create": ("--from", str(Path(__file__).parent / "goal.json"))}
ARGUMENTS |= {"goals create quality": ("m", "--train-path", "x", "--eval-path", "y", "--target", "0.9")}
ARGUMENTS |= {"register": ("m", "m.gguf"), "jobs create": ("evaluate", "m", "--data-path", "x")}


@pytest.mark.parametrize("command", CLIENTS)
def test_without_a_coordinator_every_client_says_how_to_start_one(command: str) -> None:
    with socket.socket() as taken:  # bound, and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        told = modelops(*command.split(), *ARGUMENTS.get(command, ()), url=url)
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr == f"modelops: no coordinator answers at {url}; start one with 'modelops serve'\n"


def test_a_reader_that_leaves_is_no_fault_and_frees_the_slot(slow: Served) -> None:
    with started("infer", "slow", "hi", "--max-tokens", LONG, url=slow.rest) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == "w"
        process.stdout.close()
        process.wait(10)
        assert process.stderr.read() == ""
    assert process.returncode == 1
    _freed(slow)


def _freed(served: Served) -> None:
    with Client(served.rest) as client:
        wait_until(lambda: client.status().active_requests == 0, what="the slot")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("unlaod", "m"), "No such command 'unlaod'"),
        (("infer", "m"), "Missing argument 'TEXT'"),
        (("infer", "m", "hi", "--max-tokens", "many"), "not a valid integer"),
        (("load",), "Missing argument 'MODEL'"),
        (("models", "--al"), "No such option"),
        (("serve", "--log-level", "loud"), "'loud' is not one of"),
        (("pull",), "Missing argument 'SOURCE'"),
        (("status", "--url", "localhost:8008"), "is no address of a coordinator"),
    ],
)
def test_wrong_use_is_explained_with_status_2(arguments: tuple[str, ...], says: str) -> None:
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 2
    assert says in told.stderr


@pytest.mark.parametrize("command", [("serve",), ("pull", "smollm2")])
def test_a_misspelt_setting_is_refused_with_the_nearest_name(tmp_path: Path, command: tuple[str, ...]) -> None:
    told = modelops(*command, "--data-dir", str(tmp_path), MODELOPS_SERVER__REST_PROT="1")
    assert told.returncode == 2
    assert "unknown setting 'server.rest_prot'; did you mean 'server.rest_port'?" in told.stderr


def test_serve_says_what_is_in_its_way(slow: Served, tmp_path: Path) -> None:
    port = slow.rest.rpartition(":")[2]
    told = modelops("serve", "--data-dir", str(tmp_path), "--rest-port", port, "--grpc-port", "0", "--zmq-port", "0")
    assert told.returncode == 1
    assert f"127.0.0.1:{port} is already in use" in told.stderr
    assert "Traceback" not in told.stderr


# --- serve ---
@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])
def test_serve_greets_with_calls_that_work_as_they_are_printed(tmp_path: Path, guarded: bool) -> None:
    data = tmp_path / "data"
    put(tiny_gguf(tmp_path / "m.gguf"), data / "models" / "m.gguf")
    options = ["--data-dir", str(data), "--load", "m", "--host", "0.0.0.0" if guarded else "127.0.0.1"]
    options += [word for name in ("rest", "grpc", "zmq") for word in (f"--{name}-port", "0")]
    env = environment()
    if guarded:
        made = [
            modelops(*words, "--data-dir", str(data)) for words in (("keys", "create", "me"), ("tls", "self-signed"))
        ]
        env["MODELOPS_API_KEY"] = made[0].stdout.strip()
        assert modelops("keys", "curve", "--data-dir", str(data)).returncode == 0
        options += ["--tls-cert-file", f"{data}/tls/cert.pem", "--tls-key-file", f"{data}/tls/key.pem"]
        options += ["--curve-file", f"{data}/curve.key"]
    with subprocess.Popen(
        [sys.executable, "-m", "modelops.cli", "serve", *options],
        env=env | {"MODELOPS_ENGINE__EXECUTABLE": str(FAKE_ENGINE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            calls = []
            for line in process.stdout:
                if line.startswith("  "):
                    calls.append(line.strip())
                if len(calls) == 3:
                    break
            for call in calls:
                answer = subprocess.run(["sh", "-c", call], env=env, capture_output=True, text=True, timeout=30)
                assert "w0 w1 w2 " in answer.stdout, call
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0


# --- help ---
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_tells_what_a_command_does_and_each_of_its_options(name: str) -> None:
    told = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=100)
    assert told.exit_code == 0
    assert f"Usage: main {name} " in told.stdout
    command = COMMANDS[name]
    assert (command.help or "").partition("\n")[0].endswith(".")
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


@pytest.mark.parametrize("group", [(), ("keys",), ("tls",)], ids=" ".join)
def test_the_summary_of_every_command_fits_its_line(group: tuple[str, ...]) -> None:
    told = CliRunner().invoke(main, [*group, "--help"])
    listed = dict(re.findall(r"^  ([\w-]+) +(\S.*)$", told.stdout.partition("Commands:")[2], re.MULTILINE))
    mine = [name.split()[-1] for name in COMMANDS if tuple(name.split()[:-1]) == group]
    assert set(listed) >= set(mine) != set()
    assert [name for name in mine if listed[name].endswith("...")] == []


@pytest.mark.parametrize("command", CLIENTS)
def test_every_client_is_told_where_the_coordinator_is_and_what_to_trust(command: str) -> None:
    options = {option for each in COMMANDS[command].params for option in each.opts}
    assert options >= {"--url", "--api-key", "--api-key-file", "--ca-file", "--json"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from modelops.cli import main; main(['--help'], standalone_mode=False); "
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=30)
    assert "Commands:" in done.stdout
    loaded = {name for name in done.stderr.split() if not name.startswith("_")}
    assert loaded - {"__main__", "sitecustomize"} == {"click", "modelops"}


def test_help_takes_less_than_0_3_seconds() -> None:
    def seconds() -> float:
        began = time.monotonic()
        with started("--help", url="") as process:
            process.communicate(timeout=30)
        assert process.returncode == 0
        return time.monotonic() - began

    wait_until(lambda: seconds() < 0.3, what="help in 0.3 s")  # on a busy machine, once is enough


# --- the page ---
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_page_has_a_section_for_every_command_with_all_its_options(name: str) -> None:
    section = r"^##+ `modelops ([\w -]+)`\n(.*?)(?=^##|\Z)"
    sections = dict(re.findall(section, PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert set(sections) == set(COMMANDS)
    own = {option for each in COMMANDS[name].params if isinstance(each, click.Option) for option in each.opts}
    # Told once, at the top.
    everywhere = {"--json", "--url", "--api-key", "--api-key-file", "--ca-file", "--config", "--data-dir"}
    assert {option for option in own - everywhere if f"`{option}" not in sections[name]} == set()
    top = PAGE.read_text().partition("\n## ")[0]
    assert {option for option in everywhere if f"`{option}`" not in top} == set()


def test_the_page_tells_every_exit_status() -> None:
    from modelops import cli

    told: dict[str, Any] = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    assert set(map(int, told)) == {0, cli.FAILED, cli.MISUSED, cli.UNREACHABLE, cli.INTERRUPTED}
