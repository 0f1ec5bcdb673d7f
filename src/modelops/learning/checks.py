"""What can be known of a job when it is created, without a model being loaded: can it be done, and what does it take?

Decides whether there is a job at all; nothing is written.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from modelops.api.errors import InsufficientMemory, InvalidRequest, NotAvailable, TooLarge
from modelops.api.learning import (
    CreateJobRequest,
    EvaluateParameters,
    JobPlan,
    JobType,
    Parameters,
    TrainParameters,
    parameters_of,
)
from modelops.learning import datasets, support
from modelops.learning.costs import Cost, cost
from modelops.learning.datasets import Dataset, Example, Preference
from modelops.learning.evaluate import check as check_judged
from modelops.learning.folders import HELD_OUT, REGRESSION, TRAIN
from modelops.learning.room import gpu_bytes
from modelops.serving.catalog import Catalog, Version
from modelops.serving.devices import Machine
from modelops.serving.gguf import Header, read_header
from modelops.serving.placement import Bill, Plan
from modelops.serving.pool import Pool
from modelops.settings import Settings

#: Bytes of text that make a token, to guess how many there are: rather too few than too many, for memory that will do.
_BYTES_PER_TOKEN = 3.0
_TURN_TOKENS = 6  # what a chat template puts around a turn
#: What parts the texts of a chat template from its code.
_CODE = re.compile(r"""['"]|\{[{%#]-?|-?[}%#]\}""")
_SURELY = 2.5  # times max_length: so much longer a row is guessed to be that it is too long
_MOST_TOLD = 5


Rows = Dataset[Example] | Dataset[Preference]


@dataclass(frozen=True)
class Checked:
    """A job that can be done. `rows` by the name of their file; `publish`: "adapter", or what a whole model is written
    as; empty where nothing is published."""

    version: Version
    parameters: Parameters
    rows: Mapping[str, Rows]
    dataset_digest: str
    output_model_name: str
    publish: str
    warnings: tuple[str, ...]
    plan: JobPlan
    disk_bytes: int


async def check(
    request: CreateJobRequest,
    settings: Settings,
    catalog: Catalog,
    pool: Pool,
    machine: Machine,
    given: Mapping[str, Rows] | None = None,
) -> Checked:
    """The job that `request` asks for; of rows that are `given`, by the name of their file, it says nothing itself.

    Raises InvalidRequest, NotFound, TooLarge, NotAvailable; InsufficientMemory, with the bill, where it would not fit.
    """
    parameters = parameters_of(request.job_type, request.parameters)
    trains = isinstance(parameters, TrainParameters)
    if trains and not support.installed():
        raise NotAvailable(support.MISSING)
    judged_by = parameters.evaluation if isinstance(parameters, TrainParameters) else parameters
    version = await catalog.find(catalog.resolve(request.model_name))
    output, publish = _output(request, parameters, version, catalog)
    if version.model_type != "llm":
        raise InvalidRequest(f"'{version.model_name}' is a model of type {version.model_type}: only an llm can learn")
    system = catalog.entry(version.model_name).system if trains else ""
    read = await asyncio.to_thread(_read, request, settings, judged_by, system, given)
    header = await asyncio.to_thread(read_header, version.file)
    rows, sizes = read.rows, await asyncio.to_thread(row_tokens, read.rows[TRAIN], header.chat_template)
    tokens, longest, warnings = sum(sizes), max(sizes), read.warnings
    plan = JobPlan(**{f"{kind}rows": len(rows[file].rows) for kind, file in _COUNTED.items() if file in rows})
    disk = sum(found.size for found in rows.values())
    if isinstance(parameters, TrainParameters):
        if version.base:
            raise InvalidRequest(f"'{version.model_name}' is an adapter; train the model that it was made for")
        await asyncio.to_thread(support.check, version.file)
        warnings += tuple(_too_long(rows[TRAIN], sizes, parameters))
        plan, disk, short = await _trained(
            parameters, header, plan, (tokens, longest), rows[TRAIN], disk, pool, settings, machine
        )
        warnings += (short,) if short else ()
    return Checked(
        version=version,
        parameters=parameters,
        rows=rows,
        dataset_digest=rows[TRAIN].digest,
        output_model_name=output,
        publish=publish,
        warnings=warnings,
        plan=plan.model_copy(update={"tokens": tokens, "disk_mb": disk >> 20}),
        disk_bytes=disk,
    )


_COUNTED = {"": TRAIN, "eval_": HELD_OUT, "regression_": REGRESSION}


async def _trained(
    parameters: TrainParameters,
    header: Header,
    plan: JobPlan,
    guessed: tuple[int, int],
    rows: Rows,
    disk: int,
    pool: Pool,
    settings: Settings,
    machine: Machine,
) -> tuple[JobPlan, int, str]:
    """The plan, bytes of disk, and a warning where the memory is not free now, else nothing. `guessed` are the
    tokens of all rows, and of the longest."""
    threads = settings.learning.threads or machine.cores

    def costs(of: tuple[int, int], device: Literal["cpu", "cuda"]) -> Cost:
        tokens, longest = of
        sizes = {"rows": plan.rows, "longest": min(longest, parameters.max_length), "tokens": tokens}
        return cost(header, parameters, **sizes, threads=threads, device=device)

    device: Literal["cpu", "cuda"]
    device = "cuda" if gpu_bytes(settings, machine, pool, costs(guessed, "cuda")) else "cpu"

    def asked(needed: Cost) -> Plan | Bill:
        on_gpu = needed.memory_bytes if device == "cuda" else 0
        return pool.preview_loan("training", 0 if on_gpu else needed.memory_bytes, on_gpu)

    needed = costs(guessed, device)
    found, short = asked(needed), ""
    # What models in use, and other programs, hold now may be free when the job's turn comes.
    if isinstance(found, Bill):
        bill = f"{found.sentence('training')}; a smaller batch_size, max_length or rank takes less"
        short = f"it would wait for memory now: {bill}"
        if found.never:
            least = await asyncio.to_thread(row_tokens, rows, "")
            certain = asked(costs((sum(least), max(least)), device))
            if isinstance(certain, Bill) and certain.never:
                raise InsufficientMemory(bill, details=found.details())
            short = f"it may need more memory than there ever is for it, and fails then: {bill}"
    steps = parameters.steps or math.ceil(plan.rows * parameters.epochs / parameters.batch_size)
    told = {
        "steps": steps,
        "memory_mb": needed.memory_bytes >> 20,
        "seconds": round(needed.seconds, 1),
        "device": device,
    }
    return plan.model_copy(update=told), disk + needed.disk_bytes, short


def _output(request: CreateJobRequest, parameters: Parameters, version: Version, catalog: Catalog) -> tuple[str, str]:
    """What is published, and under which name."""
    wanted, base = request.output_model_name, version.model_name
    if not isinstance(parameters, TrainParameters):
        if wanted:
            raise InvalidRequest("output_model_name: a job of type evaluate publishes nothing; leave it out")
        return "", ""
    name = catalog.resolve(wanted) if wanted else base
    head, colon, tail = name.rpartition(":")
    adapter = bool(colon) and name != base
    if adapter and (catalog.resolve(head) != base or not tail):
        raise InvalidRequest(f"output_model_name: '{name}' is not '{base}:NAME', as an adapter of '{base}' is called")
    if adapter:
        name = f"{base}:{tail}"
    if catalog.knows(name) and bool(catalog.active(name).base) != adapter:
        raise InvalidRequest(f"output_model_name: there is a model '{name}' already that is no adapter of '{base}'")
    return name, "adapter" if adapter else parameters.weights


@dataclass(frozen=True)
class _Read:
    rows: Mapping[str, Rows]
    warnings: tuple[str, ...]


def _read(
    request: CreateJobRequest,
    settings: Settings,
    judged_by: EvaluateParameters,
    system: str,
    given: Mapping[str, Rows] | None,
) -> _Read:
    """All rows, and what follows from them: of many that takes seconds, in which nobody else should wait."""
    rows, trains = given or _rows(request, settings), request.job_type != "evaluate"
    if system:  # as callers are served who send none
        rows = {file: datasets.with_system(of, system) for file, of in rows.items()}
    for file, of in rows.items():
        if file != TRAIN or not trains:
            check_judged([row for row in of.rows if isinstance(row, Example)], judged_by)
    return _Read(rows, tuple(_warnings(rows, trains=trains)))


def _rows(request: CreateJobRequest, settings: Settings) -> dict[str, Rows]:
    sources = {
        TRAIN: ("dataset", request.dataset_path, request.dataset),
        HELD_OUT: ("eval_dataset", request.eval_dataset_path, request.eval_dataset),
        REGRESSION: ("regression_dataset", request.regression_dataset_path, request.regression_dataset),
    }
    found: dict[str, Rows] = {}
    for file, (field, path, given) in sources.items():
        if file != TRAIN and request.job_type == "evaluate" and (path or given is not None):
            raise InvalidRequest(f"{field}: a job of type evaluate judges the rows of dataset; leave it out")
        if rows := rows_of(field, path, given, request.job_type if file == TRAIN else "evaluate", settings):
            found[file] = rows
    if TRAIN not in found:
        raise InvalidRequest("give dataset_path, a JSONL file under one of the dataset roots, or dataset, the rows")
    return found


@overload
def rows_of(
    field: str, path: str, given: list[dict[str, Any]] | None, job_type: Literal["lora", "evaluate"], settings: Settings
) -> Dataset[Example] | None: ...
@overload
def rows_of(
    field: str, path: str, given: list[dict[str, Any]] | None, job_type: JobType, settings: Settings
) -> Rows | None: ...
def rows_of(
    field: str, path: str, given: list[dict[str, Any]] | None, job_type: JobType, settings: Settings
) -> Rows | None:
    """The rows that a request has given in `field`, or named the file of in `field`_path, if any.

    Raises InvalidRequest, NotFound, TooLarge.
    """
    if path and given is not None:
        raise InvalidRequest(f"give {field}_path or {field}, not both")
    if path:
        return datasets.read(_content(field, path, settings), job_type, field)
    return None if given is None else datasets.read(given, job_type, field)


def _content(field: str, path: str, settings: Settings) -> bytes:
    file = datasets.resolve(path, [settings.data_dir / "datasets", *settings.learning.roots], f"{field}_path")
    size, most = file.stat().st_size, settings.learning.max_dataset_mb
    if size > most << 20:
        raise TooLarge(f"{field}_path: the file has {size >> 20} MB, and learning.max_dataset_mb is {most}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{field}_path: the file cannot be read: {error.strerror}") from None


def row_tokens(rows: Rows, template: str) -> list[int]:
    """About how many tokens each of the rows has in that chat template, rather more than fewer.

    A template is a program, which only an engine runs. The longest text in it may be a system turn of its own, which it
    puts before rows that have none.
    """
    own = max(len(text.encode()) for text in _CODE.split(template)) if template else 0

    def tokens(row: Example | Preference) -> int:
        added = own if row.turns and row.turns[0]["role"] != "system" else 0
        turns = len(row.turns) + 1 + bool(added)
        return math.ceil((_size(row) + added) / _BYTES_PER_TOKEN) + _TURN_TOKENS * turns

    return [tokens(row) for row in rows.rows]


def _size(row: Example | Preference) -> int:
    """Bytes of text that are put to the model at once."""
    answers = (row.answer, row.text) if isinstance(row, Example) else (max(row.chosen, row.rejected, key=len),)
    return sum(len(text.encode()) for text in (*(turn["content"] for turn in row.turns), *answers))


def _warnings(rows: Mapping[str, Rows], *, trains: bool) -> list[str]:
    told = []
    if twice := datasets.duplicates(rows[TRAIN].rows):
        told.append(f"{len(twice)} rows are in dataset twice: {_lines(twice)}")
    for file, field in ((HELD_OUT, "eval_dataset"), (REGRESSION, "regression_dataset")):
        if file in rows:
            same = datasets.overlap(rows[TRAIN].rows, rows[file].rows)
            if same.rows:
                told.append(f"{len(same.rows)} rows of {field} are in dataset too: {_lines(same.rows)}")
            if same.prompts:
                told.append(f"{len(same.prompts)} questions of {field} are in dataset too: {_lines(same.prompts)}")
    if trains and HELD_OUT not in rows:
        told.append("without eval_dataset nobody will know whether it has become better")
    return told


def _too_long(rows: Rows, sizes: Sequence[int], parameters: TrainParameters) -> Iterator[str]:
    """A warning where rows are surely longer than they may be: their sizes are guessed, and may be half of that."""
    most = parameters.max_length
    if found := [rows.rows[at].line for at, size in enumerate(sizes) if size > _SURELY * most]:
        lines = ", ".join(map(str, found[:_MOST_TOLD])) + (" and more" if len(found) > _MOST_TOLD else "")
        become = "left out" if parameters.over_length == "drop" else "what ends the job"
        yield f"rows that seem to be longer than max_length, {most} tokens, will be {become}: line {lines}"


def _lines(pairs: Sequence[tuple[int, int]]) -> str:
    told = ", ".join(f"lines {first} and {second}" for first, second in pairs[:_MOST_TOLD])
    return f"{told} and more" if len(pairs) > _MOST_TOLD else told
