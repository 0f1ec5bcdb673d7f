"""The steps of one learning job, each done once: what is done is memorised with its result, and not done again.

validate → prepare → train → convert → parity → evaluate → publish; a job that only judges: validate → evaluate.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelops.api.errors import Conflict, DeadlineExceeded, EngineFailed
from modelops.api.learning import EvaluateParameters, Parameters, TrainParameters, parameters_of
from modelops.durable import work as durable
from modelops.durable.work import Ended
from modelops.engines.base import EngineBroke
from modelops.engines.llama_cpp import Engine
from modelops.learning import datasets, parity, proving
from modelops.learning.asking import Asker, EngineAsker, PoolAsker
from modelops.learning.child import Child, Said, TrainerDied
from modelops.learning.costs import Cost, cost
from modelops.learning.engines import OwnEngines
from modelops.learning.evaluate import Evaluation, compared, evaluate, judgeable
from modelops.learning.folders import HELD_OUT, REGRESSION, TRAIN, Folders, read_json, write_json
from modelops.learning.lending import lent
from modelops.learning.room import CUDA_BYTES, gpu_bytes
from modelops.learning.telling import Telling
from modelops.learning.yielding import Pausable, Yielding
from modelops.serving.catalog import Catalog, Version
from modelops.serving.devices import Machine
from modelops.serving.events import Share
from modelops.serving.gguf import read_header
from modelops.serving.loans import Loan
from modelops.serving.pool import Pool
from modelops.settings import Settings
from modelops.store.jobs import JobQueries, JobRow

_TRAINING = ("validate", "prepare", "train", "convert", "parity", "evaluate", "publish")
STEPS: Mapping[str, tuple[str, ...]] = {"lora": _TRAINING, "dpo": _TRAINING, "evaluate": ("validate", "evaluate")}
#: What the libraries of a trainer take by themselves.
_TRAINER_BYTES = 600 << 20
_SAID = {"held_out": "held-out rows", "regression": "rows of other things"}
_TRIES = 4  # of a step whose process dies
#: Whoever waits for an answer goes before rows that are judged.
_SHARE = Share("learning", 0.25)
#: Longest of the rows, in tokens, that the trainer and the engine are compared by.
_COMPARED_TOKENS = 256


class ParityFailed(EngineFailed):
    """What was trained is not what the engine would serve."""


@dataclass(frozen=True)
class Works:
    """What jobs are worked on with; `changed` is called with the id of a job about which there is something new."""

    settings: Settings
    queries: JobQueries
    catalog: Catalog
    pool: Pool
    engines: OwnEngines
    yielding: Yielding
    folders: Folders
    machine: Machine
    changed: Callable[[str], None]

    def begin(self, row: JobRow) -> Work:
        """The work on a job that was claimed."""
        return Work(self, row)


class Work(durable.Work):
    """One job, from a claim on. `run` does what is left of it."""

    def __init__(self, works: Works, row: JobRow) -> None:
        super().__init__()
        self._works = works
        self._row = row
        self._folder = works.folders.job(row.id)
        self._memo: dict[str, Any] = dict(row.memo)
        self._telling = Telling(works.queries, row, STEPS[row.job_type], works.changed)
        self._yields = False
        self._step = ""

    @property
    def paused(self) -> bool:
        """Whether it stands still because requests are being answered."""
        return self._yields and self._works.yielding.paused

    @property
    def whole(self) -> bool:
        """Whether it registers what it has made: that is done as a whole."""
        return self._step == "publish"

    async def run(self) -> Ended:
        """Do what is left. Raises ModelOpsError where it cannot be done, Lost."""
        if not (self._folder / TRAIN).is_file():
            raise Conflict("the rows of the job are gone from the data folder; create it again")
        for step in STEPS[self._row.job_type]:
            if step not in self._memo:
                self._step = step
                await self._telling.begin(step)
                self._memo[step] = await self._done(step)
                await self._telling.done(self._memo[step])
        return Ended("completed", self._result())

    async def _done(self, step: str) -> dict[str, Any]:
        """The result of the step; where a process of it dies or hangs it is done again, a few times."""
        for tries in range(1, _TRIES + 1):
            try:
                result: dict[str, Any] = await getattr(self, f"_{step}")()
            except (TrainerDied, EngineBroke, DeadlineExceeded) as error:
                if tries == _TRIES:
                    raise
                await self._telling.event("warning", message=f"{error.message}; it is done again")
            else:
                return result
        raise AssertionError("the last try is returned, or raised")

    # --- the steps ---
    async def _validate(self) -> dict[str, Any]:
        """The base as it is now: since the job was created it may have changed."""
        version = await self._works.catalog.digest(self._version())
        return {"model_version": version.label, "digest": version.digest}

    async def _prepare(self) -> dict[str, Any]:
        await asyncio.to_thread(self._write_task, "cpu")
        return await self._child("prepare", "prepared.json", _TRAINER_BYTES)

    async def _train(self) -> dict[str, Any]:
        prepared = self._memo["prepare"]
        rows, longest, tokens = (int(prepared[name]) for name in ("rows", "longest", "tokens"))
        works = self._works
        on_gpu = gpu_bytes(works.settings, works.machine, works.pool, await self._cost(rows, longest, tokens, "cuda"))
        await asyncio.to_thread(self._write_task, "cuda" if on_gpu else "cpu")
        if on_gpu:
            return await self._child("train", "trained.json", CUDA_BYTES, on_gpu)
        needed = await self._cost(rows, longest, tokens, "cpu")
        return await self._child("train", "trained.json", needed.memory_bytes)

    async def _convert(self) -> dict[str, Any]:
        await asyncio.to_thread(self._write_task, "cpu")  # wherever it was trained
        return await self._child("convert", "converted.json", _TRAINER_BYTES + self._version().size)

    async def _parity(self) -> dict[str, Any]:
        """What the trainer says of some rows, the engine must say too: on the same numbers, rewritten in 16 bits."""
        await asyncio.to_thread(self._write_task, "cpu")
        needed = await self._cost(1, _COMPARED_TOKENS, _COMPARED_TOKENS, "cpu")
        reference = await self._child("reference", "reference.json", needed.memory_bytes)
        base = self._works.folders.base(self._memo["validate"]["digest"])
        found = await self._compared(reference, base, self._folder / "adapter.gguf", parity.MOST_DIFFERENCE)
        if self._publishes == "adapter":
            return found.figures()
        most = parity.MOST_DIFFERENCE if self._publishes == "F16" else parity.MOST_DIFFERENCE_Q8_0
        merged = await self._compared(reference, self._folder / "merged.gguf", None, most)
        return {**found.figures(), "merged": merged.figures()}

    async def _compared(
        self, reference: Mapping[str, Any], file: Path, adapter: Path | None, most: float
    ) -> parity.Parity:
        """What an engine says of the reference's rows. Raises ParityFailed where that is something else."""
        adapters, length = [adapter] if adapter else [], proving.context_length(reference)
        async with self._engine(file, adapters, context_length=length, exact=True) as engine:
            measured = await proving.measure(engine, reference, 0 if adapter else None)
        trained = self._memo["train"]
        first = trained.get("first_loss")  # an earlier release did not keep it
        fallen = first is None or trained["train_loss"] <= first
        found = parity.compare(reference, measured, most=most, fallen=fallen)
        if not found.passed:
            raise ParityFailed(f"nothing was published, as trainer and engine do not agree: {found.reason}")
        return found

    async def _evaluate(self) -> dict[str, Any]:
        """Before and after, as served, on the held-out rows and on those of other things."""
        if self._row.job_type == "evaluate":
            name = self._row.model_name
            entry = self._works.catalog.entry(name)
            asker = PoolAsker(self._works.pool, name, _SHARE, system=entry.system, stop=entry.stop)
            found = await self._judge(TRAIN, asker, "judging")
            return {**_told(found), "versions": sorted(asker.versions)}
        sets = {"held_out": HELD_OUT, "regression": REGRESSION}
        sets = {kind: file for kind, file in sets.items() if (self._folder / file).is_file()}
        judged: dict[str, dict[str, Evaluation]] = {kind: {} for kind in sets}
        if not sets:
            return {}
        merged, adapter = self._folder / "merged.gguf", self._folder / "adapter.gguf"
        whole = self._publishes != "adapter"
        stop, parts = self._works.catalog.entry(self._row.model_name).stop, itertools.count()

        async def judge(when: str, engine: Engine, number: int | None) -> None:
            for kind, file in sets.items():
                self._telling.part(next(parts), 2 * len(sets))
                asker = EngineAsker(engine, number, stop)
                judged[kind][when] = await self._judge(file, asker, f"{_SAID[kind]}, {when}")

        async with self._engine(self._version().file, [] if whole else [adapter]) as engine:
            await judge("before", engine, None)
            if not whole:
                await judge("after", engine, 0)
        if whole:
            async with self._engine(merged) as engine:
                await judge("after", engine, None)
        return await asyncio.to_thread(self._beside, judged)

    async def _publish(self) -> dict[str, Any]:
        """The version, registered. Done twice it is done once: the same file under the same name is one version."""
        catalog, name = self._works.catalog, self._row.output_model_name
        whole = self._publishes != "adapter"
        made = self._folder / ("merged.gguf" if whole else "adapter.gguf")
        if whole:
            version = await catalog.publish(name, made, "llm", self._lineage())
        else:
            version = await catalog.publish_adapter(name, self._version(), made, self._lineage())
        active = catalog.active(name).number == version.number
        return {"model_name": name, "model_version": version.label, "active": active}

    # --- what they are made of ---
    @property
    def _publishes(self) -> str:
        """An adapter, or what a whole model is written as."""
        published: str = self._row.request["publish"]
        return published

    @property
    def _threads(self) -> int:
        return self._works.settings.learning.threads or self._works.machine.cores

    @property
    def _parameters(self) -> Parameters:
        return parameters_of(self._row.job_type, dict(self._row.request["parameters"]))  # type: ignore[arg-type]

    def _write_task(self, device: str) -> None:
        """What the child program is to do."""
        length = self._works.settings.engine.context_length
        task = {
            "base": str(self._version().file),
            "digest": self._memo["validate"]["digest"],
            "job_type": self._row.job_type,
            "parameters": self._row.request["parameters"],
            "device": device,
            "threads": self._threads,
            "publish": self._publishes,
            "context_length": min(length, read_header(self._version().file).context_length or length),
            "bases": str(self._works.folders.bases),
        }
        write_json(self._folder / "task.json", task)

    def _version(self) -> Version:
        return self._works.catalog.version(self._row.model_name, self._row.request["model_version"])

    async def _cost(self, rows: int, longest: int, tokens: int, device: str) -> Cost:
        parameters = self._parameters
        assert isinstance(parameters, TrainParameters)
        header = await asyncio.to_thread(read_header, self._version().file)
        sizes = {"rows": rows, "longest": longest, "tokens": tokens}
        return cost(header, parameters, **sizes, threads=self._threads, device=device)

    async def _child(self, step: str, result: str, memory_bytes: int, on_gpu: int = 0) -> dict[str, Any]:
        """Run a step of the child program, in memory of the ledger; on the CPU it gives way to requests. What it has
        written."""
        threads = str(self._threads)
        environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        environment["PYTHONWARNINGS"] = "default"  # what its libraries warn of is not for us to mend
        stall_s = self._works.settings.learning.stall_timeout_s
        child = Child(step, self._folder, self._telling.hear, stall_s=stall_s)
        async with self._memory(memory_bytes, on_gpu) as loan, self._telling.listening():
            loan.taken, loan.pids = child.taken_bytes, child.pids
            # A GPU that it was not given memory of costs memory there as soon as it is seen.
            environment["CUDA_VISIBLE_DEVICES"] = loan.gpu(self._works.machine.devices()) or "-1"
            with contextlib.nullcontext() if on_gpu else self._giving_way(child):
                await child.run(environment)
        return await asyncio.to_thread(read_json, self._folder / result)

    @contextlib.asynccontextmanager
    async def _engine(
        self, file: Path, adapters: Sequence[Path] = (), *, context_length: int = 0, exact: bool = False
    ) -> AsyncIterator[Engine]:
        """An engine of the job's own; where its memory is not free the job waits."""
        planned = await self._works.engines.plan(
            self._row.model_name, file, adapters, context_length=context_length, exact=exact
        )
        async with self._memory(planned.size) as loan, self._works.engines.run(planned, loan) as engine:
            with self._giving_way(engine):
                yield engine

    @contextlib.contextmanager
    def _giving_way(self, work: Pausable) -> Iterator[None]:
        with self._works.yielding.giving_way(work):
            self._yields = True
            try:
                yield
            finally:
                self._yields = False

    @contextlib.asynccontextmanager
    async def _memory(self, size: int, on_gpu: int = 0) -> AsyncIterator[Loan]:
        """Hold so much memory of the ledger; where it is not free the job waits for it, and says so."""
        name = f"learning job {self._row.id}"
        async with lent(self._works.pool, name, size, on_gpu, waits=self._waits) as loan:
            yield loan

    async def _waits(self, why: str) -> None:
        await self._telling.note(message=why)
        if why:
            await self._telling.event("warning", message=why)

    @property
    def _judged_by(self) -> EvaluateParameters:
        parameters = self._parameters
        return parameters if isinstance(parameters, EvaluateParameters) else parameters.evaluation

    async def _judge(self, file: str, asker: Asker, what: str) -> Evaluation:
        rows = await asyncio.to_thread(datasets.load, self._folder / file, "evaluate")
        count = judgeable(rows, self._judged_by)

        def judged(done: int, total: int) -> None:
            # Of a row that is asked twice, half may be known.
            self._telling.hear(
                Said("progress", what, done, total, {"rows": done * count // total, "total_rows": count})
            )

        async with self._telling.listening():
            return await evaluate(rows, self._judged_by, asker, judged)

    def _beside(self, judged: Mapping[str, Mapping[str, Evaluation]]) -> dict[str, Any]:
        """What each set of rows was judged to be, before and after, and row by row."""
        metrics = self._judged_by.metrics
        return {
            kind: {when: _told(found) for when, found in both.items()}
            | {"paired": compared(metrics, both["before"], both["after"])}
            for kind, both in judged.items()
        }

    # --- what has become of it ---
    def _lineage(self) -> dict[str, Any]:
        """What the published version was made from, and how good it is."""
        return {
            "job_id": self._row.id,
            "job_type": self._row.job_type,
            "base_model": self._row.model_name,
            "base_version": self._memo["validate"]["model_version"],
            "base_digest": self._memo["validate"]["digest"],
            "dataset_digest": self._row.request["dataset_digest"],
            **self._trained_on(),
            "parameters": dict(self._row.request["parameters"]),
            "scores": self._memo["evaluate"],
            "parity": self._memo["parity"],
        }

    def _result(self) -> dict[str, Any]:
        if self._row.job_type == "evaluate":
            answered = ", ".join(self._memo["evaluate"]["versions"])  # more than one where another was activated
            return {"model_version": answered, "scores": self._memo["evaluate"]}
        trained = self._trained_on()
        trained |= {name: self._memo["train"][name] for name in ("steps", "train_loss", "eval_loss", "seconds")}
        trained["base_version"] = self._memo["validate"]["model_version"]
        return {**self._memo["publish"], "scores": self._memo["evaluate"], "parity": self._memo["parity"], **trained}

    def _trained_on(self) -> dict[str, Any]:
        """How many rows were trained on, and how many left out."""
        prepared = self._memo["prepare"]
        return {"rows": prepared["rows"], "dropped": len(prepared["dropped"])}


def _told(found: Evaluation) -> dict[str, Any]:
    return {**found.scores, "rows": found.rows, "tokens": found.tokens, "seconds": round(found.seconds, 3)}
