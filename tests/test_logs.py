from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import httpx
import pytest

from cli.command import environment
from modelops import Client, logs
from modelops.api.errors import ModelOpsError
from modelops.settings import AREAS, LogSettings
from support import serving, tiny_gguf

SOURCES = Path(logs.__file__).parent
#: What would forge a line, clear a screen, or end a line for some readers only.
EVIL = 'a\nb\r\tc\x1b[2Jd\x9be\u2028f\u202eg\x00"h=\ud800'
ESCAPED = 'a\\nb\\r\\tc\\x1b[2Jd\\x9be\\u2028f\\u202eg\\x00"h=\\ud800'


@contextlib.contextmanager
def configured(stream: TextIO, **values: Any) -> Iterator[None]:
    """Logging as it is configured, until the context ends."""
    root = logging.getLogger()
    flags = ("logThreads", "logProcesses", "logMultiprocessing")
    before, known = (root.handlers, root.level), dict(root.manager.loggerDict)
    levels = {name: one.level for name, one in known.items() if isinstance(one, logging.Logger)}
    was = {flag: getattr(logging, flag) for flag in flags}
    try:
        logs.configure(LogSettings.model_validate(values), stream)
        yield
        logs.flush()
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        for name, one in root.manager.loggerDict.items():
            if isinstance(one, logging.Logger):
                one.setLevel(levels.get(name, logging.NOTSET))
        for flag, value in was.items():
            setattr(logging, flag, value)


def told(
    text: str = "hello", *arguments: object, area: str = "modelops.serving.pool", extra: Any = None, **values: Any
) -> str:
    """What is written of one warning."""
    stream = io.StringIO()
    with configured(stream, **values):
        logging.getLogger(area).warning(text, *arguments, extra=extra)
    return stream.getvalue()


def as_json(text: str = "hello", *arguments: object, **values: Any) -> dict[str, Any]:
    line = told(text, *arguments, format="json", **values)
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    assert line.isascii()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def heard(levels: Mapping[str, str], *names: str, level: str = "warning", at: int = logging.DEBUG) -> set[str]:
    """Which of the loggers `names` write a line at level `at`."""
    stream = io.StringIO()
    with configured(stream, format="json", level=level, levels=levels):
        for name in names:
            logging.getLogger(name).log(at, "%s", name)
    return {json.loads(line)["event"] for line in stream.getvalue().splitlines()}


# --- for programs ---
def test_a_line_is_an_object_with_time_level_area_event_and_then_its_fields() -> None:
    extra = {"model": "m", "seconds": 0.4, "ok": True, "models": ["a", "b"], "file": Path("/a"), "key": None}
    found = as_json("loaded %s in %.1f s", "m", 0.42, extra=extra)
    at = found.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at)
    assert abs(datetime.fromisoformat(at).astimezone(UTC).timestamp() - time.time()) < 60
    assert list(found.items()) == [
        ("level", "warning"),
        ("logger", "serving.pool"),
        ("event", "loaded m in 0.4 s"),
        ("model", "m"),
        ("seconds", 0.4),
        ("ok", True),
        ("models", ["a", "b"]),
        ("file", "/a"),
    ]


def test_no_field_stands_for_what_every_line_has() -> None:
    extra = {"level": "x", "logger": "x", "timestamp": "x"}
    found = as_json(extra=extra)
    assert (found["level"], found["logger"], found["timestamp"] == "x") == ("warning", "serving.pool", False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {(1, 2): 3}, {"in": float("-inf")}], ids=str)
def test_what_json_has_no_form_for_is_written_as_text(value: object) -> None:
    found = as_json(extra={"value": value, "model": "m"})
    assert (found["value"], found["model"], found["event"]) == (str(value), "m", "hello")


def test_the_time_is_that_of_the_event_and_without_a_fraction_it_has_milliseconds_too() -> None:
    stream = io.StringIO()
    with configured(stream, format="json"):
        record = logging.makeLogRecord({"name": "x", "levelno": logging.INFO, "levelname": "INFO", "created": 86_400.0})
        logging.getLogger().handle(record)
    assert json.loads(stream.getvalue())["timestamp"] == "1970-01-02T00:00:00.000Z"


# --- for people ---
def test_a_line_for_people_is_time_level_message_and_fields() -> None:
    line = told("loaded %s", "m", extra={"model": "m", "seconds": 0.4, "key": None, "why": "no use"}, format="console")
    shape = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d warning  loaded m  model=m seconds=0\.4 why='no use'\n"
    assert re.fullmatch(shape, line)
    assert re.fullmatch(r"[-\d]+ [:\d]+ warning  hello\n", told(format="console"))


def test_a_library_is_named_as_its_messages_do_not_say_who_speaks() -> None:
    assert told(area="uvicorn.error", format="console").endswith(" hello  logger=uvicorn.error\n")
    assert as_json(area="uvicorn.error")["logger"] == "uvicorn.error"


def written_to_a_terminal(**values: Any) -> str:
    mine, theirs = os.openpty()
    with open(mine, "rb", buffering=0) as screen, open(theirs, "w") as stream:  # noqa: PTH123 - they have no path
        with configured(stream, **values):
            logging.getLogger("modelops.app").warning("hello", extra={"model": "m"})
        return screen.read(10_000).decode()


def test_a_terminal_gets_lines_for_people_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    line = written_to_a_terminal()
    assert "\x1b[" in line
    assert re.fullmatch(r"\S+ \S+ warning  hello  model=m\r\n", re.sub(r"\x1b\[\d+m", "", line))
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[" in written_to_a_terminal()


def test_a_terminal_gets_no_colour_where_none_is_wished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert written_to_a_terminal().endswith(" warning  hello  model=m\r\n")


def test_a_terminal_gets_json_where_that_is_wished_and_a_file_lines_for_people_without_colour() -> None:
    assert json.loads(written_to_a_terminal(format="json"))["model"] == "m"
    assert told(format="console").endswith(" warning  hello\n")


def test_what_is_no_terminal_gets_json() -> None:
    assert json.loads(told())["event"] == "hello"


# --- one line for each event ---
def test_nothing_that_is_logged_makes_a_second_line_for_programs() -> None:
    found = as_json("%s", EVIL, extra={"request_id": EVIL, "list": [EVIL]})
    assert (found["event"], found["request_id"], found["list"]) == (EVIL, EVIL, [EVIL])


def test_nothing_that_is_logged_makes_a_second_line_or_moves_a_cursor_for_people() -> None:
    line = told("%s", EVIL, extra={"request_id": EVIL, "list": [EVIL]}, format="console")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert f" {ESCAPED}  request_id={EVIL!r} list=" in line


@pytest.mark.parametrize("value", ["", "a b", "a=b", 'say "no"', "it's", "a\x1bb", "ü\u200b"], ids=repr)
def test_where_a_value_ends_can_be_seen(value: str) -> None:
    assert told(extra={"value": value, "more": "1"}, format="console").endswith(f"  value={value!r} more=1\n")


def failed(**values: Any) -> str:
    stream = io.StringIO()
    with configured(stream, **values):
        try:
            raise RuntimeError(f"broken\n2026-11-28 02:11:02 info     forged {EVIL}")
        except RuntimeError:
            logging.getLogger("modelops.app").exception("failed", extra={"model": "m"})
    return stream.getvalue()


def test_an_exception_is_a_field_for_programs() -> None:
    (line,) = failed(format="json").splitlines()
    found = json.loads(line)
    assert (found["level"], found["event"], found["model"]) == ("error", "failed", "m")
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert "RuntimeError: broken\n" in found["exception"]


def test_an_exception_follows_for_people_in_lines_that_begin_no_event() -> None:
    first, *others = failed(format="console").removesuffix("\n").split("\n")
    assert first.endswith(" error    failed  model=m")
    assert others[0] == "    Traceback (most recent call last):"
    assert "    RuntimeError: broken" in others
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    assert any("forged" in line for line in others)


def test_an_exception_shows_no_values_of_variables() -> None:
    secret = "zanzibar"
    for form in ("json", "console"):
        stream = io.StringIO()
        with configured(stream, format=form):
            try:
                int(secret, base=99)
            except ValueError:
                logging.getLogger("modelops.app").exception("failed")
        assert "ValueError: int() base must be" in stream.getvalue()
        assert secret not in stream.getvalue()


# --- levels ---
def test_an_area_has_the_level_that_it_is_given_with_all_that_is_in_it() -> None:
    names = ("modelops.serving.pool", "modelops.serving.sources.fetcher", "modelops.service.call", "modelops.servings")
    assert heard({"serving": "debug"}, *names) == set(names[:2])
    assert heard({"serving": "error"}, *names, level="info", at=logging.WARNING) == set(names[2:])
    assert heard({}, *names, level="debug") == set(names)
    assert heard({}, *names) == set()


def test_every_module_that_logs_is_in_an_area() -> None:
    found = [
        file.relative_to(SOURCES) for file in SOURCES.rglob("*.py") if "\nlog = logging.getLogger(" in file.read_text()
    ]
    assert {file.parts[0].removesuffix(".py") for file in found} <= set(AREAS)
    assert len(found) > 10


def test_libraries_say_less() -> None:
    names = ("uvicorn.error", "aiosqlite", "asyncio")
    for name in names:  # whatever other tests have left
        logging.getLogger(name).setLevel(logging.NOTSET)
    assert heard({}, *names, level="info", at=logging.INFO) == {"aiosqlite", "asyncio"}
    assert heard({}, *names, level="debug") == {"uvicorn.error", "asyncio"}
    assert heard({}, *names, level="error", at=logging.WARNING) == set()


def from_engines(levels: Mapping[str, str], *models: str) -> list[str]:
    """The models of which a line of an engine is written."""
    stream = io.StringIO()
    with configured(stream, format="json", levels=levels):
        for model in models:
            logs.engine_lines(model)("llama: loading")
    return [json.loads(line)["model"] for line in stream.getvalue().splitlines()]


def test_a_line_of_an_engine_is_told_under_its_models_name() -> None:
    stream = io.StringIO()
    with configured(stream, level="debug", format="json"):
        logs.engine_lines("my-org.model:8b")("load_tensors: \x1b[31m100%\t%s \n")
    found = json.loads(stream.getvalue())
    del found["timestamp"]
    assert list(found.items()) == [
        ("level", "debug"),
        ("logger", "engine"),
        ("event", "load_tensors: \\x1b[31m100%\\t%s"),
        ("model", "my-org.model:8b"),
    ]


def test_lines_of_engines_have_a_level_of_their_own_or_of_their_model() -> None:
    models = ("smollm2", "smollm2.5", "smollm", "gemma3")
    assert from_engines({}, *models) == []
    assert from_engines({"engine": "debug"}, *models) == [*models]
    assert from_engines({"engine.smollm2": "debug"}, *models) == ["smollm2"]
    assert from_engines({"engine.smollm2.5": "debug"}, *models) == ["smollm2.5"]
    assert from_engines({"engine": "debug", "engine.smollm2": "info"}, *models) == ["smollm2.5", "smollm", "gemma3"]
    assert from_engines({"engines": "debug", "serving": "debug"}, *models, "serving", "engines") == []


@pytest.mark.parametrize("model", ["serving", "engine", "modelops.serving", "serving.pool", "a", "engine.a", "root"])
def test_a_models_name_changes_no_other_level(model: str) -> None:
    names = ("modelops.serving.pool", "modelops.engines.probe", "modelops.engine", "modelops", "uvicorn", "x")
    assert heard({f"engine.{model}": "debug"}, *names) == set()
    assert from_engines({f"engine.{model}": "debug"}, "b", f"{model}.b", f"b.{model}", model) == [model]


# --- a coordinator ---
def test_each_line_of_a_coordinator_is_an_object_and_a_prompt_is_in_none(tmp_path: Path) -> None:
    fails = "error: \x1b[2J out of\tluck"
    fake = {"tokens": 2, "models": {"broken": {"load_fails": fails}}}
    links = [(name, tiny_gguf(tmp_path / name, general__name=name)) for name in ("m", "broken")]
    env = {"MODELOPS_LOG__LEVEL": "debug"}
    with (
        serving(tmp_path / "data", links=links, load=["m"], fake=fake, env=env) as served,
        Client(served.rest) as asked,
    ):
        assert asked.infer("m", "zanzibar").output_text == "w0 w1 "
        with pytest.raises(ModelOpsError):
            asked.load("broken")
        assert served.stop() == 0
        text = served.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "event"] for line in lines)
    assert {line["version"] for line in lines if line["event"] == "registered m from m.gguf"} == {"v1"}
    said = {(line["event"], line["model"], line["level"]) for line in lines if line["logger"] == "engine"}
    assert said >= {
        ("fake engine serving", "m", "debug"),
        ("error: \\x1b[2J out of\\tluck", "broken", "debug"),
    }
    assert "zanzibar" not in text


def test_engines_of_one_model_are_heard_where_only_they_are_asked_for(tmp_path: Path) -> None:
    links = [(name, tiny_gguf(tmp_path / name, general__name=name)) for name in ("m", "n")]
    env = {"MODELOPS_LOG__LEVELS": "engine.m=debug, app=error"}
    with serving(tmp_path / "data", links=links, load=["m", "n"], fake={}, env=env) as served:
        assert served.stop() == 0
        lines = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert {line["model"] for line in lines if line["level"] == "debug"} == {"m"}
    assert [line for line in lines if line["logger"] == "app"] == []


def test_a_coordinator_on_a_terminal_writes_for_people(tmp_path: Path) -> None:
    mine, theirs = os.openpty()
    ports = ("--rest-port=0", "--grpc-port=0", "--zmq-port=0")
    argv = [sys.executable, "-m", "modelops.cli", "serve", "--json", f"--data-dir={tmp_path}", *ports]
    with open(mine, "rb", buffering=0) as screen:  # noqa: PTH123 - it has no path
        with subprocess.Popen(argv, env=environment(NO_COLOR="1"), stdout=subprocess.PIPE, stderr=theirs) as process:
            assert process.stdout is not None
            ready = process.stdout.readline()
            process.send_signal(signal.SIGTERM)
        os.close(theirs)
        line = screen.read(10_000).decode()
    assert json.loads(ready)
    assert re.fullmatch(r"\S+ \S+ info     finishing what has been accepted, .* at once  drain_s=30\.0\r\n", line)


def test_the_format_is_a_flag_too(tmp_path: Path) -> None:
    ports = ("--rest-port=0", "--grpc-port=0", "--zmq-port=0", "--host=0.0.0.0", "--insecure", "--log-format=console")
    argv = [sys.executable, "-m", "modelops.cli", "serve", f"--data-dir={tmp_path}", "--load=nobody", *ports]
    ended = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=30, check=False)
    first, *_, last = ended.stderr.splitlines()
    assert " warning  listening on 0.0.0.0 without keys: whoever reaches it may use it; " in first
    assert first.endswith("  host=0.0.0.0")
    assert last.startswith("Error: 'nobody' could not be loaded")


# --- who reads it ---
def test_nobody_waits_for_a_reader_who_does_not_read() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "r") as reader:
        with os.fdopen(writing, "w") as stream, configured(stream, format="json"):
            log = logging.getLogger("modelops.serving.pool")
            for number in range(30_000):  # more than the pipe and the queue hold
                log.warning("line %d", number)
            seen: list[dict[str, Any]] = []
            while not seen or "dropped" not in seen[-1]["event"]:
                seen.append(json.loads(reader.readline()))
            rest = threading.Thread(target=reader.read)
            rest.start()
        rest.join()
    assert [line["event"] for line in seen[:100]] == [f"line {number}" for number in range(100)]
    assert re.fullmatch(r"\d+ lines were dropped: whoever reads the log is too slow", seen[-1]["event"])
    assert seen[-1]["level"] == "warning"


def test_a_coordinator_whose_log_nobody_reads_serves_on_and_ends(tmp_path: Path) -> None:
    ports = ("--rest-port=0", "--grpc-port=0", "--zmq-port=0", "--log-level=debug")
    argv = [sys.executable, "-m", "modelops.cli", "serve", "--json", f"--data-dir={tmp_path}", *ports]
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        rest = json.loads(process.stdout.readline())["rest"]
        with httpx.Client(base_url=rest, timeout=10) as client:
            for _ in range(600):
                assert client.get("/nowhere" + "x" * 200).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_a_reader_that_is_gone_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, configured(stream):
        logging.getLogger("modelops.app").warning("hello")
        logging.getLogger("modelops.app").warning("hello again")
