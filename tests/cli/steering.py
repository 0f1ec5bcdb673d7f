"""What somebody may write who means no good, and what a terminal is to show of it."""

from __future__ import annotations

import re

from click.testing import Result

#: A title, a reason or a message.
STEERING = "\x1b[2J\x9b31m\nstatus      completed\r\u202e[/red]"


def steers_nothing(told: Result) -> None:
    """Asserts that all of it was printed, as words within a line."""
    printed = told.stdout + told.stderr
    assert "status      completed" in printed
    assert "[/red]" in printed
    assert not re.search(r"(?m)^status +completed", printed)
    assert all(character.isprintable() for character in printed if character != "\n")
