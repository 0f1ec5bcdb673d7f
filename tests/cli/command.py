"""The command `modelops`, run as a terminal or a script would."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, Any

import forked


def environment(url: str = "", **more: str) -> dict[str, str]:
    """Ours, without the settings of whoever runs the tests."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
    return clean | ({"MODELOPS_URL": url} if url else {}) | {"PYTHONWARNINGS": "error"} | more


def modelops(*arguments: str, url: str = "", stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    return forked.run(arguments, environment(url, **env), stdin)


def started(*arguments: str, url: str, stdin: IO[Any] | None = None) -> subprocess.Popen[str]:
    """The real command, still running."""
    return subprocess.Popen(
        [sys.executable, "-m", "modelops.cli", *arguments],
        env=environment(url),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
