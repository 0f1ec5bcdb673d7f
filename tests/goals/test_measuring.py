"""Workloads on real engines: one of a tiny model, or where nothing is to be computed the fake one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from modelops.api.errors import EngineFailed
from modelops.api.goals import Workload
from modelops.engines.base import EngineBroke
from modelops.goals.measuring import (
    NoQuietTime,
    NotAlone,
    NotQuiet,
    Reading,
    Watched,
    giving_way,
    measure,
    prompts_of,
    unless_crowded,
)
from modelops.goals.text import TEXTS
from modelops.learning.datasets import Example
from modelops.learning.engines import OwnEngines
from modelops.learning.yielding import Yielding
from modelops.serving.devices import ThisMachine
from modelops.serving.loans import Loan
from modelops.serving.wishes import Wish
from modelops.settings import Settings
from support import FAKE_ENGINE

REAL: dict[str, Any] = {
    "requests": [{"input_text": "What is a river?", "max_tokens": 5}, {"input_text": "And a lake?"}]
}


@contextlib.asynccontextmanager
async def engine(
    folder: Path, file: Path, yielding: Yielding | None = None, *, executable: str = ""
) -> AsyncIterator[Watched]:
    settings = Settings.model_validate({"data_dir": folder, "engine": {"threads": 1, "executable": executable}})
    own = OwnEngines(settings, ThisMachine(), folder)
    planned = await own.plan("m", file, wish=Wish(slots=2))
    async with own.run(planned, Loan(planned.size)) as running:
        with giving_way(running, yielding or Yielding(0.0)) as watched:
            yield watched


async def measured(watched: Watched, workload: Workload, requests: int, **fields: Any) -> tuple[Any, int]:
    """The figures, and how many samples were thrown away."""
    thrown: list[None] = []
    given = {"patience_s": 30.0, "thrown": counting(thrown), **fields}
    return await measure(watched, workload, requests, 1, **given), len(thrown)


def counting(thrown: list[None]) -> Callable[[], Awaitable[None]]:
    async def count() -> None:
        thrown.append(None)

    return count


async def begun(sample: asyncio.Task[Any]) -> None:
    """Wait until the sample has begun, what comes before it is over."""
    while not sample.done() and not any(task.get_name() == "measurement: sample" for task in asyncio.all_tasks()):
        await asyncio.sleep(0.002)
    assert not sample.done()


async def test_prompts_have_the_length_that_is_wanted_and_nothing_in_common_but_the_prefix(
    tiny: Path, tmp_path: Path
) -> None:
    async with engine(tmp_path, tiny) as watched:
        workload = Workload(prompt_tokens=60, answer_tokens=4, concurrency=2, shared_prefix=0.5)
        found = await prompts_of(watched.engine, workload, 6, "1")
        again = await prompts_of(watched.engine, workload, 6, "1")
        others = await prompts_of(watched.engine, workload, 6, "2")
        tokens = [await watched.engine.tokenize(prompt.text, special=False) for prompt in found]
    assert [prompt.text for prompt in found] == [prompt.text for prompt in again]
    assert not {prompt.text for prompt in found} & {prompt.text for prompt in others}
    assert len({prompt.text for prompt in found}) == 6
    assert all(50 <= len(each) <= 70 for each in tokens), [len(each) for each in tokens]
    same = sum(len(set(column)) == 1 for column in zip(*tokens, strict=False))
    assert 20 <= same <= 36, "half of it"


async def test_answers_have_exactly_the_length_that_is_wanted(tiny: Path, tmp_path: Path) -> None:
    async with engine(tmp_path, tiny) as watched:
        workload = Workload(prompt_tokens=20, answer_tokens=7, concurrency=3)
        found, thrown = await measured(watched, workload, 6)
    assert (found.requests, thrown) == (6, 0)
    assert found.tokens_per_second * found.seconds == pytest.approx(6 * 7)
    assert found.prompt_tokens_per_second * found.seconds == pytest.approx(6 * 20, rel=0.3)
    assert found.requests_per_second == pytest.approx(6 / found.seconds)
    assert 0 < found.p95_latency_ms <= 1000 * found.seconds
    assert found.memory_mb > 10


async def test_real_requests_are_asked_as_they_are(tiny: Path, tmp_path: Path) -> None:
    workload = Workload(**REAL, answer_tokens=9, concurrency=2)
    async with engine(tmp_path, tiny) as watched:
        prompts = await prompts_of(watched.engine, workload, 3, "1")
        found, _ = await measured(watched, workload, 4)
    assert [(prompt.text, prompt.max_tokens) for prompt in prompts[:2]] == [("What is a river?", 5), ("And a lake?", 9)]
    assert prompts[2].options == {"cache_prompt": False}, "the same again is computed again"
    assert 0 < round(found.tokens_per_second * found.seconds) <= 2 * 5 + 2 * 9


@pytest.fixture
def fake(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def start(yielding: Yielding, **behaviour: Any) -> Any:
        monkeypatch.setenv("FAKE_ENGINE", json.dumps({"tokens": 5, "token_s": 0.02, **behaviour}))
        return engine(tmp_path, tiny, yielding, executable=str(FAKE_ENGINE))

    return start


async def test_what_was_measured_beside_requests_is_thrown_away_and_measured_again(fake: Callable[..., Any]) -> None:
    yielding, workload = Yielding(0.0), Workload(**REAL, concurrency=1)
    async with fake(yielding) as watched, asyncio.TaskGroup() as group:
        sample = group.create_task(measured(watched, workload, 8))
        await begun(sample)
        yielding.busy(True)
        assert yielding.paused
        await asyncio.sleep(0)
        assert not sample.done()
        yielding.busy(False)
        found, thrown = await sample
    assert thrown == 1
    assert found.requests == 8
    assert found.seconds < 2 * 8 * 5 * 0.02 + 2, "not what it stood still for"


async def test_what_was_measured_beside_learning_jobs_is_thrown_away(fake: Callable[..., Any]) -> None:
    workload, learns = Workload(**REAL, concurrency=1), asyncio.Event()
    async with fake(Yielding(0.0)) as watched:
        with pytest.raises(NotAlone) as early:
            await measured(watched, workload, 2, beside=lambda: True)
        assert not early.value.thrown
        sample = asyncio.create_task(measured(watched, workload, 100, beside=learns.is_set))
        await begun(sample)
        learns.set()
        with pytest.raises(NotAlone) as late:
            await sample
        assert late.value.thrown


async def test_without_a_quiet_time_nothing_is_measured(fake: Callable[..., Any]) -> None:
    yielding, workload = Yielding(0.0), Workload(**REAL, concurrency=1)
    async with fake(yielding) as watched:
        yielding.busy(True)
        with pytest.raises(NoQuietTime, match="no quiet time"):
            await measured(watched, workload, 2, patience_s=0.1)


async def test_an_engine_that_stands_still_for_long_is_not_kept(
    fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.goals.measuring._PATIENCE_S", 0.1)
    yielding, workload = Yielding(0.0), Workload(**REAL, concurrency=1)
    async with fake(yielding) as watched:
        found, _ = await unless_crowded(watched, measured(watched, workload, 4))
        assert found.requests == 4, "nobody is in its way"
        sample = asyncio.create_task(unless_crowded(watched, measured(watched, workload, 100)))
        await begun(sample)
        yielding.busy(True)
        with pytest.raises(NotQuiet):
            await sample
        yielding.busy(False)


async def test_short_quiet_times_are_none(fake: Callable[..., Any]) -> None:
    yielding, workload = Yielding(0.0), Workload(**REAL, concurrency=1)
    async with fake(yielding) as watched, asyncio.TaskGroup() as group:
        sample = group.create_task(refused(watched, workload))
        while not sample.done():
            with contextlib.suppress(AssertionError):
                await begun(sample)
            yielding.busy(True)
            await asyncio.sleep(0.005)  # a short request
            yielding.busy(False)
            await asyncio.sleep(0.005)
        assert await sample >= 1


async def refused(watched: Watched, workload: Workload) -> int:
    """How many samples were thrown away before it was given up."""
    thrown: list[None] = []
    with pytest.raises(NoQuietTime):
        await measure(watched, workload, 50, 1, patience_s=0.5, thrown=counting(thrown))
    return len(thrown)


async def test_an_engine_that_dies_says_so(fake: Callable[..., Any]) -> None:
    async with fake(Yielding(0.0), die_after=2) as watched:
        with pytest.raises(EngineBroke):
            await measured(watched, Workload(**REAL, concurrency=2), 2)


async def test_the_perplexity_of_a_text_is_that_of_all_its_tokens(tiny: Path, tmp_path: Path) -> None:
    rows = [Example(1, text="the rose is red"), Example(2, text="and the lake is blue")]
    async with engine(tmp_path, tiny) as watched:
        both = await perplexity(watched, rows)
        each = [await perplexity(watched, [row]) for row in rows]
        assert await perplexity(watched, rows) == pytest.approx(both, rel=1e-3)
    assert min(each) <= both <= max(each)
    assert both > 1


async def perplexity(watched: Watched, rows: list[Example]) -> float:
    reading = Reading(rows)
    await reading.go_on(watched)
    return reading.perplexity


async def test_a_text_is_read_on_where_requests_have_ended_the_engine(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.goals.measuring._PATIENCE_S", 0.1)
    monkeypatch.setattr("modelops.goals.measuring._PART", 1)
    rows = [Example(number, text=f"the rose {number} is red") for number in range(1, 201)]
    yielding, reading = Yielding(0.0), Reading(rows)
    async with engine(tmp_path, tiny, yielding) as watched:
        doing = asyncio.create_task(reading.go_on(watched))
        while len(reading._left) == len(rows):
            await asyncio.sleep(0)
        yielding.busy(True)
        with pytest.raises(NotQuiet):
            await doing
        yielding.busy(False)
    assert 0 < len(reading._left) < len(rows)
    async with engine(tmp_path, tiny, yielding) as watched:
        await reading.go_on(watched)
        assert reading.perplexity == pytest.approx(await perplexity(watched, rows), rel=1e-3)


async def test_no_text_has_no_perplexity() -> None:
    with pytest.raises(EngineFailed, match="gives the text no probability"):
        assert Reading([]).perplexity


def test_the_text_is_long_enough_and_nothing_in_it_comes_twice() -> None:
    assert len(TEXTS) == len(set(TEXTS))
    assert sum(len(text.split()) for text in TEXTS) > 1400
    assert all(text.isascii() for text in TEXTS)
