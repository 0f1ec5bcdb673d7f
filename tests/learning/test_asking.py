"""How rows are put to a model, through the pool and to an engine of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import gguf_files
from adapters import make_adapter
from learning.asked import TEMPLATE, alone, pooled, row
from modelops.api.errors import DeadlineExceeded, InvalidRequest, Overloaded
from modelops.api.learning import EvaluateParameters
from modelops.engines.base import EngineBroke
from modelops.learning.asking import Answered, EngineAsker, PoolAsker
from modelops.learning.datasets import Example
from modelops.serving.events import Share
from support import FAKE_ENGINE, tiny_gguf

PARAMETERS = EvaluateParameters(max_tokens=7)
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello"}


async def told(asker: PoolAsker | EngineAsker, question: Example, **changes: Any) -> dict[str, Any]:
    """What an engine that echoes is asked."""
    parameters = PARAMETERS.model_copy(update=changes)
    found: dict[str, Any] = json.loads((await asker.answer(question, parameters)).text)
    return found


# --- answers ---
async def test_a_row_is_put_as_a_conversation_and_answered_without_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooled(tmp_path, monkeypatch, {"echo": True}) as house:
        asker = PoolAsker(house.pool, "a", Share("somebody"), stop=("END",))
        assert asker.slots == 0
        asked = await told(asker, Example(1, (SYSTEM, USER), "Hi"))
        assert asked["path"] == "/v1/chat/completions"
        assert asked["messages"] == [SYSTEM, USER]
        assert (asked["temperature"], asked["max_tokens"], asked["stop"]) == (0.0, 7, ["END"])
        assert (asker.slots, asker.versions) == (2, {"v1"})
        assert house.pool.view("a").active == 0


async def test_a_system_turn_is_the_rows_or_the_parameters_or_the_models_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooled(tmp_path, monkeypatch, {"echo": True}) as house:
        plain, own = PoolAsker(house.pool, "a"), PoolAsker(house.pool, "a", system="Own.")

        async def system(asker: PoolAsker, question: Example, given: str = "") -> list[str]:
            turns = (await told(asker, question, system=given))["messages"]
            return [turn["content"] for turn in turns if turn["role"] == "system"]

        assert await system(plain, row(1)) == []
        assert await system(own, row(1)) == ["Own."]
        assert await system(own, row(1), "Given.") == ["Given."]
        assert await system(own, Example(1, (SYSTEM, USER), "Hi"), "Given.") == ["Be brief."]


async def test_a_model_without_a_template_is_given_the_bare_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooled(tmp_path, monkeypatch, {"echo": True}, template=False) as house:
        asked = await told(PoolAsker(house.pool, "a"), Example(1, (SYSTEM, USER), "Hi"))
        assert (asked["path"], asked["prompt"]) == ("/v1/completions", "Be brief.Hello")


async def test_a_row_whose_engine_breaks_is_asked_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = {"die_after": 1, "dies_once": str(tmp_path / "died"), "tokens": 2}
    async with pooled(tmp_path, monkeypatch, dies) as house:
        assert await PoolAsker(house.pool, "a").answer(row(1), PARAMETERS) == Answered("w0 w1 ", 2)
        assert house.starts == 2


async def test_a_row_that_breaks_every_engine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, {"die_after": 0}) as house:
        with pytest.raises(EngineBroke, match="SIGKILL"):
            await PoolAsker(house.pool, "a").answer(row(1), PARAMETERS)
        assert house.starts >= 2
        assert house.pool.view("a").active == 0


async def test_a_model_that_is_not_asked_any_more_has_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, {"status": 500}) as house:
        for _ in range(4):
            with pytest.raises(EngineBroke):
                await house.ask()
        asker = PoolAsker(house.pool, "a")
        with pytest.raises(EngineBroke, match="as told"):  # the fifth in a row, and then it is refused
            await asker.answer(row(1), PARAMETERS)
        with pytest.raises(Overloaded, match="has failed"):  # this row has broken nothing
            await asker.answer(row(2), PARAMETERS)


async def test_a_row_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, {"prompt_s": 3600}) as house:
        await house.load()
        with pytest.raises(DeadlineExceeded, match="'a' did not answer a row within"):
            await PoolAsker(house.pool, "a", patience_s=0.2).answer(row(1), PARAMETERS)
        assert house.pool.view("a").active == 0
        async with house.lease(), house.lease():
            with pytest.raises(DeadlineExceeded, match="waiting for a slot of 'a'"):
                await PoolAsker(house.pool, "a", patience_s=0.1).answer(row(1), PARAMETERS)


@pytest.mark.parametrize("adapter", [None, 1])
async def test_an_engine_of_ones_own_is_asked_with_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: int | None
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({"echo": True}))
    adapters = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    async with alone(
        tiny_gguf(tmp_path / "m.gguf", tokenizer__chat_template=TEMPLATE), tmp_path, str(FAKE_ENGINE), adapters
    ) as engine:
        asker = EngineAsker(engine, adapter)
        assert asker.slots == 2
        asked = await told(asker, row(1), system="Given.")
        assert asked["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": float(adapter == 1)}]
        assert [turn["content"] for turn in asked["messages"]] == ["Given.", "Hello"]


async def test_an_adapter_is_asked_in_its_models_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, {"echo": True}) as house:
        base = house.catalog.active("a")
        await house.catalog.publish_adapter("a:one", base, make_adapter(tmp_path / "one.gguf", base.file), {})
        asker = PoolAsker(house.pool, "a:one")
        asked = await told(asker, row(1))
        assert asked["lora"] == [{"id": 0, "scale": 1.0}]
        assert asked["path"] == "/v1/chat/completions"
        assert (await told(PoolAsker(house.pool, "a"), row(1)))["lora"] == [{"id": 0, "scale": 0.0}]
        assert (asker.slots, asker.versions) == (2, {"v1"})


# --- probabilities ---
async def test_the_likelihood_is_that_of_the_answers_tokens(tmp_path: Path) -> None:
    file = gguf_files.llama_gguf(tmp_path / "small.gguf")  # without a template; a token is a byte
    async with alone(file, tmp_path) as engine:
        asker = EngineAsker(engine)
        prompt = await engine.tokenize("Hello", special=True)
        answer = [3 + byte for byte in b"you"]
        expected = math.fsum(token.logprob for token in await engine.score(prompt, answer))
        found, tokens = await asker.likelihood(row(1, "you"), PARAMETERS)
        assert found == pytest.approx(expected, abs=0.01)
        assert tokens == 3
        other, _ = await asker.likelihood(row(1, "you"), PARAMETERS.model_copy(update={"system": "Be brief."}))
        assert other != pytest.approx(found, abs=0.01)


async def test_a_texts_likelihood_is_of_all_behind_what_the_model_begins_with(tmp_path: Path) -> None:
    async with alone(gguf_files.llama_gguf(tmp_path / "small.gguf"), tmp_path) as engine:
        start, *tokens = await engine.tokenize("Once", special=True)
        expected = math.fsum(token.logprob for token in await engine.score([start], tokens))
        found, count = await EngineAsker(engine).likelihood(Example(1, text="Once"), PARAMETERS)
        assert found == pytest.approx(expected, abs=0.01)
        assert count == len(tokens)


@pytest.mark.engine
async def test_an_answer_is_read_behind_the_prompt_as_it_was_asked(tmp_path: Path, smollm2: Path) -> None:
    async with alone(smollm2, tmp_path) as engine:
        question = row(1, "\n\nHi")  # the template ends with a line, too, and three ends are one token
        prompt = await engine.tokenize(await engine.render(question.turns), special=True)
        answer = await engine.tokenize(question.answer, special=False)
        expected = math.fsum(token.logprob for token in await engine.score(prompt, answer))
        found, tokens = await EngineAsker(engine).likelihood(question, PARAMETERS)
        assert found == pytest.approx(expected, abs=0.05)
        assert tokens == len(answer)
        _, *rest = await engine.tokenize("Once upon a time", special=True)  # it begins texts with nothing
        assert (await EngineAsker(engine).likelihood(Example(2, text="Once upon a time"), PARAMETERS))[1] == len(rest)


async def test_the_pool_gives_what_the_engine_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf_files.llama_gguf(tmp_path / "small.gguf")
    questions = [row(1, "you"), Example(2, text="Once upon a time")]
    async with alone(file, tmp_path) as engine:
        expected = [await EngineAsker(engine).likelihood(question, PARAMETERS) for question in questions]
    async with pooled(tmp_path, monkeypatch, model=file) as house:
        asker = PoolAsker(house.pool, "a")
        found = [await asker.likelihood(question, PARAMETERS) for question in questions]
        assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
        for (one, _), (other, _) in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=0.01)
        usage = house.pool.view("a").usage
        assert usage.prompt_tokens > 20
        assert usage.answer_tokens == 0
        both = PARAMETERS.model_copy(update={"metrics": ["exact_match", "perplexity"]})
        before = len("Hello") + 4  # the model begins a text with a token, and with a space of three bytes
        assert await asker.tokens(questions[0], both) == before + len("you")
        assert await asker.tokens(questions[0], PARAMETERS) == before + 1
        assert await asker.tokens(questions[1], PARAMETERS) == 0, "nothing is asked of it"
        assert usage == house.pool.view("a").usage
        with pytest.raises(InvalidRequest, match="context"):
            await asker.likelihood(Example(3, text="x" * 5000), PARAMETERS)
        assert house.pool.view("a").breaker.state == "closed"
