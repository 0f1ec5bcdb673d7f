"""The command `modelops`: `serve` runs the coordinator, `pull`, `keys`, `tls` and `doctor` work on this machine's
files, all else is a client.

What costs time to import is imported by the commands that need it: `modelops --help` is quick.
"""

from modelops.cli import ask, chat, goalmaking, goals, jobs, keys, models, system, top
from modelops.cli.common import FAILED, INTERRUPTED, MISUSED, UNREACHABLE, main
from modelops.cli.doctor import doctor
from modelops.cli.serve import serve

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "MISUSED",
    "UNREACHABLE",
    "ask",
    "chat",
    "doctor",
    "goalmaking",
    "goals",
    "jobs",
    "keys",
    "main",
    "models",
    "serve",
    "system",
    "top",
]
