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
    """A coordinator whose engine answers two tokens at once.

    `quick`, `vectors` (of type embedding) and `scores` (reranker) are loaded, `other` is not; `elsewhere.gguf` and
    `two.gguf` are files in a folder that is not the coordinator's own.
    """
    folder = tmp_path_factory.mktemp("quick")
    tiny = tiny_gguf(folder / "tiny")
    vectors = tiny_gguf(folder / "embedding", llama__pooling_type=1)
    scores = tiny_gguf(folder / "ranking", llama__pooling_type=4)
    for name in ("elsewhere", "two"):
        tiny_gguf(folder / "theirs" / f"{name}.gguf", general__name=name)
    links = [("quick", tiny), ("other", tiny), ("vectors", vectors), ("scores", scores)]
    env = {"MODELOPS_MODELS__ROOTS": str(folder / "theirs")}
    load = ["quick", "vectors", "scores"]
    with serving(folder, links=links, load=load, fake={"tokens": 2}, env=env) as running:
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
