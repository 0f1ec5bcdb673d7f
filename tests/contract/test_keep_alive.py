"""How long a model stays, on all transports: counted from the end of its last request, as that or the load said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from contract import wires
from contract.wires import TRANSPORTS, Wire
from support import serving, tiny_gguf, wait_until

KINDS: dict[str, dict[str, int]] = {
    "m": {},
    "talks": {},
    "vectors": {"llama__pooling_type": 1},
    "scores": {"llama__pooling_type": 4},
}
ASK: dict[str, dict[str, Any]] = {
    "infer": {"input_text": "Hello", "max_tokens": 2, "temperature": 0.0},
    "chat": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "embed": {"inputs": ["Hello"]},
    "rerank": {"query": "a", "documents": ["a", "b"]},
}
OF_KIND = {"m": "infer", "talks": "chat", "vectors": "embed", "scores": "rerank"}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Wire]]:
    """A coordinator whose models, three of each kind, one for each transport, stay for 0.3 s."""
    folder = tmp_path_factory.mktemp("staying")
    links = [
        (f"{kind}-{transport}", tiny_gguf(folder / kind, **entries))
        for kind, entries in KINDS.items()
        for transport in TRANSPORTS
    ]
    env = {"MODELOPS_MODELS__KEEP_ALIVE": "300ms"}
    with serving(folder, links=links, fake={"token_s": 0.1}, env=env) as running, wires.connected(running) as found:
        yield found
        assert "Traceback" not in running.log.read_text()


def status(wire: Wire, model: str) -> str:
    return wire.info(model).status


def loaded(wire: Wire, model: str, **fields: Any) -> None:
    """Load the model anew: it may be loaded, or be going."""
    wire.call("unload_model", {"model_name": model, "force": True})
    wire.ok("load_model", model_name=model, **fields)


def gone(wire: Wire, model: str) -> None:
    wait_until(lambda: status(wire, model) == "available", what=f"the end of '{model}'")


each_kind = pytest.mark.parametrize(
    ("kind", "transport"),
    [
        ("m", "rest"),
        ("m", "grpc"),
        ("m", "zmq"),
        ("talks", "grpc"),
        ("vectors", "rest"),
        ("vectors", "grpc"),
        ("scores", "zmq"),
    ],
)


@each_kind
def test_zero_ends_a_model_with_the_answer(kind: str, transport: str, clients: dict[str, Wire]) -> None:
    wire, model, operation = clients[transport], f"{kind}-{transport}", OF_KIND[kind]
    loaded(wire, model, keep_alive="-1")
    wire.ok(operation, model_name=model, keep_alive="0", **ASK[operation])
    gone(wire, model)


@each_kind
def test_it_is_counted_from_the_end_of_the_last_request(kind: str, transport: str, clients: dict[str, Wire]) -> None:
    wire, model, operation = clients[transport], f"{kind}-{transport}", OF_KIND[kind]
    loaded(wire, model, keep_alive="-1")
    wire.ok(operation, model_name=model, keep_alive="200ms", **ASK[operation])
    wire.ok(operation, model_name=model, keep_alive="500ms", **ASK[operation])  # of two, the last one's holds
    ended = time.monotonic()
    wait_until(lambda: status(wire, model) != "loaded")
    assert time.monotonic() - ended > 0.25  # the answer itself takes as long, or no time at all
    gone(wire, model)


@each_kind
def test_a_negative_one_means_for_ever_and_holds_for_its_own_request(
    kind: str, transport: str, clients: dict[str, Wire]
) -> None:
    wire, model, operation = clients[transport], f"{kind}-{transport}", OF_KIND[kind]
    loaded(wire, model)
    for written in ("-1", "-5m"):
        wire.ok(operation, model_name=model, keep_alive=written, **ASK[operation])
        told = wire.info(model)
        assert (told.status, told.HasField("expires_at")) == ("loaded", False)
    wire.ok(operation, model_name=model, **ASK[operation])  # as configured: 0.3 s
    gone(wire, model)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_says_until_when_it_stays(transport: str, clients: dict[str, Wire]) -> None:
    wire, model = clients[transport], f"m-{transport}"
    before = time.time()
    loaded(wire, model, keep_alive="1h")
    for written, seconds in (("", 3600), ("90s", 90), ("1h30m", 5400)):
        if written:
            wire.ok("infer", model_name=model, keep_alive=written, **ASK["infer"])
        assert before + seconds <= wire.info(model).expires_at.seconds + 1
        assert wire.info(model).expires_at.seconds - 1 <= time.time() + seconds
    chunks = wire.stream({"model_name": model, **ASK["infer"]})
    next(chunks)
    assert not wire.info(model).HasField("expires_at")  # somebody uses it
    chunks.close()
    wire.ok("unload_model", model_name=model, force=True)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_that_nobody_asks_goes_after_its_load(transport: str, clients: dict[str, Wire]) -> None:
    wire, model = clients[transport], f"m-{transport}"
    loaded(wire, model)
    gone(wire, model)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_zero_in_a_load_lets_it_answer_once(transport: str, clients: dict[str, Wire]) -> None:
    wire, model = clients[transport], f"m-{transport}"
    loaded(wire, model, keep_alive="0s")
    told = wire.info(model)
    assert (told.status, told.HasField("expires_at")) == ("loaded", False)
    wire.ok("infer", model_name=model, **ASK["infer"])
    gone(wire, model)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_pinned_model_stays_whatever_anybody_says(transport: str, clients: dict[str, Wire]) -> None:
    wire, model = clients[transport], f"m-{transport}"
    loaded(wire, model, pin=True, keep_alive="0")
    for written in ("0", "1ms", "300ms"):
        wire.ok("infer", model_name=model, keep_alive=written, **ASK["infer"])
        told = wire.info(model)
        assert (told.status, told.pinned, told.HasField("expires_at")) == ("loaded", True, False)
    wire.ok("unload_model", model_name=model)
    assert not wire.info(model).pinned
    wire.ok("infer", model_name=model, keep_alive="0", **ASK["infer"])  # it is loaded as it was wished last
    assert wire.info(model).pinned
    wire.ok("unload_model", model_name=model)
    loaded(wire, model, pin=False)
    gone(wire, model)


def test_over_json_it_may_be_a_number(clients: dict[str, Wire]) -> None:
    for transport in ("rest", "zmq"):
        wire, model = clients[transport], f"m-{transport}"
        loaded(wire, model, keep_alive=3600)
        for written, stays in ((-1, None), (90, 90), (0.5, 0.5)):
            wire.ok("infer", model_name=model, keep_alive=written, **ASK["infer"])
            assert wire.info(model).HasField("expires_at") is (stays is not None)
        gone(wire, model)
        loaded(wire, model, keep_alive=3600)
        wire.ok("infer", model_name=model, keep_alive=0, **ASK["infer"])
        gone(wire, model)
