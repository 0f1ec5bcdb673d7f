"""Fixtures: a web server that misbehaves as told, and a file for it to give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_http import BadServer, bad_server
from gguf_files import sparse_gguf


@pytest.fixture
def web() -> Iterator[BadServer]:
    with bad_server() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    """A whole model of 4 MB."""
    (tmp_path / "made").mkdir()
    return sparse_gguf(tmp_path / "made" / "m.gguf", 1 << 21).read_bytes()
