"""Asking a model: answers, streams, deadlines, and which models take which question."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from modelops.api import types
from modelops.api.errors import DeadlineExceeded, EngineFailed, InvalidRequest
from modelops.service import Coordinator
from service.asking import EMPTY, ask, call, load


async def test_an_answer_is_whole_and_counted(door: Coordinator) -> None:
    answer = await door.infer(call(), ask())
    assert (answer.output_text, answer.tokens_generated, answer.model_version) == ("w0 w1 w2 ", 3, "v1")
    assert (answer.success, answer.error_message) == (True, "")
    assert answer.latency_ms > 0


async def test_a_stream_is_the_same_answer_in_pieces(door: Coordinator) -> None:
    chunks = [chunk async for chunk in door.infer_stream(call(), ask())]
    assert [chunk.text for chunk in chunks] == ["w0 ", "w1 ", "w2 ", ""]
    assert [chunk.done for chunk in chunks] == [False, False, False, True]
    final = chunks[-1].final
    assert final
    assert (final.output_text, final.tokens_generated, final.success) == ("w0 w1 w2 ", 3, True)


async def test_an_answer_that_breaks_is_an_error_whole_and_cut_short_as_a_stream(
    door: Coordinator, behaviour: Any
) -> None:
    behaviour(die_after=2)
    with pytest.raises(EngineFailed):
        await door.infer(call(), ask())
    chunks = [chunk async for chunk in door.infer_stream(call(), ask())]
    final = chunks[-1].final
    assert final
    assert (final.output_text, final.tokens_generated, final.success) == ("w0 w1 ", 2, False)
    assert "SIGKILL" in final.error_message


@pytest.mark.parametrize("behaves", [{"load_s": 3600}, {"prompt_s": 3600}, {"hang_after": 1}], ids=str)
async def test_the_deadline_holds_while_loading_reading_and_answering(
    door: Coordinator, behaviour: Any, behaves: dict[str, Any]
) -> None:
    behaviour(**behaves)
    if "load_s" not in behaves:
        await door.load_model(call(), types.ModelLoadRequest(model_name="m"))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await door.infer(call(timeout_s=0.3), ask())
    assert 0.3 <= time.monotonic() - began < 3.0
    assert (await door.status(call(), EMPTY)).active_requests == 0


# --- vectors and scores ---
def embed(*inputs: str, **fields: Any) -> types.EmbedRequest:
    return types.EmbedRequest.parse({"model_name": "m", "inputs": list(inputs)} | fields)


def rerank(query: str, *documents: str, **fields: Any) -> types.RerankRequest:
    return types.RerankRequest.parse({"model_name": "m", "query": query, "documents": list(documents)} | fields)


async def test_each_text_is_a_vector_of_length_1_in_order(door: Coordinator) -> None:
    await door.load_model(call(), load(model_type="embedding"))
    answer = await door.embed(call(), embed("one two", "three", "one two"))
    first, second, third = (embedding.values for embedding in answer.embeddings)
    assert first == third != second
    assert all(math.hypot(*vector) == pytest.approx(1.0) for vector in (first, second))
    assert (answer.tokens, answer.model_version) == (5, "v2")
    assert answer.latency_ms > 0


@pytest.mark.parametrize(("top_n", "order"), [(0, [2, 0, 1]), (2, [2, 0]), (9, [2, 0, 1])])
async def test_documents_are_told_best_first(door: Coordinator, top_n: int, order: list[int]) -> None:
    await door.load_model(call(), load(model_type="reranker"))
    answer = await door.rerank(call(), rerank("a b c", "a x", "y", "c b a", top_n=top_n))
    assert [found.index for found in answer.results] == order
    scores = [found.score for found in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert (answer.tokens, answer.model_version) == (9, "v2")


@pytest.mark.parametrize(
    ("model_type", "wrong"),
    [
        ("llm", ("embed", embed("x"))),
        ("llm", ("rerank", rerank("x", "y"))),
        ("embedding", ("infer", ask())),
        ("embedding", ("rerank", rerank("x", "y"))),
        ("reranker", ("infer", ask())),
        ("reranker", ("embed", embed("x"))),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
async def test_a_question_for_a_model_of_another_type_is_refused_and_says_so(
    door: Coordinator, model_type: str, wrong: tuple[str, Any]
) -> None:
    await door.load_model(call(), load(model_type=model_type))
    method, request = wrong
    with pytest.raises(InvalidRequest, match=f"'m' is a model of type '{model_type}'"):
        await getattr(door, method)(call(), request)
    if method == "infer":
        with pytest.raises(InvalidRequest):
            await anext(door.infer_stream(call(), request))
    assert (await door.status(call(), EMPTY)).active_requests == 0


@pytest.mark.parametrize("model_type", ["embedding", "reranker"])
@pytest.mark.parametrize(
    ("behaves", "kind", "says"),
    [
        ({"prompt_s": 3600}, DeadlineExceeded, "while the model was answering"),
        ({"die_after": 0}, EngineFailed, "was killed by SIGKILL"),
        ({"garbage": True}, EngineFailed, "broke the connection"),
        ({"status": 500}, EngineFailed, "answered 500"),
        ({"status": 400}, InvalidRequest, "the engine refused the request"),
    ],
    ids=str,
)
async def test_what_goes_wrong_with_vectors_and_scores_is_told(
    door: Coordinator, behaviour: Any, model_type: str, behaves: dict[str, Any], kind: type[Exception], says: str
) -> None:
    behaviour(**behaves)
    await door.load_model(call(), load(model_type=model_type))
    asked = call(timeout_s=0.5 if kind is DeadlineExceeded else None)
    with pytest.raises(kind, match=says):
        if model_type == "embedding":
            await door.embed(asked, embed("x"))
        else:
            await door.rerank(asked, rerank("x", "y"))
    assert (await door.status(call(), EMPTY)).active_requests == 0
