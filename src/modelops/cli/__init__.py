"""The command `modelops`: `serve` runs the coordinator, `pull` fetches a file, all else is a client.

What costs time to import is imported by the commands that need it: `modelops --help` is quick.
"""

from modelops.cli import ask, keys, models, system
from modelops.cli.common import FAILED, INTERRUPTED, MISUSED, UNREACHABLE, main
from modelops.cli.serve import serve

__all__ = ["FAILED", "INTERRUPTED", "MISUSED", "UNREACHABLE", "ask", "keys", "main", "models", "serve", "system"]
