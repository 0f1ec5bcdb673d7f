"""What abandoned fetches leave is removed; what is under way is not."""

from __future__ import annotations

import fcntl
from pathlib import Path

from modelops.serving import sources


def _left(folder: Path, name: str, size: int) -> Path:
    partial = folder / sources.PARTIAL / name
    partial.mkdir(parents=True)
    (partial / "lock").touch()
    (partial / "0.data").write_bytes(b"x" * size)
    return partial


def test_what_was_abandoned_is_removed_and_what_is_under_way_is_left(tmp_path: Path) -> None:
    abandoned, running = _left(tmp_path, "old.gguf", 1000), _left(tmp_path, "new.gguf", 10)
    with (running / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sources.prune(tmp_path) == (["old.gguf"], 1000)
    assert not abandoned.exists()
    assert (running / "0.data").exists()


def test_where_nothing_was_fetched_nothing_is_removed(tmp_path: Path) -> None:
    assert sources.prune(tmp_path) == ([], 0)
