"""Versions of a model, on all transports: registered, activated and rolled back under load, removed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Answer, Wire
from support import Served, serving, tiny_gguf, wait_until

ASK = {"input_text": "Hello", "max_tokens": 3, "temperature": 0.0}
CLIENTS = 6


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with the model `m-TRANSPORT` for each transport; `one.gguf`, `two.gguf` and `three.gguf` are files
    in a folder that is not its own."""
    folder = tmp_path_factory.mktemp("versions")
    for name in ("one", "two", "three"):
        tiny_gguf(folder / "theirs" / f"{name}.gguf", general__name=name)
    links = [(f"m-{transport}", tiny_gguf(folder / "tiny")) for transport in TRANSPORTS]
    env = {"MODELOPS_MODELS__ROOTS": str(folder / "theirs")}
    with serving(folder, links=links, fake={"token_s": 0.01}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def theirs(served: Served) -> Path:
    """The folder that is not the coordinator's own."""
    return served.data_dir / "theirs"


def versions(wire: Wire, model: str) -> dict[str, str]:
    """Each version, and whether it is active or was before."""
    found = wire.ok("list_versions", model_name=model).versions
    marks = {version.model_version: "active" * version.active + "previous" * version.previous for version in found}
    assert len(marks) == len(found)
    return marks


def refused(wire: Wire, operation: str, code: str, *named: str, **fields: Any) -> Answer:
    answer = wire.call(operation, fields)
    assert answer.code == code, answer.seen
    for name in named:
        assert name in answer.message
    if wire.name == "rest":
        conforms(BY_NAME[operation].route, answer)
    return answer


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_version_is_registered_activated_and_rolled_back(
    transport: str, clients: dict[str, Wire], theirs: Path
) -> None:
    wire, model = clients[transport], f"m-{transport}"
    found = wire.ok("register_version", model_name=model, model_path="two.gguf")
    assert (found.model_version, found.model_path, found.active, found.previous) == ("v2", "two.gguf", False, False)
    assert found.registered_at.seconds > 0
    again = wire.ok("register_version", model_name=model, model_path=str(theirs / "two.gguf"))
    assert again == found
    assert wire.ok("register_version", model_name=model, model_path="three.gguf").model_version == "v3"
    assert versions(wire, model) == {"v1": "active", "v2": "", "v3": ""}

    # Not loaded: it is the one that is loaded next.
    told = wire.ok("activate_version", model_name=model, model_version="v2")
    assert (told.status, told.model_version, told.model_path) == ("available", "v2", "two.gguf")
    assert wire.ok("infer", model_name=model, **ASK).model_version == "v2"
    assert versions(wire, model) == {"v1": "previous", "v2": "active", "v3": ""}
    # Loaded: it answers when the call returns.
    told = wire.ok("activate_version", model_name=model, model_version="v3", drain_first=True)
    assert (told.status, told.model_version) == ("loaded", "v3")
    assert wire.ok("infer", model_name=model, **ASK).model_version == "v3"
    told = wire.ok("roll_back", model_name=model)
    assert (told.status, told.model_version) == ("loaded", "v2")
    assert wire.ok("infer", model_name=model, **ASK).model_version == "v2"
    assert versions(wire, model) == {"v1": "", "v2": "active", "v3": "previous"}
    assert wire.ok("roll_back", model_name=model, drain_first=True).model_version == "v3"
    wire.ok("unload_model", model_name=model)
    assert wire.ok("infer", model_name=model, **ASK).model_version == "v3"
    wire.ok("unload_model", model_name=model)


def test_a_version_loads_by_its_path_only_where_no_other_is_loaded(clients: dict[str, Wire]) -> None:
    for transport, wire in clients.items():
        model = f"loaded-{transport}"
        assert wire.ok("load_model", model_name=model, model_path="one.gguf").model_version == "v1"
        refused(
            wire,
            "load_model",
            "conflict",
            f"'{model}' v1 is loaded; activate v2",
            model_name=model,
            model_path="two.gguf",
        )
        assert versions(wire, model) == {"v1": "active", "v2": ""}
        wire.ok("unload_model", model_name=model)
        assert wire.ok("load_model", model_name=model, model_path="two.gguf").model_version == "v2"
        assert versions(wire, model) == {"v1": "previous", "v2": "active"}
        wire.ok("unload_model", model_name=model)


class Asking:
    """Clients of all transports that ask a model without a pause until they are told to end."""

    def __init__(self, clients: dict[str, Wire], model: str) -> None:
        self._clients, self._model = clients, model
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(CLIENTS)
        self.answers: list[tuple[str, str]] = []  # the version, and the text
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Asking:
        self._futures = [self._threads.submit(self._ask, number) for number in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._threads.shutdown()
        for future in self._futures:
            future.result()

    def more(self) -> None:
        """Wait until each client had the time for another answer."""
        enough = len(self.answers) + 2 * CLIENTS
        wait_until(
            lambda: len(self.answers) >= enough or any(future.done() for future in self._futures), 30, "more answers"
        )

    def _ask(self, number: int) -> None:
        wire = self._clients[TRANSPORTS[number % 3]]
        while not self._ended.is_set():
            if number < 3:
                result = wire.ok("infer", model_name=self._model, **ASK)
            else:
                *_, last = wire.stream({"model_name": self._model, **ASK})
                result = last.final
                assert result.success, result.error_message
            self.answers.append((result.model_version, result.output_text))


@pytest.mark.parametrize("drain_first", [False, True])
def test_versions_change_without_a_failed_request(drain_first: bool, clients: dict[str, Wire]) -> None:
    rest, model = clients["rest"], f"asked-{drain_first}".lower()
    rest.ok("load_model", model_name=model, model_path="one.gguf")
    rest.ok("register_version", model_name=model, model_path="two.gguf")
    with Asking(clients, model) as asking:
        asking.more()
        assert {version for version, _ in asking.answers} == {"v1"}
        steps: list[tuple[str, dict[str, Any], str]] = [
            ("activate_version", {"model_version": "v2"}, "v2"),
            ("roll_back", {}, "v1"),
            ("roll_back", {}, "v2"),
            ("activate_version", {"model_version": "v1"}, "v1"),
        ]
        for (operation, fields, label), transport in zip(steps, TRANSPORTS * 2, strict=False):
            told = clients[transport].ok(operation, model_name=model, drain_first=drain_first, **fields)
            assert (told.model_version, told.status) == (label, "loaded")
            assert rest.ok("infer", model_name=model, **ASK).model_version == label
            asking.more()
    assert {text for _, text in asking.answers} == {"w0 w1 w2 "}
    assert {version for version, _ in asking.answers} == {"v1", "v2"}
    wait_until(lambda: rest.info(model).active_requests == 0)
    (device,) = rest.ok("status").devices
    wait_until(lambda: rest.ok("status").devices[0].reserved_mb == rest.info(model).memory_usage_mb)
    assert device.device == "cpu"
    rest.ok("unload_model", model_name=model)


def test_of_two_activations_at_once_one_is_told_to_come_back(clients: dict[str, Wire]) -> None:
    rest, model = clients["rest"], "twice"
    rest.ok("load_model", model_name=model, model_path="one.gguf")
    rest.ok("register_version", model_name=model, model_path="two.gguf")
    with ThreadPoolExecutor(3) as threads:
        asked = {"model_name": model, "model_version": "v2"}
        answers = list(threads.map(lambda wire: wire.call("activate_version", asked), clients.values()))
    codes = sorted(answer.code for answer in answers)
    assert codes[0] == ""
    assert set(codes) <= {"", "conflict"}
    assert rest.ok("infer", model_name=model, **ASK).model_version == "v2"
    assert versions(rest, model) == {"v1": "previous", "v2": "active"}
    rest.ok("unload_model", model_name=model)


def test_what_does_not_fit_beside_the_present_one_is_offered_after_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny_gguf(tmp_path / "models" / f"{name}.gguf", general__name=name)
    env = {"MODELOPS_MEMORY__BUDGET_MB": "70"}
    with serving(tmp_path, fake={"token_s": 0.02}, env=env) as running, wires.connected(running) as clients:
        rest = clients["rest"]
        rest.ok("register_version", model_name="m", model_path="one.gguf")
        rest.ok("register_version", model_name="m", model_path="two.gguf")
        rest.ok("load_model", model_name="m")
        bills = []
        for wire in clients.values():
            answer = refused(
                wire, "activate_version", "insufficient_memory", "drain_first", model_name="m", model_version="v2"
            )
            assert answer.status in ("507", "RESOURCE_EXHAUSTED", "")
            bills.append(answer.details)
        assert bills[0] == bills[1] == bills[2]
        assert int(bills[0]["needed_mb"]) > int(bills[0]["free_mb"])
        assert versions(rest, "m") == {"v1": "active", "v2": ""}
        with Asking(clients, "m") as asking:  # who asks meanwhile waits, and is answered
            asking.more()
            for (transport, wire), label in zip(clients.items(), ("v2", "v1", "v2"), strict=True):
                operation, fields = (
                    ("roll_back", {}) if transport == "zmq" else ("activate_version", {"model_version": label})
                )
                told = wire.ok(operation, model_name="m", drain_first=True, **fields)
                assert (told.model_version, told.status) == (label, "loaded")
                asking.more()
        assert {version for version, _ in asking.answers} == {"v1", "v2"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_version_is_removed_with_the_coordinators_own_file_only(
    transport: str, clients: dict[str, Wire], served: Served, theirs: Path
) -> None:
    wire, model = clients[transport], f"removed-{transport}"
    own = tiny_gguf(served.data_dir / "models" / "sub" / f"{model}.gguf", llama__context_length=1 << 20)
    with own.open("ab") as file:
        file.truncate(3 * 2**20)
    wire.ok("load_model", model_name=model, model_path=f"sub/{model}.gguf")
    wire.ok("register_version", model_name=model, model_path="two.gguf")
    refused(wire, "remove_version", "conflict", "unload it first", model_name=model, model_version="v1")
    refused(wire, "remove_version", "conflict", "unload it first", model_name=model, model_version="all")
    removal = wire.ok("remove_version", model_name=model, model_version="v2")
    assert (list(removal.removed), removal.freed_mb) == ([f"{model} v2"], 0)
    assert (theirs / "two.gguf").exists()
    assert wire.ok("infer", model_name=model, **ASK).model_version == "v1"

    assert wire.ok("register_version", model_name=model, model_path="two.gguf").model_version == "v3"
    wire.ok("unload_model", model_name=model)
    refused(wire, "remove_version", "conflict", "activate another version first", model_name=model, model_version="v1")
    wire.ok("activate_version", model_name=model, model_version="v3")
    removal = wire.ok("remove_version", model_name=model, model_version="v1")
    assert (list(removal.removed), removal.freed_mb) == ([f"{model} v1"], 3)
    assert not own.exists()
    refused(wire, "roll_back", "not_found", "v1", model_name=model)
    refused(wire, "activate_version", "not_found", "has no version 'v1'", model_name=model, model_version="v1")

    removal = wire.ok("remove_version", model_name=model, model_version="all")
    assert (list(removal.removed), removal.freed_mb) == ([f"{model} v3"], 0)
    assert (theirs / "two.gguf").exists()
    for operation in ("get_model", "list_versions", "unload_model", "explain_model"):
        refused(wire, operation, "not_found", model, model_name=model)
    refused(wire, "infer", "not_found", model, model_name=model, **ASK)
    assert model not in [found.model_name for found in wire.ok("list_models", all=True).models]
    found = wire.ok("register_version", model_name=model, model_path="two.gguf")
    assert (found.model_version, found.active) == ("v4", True)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_version_whose_file_was_replaced_or_is_gone_is_not_activated(
    transport: str, clients: dict[str, Wire], served: Served
) -> None:
    wire, model = clients[transport], f"replaced-{transport}"
    file = tiny_gguf(served.data_dir / "models" / "sub" / f"{model}.gguf")
    wire.ok("load_model", model_name=model, model_path="one.gguf")
    wire.ok("register_version", model_name=model, model_path=f"sub/{model}.gguf")
    tiny_gguf(file, general__name="another")
    refused(wire, "activate_version", "conflict", "was replaced", model_name=model, model_version="v2")
    file.unlink()
    refused(wire, "activate_version", "not_found", "is gone", model_name=model, model_version="v2")
    assert wire.ok("infer", model_name=model, **ASK).model_version == "v1"
    file.write_text("no model")
    refused(wire, "activate_version", "conflict", "was replaced", model_name=model, model_version="v2")
    wire.ok("unload_model", model_name=model)
