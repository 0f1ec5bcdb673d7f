"""Fixtures: a client of each transport, of the coordinator with the real model and of one with a fake engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import wires
from contract.wires import Wire
from support import Served, serving, tiny_gguf, wait_until


@pytest.fixture(scope="session")
def real(served: Served) -> Iterator[dict[str, Wire]]:
    """Clients of the real model, `smollm2`."""
    with wires.connected(served) as clients:
        # The digest is recorded a moment after the load; from then on the model's description does not change.
        wait_until(lambda: clients["rest"].call("get_model", {"model_name": "smollm2"}).result.digest)
        yield clients
        assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="session")
def quick_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator whose engine answers two tokens at once: the model `quick`, loaded, and `other`, which is not."""
    folder = tmp_path_factory.mktemp("quick")
    file = tiny_gguf(folder / "tiny")
    with serving(folder, links=[("quick", file), ("other", file)], load=["quick"], fake={"tokens": 2}) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="session")
def quick(quick_served: Served) -> Iterator[dict[str, Wire]]:
    """Clients of the quick fake."""
    with wires.connected(quick_served) as clients:
        yield clients


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model's file, for coordinators of a test's own."""
    return tiny_gguf(tmp_path / "tiny")
