"""Where the files of learning jobs lie, and what is left of a job that has ended: nothing that it does not need."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

#: Names of the files of rows.
TRAIN, HELD_OUT, REGRESSION = "train.jsonl", "eval.jsonl", "regression.jsonl"


class Folders:
    """The folders under `<data_dir>/learning`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs = root / "jobs"
        self.bases = root / "bases"  # models rewritten as 16-bit numbers, each made once

    def job(self, job_id: str) -> Path:
        """The job's own folder, which may not be there."""
        return self.jobs / job_id

    def base(self, digest: str) -> Path:
        """The model of that digest rewritten as 16-bit numbers, once it was."""
        return self.bases / f"{digest.removeprefix('sha256:')}-f16.gguf"

    def make(self, job_id: str) -> Path:
        """The job's own folder, made for its owner only."""
        folder = self.job(job_id)
        folder.mkdir(parents=True, mode=0o700)
        return folder

    def remove(self, job_id: str) -> None:
        """Delete what there is of the job."""
        shutil.rmtree(self.job(job_id), ignore_errors=True)

    def sweep(self, kept: Collection[str]) -> int:
        """Delete the folders of all jobs but those: what a killed coordinator has left. How many there were."""
        gone = 0
        for partial in self.bases.glob("*.partial*"):
            partial.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            for folder in self.jobs.iterdir():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
                    gone += 1
        return gone

    def prune(self, digests: Collection[str]) -> tuple[list[str], int]:
        """Delete the rewritten models of files that have none of `digests`; what, and the bytes that this gave back."""
        removed, freed = [], 0
        wanted = {self.base(digest).name for digest in digests}
        for file in self.bases.glob("*-f16.gguf"):
            if file.name not in wanted:
                freed += file.stat().st_size
                file.unlink(missing_ok=True)
                removed.append(f"rewritten base {file.name[:12]}…")
        return removed, freed


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write the file whole, or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
