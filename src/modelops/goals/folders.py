"""Where goals keep their rows: a folder for each, with the files that were copied when it was created."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from modelops.learning import datasets
from modelops.learning.datasets import Dataset, Example


class Folders:
    """The folders under `<data_dir>/goals`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def goal(self, goal_id: str) -> Path:
        """The goal's own folder, which may not be there."""
        return self.root / goal_id

    def write(self, goal_id: str, files: Mapping[str, Dataset[Example]]) -> None:
        """Copy the goal's rows, by the names of their files, for its owner only. Raises DiskFull, OSError."""
        folder = self.goal(goal_id)
        folder.mkdir(parents=True, mode=0o700)
        for name, rows in files.items():
            datasets.write(rows, folder / name)

    def altered(self, goal_id: str, digests: Mapping[str, str]) -> str:
        """What is wrong with the goal's rows, which had those digests when they were copied; empty: nothing."""
        for name, digest in digests.items():
            try:
                with (self.goal(goal_id) / name).open("rb") as file:
                    found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            except OSError:
                return f"its rows ({name}) are gone from the data folder; create it again"
            if found != digest:
                return f"its rows ({name}) were changed in the data folder; create it again"
        return ""

    def remove(self, goal_id: str) -> None:
        """Delete what there is of the goal."""
        shutil.rmtree(self.goal(goal_id), ignore_errors=True)

    def sweep(self, kept: Collection[str]) -> None:
        """Delete the folders of all goals but those: what a killed coordinator has left."""
        with contextlib.suppress(FileNotFoundError):
            for folder in self.root.iterdir():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
