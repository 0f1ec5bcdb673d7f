"""Checkpoints of a training: whole or not there, verified before one is used, and no more of them than two."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from modelops.learning import files
from modelops.learning.trainer import report

_MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")
_KEPT = 2


def write(folder: Path, step: int, contents: Mapping[str, bytes]) -> Path:
    """Add the checkpoint after `step` steps to those in `folder`; older ones than the one before it go.

    The files are on the disk before the checkpoint has its name. Raises OSError, and leaves nothing behind then.
    """
    target = folder / f"step-{step:08d}"
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    put(target, {**contents, _MANIFEST: json.dumps(digests).encode()})
    for old in _found(folder)[_KEPT:]:
        _remove(old)
    return target


def put(target: Path, contents: Mapping[str, bytes]) -> None:
    """A folder with these files in place of what is at `target`. Raises OSError, and leaves nothing behind then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir()
        for name, data in contents.items():
            with (partial / name).open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        files.sync(partial)
        if target.exists():
            _remove(target)
        partial.rename(target)
        files.sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written. Damaged ones are removed, with a warning; so is what a killed
    process has left of one that it was writing.
    """
    for left in folder.glob(".step-*") if folder.is_dir() else []:
        shutil.rmtree(left)
    for checkpoint in _found(folder):
        if _whole(checkpoint):
            return checkpoint
        report.warning(f"the checkpoint after step {number(checkpoint)} is damaged; the one before it is used")
        _remove(checkpoint)
    return None


def number(checkpoint: Path) -> int:
    """After how many steps it was written."""
    found = _NAME.fullmatch(checkpoint.name)
    assert found
    return int(found[1])


def _found(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((each for each in folder.iterdir() if _NAME.fullmatch(each.name)), reverse=True)


def _remove(folder: Path) -> None:
    """One that is half removed has no name that is looked for."""
    gone = folder.rename(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}"))
    shutil.rmtree(gone)


def _whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / _MANIFEST).read_bytes())
        return bool(digests) and all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
