"""Checkpoints as files: whole, the last two, and nothing beside them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from modelops.learning.trainer import checkpoints


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_two_are_kept_and_the_newest_is_used(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none") is None
    for step in (5, 10, 100):
        written = checkpoints.write(tmp_path, step, {"a": b"1", "b": bytes([step])})
        assert checkpoints.newest(tmp_path) == written
        assert checkpoints.number(written) == step
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert names(tmp_path / "step-00000100") == ["a", "b", "manifest.json"]


def test_what_killed_processes_have_left_goes(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, 5, {"a": b"1"})
    (left := tmp_path / ".step-00000006.0a0a0a0a").mkdir()
    (left / "a").write_bytes(b"1")
    assert checkpoints.newest(tmp_path) == tmp_path / "step-00000005"
    assert names(tmp_path) == ["step-00000005"]


@pytest.mark.parametrize("manifest", [b"", b"{}", b"[1]", b'{"a": "00"}', b'{"b": "00"}', b"\xff"])
def test_a_damaged_one_goes_and_is_told_of(manifest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.write(tmp_path, 5, {"a": b"1"})
    checkpoints.write(tmp_path, 6, {"a": b"1"})
    (tmp_path / "step-00000006" / "manifest.json").write_bytes(manifest)
    assert checkpoints.newest(tmp_path) == tmp_path / "step-00000005"
    assert "step 6 is damaged" in capsys.readouterr().out
    assert names(tmp_path) == ["step-00000005"]


def test_nothing_is_left_of_one_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write(tmp_path, 5, {"a": b"1"})

    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        checkpoints.write(tmp_path, 6, {"a": b"1"})
    assert names(tmp_path) == ["step-00000005"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    checkpoints.put(tmp_path / "adapter", {"a": b"1", "b": b"1"})
    checkpoints.put(tmp_path / "adapter", {"a": b"2"})
    assert names(tmp_path) == ["adapter"]
    assert names(tmp_path / "adapter") == ["a"]
    assert (tmp_path / "adapter" / "a").read_bytes() == b"2"
