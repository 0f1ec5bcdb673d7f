"""Asking a model: answers, streams, deadlines, and which models take which question."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelops.access import Caller
from modelops.api import types
from modelops.api.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded
from modelops.service import Coordinator
from modelops.service.rates import Rates
from service.asking import EMPTY, Start, ask, call, load, until
from support import FAKE_ENGINE


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


async def test_an_answer_that_breaks_twice_is_an_error_whole_and_cut_short_as_a_stream(
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


# --- asked once more ---
@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each request that has ended."""
    told: list[int] = []

    async def spend(_: Rates, __: Caller, tokens: int) -> None:
        told.append(tokens)

    monkeypatch.setattr(Rates, "spend", spend)
    return told


@pytest.mark.parametrize("die_after", [0, 2])
async def test_a_whole_answer_is_asked_for_once_more(
    door: Coordinator,
    behaviour: Any,
    tmp_path: Path,
    die_after: int,
    spent: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    behaviour(die_after=die_after, dies_once=str(tmp_path / "dead"), count_file=str(tmp_path / "starts"))
    answer = await door.infer(call(), ask(input_text="a secret"))
    assert (answer.output_text, answer.tokens_generated) == ("w0 w1 w2 ", 3)
    assert len((tmp_path / "starts").read_text().splitlines()) == 2
    assert spent == [1 + 3], "once for each request"
    assert "request 1 is asked once more: its engine was killed by SIGKILL" in caplog.text
    assert "secret" not in caplog.text


async def test_a_stream_is_asked_for_once_more_only_before_its_first_word(
    door: Coordinator, behaviour: Any, tmp_path: Path
) -> None:
    behaviour(die_after=0, dies_once=str(tmp_path / "dead"))
    chunks = [chunk async for chunk in door.infer_stream(call(), ask())]
    assert [chunk.text for chunk in chunks] == ["w0 ", "w1 ", "w2 ", ""]
    behaviour(die_after=1, count_file=str(tmp_path / "starts"))
    await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))
    chunks = [chunk async for chunk in door.infer_stream(call(), ask())]
    assert [chunk.text for chunk in chunks] == ["w0 ", ""]
    assert chunks[-1].final
    assert not chunks[-1].final.success
    await until(door, lambda info: info.status == "loaded")
    assert len((tmp_path / "starts").read_text().splitlines()) == 2, "one crash, one restart"


@pytest.mark.parametrize("model_type", ["embedding", "reranker"])
async def test_vectors_and_scores_are_asked_for_once_more(
    door: Coordinator, behaviour: Any, tmp_path: Path, model_type: str, spent: list[int]
) -> None:
    behaviour(die_after=0, dies_once=str(tmp_path / "dead"))
    await door.load_model(call(), load(model_type=model_type))
    if model_type == "embedding":
        assert len((await door.embed(call(), embed("x y"))).embeddings) == 1
    else:
        assert len((await door.rerank(call(), rerank("x", "y"))).results) == 1
    assert (tmp_path / "dead").exists()
    assert spent == [2]


async def test_a_request_that_kills_engines_costs_two_of_them(
    door: Coordinator, behaviour: Any, tmp_path: Path
) -> None:
    behaviour(die_after=0, count_file=str(tmp_path / "starts"))
    with pytest.raises(EngineFailed, match="was killed by SIGKILL"):
        await door.infer(call(), ask())
    await until(door, lambda info: info.status == "loaded")
    assert len((tmp_path / "starts").read_text().splitlines()) == 3, "the third is the one for the next request"


async def test_what_is_the_callers_fault_or_refused_is_not_asked_again(
    door: Coordinator, behaviour: Any, caplog: pytest.LogCaptureFixture, spent: list[int]
) -> None:
    behaviour(status=400)
    with pytest.raises(InvalidRequest):
        await door.infer(call(), ask())
    behaviour(load_fails="error: out of luck")
    await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))
    with pytest.raises(EngineFailed, match="out of luck"):
        await door.infer(call(), ask())
    with pytest.raises(Overloaded, match="out of luck") as refused:
        await anext(door.infer_stream(call(), ask()))
    assert 14 < (refused.value.retry_after_s or 0) <= 15
    assert "once more" not in caplog.text
    assert spent == [0, 0, 0]


async def test_an_engine_that_is_stopped_does_not_hang_its_requests(start: Start, behaviour: Any) -> None:
    engine = {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1, "probe": False, "stall_timeout_s": 0.5}
    async with start(engine=engine) as parts:
        door = parts.coordinator
        await door.infer(call(), ask())
        psutil.Process(parts.pool.view("m").engine_pid).children()[0].suspend()
        assert (await door.infer(call(), ask())).output_text == "w0 w1 w2 ", "by the next engine"


async def test_the_servers_own_limit_is_the_engines_failure_and_a_callers_is_not(start: Start, behaviour: Any) -> None:
    behaviour(prompt_s=3600)
    async with start(
        server={"rest_port": 0, "grpc_port": 0, "zmq_port": 0, "drain_s": 0, "request_timeout_s": 1}
    ) as parts:
        door = parts.coordinator
        await door.load_model(call(), load())
        for timeout_s, failures in ((0.2, 0), (None, 1), (2.0, 2), (0.9, 2)):
            with pytest.raises(DeadlineExceeded):
                await door.infer(call(timeout_s=timeout_s), ask())
            assert parts.pool.view("m").breaker.failures == failures


async def test_what_a_cancelled_request_took_is_told(door: Coordinator, behaviour: Any, spent: list[int]) -> None:
    behaviour(token_s=0.01)
    stream = door.infer_stream(call(), ask(max_tokens=1000, input_text="x" * 40))
    for number in range(3):
        assert (await anext(stream)).text == f"w{number} "
    await stream.aclose()
    assert spent == [10 + 3], "the prompt's are estimated"


# --- deadlines ---
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
