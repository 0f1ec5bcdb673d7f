"""The benchmark of many streams runs, in its smallest form: its figures are for a quiet machine to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "streams.py"
SMALL = ["--streams", "60", "--slots", "8", "--rounds", "3", "--tokens", "4", "--token-s", "0.01"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), "--only", "fake", *SMALL, *options], capture_output=True, text=True, timeout=110
    )


def test_every_stream_that_is_kept_is_answered_whole_and_all_is_free_again() -> None:
    ended = run()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every stream that was kept is whole: True" in ended.stdout
    for number in (1, 2, 3):
        (line,) = (line for line in ended.stdout.splitlines() if line.startswith(f"| {number} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        whole, refused, broken, *dropped = map(int, cells[2:8])
        assert (whole, refused, broken) == (30, 0, 0)
        assert sum(dropped) == 30


def test_streams_that_find_no_room_are_refused_as_documented() -> None:
    ended = run("--rounds", "1", "--queue", "10")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every stream that was kept is whole: False" in ended.stdout
    assert "overloaded" in ended.stdout
