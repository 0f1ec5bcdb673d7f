"""What a goal of the type `serving` finds: whether it can be pursued, and what its decisions see. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from modelops.api.errors import Conflict, InvalidRequest
from modelops.api.goals import GoalPlan, ServingObjective, Workload
from modelops.goals import asked
from modelops.goals.doing import REQUESTS, TEXT, Checked, Tools
from modelops.goals.narrowing import PAIRS, most_measurements
from modelops.goals.space import MB, Way, longer_formats, smallest
from modelops.goals.targets import ServingFacts, guessed_tokens, hurried, workload_of
from modelops.goals.text import TEXTS
from modelops.learning import datasets
from modelops.learning.checks import rows_of
from modelops.learning.datasets import Dataset, Example
from modelops.serving.catalog import Version
from modelops.serving.formats import Formats
from modelops.serving.placement import HOST, Bill
from modelops.serving.tuning import Tuned, tune
from modelops.serving.wishes import Tuning, Wish

_EVERYTHING = 1 << 60  # bytes: more than there are
#: A measurement takes so many times the time of its sample: to start an engine, to warm it up, to end it.
_BESIDE = 1.6
_MOST_KNOWN = 64  # versions whose sizes are remembered
_GUESSED = "how well answers to random words are guessed says nothing of answers to callers"
_REQUEST_FIELDS = {"input_text", "max_tokens"}


@dataclass(frozen=True)
class Model:
    """The version that answers, how it is wished, and what engine that makes of it."""

    version: Version
    wish: Wish
    tuned: Tuned


class Surveyor:
    """Looks at models, the machine, and what the ledger has left."""

    def __init__(self, tools: Tools, formats: Formats) -> None:
        self._tools = tools
        self._formats = formats
        self._sizes: dict[tuple[str, int, int], Mapping[str, int]] = {}

    async def check(self, objective: ServingObjective) -> Checked:
        """See Doer.check."""
        catalog = self._tools.catalog
        version = await catalog.find(catalog.resolve(objective.model_name))
        name = version.model_name
        if version.base:
            raise Conflict(f"'{name}' is an adapter, and is run as '{version.engine_name}' is: name that instead")
        if version.model_type != "llm":
            raise InvalidRequest(f"'{name}' is a model of type {version.model_type}: only how an llm is run is tuned")
        model = await self.model(name)
        await self._refuse_gpu(model)
        length = model.tuned.spec.context_length
        workload = _workload(objective, length)
        more = () if "formats" in objective.model_fields_set else longer_formats(workload)
        objective = objective.model_copy(update={"formats": [*dict.fromkeys((*objective.formats, *more))]})
        warnings = []
        if objective.formats and any(each.startswith(f"{name}:") for each in catalog.names()):
            objective = objective.model_copy(update={"formats": []})
            warnings.append("adapters answer beside the model, which fit this file of it alone: no format is tried")
        if objective.draft_model_name:
            draft = await catalog.find(catalog.resolve(objective.draft_model_name))
            wish = Wish(tuning=Tuning(speculation="draft", draft=draft.model_name))
            await self._tools.engines.plan(name, version.file, wish=wish, draft=draft.file)  # refuses one that is unfit
            objective = objective.model_copy(update={"draft_model_name": draft.model_name})
        objective = objective.model_copy(update={"model_name": name})
        if objective.max_memory_mb is not None:
            await self._refuse_tight(objective, objective.max_memory_mb, workload)
        rows = await asyncio.to_thread(self._rows, objective)
        files = {TEXT: rows}
        # In the objective they would be kept, and told, once more.
        objective = objective.model_copy(update={"text_dataset": None, "text_dataset_path": ""})
        if requests := asked.requests(objective.described):
            files[REQUESTS] = requests
            lengths = workload.model_dump(mode="json", exclude={"requests"})
            objective = objective.model_copy(update={"workload": lengths})
        elif objective.draft_model_name:
            warnings.append(f"draft_model_name is tried only with workload.requests: {_GUESSED}")
        return Checked(objective, self._plan(objective, workload, model, rows), tuple(warnings), files)

    async def model(self, name: str) -> Model:
        """The model as it is run, or would be. Raises NotFound."""
        version = self._tools.catalog.active(name)
        wish = self._tools.pool.wish(name) or self._tools.catalog.wish(name)
        draft = await self.draft(wish.tuning.draft) if wish.tuning.speculation == "draft" else None
        settings, cores = self._tools.settings.engine, self._tools.machine.cores
        work = partial(tune, version, wish, settings, cores, draft=draft.file if draft else None)
        return Model(version, wish, await asyncio.to_thread(work))

    async def draft(self, name: str) -> Version:
        """The version that guesses ahead. Raises NotFound."""
        return await self._tools.catalog.find(name)

    async def facts(self, objective: ServingObjective, *, real: bool = False) -> ServingFacts:
        """See Doer.facts; `real`: there are requests to be measured by."""
        name, settings = objective.model_name, self._tools.settings
        model = await self.model(name)
        spec, tuned = model.tuned.spec, self._tools.catalog.tuned(name)
        written = self._written(model)
        kinds = (*objective.formats, *filter(None, [written]))
        sizes = await self._in_formats(model.version, kinds)
        guesser = objective.draft_model_name
        return ServingFacts(
            version=model.version.label,
            present=Way(
                weights=written,
                slots=spec.slots,
                batch_size=spec.batch_size,
                threads=spec.threads,
                flash_attention=spec.flash_attention,
                cache_type=spec.cache_type,
                speculation=spec.speculation,
            ),
            wish=model.wish.to_json(),
            tuned=tuned.to_json() if tuned else "",
            header=model.tuned.header,
            context_length=spec.context_length,
            cores=self._tools.machine.cores,
            room_bytes=self._room(),
            sample_s=settings.goals.sample_s,
            sizes=sizes,
            cache_ram_mb=spec.cache_ram_mb,
            checkpoints=spec.context_checkpoints,
            draft_bytes=(await self.draft(guesser)).size if guesser else 0,
            real=real,
        )

    def _written(self, model: Model) -> str:
        """What the weights are served as, where that is not as their file has them."""
        as_wished = model.wish.quantization and not model.tuned.header.quantised
        return self._tools.settings.engine.quantization_type if as_wished else ""

    async def _in_formats(self, version: Version, kinds: tuple[str, ...]) -> Mapping[str, int]:
        """Bytes of the version's file in each of the formats in which it is another file."""
        key = (str(version.file), version.mtime_ns, version.size)
        known = {**self._sizes.get(key, {})}
        for kind in kinds:
            if kind not in known:
                known[kind] = await self._formats.size(version, kind)  # type: ignore[arg-type] # only valid ones are
        self._sizes = {key: known} if len(self._sizes) > _MOST_KNOWN else {**self._sizes, key: known}
        return {kind: known[kind] for kind in kinds if known[kind] != version.size}

    def _room(self) -> int:
        """Bytes of RAM for an engine of one's own: what is free, and what idle models would give."""
        bill = self._tools.pool.preview_loan("everything", _EVERYTHING)
        assert isinstance(bill, Bill), "nothing has so much memory"
        return bill.free.get(HOST, 0) + bill.evictable.get(HOST, 0)

    async def _refuse_gpu(self, model: Model) -> None:
        if model.wish.offloaded != 0 and await self._tools.pool.gpus():
            raise InvalidRequest(
                f"'{model.version.model_name}' is served on a GPU, and how a model is run is measured on the CPU: it "
                'would say nothing of it; load it with "gpu_layers": -1 to have it served, and tuned, there'
            )

    async def _refuse_tight(self, objective: ServingObjective, most: int, workload: Workload) -> None:
        facts = await self.facts(objective)
        least = min(map(facts.bytes, smallest(facts.present, facts.sizes, workload)))
        if least > most * MB:
            raise InvalidRequest(
                f"objective: max_memory_mb: no way of running '{objective.model_name}' that is tried takes less than "
                f"{-(-least // MB)} MB; give at least that"
            )

    def _rows(self, objective: ServingObjective) -> Dataset[Example]:
        """The text that formats are judged by."""
        settings = self._tools.settings
        given = rows_of("text_dataset", objective.text_dataset_path, objective.text_dataset, "evaluate", settings)
        return given or datasets.read([{"text": text} for text in TEXTS], "evaluate", "text_dataset")

    def _plan(self, objective: ServingObjective, workload: Workload, model: Model, rows: Dataset[Example]) -> GoalPlan:
        most = most_measurements(len(objective.formats))
        target = "until one meets the target" if hurried(objective) else "for the fastest"
        given = len(workload.requests or ())
        put = f"{given} requests" if given else "random words"
        guessed = "" if given else f"; speculation is not tried: {_GUESSED}"
        steps = [
            f"measure how the model is run now: {put}, {workload.prompt_tokens} tokens of prompt, "
            f"{workload.answer_tokens} of answer, {workload.concurrency} at once",
            f"rewrite its weights as {', '.join(objective.formats)}, and keep what loses at most "
            f"{objective.max_perplexity_increase:.1%} on {len(rows.rows)} rows of text"
            if objective.formats
            else "",
            f"look {target}: weight formats, then one setting at a time, then what has helped together; at most {most} "
            f"measurements, each beside one of the present way{guessed}",
            f"measure the best against the present way in {PAIRS} pairs",
            f"apply it without a failed request, and watch it for {objective.watch_seconds:g} s",
        ]
        seconds = most * self._tools.settings.goals.sample_s * _BESIDE + objective.watch_seconds
        needed = -(-model.tuned.need.total // MB)
        return GoalPlan(steps=[*filter(None, steps)], rows=len(rows.rows), seconds=seconds, memory_mb=needed)


def _workload(objective: ServingObjective, length: int) -> Workload:
    """The workload, checked. Raises InvalidRequest."""
    described = objective.described
    for number, given in enumerate(described.requests or (), start=1):
        where = f"objective.workload.requests, {number}"
        if more := given.keys() - _REQUEST_FIELDS:
            raise InvalidRequest(f"{where}: unknown {', '.join(sorted(more))}; it has input_text and max_tokens")
        text, most = given.get("input_text"), given.get("max_tokens", described.answer_tokens)
        if not isinstance(text, str) or not text.strip():
            raise InvalidRequest(f"{where}: input_text is a text that is not empty")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise InvalidRequest(f"{where}: max_tokens is a number of 1 or more")
        # Nobody has counted them: with half of what is guessed it is surely too long.
        if (prompt := guessed_tokens(text) // 2) + most > length:
            raise InvalidRequest(
                f"{where}: at least {prompt} tokens of prompt and {most} of answer are more than the context of "
                f"{length} that the model is served with"
            )
    workload = workload_of(objective)
    tokens = workload.prompt_tokens + workload.answer_tokens
    if tokens > length and not described.requests:
        raise InvalidRequest(
            f"objective.workload: {workload.prompt_tokens} tokens of prompt and {workload.answer_tokens} of answer are "
            f"more than the context of {length} that the model is served with"
        )
    return workload


def run_as(way: Way, wish: Wish, draft: str) -> Wish:
    """`wish` with everything as the way has it."""
    return replace(wish, quantization=False, slots=way.slots, cache_type=way.cache_type, tuning=_tuning(way, draft))


def _tuning(way: Way, draft: str) -> Tuning:
    return Tuning(
        batch_size=way.batch_size,
        threads=way.threads,
        flash_attention=way.flash_attention,
        speculation=way.speculation,
        draft=draft if way.speculation == "draft" else "",
    )


def changed(wish: Wish, changes: Mapping[str, Any], draft: str) -> Wish:
    """`wish` with what a way has otherwise; what it has not is left to whatever it is left to."""
    own = {name: changes[name] for name in ("slots", "cache_type") if name in changes}
    beside = {name: changes[name] for name in Tuning.__dataclass_fields__ if name in changes}
    if "weights" in changes:
        own["quantization"] = False  # they are written so already, if they are
    if "speculation" in changes:
        beside["draft"] = draft if changes["speculation"] == "draft" else ""
    return replace(wish, **own, tuning=replace(wish.tuning, **beside))
