"""Files that are there whole, or not at all, whoever else writes them, and whoever is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelops.learning import files

_HANGS = """
import sys, signal
from pathlib import Path
from modelops.learning import files
with files.whole(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    print(flush=True)
    signal.pause()
"""


def test_two_who_write_the_same_file_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "f16.gguf"
    with files.whole(target) as first, first.open("wb") as slow:
        slow.write(b"one")
        with files.whole(target) as second:
            assert second != first
            second.write_bytes(b"another")
        assert target.read_bytes() == b"another"
        slow.write(b" whole")
    assert target.read_bytes() == b"one whole"
    assert [*tmp_path.iterdir()] == [target]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with files.whole(tmp_path / "a") as partial:
            partial.write_bytes(b"half")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fail()
    assert not [*tmp_path.iterdir()]


def test_what_a_killed_process_has_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    target, other = tmp_path / "a[1].gguf", tmp_path / "b.gguf"
    running = [subprocess.Popen([sys.executable, "-c", _HANGS, str(file)], stdout=-1) for file in (target, other)]
    try:
        for process in running:
            assert process.stdout
            process.stdout.readline()
        files.sweep(tmp_path)
        assert len([*tmp_path.glob("*.partial")]) == 2
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
        files.write(target, b"whole")
        (left,) = tmp_path.glob("*.partial")
        assert left.name.startswith("b.gguf.")
        files.sweep(tmp_path)
        assert [*tmp_path.iterdir()] == [target]
    finally:
        for process in running:
            process.kill()
            process.communicate()
