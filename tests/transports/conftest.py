"""Fixtures: a coordinator whose engine is slow and steady."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import Served, serving, tiny_gguf


@pytest.fixture(scope="session")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serves `steady`, whose answers take 20 ms a token, and knows `other`, which is not loaded."""
    folder = tmp_path_factory.mktemp("steady")
    file = tiny_gguf(folder / "tiny")
    links = [("steady", file), ("other", file)]
    with serving(folder, links=links, load=["steady"], fake={"token_s": 0.02}) as running:
        yield running
        assert "Traceback" not in running.log.read_text()
