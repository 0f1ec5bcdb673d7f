"""Tokens and their probabilities, from the real engine with a small model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

import gguf_files
from modelops.api.errors import EngineFailed, InvalidRequest
from modelops.engines.base import EngineBroke, EngineSpec, Prompt
from modelops.engines.llama_cpp import Engine
from modelops.engines.scores import LEAST, Scorer, TokenScore

pytestmark = pytest.mark.asyncio(loop_scope="module")


def spec(file: Path) -> EngineSpec:
    return EngineSpec(
        model_name="small",
        file=file,
        executable="",
        slots=2,
        context_length=128,
        threads=1,
        batch_size=64,
        cache_ram_mb=0,
        gpu_layers=-1,
        load_timeout_s=30.0,
        stop_timeout_s=2.0,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    folder = tmp_path_factory.mktemp("small")
    engine = Engine(spec(gguf_files.llama_gguf(folder / "small.gguf")), folder / "e.sock")
    await engine.start()
    yield engine
    await engine.stop()


async def test_a_prompt_begins_as_the_model_wants_it_and_a_text_does_not(small: Engine) -> None:
    bare = await small.tokenize("a</s>", special=False)
    assert bare[-5:] == [3 + ord("a"), *(3 + ord(letter) for letter in "</s>")]
    assert await small.tokenize("a</s>", special=True) == [1, *bare[:-4], 2]


async def test_the_template_begins_the_answer(small: Engine) -> None:
    rendered = await small.render([{"role": "user", "content": "Good day"}])
    assert "Good day" in rendered
    assert rendered.rstrip().endswith("assistant")


async def test_scores_are_those_of_the_model_whatever_is_sampled(small: Engine) -> None:
    prompt = Prompt("Hello", "", True, 6, 0.0, 1.0, (), None, options={"logprobs": 1})
    told = [one async for piece in small.generate(prompt) async for one in _all(piece.likely)]
    tokens = [3 + one.utf8[0] for one in told]
    scores = await small.score(await small.tokenize("Hello", special=True), tokens)
    assert [score.best for score in scores] == tokens
    for one, score in zip(told, scores, strict=True):
        assert score.logprob == score.best_logprob == pytest.approx(one.logprob, abs=1e-6)


async def _all(items: tuple[Any, ...]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def test_the_probabilities_of_all_tokens_are_one_together(small: Engine) -> None:
    every = [(await small.score([1, 70], [token]))[0] for token in range(288)]
    assert math.fsum(math.exp(score.logprob) for score in every) == pytest.approx(1.0, abs=1e-5)
    best = max(range(288), key=lambda token: every[token].logprob)
    assert {score.best for score in every} == {best}
    assert {round(score.best_logprob - every[best].logprob, 4) for score in every} == {0.0}


async def test_many_texts_at_once_give_what_they_give_alone(small: Engine) -> None:
    prompt = await small.tokenize("The quick brown fox jumps over the lazy dog", special=True)
    answers = [[60 + row, 70, 80 + row, 2, 90] for row in range(6)]
    alone = [await small.score(prompt, answer) for answer in answers]
    together = await asyncio.gather(*(small.score(prompt, answer) for answer in answers))
    apart = [abs(a.logprob - b.logprob) for row in zip(alone, together, strict=True) for a, b in zip(*row, strict=True)]
    assert max(apart) < 2e-3, "what is computed at once is rounded in another order"
    assert len({tuple(scores) for scores in alone}) == 6


async def test_a_text_that_is_too_long_is_the_callers_mistake(small: Engine) -> None:
    with pytest.raises(InvalidRequest, match="with a context of 128"):
        await small.score([70] * 300, [70])
    with pytest.raises(InvalidRequest, match="refused"):
        await small.score([1, 100_000], [70])
    assert await small.score([1, 70], [71]), "its slot is free again"


async def test_damaged_weights_give_no_scores(tmp_path: Path) -> None:
    weights = gguf_files.llama_weights()
    weights["blk.1.attn_output.weight"] = np.full_like(weights["blk.1.attn_output.weight"], np.nan)
    engine = Engine(spec(gguf_files.llama_gguf(tmp_path / "bad.gguf", weights=weights)), tmp_path / "e.sock")
    await engine.start()
    try:
        with pytest.raises(EngineFailed):
            await engine.score([1, 70], [71])
    finally:
        await engine.stop()


def chosen(token: int, logprob: float | None) -> dict[str, Any]:
    return {"id": token, "logprob": logprob, "top_logprobs": [{"id": 7, "logprob": -0.5}]}


@pytest.mark.parametrize("answered", [chosen(8, -1.0), chosen(9, None), chosen(9, -0.1)])
async def test_another_token_or_no_probability_is_no_score(answered: dict[str, Any]) -> None:
    async def ask(_path: str, _body: dict[str, Any]) -> dict[str, Any]:
        return {"completion_probabilities": [answered]}

    with pytest.raises(EngineFailed, match="are damaged"):
        await Scorer(ask, 1).score([1], [9], None)


async def test_what_has_no_probability_in_single_precision_has_the_least(small: Engine) -> None:
    asked: list[dict[str, Any]] = []

    async def ask(_path: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        return {"completion_probabilities": [chosen(9, -3.4028234663852886e38)]}

    adapters = [{"id": 0, "scale": 1.0}]
    assert await Scorer(ask, 1).score([1], [9], adapters) == [TokenScore(LEAST, 7, -0.5)]
    assert asked[0]["lora"] == adapters


async def test_an_answer_that_makes_no_sense_is_an_engine_that_broke(
    small: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(small.spec, small._socket)

    async def ask(_path: str, _body: dict[str, Any]) -> dict[str, Any]:
        return {"completion_probabilities": [], "tokens": ["x"]}

    engine._scorer = Scorer(ask, 1)
    for asking in (engine.score([1], [2]), engine.tokenize("a", special=False)):
        with pytest.raises(EngineBroke):
            await asking
