from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelops.api.errors import Conflict
from modelops.serving import sources
from modelops.serving.sources.errors import DiskFull
from modelops.serving.sources.files import PARTIAL, Partial, claim, require_room

CONTENT = b"GGUF and so on" * 10_000
RIGHT = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def held(target: Path, identity: str = "source") -> Iterator[Partial]:
    with claim(target, identity, lambda *_: None) as partial:
        assert partial
        yield partial


def bring(partial: Partial, content: bytes, index: int = 0) -> None:
    with partial.part(index).appending() as write:
        write(content)
    partial.part(index).note(total=2 * len(content))


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    assert not sources.has_digest(file, RIGHT)
    file.write_bytes(CONTENT)
    assert sources.has_digest(file, RIGHT)
    file.write_bytes(CONTENT[:-1])
    assert not sources.has_digest(file, RIGHT)
    assert not sources.has_digest(file, "")


def test_a_digest_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(CONTENT)
    stop = threading.Event()
    stop.set()
    assert sources.sha256(tmp_path / "m.gguf", stop) != RIGHT


def test_room_is_required_beside_what_stays_free(tmp_path: Path) -> None:
    require_room(tmp_path, 1, 0)
    with pytest.raises(DiskFull, match="do not fit on the disk") as refused:
        require_room(tmp_path, 10**18, 0)
    assert refused.value.details["needed_bytes"] == str(10**18)
    with pytest.raises(DiskFull, match=f"{10**18} stay free"):
        require_room(tmp_path, 1, 10**18)


def test_what_came_is_there_the_next_time(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with held(target) as partial:
        bring(partial, b"half")
    with held(target) as partial:
        assert (partial.part(0).size, partial.part(0).notes["total"]) == (4, 8)
        bring(partial, b"more")
        partial.publish([target])
    assert target.read_bytes() == b"halfmore"
    assert list(tmp_path.iterdir()) == [target]


def test_what_came_of_another_source_is_no_start(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with held(target, "one") as partial:
        bring(partial, b"half")
    with held(target, "other") as partial:
        assert partial.part(0).size == 0
        assert partial.part(0).notes == {}


@pytest.mark.parametrize(("boot", "size"), [("this", 4), ("earlier", 2)])
def test_after_a_loss_of_power_only_what_was_synced_counts(tmp_path: Path, boot: str, size: int) -> None:
    target = tmp_path / "m.gguf"
    with held(target) as partial:
        bring(partial, b"ab")
        partial.part(0).finish(whole=False)
        bring(partial, b"cd")
    notes = tmp_path / PARTIAL / "m.gguf" / "notes"
    if boot == "earlier":
        notes.write_text(json.dumps(json.loads(notes.read_text()) | {"boot": "another"}))
    with held(target) as partial:
        assert partial.part(0).size == size


def test_a_file_that_somebody_else_keeps_is_never_written_to(tmp_path: Path) -> None:
    kept, target = tmp_path / "theirs", tmp_path / "m.gguf"
    kept.write_bytes(b"whole")
    with held(target) as partial:
        partial.part(0).adopt(kept)
        assert (partial.part(0).size, partial.part(0).whole) == (5, True)
    notes = tmp_path / PARTIAL / "m.gguf" / "notes"
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"boot": "another"}))
    with held(target) as partial:  # not even after a loss of power
        assert partial.part(0).whole
        partial.part(0).restart()
    assert kept.read_bytes() == b"whole"


@pytest.mark.parametrize("notes", ["", "[]", '{"source": 1', "null"])
def test_damaged_notes_are_none(tmp_path: Path, notes: str) -> None:
    target = tmp_path / "m.gguf"
    with held(target) as partial:
        bring(partial, b"half")
    (tmp_path / PARTIAL / "m.gguf" / "notes").write_text(notes)
    with held(target) as partial:
        assert partial.part(0).size == 0


def test_nothing_is_left_of_nothing(tmp_path: Path) -> None:
    with held(tmp_path / "m.gguf"):
        assert (tmp_path / PARTIAL).is_dir()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_several_files_appears_last(tmp_path: Path) -> None:
    targets = [tmp_path / f"m{index}.gguf" for index in range(3)]
    targets[1].mkdir()  # so that it cannot get its name
    with pytest.raises(OSError, match="directory"), held(targets[0]) as partial:
        for index in range(3):
            bring(partial, b"x", index)
        partial.publish(targets)
    assert not targets[0].exists()
    assert targets[2].exists()


# --- two at once; the other one is a process, as the lock is between processes ---
_OTHER = """
import sys
from pathlib import Path
from modelops.serving.sources.files import claim
with claim(Path(sys.argv[1]), sys.argv[2], lambda *_: None) as partial:
    with partial.part(0).appending() as write:
        write(b"theirs")
    partial.record(total=60)
    print("has it", flush=True)
    if sys.stdin.readline() == "publish\\n":
        partial.publish([Path(sys.argv[1])])
    else:
        partial.discard()
"""


@contextmanager
def other(target: Path, identity: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(target), identity], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


@pytest.mark.parametrize("end", ["publish", "discard", "kill"])
def test_who_waits_takes_the_result_or_the_work(tmp_path: Path, end: str) -> None:
    target = tmp_path / "m.gguf"
    seen: list[tuple[int, int]] = []
    with other(target, "source") as process:

        def waiting(done: int, total: int) -> None:
            seen.append((done, total))
            if (done, total) == (6, 60):
                process.kill() if end == "kill" else tell(process, end)

        with claim(target, "source", waiting) as partial:
            assert (partial is None) == (end == "publish")
            if partial:
                assert partial.part(0).size == (6 if end == "kill" else 0)
    assert (6, 60) in seen
    assert target.exists() == (end == "publish")


def test_who_waits_with_another_source_does_not_replace_the_result(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with other(target, "theirs") as process:

        def waiting(done: int, _total: int) -> None:
            if done:
                tell(process, "publish")

        with pytest.raises(Conflict, match="another name"), claim(target, "ours", waiting):
            pytest.fail("it was not ours to fetch")
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]
