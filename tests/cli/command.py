"""The command `modelops`, run as a terminal or a script would."""

from __future__ import annotations

import os
import subprocess
import sys


def environment(url: str = "", **more: str) -> dict[str, str]:
    """Ours, without the settings of whoever runs the tests."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
    return clean | ({"MODELOPS_URL": url} if url else {}) | {"PYTHONWARNINGS": "error"} | more


def modelops(*arguments: str, url: str = "", stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "modelops.cli", *arguments],
        env=environment(url, **env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def started(*arguments: str, url: str) -> subprocess.Popen[str]:
    """The real command, still running."""
    return subprocess.Popen(
        [sys.executable, "-m", "modelops.cli", *arguments],
        env=environment(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
