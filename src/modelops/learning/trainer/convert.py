"""The step `convert`: the adapter as the engine takes it, and the models that it is tested on and published as."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from modelops.learning import files
from modelops.learning.folders import rewritten
from modelops.learning.trainer import adapter, report, weights
from modelops.learning.trainer.task import Task
from modelops.learning.trainer.weights import Kind, table

ADAPTER, MERGED, CONVERTED = "adapter.gguf", "merged.gguf", "converted.json"


def convert(task: Task, folder: Path) -> None:
    """Make ADAPTER of the folder's `adapter/`, the plain rewrite of the base, and MERGED where a whole model is to be
    published; CONVERTED says what they are. A rewrite of the base that is there already is left, if it has the size
    that it should have.

    Raises Failed and OSError.
    """
    if (folder / CONVERTED).exists():
        return
    base = table(task.base)
    trained = adapter.read(folder / "adapter", base)
    adapter.write(trained, base, folder / ADAPTER)
    found: dict[str, Any] = {"adapter": _described(folder / ADAPTER)}
    plain = plain_base(task)
    models: list[tuple[Path, Kind, adapter.Adapter | None]] = []
    plain.parent.mkdir(parents=True, exist_ok=True)
    files.sweep(plain.parent)
    if not (plain.exists() and plain.stat().st_size == weights.rewritten_bytes(base, "F16")):
        models.append((plain, "F16", None))
    if task.publish != "adapter":
        models.append((folder / MERGED, cast(Kind, task.publish), trained))
    for number, (target, kind, added) in enumerate(models):
        weights.rewrite(task.base, target, kind, _part(number, len(models)), added)
    found["base"] = {"bytes": plain.stat().st_size}
    if task.publish != "adapter":
        found["merged"] = _described(folder / MERGED)
    files.write(folder / CONVERTED, json.dumps(found).encode())


def plain_base(task: Task) -> Path:
    """Where the rewrite of the task's base as F16 is, or will be: made once for all jobs."""
    return rewritten(task.bases, task.digest)


def _part(number: int, of: int) -> Callable[[int, int], None]:
    return lambda done, total: report.progress(round(100 * (number + done / total)), 100 * of)


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
