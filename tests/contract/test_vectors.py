"""Vectors and scores over all transports: those of the engine itself, and what goes wrong with them.

The real engine embeds with the default model, which any model of its kind can, and scores with one of random weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chaos.callers import engine
from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Answer, Wire
from reranker import reranker_gguf
from support import Served, put, serving, wait_until

pytestmark = pytest.mark.engine

TEXTS = ["The cat sleeps on the mat.", "Der Kater schläft. 🐈", "x", "The cat sleeps on the mat."]
QUERY = "rain falls"
DOCUMENTS = ["the sun shines", "rain from the clouds", "a cat sleeps", "paris is in france"]
CONTEXT = 256


@pytest.fixture(scope="module")
def embedding(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The default model, to embed with."""
    folder = tmp_path_factory.mktemp("embedding")
    env = {"MODELOPS_ENGINE__CONTEXT_LENGTH": str(CONTEXT)}
    with serving(folder, links=[("smollm2", smollm2)], env=env) as running, wires.connected(running) as clients:
        loaded = clients["rest"].ok("load_model", model_name="smollm2", model_type="embedding", slots=2)
        assert loaded.model_version == "v2"  # as v1 it answers
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A reranker, which says so of itself."""
    folder = tmp_path_factory.mktemp("scoring")
    file = reranker_gguf(folder / "file.gguf")
    put(file, folder / "models" / "ranks.gguf")
    with serving(folder) as running, wires.connected(running) as clients:
        assert clients["rest"].info("ranks").model_type == "reranker"
        clients["rest"].ok("load_model", model_name="ranks", slots=2)
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def embeds(embedding: Served) -> Iterator[dict[str, Wire]]:
    with wires.connected(embedding) as found:
        yield found


@pytest.fixture(scope="module")
def ranks(scoring: Served) -> Iterator[dict[str, Wire]]:
    with wires.connected(scoring) as found:
        yield found


def vectors(answer: Any) -> list[list[float]]:
    return [list(embedding.values) for embedding in answer.embeddings]


def near(one: Sequence[float], other: Sequence[float]) -> bool:
    """Equal but for rounding: what is computed together differs in the last digits from what is computed alone."""
    return math.dist(one, other) < 1e-3


def refused(wire: Wire, operation: str, code: str, *named: str, **fields: Any) -> Answer:
    answer = wire.call(operation, fields)
    assert answer.code == code, answer.seen
    for name in named:
        assert name in answer.message
    if wire.name == "rest":
        conforms(BY_NAME[operation].route, answer)
    return answer


# --- vectors ---
def test_vectors_are_the_engines_own_and_the_same_everywhere(embedding: Served, embeds: dict[str, Wire]) -> None:
    with engine(embedding) as asked:
        told = asked.post("/v1/embeddings", json={"input": TEXTS}).json()
    expected = [one["embedding"] for one in sorted(told["data"], key=lambda one: one["index"])]
    for wire in embeds.values():
        answer = wire.ok("embed", model_name="smollm2", inputs=TEXTS)
        found = vectors(answer)
        assert len(found) == len(TEXTS)
        assert all(near(*pair) for pair in zip(found, expected, strict=True))
        assert all(math.hypot(*vector) == pytest.approx(1.0, abs=1e-3) for vector in found)
        assert near(found[0], found[3])
        assert not near(found[0], found[1])
        assert answer.tokens == told["usage"]["prompt_tokens"] > len(TEXTS)
        assert answer.model_version == "v2"
        assert answer.latency_ms > 0


def test_more_texts_than_slots_come_back_in_order(embeds: dict[str, Wire]) -> None:
    texts = [f"Number {number}." for number in range(40)]
    together = vectors(embeds["grpc"].ok("embed", model_name="smollm2", inputs=texts))
    assert len({tuple(vector) for vector in together}) == len(texts)
    for number in (0, 17, 39):
        (alone,) = vectors(embeds["zmq"].ok("embed", model_name="smollm2", inputs=[texts[number]]))
        assert near(alone, together[number])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_text_that_is_too_long_is_the_callers_mistake(transport: str, embeds: dict[str, Wire]) -> None:
    wire = embeds[transport]
    refused(wire, "embed", "invalid_request", str(CONTEXT), model_name="smollm2", inputs=["x", "word " * CONTEXT])
    (vector,) = vectors(wire.ok("embed", model_name="smollm2", inputs=["word " * (CONTEXT // 2)]))
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_embedding_model_answers_no_other_question(transport: str, embeds: dict[str, Wire]) -> None:
    wire = embeds[transport]
    refused(
        wire,
        "infer",
        "invalid_request",
        "'smollm2' is a model of type 'embedding'",
        "'llm'",
        model_name="smollm2",
        input_text="Hello",
    )
    refused(wire, "rerank", "invalid_request", "'embedding'", model_name="smollm2", query="x", documents=["y"])


def test_the_same_file_answers_again_as_its_other_version(embeds: dict[str, Wire]) -> None:
    rest = embeds["rest"]
    told = rest.ok("activate_version", model_name="smollm2", model_version="v1")
    assert (told.model_type, told.status) == ("llm", "loaded")
    asked = {"input_text": "What is 2+2?", "max_tokens": 16, "temperature": 0.0}
    assert "4" in rest.ok("infer", model_name="smollm2", **asked).output_text
    refused(rest, "embed", "invalid_request", "'llm'", model_name="smollm2", inputs=["x"])
    assert rest.ok("roll_back", model_name="smollm2").model_type == "embedding"
    assert vectors(rest.ok("embed", model_name="smollm2", inputs=["x"]))
    wait_until(lambda: rest.ok("status").devices[0].reserved_mb <= rest.info("smollm2").memory_usage_mb + 1)


# --- scores ---
def test_scores_are_the_engines_own_and_the_same_everywhere(scoring: Served, ranks: dict[str, Wire]) -> None:
    with engine(scoring) as asked:
        told = asked.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()
    scores = {one["index"]: one["relevance_score"] for one in told["results"]}
    order = sorted(scores, key=lambda index: -scores[index])
    assert len({round(score, 3) for score in scores.values()}) == len(DOCUMENTS)
    for wire in ranks.values():
        answer = wire.ok("rerank", model_name="ranks", query=QUERY, documents=DOCUMENTS)
        assert [found.index for found in answer.results] == order
        assert [found.score for found in answer.results] == pytest.approx([scores[at] for at in order], abs=1e-3)
        assert (answer.tokens, answer.model_version) == (told["usage"]["total_tokens"], "v1")
        best = wire.ok("rerank", model_name="ranks", query=QUERY, documents=DOCUMENTS, top_n=2)
        assert [found.index for found in best.results] == order[:2]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_reranker_answers_no_other_question(transport: str, ranks: dict[str, Wire]) -> None:
    wire = ranks[transport]
    refused(
        wire, "infer", "invalid_request", "'ranks' is a model of type 'reranker'", model_name="ranks", input_text="x"
    )
    refused(wire, "embed", "invalid_request", "'reranker'", model_name="ranks", inputs=["x"])
    refused(
        wire, "rerank", "invalid_request", str(CONTEXT), model_name="ranks", query="x", documents=["y", "a " * CONTEXT]
    )


def test_scores_and_vectors_are_served_to_many_at_once(ranks: dict[str, Wire]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> list[int]:
        wire = ranks[TRANSPORTS[number % 3]]
        answer = wire.ok("rerank", model_name="ranks", query=QUERY, documents=DOCUMENTS)
        return [found.index for found in answer.results]

    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(ask, range(24)))
    assert all(order == found[0] for order in found)
    wait_until(lambda: ranks["rest"].info("ranks").active_requests == 0)
