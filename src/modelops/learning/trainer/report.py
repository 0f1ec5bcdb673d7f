"""What the child program says to the coordinator: one line of JSON behind an `@` for each thing.

Everything else that is written to standard output, by whatever library, is not understood there, only logged.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

FailureCode = Literal["invalid_request", "disk_full", "no_memory", "diverged", "unsupported", "internal"]

#: How a line begins that is for the coordinator.
MARK = "@"
#: The exit status of a step that has said why it failed.
FAILED = 3
#: How many lines at fault are named.
_NAMED = 20

_line: TextIO | None = None


class Failed(Exception):
    """Why a step ends without its result: `code` says whose fault it is, `message` what to do. No path is in it."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def take_stdout() -> None:
    """Keep standard output for these lines: what libraries print goes to standard error from now on."""
    global _line
    _line = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def progress(done: int, total: int, **metrics: float | None) -> None:
    """`done` of `total` steps or rows; `metrics` that are not known are left out."""
    _say(
        "progress",
        done=done,
        total=total,
        metrics={name: value for name, value in metrics.items() if value is not None},
    )


def log(message: str) -> None:
    """Something that whoever watches the job may want to know."""
    _say("log", message=message)


def warning(message: str) -> None:
    """Something that stays with the job, because its result may suffer from it."""
    _say("warning", message=message)


def failed(failure: Failed) -> None:
    """The last thing that is said."""
    _say("failed", code=failure.code, message=failure.message)


def lines(numbers: Sequence[int]) -> str:
    """The lines of rows, as a message names them: not all of very many."""
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_NAMED]))}{more}"


def _say(event: str, **rest: Any) -> None:
    print(MARK + json.dumps({"event": event, **rest}, allow_nan=False), file=_line or sys.stdout, flush=True)
