"""How what is logged is written: the one handler, its two formats, and which areas say how much.

Modules log with `logging.getLogger(__name__)`: a message that can be read by itself, and in `extra` what a program
would look for. Owns how a line looks, and that an event is one line, whatever is in it. Must not decide what may be
logged: that it is no key, no prompt and no address with a secret in it, whoever logs has to see to.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from structlog.dev import CYAN, DIM, RESET_ALL, ConsoleRenderer
from structlog.processors import format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

from modelops.settings import AREAS, LogSettings

_OURS = "modelops."
_ENGINE = f"{_OURS}engine."
#: Lines that may wait to be written: some megabytes.
_MOST_WAITING = 10_000
_LAST_LINES_S = 1.0
_INDENT = " " * 4
_BARE = re.compile(r"[^\s\"'=]+")  # a value that needs no quotes


def configure(settings: LogSettings, stream: TextIO) -> None:
    """From now on all that this process logs is written to `stream`, and nowhere else. Called once, at the start."""
    handler = _Writer(stream)
    handler.setFormatter(_formatter(settings, stream))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    least = logging.NOTSET if settings.level == "debug" else logging.WARNING  # it tells each connection
    logging.getLogger("uvicorn").setLevel(max(least, root.level))
    logging.getLogger("aiosqlite").setLevel(max(logging.INFO, root.level))  # it tells each step of each query
    for area, level in settings.levels.items():
        _logger(area).setLevel(level.upper())
    # Nobody reads them, and each line would have to look them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def flush() -> None:
    """Wait until all that was logged is written, a second at most."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def engine_lines(model: str) -> Callable[[str], None]:
    """What logs each line that an engine of `model` writes, as it is, at level debug."""
    log, fields = _logger(f"engine.{model}"), {"model": model}

    def heard(line: str) -> None:
        log.debug("%s", one_line(line.rstrip()), extra=fields)

    return heard


def one_line(text: str) -> str:
    """`text` with all that would end a line, or tell a terminal what to do, as its escape: `\\n`, `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _logger(area: str) -> logging.Logger:
    top, _, model = area.partition(".")
    # With its dot the model `a.b` would be a part of the model `a`, and have its level. No name holds a slash.
    return logging.getLogger(f"{_ENGINE}{model.replace('.', '/')}" if model else f"{_OURS}{top}")


def _formatter(settings: LogSettings, stream: TextIO) -> ProcessorFormatter:
    terminal = stream.isatty()
    render: Processor = _json
    if settings.format == "console" or (settings.format == "auto" and terminal):
        render = _Console(colours=terminal and not os.environ.get("NO_COLOR"))
    return ProcessorFormatter(foreign_pre_chain=[ExtraAdder(), format_exc_info], processors=[_arranged, render])


def _arranged(_logger: Any, level: str, event: EventDict) -> EventDict:
    """What is told, in the order in which it is told. A field that is None is left out."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    area = "engine" if record.name.startswith(_ENGINE) else record.name.removeprefix(_OURS)
    told: EventDict = {"timestamp": record.created, "level": level, "logger": area, "event": event.pop("event")}
    for key, value in event.items():
        if value is not None and key not in told:
            told[key] = value
    return told


# --- writing ---
class _Writer(logging.Handler):
    """Writes in a thread of its own: who reads the log slowly, or not at all, holds up nobody who logs.

    So many lines may wait; more are dropped, and how many is told where there is room again.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._put = _put_to(stream)
        self._waiting: queue.Queue[logging.LogRecord | threading.Event] = queue.Queue(_MOST_WAITING)
        self._dropped = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            record.msg, record.args = record.getMessage(), None  # as it is now
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1
        except (TypeError, ValueError):
            self.handleError(record)

    def flush(self) -> None:
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._waiting.put(written, timeout=_LAST_LINES_S)
            written.wait(_LAST_LINES_S)

    def _write_all(self) -> None:
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._write(item)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                told = "%d lines were dropped: whoever reads the log is too slow"
                self._write(logging.LogRecord(f"{_OURS}app", logging.WARNING, "", 0, told, (dropped,), None))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self._put(self.format(record) + "\n")
        except (OSError, ValueError):  # closed: nobody reads it any more
            return


def _put_to(stream: TextIO) -> Callable[[str], object]:
    try:
        file = stream.fileno()
    except OSError:
        return stream.write

    def put(text: str) -> None:
        # Past the stream, which would be locked while this waits, and nobody could close it at the end.
        left = text.encode(errors="replace")
        while left:
            left = left[os.write(file, left) :]

    return put


# --- for programs ---
#: All but ASCII is escaped: no reader takes anything in a line for its end.
_encode = json.JSONEncoder(default=str, allow_nan=False).encode


def _json(_logger: Any, _level: str, event: EventDict) -> str:
    """An object. The time is RFC 3339's, in UTC, with milliseconds."""
    written = datetime.fromtimestamp(event["timestamp"], UTC).isoformat(timespec="milliseconds")
    event["timestamp"] = written.replace("+00:00", "Z")
    try:
        return _encode(event)
    except (TypeError, ValueError):  # what JSON has no form for: a number without end, a key that is no text
        return _encode({key: str(value) for key, value in event.items()})


# --- for people ---
class _Console:
    """Local time, level, message, fields. An exception follows in lines of its own, indented: they begin no event."""

    def __init__(self, *, colours: bool) -> None:
        self._levels = ConsoleRenderer.get_default_level_styles(colours)
        self._dim = DIM if colours else ""
        self._key = CYAN if colours else ""
        self._end = RESET_ALL if colours else ""

    def __call__(self, _logger: Any, _level: str, event: EventDict) -> str:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.pop("timestamp")))
        level, area, message = event.pop("level"), event.pop("logger"), one_line(event.pop("event"))
        exception = event.pop("exception", "")
        if area.partition(".")[0] not in AREAS:  # a library: its messages do not say of what they speak
            event["logger"] = area
        line = f"{self._dim}{at}{self._end} {self._levels.get(level, '')}{level:<8}{self._end} {message}"
        if event:
            line += "  " + " ".join(f"{self._key}{key}{self._end}={_value(value)}" for key, value in event.items())
        return line + "".join(f"\n{_INDENT}{one_line(each)}" for each in exception.splitlines())


def _value(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) and text.isprintable() else repr(text)
