"""The files of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelops.learning.folders import Folders, read_json, write_json


def test_a_job_has_a_folder_of_its_own_until_it_is_removed(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folder = folders.make("a1")
    assert folder.stat().st_mode & 0o777 == 0o700
    write_json(folder / "task.json", {"steps": 3})
    assert read_json(folder / "task.json") == {"steps": 3}
    with pytest.raises(FileExistsError):
        folders.make("a1")
    folders.remove("a1")
    folders.remove("a1")
    assert not folder.exists()


def test_what_a_killed_coordinator_left_is_swept_away(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    assert folders.sweep([]) == 0  # there is no folder of jobs yet
    for job in ("kept", "left", "other"):
        folders.make(job)
    assert folders.sweep(["kept"]) == 2
    assert [folder.name for folder in folders.jobs.iterdir()] == ["kept"]
