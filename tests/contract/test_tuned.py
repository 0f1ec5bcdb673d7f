"""What a goal of serving has tuned, over each transport: seen, and forgotten by a load that asks for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from google.protobuf import json_format

from contract import wires
from contract.wires import TRANSPORTS, Wire
from kept_models import TOLD, keep_tuned
from support import Served, serving, tiny_gguf

#: As it is run where nobody has tuned it.
ENV = {"MODELOPS_ENGINE__SLOTS": "2"}

each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a coordinator with a tuned model for each transport."""
    folder = tmp_path_factory.mktemp("tuned")
    for transport in TRANSPORTS:
        keep_tuned(folder / "data", f"tuned-{transport}", tiny_gguf(folder / f"{transport}.gguf"))
    return folder / "data"


@pytest.fixture(scope="module")
def served(data: Path) -> Iterator[Served]:
    with serving(data, fake={"tokens": 1}, env=ENV) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def clients(served: Served) -> Iterator[dict[str, Wire]]:
    with wires.connected(served) as found:
        yield found


def tuned(wire: Wire, model: str) -> dict[str, object]:
    return json_format.MessageToDict(wire.info(model).tuned)


@each_transport
def test_how_a_model_was_tuned_is_seen_until_a_load_forgets_it(transport: str, clients: dict[str, Wire]) -> None:
    wire, model = clients[transport], f"tuned-{transport}"

    def run(**fields: object) -> int:
        """Its slots, loaded so and unloaded again."""
        wire.ok("load_model", model_name=model, **fields)
        slots = wire.info(model).slots
        wire.ok("unload_model", model_name=model)
        return slots

    assert tuned(wire, model) == TOLD
    (listed,) = (found for found in wire.ok("list_models", all=True).models if found.model_name == model)
    assert json_format.MessageToDict(listed.tuned) == TOLD
    assert run() == 3
    assert run(slots=1) == 1, "what a load asks for wins"
    assert run(untuned=False) == 3
    would = wire.ok("load_model", model_name=model, untuned=True, dry_run=True)
    assert (would.plan.slots, tuned(wire, model)) == (2, TOLD), "it says what would be, and does nothing"

    wire.ok("load_model", model_name=model)
    answer = wire.call("load_model", {"model_name": model, "untuned": True})
    assert (answer.code, "unload it" in answer.message) == ("conflict", True)
    assert tuned(wire, model) == TOLD
    wire.ok("unload_model", model_name=model)

    assert run(untuned=True) == 2
    assert tuned(wire, model) == {}
    assert run() == 2
    assert run(untuned=True) == 2, "there is nothing left to forget"


def test_it_is_forgotten_for_good(tmp_path: Path) -> None:
    keep_tuned(tmp_path, "m", tiny_gguf(tmp_path / "m.gguf"))
    with serving(tmp_path, fake={}, env=ENV) as served, closing(wires.Rest(served)) as rest:
        rest.ok("load_model", model_name="m", untuned=True)
        rest.ok("unload_model", model_name="m")
    with serving(tmp_path, fake={}, env=ENV) as served, closing(wires.Rest(served)) as rest:
        rest.ok("load_model", model_name="m")
        assert (rest.info("m").slots, tuned(rest, "m")) == (2, {})
