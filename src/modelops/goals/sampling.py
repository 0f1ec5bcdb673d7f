"""Takes samples of ways of running a model, for one step of a goal of the type `serving`: each on an engine of its own,
while no learning job is worked on, and written into the goal's folder at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from modelops.api.errors import DeadlineExceeded, EngineFailed, InsufficientMemory, InvalidRequest
from modelops.api.goals import ServingObjective, Workload
from modelops.engines.base import EngineBroke
from modelops.goals import asked
from modelops.goals.doing import TEXT, Tell, Tools
from modelops.goals.measuring import (
    NoQuietTime,
    NotAlone,
    NotQuiet,
    Reading,
    Watched,
    giving_way,
    measure,
    unless_crowded,
)
from modelops.goals.space import Measured, Way
from modelops.goals.surveying import Surveyor, run_as
from modelops.learning import datasets
from modelops.learning.folders import read_json, write_json
from modelops.learning.lending import lent
from modelops.serving.catalog import Version
from modelops.serving.formats import Formats

_NOTES = "measured.json"
_TRIES = 2  # of a sample whose engine breaks: somebody may have killed it
_TOLD = 10  # of so many samples of a way that are thrown away one is told of, and the first
_LOOK_S = 1.0  # between two looks whether learning jobs are worked on still
_LOOK_FOR_QUIET_S = 0.1
_UNFIT = (EngineFailed, InvalidRequest, DeadlineExceeded, InsufficientMemory)


class Sampler:
    """Samples for one goal; `notes` has those that were taken before."""

    def __init__(
        self,
        tools: Tools,
        formats: Formats,
        surveyor: Surveyor,
        goal_id: str,
        objective: ServingObjective,
        folder: Path,
        tell: Tell,
    ) -> None:
        self.notes = Notes(folder / _NOTES)
        self._tools = tools
        self._pool = tools.pool
        self._formats = formats
        self._surveyor = surveyor
        self._goal_id = goal_id
        self._objective = objective
        self._folder = folder
        self._tell = tell

    async def file(self, version: Version, weights: str) -> Path:
        """The version's weights as that, "" for as they are."""
        if not weights:
            return version.file
        version = await self._tools.catalog.digest(version)  # by which the file is found when the version is removed
        self._formats.hold(self._goal_id, version)
        giving_way = self._tools.yielding.giving_way
        return await self._formats.file(version, weights, self._pool.borrow, giving_way=giving_way)  # type: ignore[arg-type]

    async def perplexity(self, version: Version, way: Way) -> float:
        """That of the text rows, with the version run so; each is measured once, and part by part where requests leave
        little time."""
        key = f"perplexity/{version.label}/{way.weights}/{way.cache_type}"
        if (known := self.notes.get(key)) is None:
            rows = await asyncio.to_thread(datasets.load, self._folder / TEXT, "evaluate")
            reading = Reading(rows)
            while known is None:
                await self._quiet()
                with contextlib.suppress(NotQuiet):
                    async with self._engine(version, way) as watched:
                        await reading.go_on(watched)
                        known = reading.perplexity
            await self.notes.put(key, known)
        return float(known)

    async def sample(self, version: Version, way: Way, requests: int, seed: int, *, whole: bool) -> dict[str, Any]:
        """What the way gave, or why it could not be measured; with `whole` that is raised. Another `seed`
        is other prompts."""
        thrown = 0

        async def threw() -> None:
            nonlocal thrown
            thrown += 1
            if thrown == 1 or thrown % _TOLD == 0:
                count = "1 sample was" if thrown == 1 else f"{thrown} samples were"
                await self._tell("warning", f"requests leave no quiet time: {count} thrown away so far")

        workload, broke, loop = await self._workload(), 0, asyncio.get_running_loop()
        patience_s = self._tools.settings.goals.quiet_timeout_s
        until: float | None = None  # for so long a quiet time is waited for
        while True:
            await self._alone()
            until = until or loop.time() + patience_s
            await self._quiet(until)
            began = loop.time()
            try:
                async with self._engine(version, way) as watched:
                    until += loop.time() - began  # the wait for memory, and the start, are none for a quiet time
                    measuring = measure(
                        watched, workload, requests, seed, patience_s=patience_s, thrown=threw, beside=self._beside
                    )
                    measured = await unless_crowded(watched, measuring)
            except NotQuiet:
                continue
            except NotAlone as error:
                thrown += error.thrown
                until = None
            except _UNFIT as error:
                broke += 1
                until = None
                again = isinstance(error, EngineBroke) and broke < _TRIES
                if whole and not again:
                    raise
                if not again:
                    return {"error": error.message}
            else:
                return {**measured.to_json(), "thrown_away": thrown}

    async def _workload(self) -> Workload:
        """What is measured; the requests themselves, where they were given."""
        described = self._objective.described
        requests = await asyncio.to_thread(asked.requests_of, self._folder)
        return described.model_copy(update={"requests": requests}) if requests else described

    def _beside(self) -> bool:
        return self._tools.jobs.running > 0

    async def _alone(self) -> None:
        """Wait until no learning job is worked on: without an engine, whose memory they may need."""
        told = False
        while self._beside():
            if not told:
                await self._tell("warning", "it waits for the learning jobs that are worked on beside it")
                told = True
            await asyncio.sleep(_LOOK_S)

    async def _quiet(self, until: float = math.inf) -> None:
        """Wait until no request is answered: without an engine, for whose memory idle models would go that may be asked
        next. Raises NoQuietTime."""
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() >= until:
                raise NoQuietTime(self._tools.settings.goals.quiet_timeout_s)
            if not self._tools.yielding.paused:
                return
            await asyncio.sleep(_LOOK_FOR_QUIET_S)

    @contextlib.asynccontextmanager
    async def _engine(self, version: Version, way: Way) -> AsyncIterator[Watched]:
        """An engine of the goal's own that is run so; where its memory is not free, the goal waits."""
        tools, name = self._tools, f"goal {self._goal_id}"
        model = await self._surveyor.model(self._objective.model_name)
        draft = self._objective.draft_model_name or model.wish.tuning.draft
        file = await self.file(version, way.weights)
        guesser = (await self._surveyor.draft(draft)).file if way.speculation == "draft" else None
        planned = await tools.engines.plan(
            self._objective.model_name, file, wish=run_as(way, model.wish, draft), draft=guesser
        )
        async with (
            lent(tools.pool, name, planned.size, waits=self._tell_waiting) as loan,
            tools.engines.run(planned, loan) as engine,
        ):
            with giving_way(engine, tools.yielding) as watched:
                yield watched

    async def _tell_waiting(self, why: str) -> None:
        if why:
            await self._tell("warning", why)


def turns(pairs: int, ways: int) -> list[tuple[int, int]]:
    """Which way, by its number, is measured when, as (pair, way). What grows or falls meanwhile on the machine is to
    hit all alike: every other pair goes the other way round, and one pair alone ends with the present way, with which
    it has begun, and of which the mean counts."""
    order = [(pair, way) for pair in range(pairs) for way in range(ways)[:: -1 if pair % 2 else 1]]
    return [*order, (1, 0)] if pairs == 1 and ways > 1 else order


class Notes:
    """What has been measured, by a key, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """What was put under the key; None for nothing."""
        if self._known is None:
            self._known = read_json(self._file) if self._file.is_file() else {}
        return self._known.get(key)

    async def put(self, key: str, value: Any) -> None:
        """Keep it."""
        self._known = {**(self._known or {}), key: value}
        await asyncio.to_thread(write_json, self._file, self._known)


def said(sample: Mapping[str, Any]) -> str:
    """A sample, for a person."""
    return f"not measured: {sample['error']}" if sample.get("error") else Measured.from_json(sample).words()


def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a way's samples, and where there are several those too; or why it could not be measured."""
    if failed := [sample for sample in samples if sample.get("error")]:
        return {"error": failed[0]["error"]}
    if len(samples) == 1:
        return samples[0]
    middle = {name: round(median(sample[name] for sample in samples), 4) for name in Measured.__dataclass_fields__}
    return {**middle, "requests": sum(sample["requests"] for sample in samples), "samples": samples}
