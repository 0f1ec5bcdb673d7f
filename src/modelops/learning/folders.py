"""Where the files of learning jobs lie, and what is left of a job that has ended: nothing that it does not need."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from modelops.learning import files

#: Names of the files of rows.
TRAIN, HELD_OUT, REGRESSION = "train.jsonl", "eval.jsonl", "regression.jsonl"


def rewritten(bases: Path, digest: str) -> Path:
    """Where the model of that digest is, or will be, rewritten as 16-bit numbers: once for all jobs."""
    return bases / f"{digest.removeprefix('sha256:')}-f16.gguf"


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
        return rewritten(self.bases, digest)

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
        files.sweep(self.bases)
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
    files.write(file, json.dumps(content).encode())


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
