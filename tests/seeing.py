"""A fake engine that says which GPUs it can use, on a machine that seems to have one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modelops.serving.placement import MB
from nvml import A100, Nvml
from support import FAKE_ENGINE

CUDA = "  CUDA0: NVIDIA A100 (40000 MiB, 39000 MiB free)"


def a_gpu(patch: pytest.MonkeyPatch) -> None:
    """From now on the driver shows a GPU, with room for a model."""
    patch.setitem(sys.modules, "pynvml", Nvml(A100 | {"memory": (40_000 * MB, 39_000 * MB), "processes": []}))
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def engine(file: Path, listed: str = "") -> str:
    """One that lists these devices. How often it was asked is how many lines there are in `asked` beside it."""
    asked = file.with_name("asked")
    return program(
        file,
        f'[ "$1" = --list-devices ] || exec {sys.executable} {FAKE_ENGINE} "$@"\n'
        f"echo asked >> {asked}\necho 'Available devices:'\necho '{listed}'",
    )


def program(file: Path, script: str) -> str:
    """A program of these lines for sh."""
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)
