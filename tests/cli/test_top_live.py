"""`modelops top` as a person and as a script run it: a real coordinator, a real terminal, and how it ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.command import modelops, started
from cli.terminal import ENTERED, LEFT, Terminal, terminal
from modelops.client import Client
from support import Served, make_key, serving, tiny_gguf, wait_until

LONG = 2000  # tokens of an answer that no test waits for
FAST = ("--interval", "0.2")
NEVER = ("--interval", "3600")  # no second look while a test runs
ROW = r"^slow +v1 +loaded +1/4 +0 +\d+(\.\d)? "


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator whose model `slow` says 50 words a second."""
    folder = tmp_path_factory.mktemp("slow")
    with _serving(folder) as running:
        yield running


def _serving(folder: Path, **env: str) -> contextlib.AbstractContextManager[Served]:
    links = [] if (folder / "data").exists() else [("slow", tiny_gguf(folder / "slow.gguf"))]
    return serving(folder / "data", links=links, load=["slow"], fake={"token_s": 0.02}, env=env)


@contextlib.contextmanager
def answering(served: Served) -> Iterator[None]:
    """While an answer of `slow` is under way."""
    with Client(served.rest) as client:
        with contextlib.closing(client.stream("slow", "hi", max_tokens=LONG)) as chunks:
            assert next(chunks).text == "w0 "
            yield
        wait_until(lambda: client.status().active_requests == 0, what="the slot")


# --- for scripts ---
def test_once_with_json_is_one_object_with_the_tokens_of_a_second(slow: Served) -> None:
    with answering(slow):
        done = modelops("top", "--once", "--json", *FAST, url=slow.rest)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    told = json.loads(done.stdout)
    assert set(told) == {"at", "status", "models", "rates"}
    assert told["at"].endswith("Z")
    assert told["status"]["active_requests"] == 1
    assert [model["model_name"] for model in told["models"]] == ["slow"]
    assert told["rates"]["seconds"] >= 0.1
    assert told["rates"]["models"]["slow"]["tokens_generated"] > 0
    assert told["rates"]["tokens_generated"] > 0


def test_json_is_an_object_for_each_interval_and_ends_with_the_coordinator(tmp_path: Path) -> None:
    with _serving(tmp_path) as running, started("top", "--json", *FAST, url=running.rest) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ups = [json.loads(process.stdout.readline())["status"]["uptime_seconds"] for _ in range(3)]
        running.stop()
        *_, last = [json.loads(line) for line in process.stdout]
        assert process.stderr.read() == ""
    assert ups == sorted(ups)
    assert (process.returncode, last["code"]) == (3, "unreachable")


def test_json_is_interrupted_as_any_command(slow: Served) -> None:
    with started("top", "--json", *FAST, url=slow.rest) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130


def test_where_nobody_watches_it_is_one_picture_in_plain_text(slow: Served) -> None:
    with answering(slow):
        for once in ((), ("--once",)):
            done = modelops("top", *once, *FAST, url=slow.rest)
            assert (done.returncode, done.stderr) == (0, "")
            assert "\x1b" not in done.stdout
            assert re.search(ROW, done.stdout, re.MULTILINE)
            assert done.stdout.startswith("ModelOps Coordinator ")
            assert slow.rest in done.stdout
            assert re.search(r"^cpu  [█▒░]{40}  \d.* used, models \d+ MB", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("seconds", ["0.1", "-1", "nan", "inf", "3601", "soon"])
def test_an_interval_that_cannot_be_is_refused(slow: Served, seconds: str) -> None:
    done = modelops("top", "--once", "--interval", seconds, url=slow.rest)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--interval" in done.stderr


# --- live ---
def test_live_shows_what_goes_on(slow: Served) -> None:
    with terminal("top", *FAST, url=slow.rest) as watched, answering(slow):
        drawn = watched.shows(ROW)
        assert drawn.startswith("ModelOps Coordinator ")
        assert "healthy" in drawn
        assert slow.rest in drawn
        assert "requests 1 active, 0 waiting  jobs 0  goals 0  tokens/s " in drawn
        assert re.search(r"^cpu  [█▒░]+  \d.* used, models \d+ MB +\d+ % *$", drawn, re.MULTILINE)
        assert "every 0.2 s; q ends" in drawn
        assert not watched.restored()


def quits(watched: Terminal) -> None:
    watched.type("q")


def interrupts(watched: Terminal) -> None:
    watched.type("\x03")  # Ctrl-C


def terminates(watched: Terminal) -> None:
    watched.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("end", "status"), [(quits, 0), (interrupts, 0), (terminates, 143)])
def test_live_ends_at_once_and_leaves_the_terminal_as_it_was(slow: Served, end: Any, status: int) -> None:
    with terminal("top", *NEVER, url=slow.rest) as watched:
        watched.shows("^slow")
        assert not watched.restored()
        end(watched)
        assert watched.ended() == status
        assert watched.restored()
        assert watched.output.partition(LEFT)[2].strip() == ""  # nothing is left behind


def test_live_ends_without_a_keyboard_too(slow: Served) -> None:
    with terminal("top", *FAST, url=slow.rest, stdin="/dev/null") as watched:
        watched.shows("up [3-9] s|up [1-9][0-9]+ s|up 1 min")
        interrupts(watched)
        assert watched.ended() == 0
        assert watched.restored()


def test_live_is_stopped_and_goes_on(slow: Served) -> None:
    with terminal("top", *NEVER, url=slow.rest) as watched:
        watched.shows("^slow")
        watched.type("\x1a")  # Ctrl-Z
        state = psutil.Process(watched.process.pid)
        wait_until(lambda: state.status() == psutil.STATUS_STOPPED, what="the stop")
        assert watched.restored()
        watched.process.send_signal(signal.SIGCONT)
        wait_until(lambda: watched.output.count(ENTERED) == 2, what="the screen")
        watched.shows("^slow")
        quits(watched)
        assert watched.ended() == 0
        assert watched.restored()


def test_live_is_drawn_anew_when_the_terminal_changes(slow: Served) -> None:
    with terminal("top", *NEVER, url=slow.rest, size=(120, 24)) as watched:
        watched.shows("WAITING")
        watched.resize(40, 12)
        drawn = watched.shows(r"^MODEL +STATUS +ACTIVE +WRITTEN/S *$")
        wait_until(lambda: "q ends" in watched.picture(), what="the whole picture")
        assert max(map(len, drawn.splitlines())) <= 40
        quits(watched)
        assert watched.ended() == 0


def test_live_waits_for_a_coordinator_that_is_gone(tmp_path: Path) -> None:
    with _serving(tmp_path) as running:
        port = running.rest.rpartition(":")[2]
        with terminal("top", *FAST, url=running.rest) as watched, contextlib.ExitStack() as stack:
            with answering(running):
                watched.shows(ROW)
            running.process.kill()
            running.process.wait()
            lost = watched.shows(r"no coordinator answers at http://127\.0\.0\.1:\d+; trying")
            assert lost.startswith("cannot be reached: ")
            assert re.search(r"^slow ", lost, re.MULTILINE)  # as it was
            again = stack.enter_context(_serving(tmp_path, MODELOPS_SERVER__REST_PORT=port))
            with answering(again):
                watched.shows(rf"\AModelOps Coordinator (?s:.*){ROW}")  # the row stood in the picture before, too
            quits(watched)
            assert watched.ended() == 0
            assert not re.search(r" -\d", watched.output)


def test_what_passes_is_told_and_a_wrong_key_ends_it_before_and_while_it_watches(tmp_path: Path) -> None:
    with _serving(tmp_path) as running:
        key = make_key(running.data_dir, "watcher", "--scope", "models")
        with Client(running.rest, api_key=f"{key[:-4]}0000") as stranger:
            wait_until(lambda: _refused(stranger), what="the door")
        with terminal("top", url=running.rest) as refused:
            assert refused.ended() == 1
            assert ENTERED not in refused.output
            assert "MODELOPS_API_KEY" in refused.output
        hurried = make_key(running.data_dir, "hurried", "--scope", "models", "--rate", "6/minute")
        with Client(running.rest, api_key=hurried) as client:
            wait_until(lambda: not _refused(client), what="the key")
        with terminal("top", *FAST, url=running.rest, MODELOPS_API_KEY=hurried) as watched:
            assert "cannot be reached" not in watched.shows("; trying again")
            quits(watched)
            assert watched.ended() == 0
        with terminal("top", *FAST, url=running.rest, MODELOPS_API_KEY=key) as watched:
            watched.shows("^slow")
            assert modelops("keys", "revoke", "watcher", "--data-dir", str(running.data_dir)).returncode == 0
            assert watched.ended() == 1
            assert watched.restored()
            assert watched.output.partition(LEFT)[2].startswith("modelops: ")


def _refused(client: Client) -> bool:
    from modelops.api.errors import Unauthenticated

    with contextlib.suppress(Unauthenticated):
        client.status()
        return False
    return True


def test_a_coordinator_that_is_not_there_ends_it_before_it_watches() -> None:
    with terminal("top", url="http://127.0.0.1:1") as refused:
        assert refused.ended() == 3
        assert ENTERED not in refused.output
        assert "no coordinator answers at http://127.0.0.1:1" in refused.output
