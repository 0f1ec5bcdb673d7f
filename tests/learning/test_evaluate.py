"""Evaluations: every row once, in order, as many at once as there are slots; and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from typing import Any

import pytest

import gguf_files
from learning.asked import alone, pooled, row
from modelops.api.errors import InvalidRequest, ModelOpsError, Overloaded
from modelops.api.learning import EvaluateParameters, Metric
from modelops.engines.base import EngineBroke
from modelops.learning.asking import EngineAsker, PoolAsker
from modelops.learning.datasets import Example
from modelops.learning.evaluate import Evaluation, Judged, check, compared, evaluate
from serving.house import House

PARAMETERS = EvaluateParameters(metrics=["exact_match", "contains"], max_tokens=1)


def ignore(_done: int, _total: int) -> None:
    pass


async def judge(house: House, rows: list[Example], **options: Any) -> Evaluation:
    return await evaluate(rows, PARAMETERS, PoolAsker(house.pool, "a"), options.pop("progress", ignore), **options)


async def test_rows_are_judged_once_each_and_told_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[int, int]] = []
    rows = [row(3 * number + 1, "w0" if number % 4 else "another") for number in range(20)]
    async with pooled(tmp_path, monkeypatch) as house:
        found = await judge(house, rows, progress=lambda done, total: heard.append((done, total)))
        assert house.pool.view("a").usage.answer_tokens == 20
    assert found.scores == {"exact_match": 0.75, "contains": 0.75}
    assert (found.rows, found.tokens) == (20, 20)
    assert found.seconds > 0
    assert [one.line for one in found.judged] == [3 * number + 1 for number in range(20)]
    assert found.judged[0] == Judged(1, "w0 ", 1, {"exact_match": 0.0, "contains": 0.0})
    assert heard == [(done, 20) for done in range(21)]


async def test_the_slots_are_always_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    async with pooled(tmp_path, monkeypatch, {"token_s": 0.005}, slots=4) as house:

        def look(_done: int, _total: int) -> None:
            view = house.pool.view("a")
            seen.append((view.active, view.queued))

        await judge(house, [row(number) for number in range(1, 41)], progress=look)
    # The first ones wait for the load; when one ends, the next one has its slot already.
    assert {active for active, _ in seen[8:34]} == {4}
    assert max(queued for _, queued in seen) <= 2
    assert seen[-1] == (0, 0)


async def test_who_is_told_to_come_back_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, models={"max_queue": 0}) as house:
        await house.load()
        found = await judge(house, [row(number) for number in range(1, 13)])
        assert found.scores["exact_match"] == 1.0
        assert found.rows == 12
        async with house.lease(), house.lease():  # others have all that there is
            with pytest.raises(Overloaded):
                await judge(house, [row(1)], patience_s=0.05)


async def test_who_is_overloaded_for_a_while_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, models={"max_queue": 0}) as house, contextlib.AsyncExitStack() as others:
        await house.load()
        for _ in range(2):
            await others.enter_async_context(house.lease())
        async with asyncio.TaskGroup() as group:
            judging = group.create_task(judge(house, [row(number) for number in range(1, 4)]))
            with pytest.raises(Overloaded):  # as those rows are
                await house.ask()
            await others.aclose()
        assert judging.result().rows == 3


@pytest.mark.parametrize("metrics", [["exact_match"], ["perplexity"]])
async def test_rows_that_the_context_has_no_room_for_are_named_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: list[Metric]
) -> None:
    heard: list[int] = []
    rows = [row(1), row(7, prompt="x" * 252), row(8, prompt="x" * 250), row(9, prompt="x" * 5000)]
    file = gguf_files.llama_gguf(tmp_path / "small.gguf")  # a token is a byte
    async with pooled(tmp_path, monkeypatch, model=file) as house:
        asker = PoolAsker(house.pool, "a")
        parameters = EvaluateParameters(metrics=metrics, max_tokens=1)
        with pytest.raises(InvalidRequest, match=r"^lines 7, 9: longer than the context of 256 tokens"):
            await evaluate(rows, parameters, asker, lambda done, _total: heard.append(done))
        assert heard == [0]
        assert house.pool.view("a").usage.total == 0
        found = await evaluate([rows[0], rows[2]], parameters, asker, ignore)
        assert [one.line for one in found.judged] == [1, 8], "what just fits is asked"


async def _leaves_nothing(house: House, tasks: set[asyncio.Task[Any]]) -> None:
    view = await house.until(lambda view: not view.active)
    assert view.queued == 0
    assert {task for task in asyncio.all_tasks() - tasks if "evaluate" in task.get_name()} == set()


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidRequest), (500, EngineBroke)])
async def test_the_first_error_ends_it_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[ModelOpsError]
) -> None:
    behaviour = {"status": status, "sick_file": str(tmp_path / "sick"), "token_s": 0.002}
    async with pooled(tmp_path, monkeypatch, behaviour) as house:
        tasks = asyncio.all_tasks()

        def progress(done: int, _total: int) -> None:
            if done == 5:
                (tmp_path / "sick").touch()

        with pytest.raises(kind, match=r"^line \d+: .*as told" if kind is InvalidRequest else "as told"):
            await judge(house, [row(number) for number in range(1, 100)], progress=progress)
        await _leaves_nothing(house, tasks)


async def test_an_evaluation_that_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, {"hang_after": 0}) as house:
        tasks = asyncio.all_tasks()
        judging = asyncio.create_task(judge(house, [row(number) for number in range(1, 10)]))
        await house.until(lambda view: view.active == 2)
        judging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await judging
        await _leaves_nothing(house, tasks)


async def test_the_end_of_the_coordinator_is_not_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(tmp_path, monkeypatch, {"token_s": 0.01}) as house:
        judging = asyncio.create_task(judge(house, [row(number) for number in range(1, 100)]))
        await house.until(lambda view: view.active == 2)
        await house.pool.drain(10)
        with pytest.raises(Overloaded, match="shutting down"):
            await judging


async def test_a_fault_of_ours_is_no_group_of_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def progress(done: int, _total: int) -> None:
        if done:
            raise ZeroDivisionError

    async with pooled(tmp_path, monkeypatch) as house:
        with pytest.raises(ZeroDivisionError):
            await judge(house, [row(1), row(2)], progress=progress)


async def test_texts_have_a_perplexity_and_nothing_else(tmp_path: Path) -> None:
    parameters = EvaluateParameters(metrics=["f1", "perplexity"], max_tokens=2)
    rows = [Example(1, text="Once upon a time"), row(2, "there"), Example(3, text="the end")]
    heard: list[tuple[int, int]] = []
    async with alone(gguf_files.llama_gguf(tmp_path / "small.gguf"), tmp_path) as engine:
        asker = EngineAsker(engine)
        found = await evaluate(rows, parameters, asker, lambda done, total: heard.append((done, total)))
        without = await evaluate(rows, EvaluateParameters(metrics=["f1"], max_tokens=2), asker, ignore)
    assert heard[-1] == (4, 4)
    assert [(one.line, one.scored) for one in found.judged] == [(1, 25), (2, 5), (3, 12)]  # a space is three bytes
    assert [sorted(one.scores) for one in found.judged] == [["perplexity"], ["f1", "perplexity"], ["perplexity"]]
    each = [math.log(one.scores["perplexity"]) * one.scored for one in found.judged]
    assert math.log(found.scores["perplexity"]) * 42 == pytest.approx(math.fsum(each))
    assert (found.rows, without.rows, sorted(without.scores)) == (3, 1, ["f1"])


def test_two_evaluations_are_compared_by_the_rows_that_both_could_judge() -> None:
    def judged(*rows: tuple[int, dict[str, float], float]) -> Evaluation:
        made = tuple(Judged(line, scores=scores, logprob=logprob, scored=4) for line, scores, logprob in rows)
        return Evaluation({}, len(made), 0, 0.0, made)

    right, wrong, text = {"exact_match": 1.0}, {"exact_match": 0.0}, {"perplexity": 2.0}
    before = judged((1, right, 0.0), (2, wrong, 0.0), (3, right, 0.0), (4, text, -2.0), (5, text, -3.0))
    after = judged((1, wrong, 0.0), (2, right, 0.0), (4, text, -1.0), (5, text, -9.0), (6, right, 0.0))
    found = compared(["exact_match", "perplexity", "f1"], before, after)
    assert found.keys() == {"exact_match", "perplexity"}
    assert found["exact_match"] == {
        "wins": 1,
        "losses": 1,
        "ties": 0,
        "p_loses": pytest.approx(0.75),
        "test": "mcnemar",
    }
    assert (found["perplexity"]["wins"], found["perplexity"]["losses"]) == (1, 1)
    assert found["perplexity"]["test"] == "bootstrap"


def test_metrics_that_can_judge_no_row_are_refused() -> None:
    texts = [Example(1, text="Once"), Example(2, text="Twice")]
    with pytest.raises(InvalidRequest, match="perplexity; add it to the metrics"):
        check(texts, PARAMETERS)
    check([*texts, row(3)], PARAMETERS)
    check(texts, EvaluateParameters(metrics=["perplexity"]))


QUESTIONS = [
    ("How many days are in a week?", "7"),
    ("What is the opposite of hot?", "cold"),
    ("What color is the sky?", "blue"),
    ("What is the capital of Italy?", "Rome"),
]


@pytest.mark.engine
async def test_the_real_model_is_judged_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: Path
) -> None:
    parameters = EvaluateParameters(metrics=["contains", "f1", "perplexity"], max_tokens=12)
    rows = [row(number, answer, prompt) for number, (prompt, answer) in enumerate(QUESTIONS, 1)]
    rows.append(Example(5, text="The quick brown fox jumps over the lazy dog."))
    rows.append(Example(6, text="dog lazy The over quick jumps the fox brown."))
    async with pooled(tmp_path, monkeypatch, model=smollm2) as house:
        asker = PoolAsker(house.pool, "a")
        found = await evaluate(rows, parameters, asker, ignore)
        again = await evaluate(rows, parameters, asker, ignore)
    assert [one.answer for one in found.judged] == [one.answer for one in again.judged]
    assert found.scores == pytest.approx(again.scores, rel=0.02)
    assert found.scores["contains"] == 0.75, "it does not know Italy"
    assert found.judged[4].scores["perplexity"] < found.judged[5].scores["perplexity"] / 3
