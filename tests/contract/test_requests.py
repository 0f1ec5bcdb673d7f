"""What a request means: the engine is asked the same, whichever transport it came over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from contract import wires
from contract.wires import TRANSPORTS, Wire
from support import serving, tiny_gguf

ASKED = {"model_name": "echo", "input_text": "Hello"}
FULL = {
    "input_text": 'Ünïcödé 🌊\n\t"quoted" \\ \x7f',
    "max_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.25,
    "stop_sequences": ["\n", "END"],
    "system": "Be brief.",
    "seed": 2**32 - 2,
}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Wire]]:
    """Clients of an engine that answers with what it was asked; `told` is a model of which the catalogue says more."""
    folder = tmp_path_factory.mktemp("echo")
    catalogue = folder / "catalogue.toml"
    catalogue.write_text(
        """
        [told]
        system = "Be brief."
        stop = ["END"]
        context_length = 1024
        slots = 2
        cache_type = "q8_0"
        aliases = ["by-another-name"]
        """
    )
    links = [(name, tiny_gguf(folder / "tiny")) for name in ("echo", "told", *(f"m-{name}" for name in TRANSPORTS))]
    env = {"MODELOPS_MODELS__CATALOGUE": str(catalogue)}
    with serving(folder, links=links, fake={"echo": True}, env=env) as running, wires.connected(running) as clients:
        yield clients


def asked(wire: Wire, fields: dict[str, Any]) -> Any:
    answer = wire.call("infer", ASKED | fields)
    assert answer.code == "", answer.seen
    return json.loads(answer.result.output_text)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_field_reaches_the_engine(transport: str, echo: dict[str, Wire]) -> None:
    got = asked(echo[transport], FULL)
    assert got["path"] == "/v1/chat/completions"
    assert got["messages"] == [
        {"role": "system", "content": FULL["system"]},
        {"role": "user", "content": FULL["input_text"]},
    ]
    assert (got["max_tokens"], got["temperature"], got["top_p"]) == (7, 0.5, 0.25)
    assert (got["stop"], got["seed"]) == (["\n", "END"], 2**32 - 2)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_raw_text_is_completed_as_it_stands(transport: str, echo: dict[str, Wire]) -> None:
    got = asked(echo[transport], {"raw": True})
    assert (got["path"], got["prompt"]) == ("/v1/completions", "Hello")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_not_given_has_its_documented_default(transport: str, echo: dict[str, Wire]) -> None:
    got = asked(echo[transport], {"temperature": 0.7})
    assert got["max_tokens"] == 50
    assert got["temperature"] == pytest.approx(0.7)
    assert got["top_p"] == pytest.approx(0.9)
    assert got["stop"] == []
    assert "seed" not in got
    assert [turn["role"] for turn in got["messages"]] == ["user"]


@pytest.mark.parametrize(("transport", "temperature"), [("rest", 0.7), ("zmq", 0.7), ("grpc", 0)])
def test_an_absent_temperature_is_the_default_but_zero_where_proto3_cannot_tell(
    transport: str, temperature: float, echo: dict[str, Wire]
) -> None:
    assert asked(echo[transport], {})["temperature"] == temperature


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_written_zero_is_greedy_and_a_seed_of_zero_is_a_seed(transport: str, echo: dict[str, Wire]) -> None:
    got = asked(echo[transport], {"temperature": 0.0, "seed": 0})
    assert (got["temperature"], got["seed"]) == (0, 0)


def test_over_grpc_a_zero_of_max_tokens_and_top_p_means_the_default(echo: dict[str, Wire]) -> None:
    got = asked(echo["grpc"], {"max_tokens": 0, "top_p": 0.0})
    assert got["max_tokens"] == 50
    assert got["top_p"] == pytest.approx(0.9)


# --- how the engine is started ---
def flags(told: Any) -> dict[str, str]:
    """The engine's flags and their values."""
    found = told["flags"]
    return {name: value for name, value in zip(found, [*found[1:], ""], strict=True) if name.startswith("--")}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_a_load_wishes_reaches_the_engine(transport: str, echo: dict[str, Wire]) -> None:
    wire, model = echo[transport], f"m-{transport}"
    for wish, expected in (
        ({}, ("8192", "4", "f16")),  # four slots of the model's own context
        ({"context_length": 512, "slots": 3, "cache_type": "q4_0"}, ("1536", "3", "q4_0")),
    ):
        wire.ok("load_model", model_name=model, **wish)
        given = flags(asked(wire, {"model_name": model}))
        assert (given["--ctx-size"], given["--parallel"], given["--cache-type-k"]) == expected
        assert given["--cache-type-v"] == given["--cache-type-k"]
        assert (given["--threads"], given["--alias"]) == ("1", model)
        assert not {"--embeddings", "--reranking", "--n-gpu-layers"} & given.keys()
        wire.ok("unload_model", model_name=model)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_the_catalogue_says_holds_where_the_caller_says_nothing(transport: str, echo: dict[str, Wire]) -> None:
    wire = echo[transport]
    got = asked(wire, {"model_name": "by-another-name"})
    assert list(wire.ok("get_model", model_name="told").aliases) == ["by-another-name"]
    assert got["messages"][0] == {"role": "system", "content": "Be brief."}
    assert got["stop"] == ["END"]
    given = flags(got)
    assert (given["--ctx-size"], given["--parallel"], given["--cache-type-k"]) == ("2048", "2", "q8_0")
    got = asked(wire, {"model_name": "told", "system": "Be long.", "stop_sequences": ["x"]})
    assert got["messages"][0] == {"role": "system", "content": "Be long."}
    assert got["stop"] == ["x"]


def test_over_json_an_empty_system_turn_is_none(echo: dict[str, Wire]) -> None:
    for transport in ("rest", "zmq"):
        got = asked(echo[transport], {"model_name": "told", "system": ""})
        assert [turn["role"] for turn in got["messages"]] == ["user"]
