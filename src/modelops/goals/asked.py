"""What a goal of quality asks for: its rows, the learning jobs that are begun for it, and how it would be pursued.

And the requests of a goal of serving, which are kept as rows are: they are callers' own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelops.api.errors import InvalidRequest
from modelops.api.goals import GoalPlan, QualityObjective, Workload
from modelops.api.learning import CreateJobRequest, EvaluateParameters, JobPlan, LearningJob, Priority
from modelops.goals.attempts import JobSeen, regression_metric, wanted
from modelops.goals.doing import HELD_OUT, REGRESSION, REQUESTS, TRAIN
from modelops.learning import datasets
from modelops.learning.checks import rows_of
from modelops.learning.datasets import Dataset, Example
from modelops.learning.evaluate import check as check_judged
from modelops.learning.jobs import PRIORITIES
from modelops.settings import Settings

Files = Mapping[str, Dataset[Example]]

_MOST_TOLD = 5
#: Of fewer rows, the test that compares them row by row sees few losses, or none.
_FEW_ROWS = 20


# --- learning jobs ---
def judged_by(objective: QualityObjective, metrics: Sequence[str]) -> EvaluateParameters:
    """How rows are judged: the system turn, which is the training's too, is the only thing left to its parameters."""
    given = objective.parameters.get("evaluation")
    system = given.get("system", "") if isinstance(given, Mapping) else ""
    return EvaluateParameters.parse({"metrics": list(metrics), "max_tokens": objective.max_tokens, "system": system})


def training(
    name: str, objective: QualityObjective, parameters: Mapping[str, Any], priority: int = 1
) -> CreateJobRequest:
    """The learning job that makes the next version of the model `name`. Its rows are given beside it."""
    metrics = dict.fromkeys((objective.metric, regression_metric(objective)))
    evaluation = judged_by(objective, list(metrics)).model_dump(mode="json")
    return CreateJobRequest(
        job_type="lora", model_name=name, parameters={**parameters, "evaluation": evaluation}, priority=_named(priority)
    )


def evaluation(objective: QualityObjective, priority: int) -> CreateJobRequest:
    """The learning job that judges what is served by the held-out rows, which are given beside it."""
    parameters = judged_by(objective, [objective.metric]).model_dump(mode="json")
    return CreateJobRequest(
        job_type="evaluate", model_name=objective.model_name, parameters=parameters, priority=_named(priority)
    )


def seen(job: LearningJob) -> JobSeen:
    """The job, as decisions read it."""
    return JobSeen(job.status, job.progress, job.message, job.error_message, job.result)


def _named(priority: int) -> Priority:
    return next(name for name, value in PRIORITIES.items() if value == priority)


# --- rows ---
def kept(folder: Path, names: Sequence[str]) -> Files:
    """The goal's own copies, of those sets that it has."""
    return {name: datasets.kept(folder / name) for name in names if (folder / name).is_file()}


def requests(workload: Workload) -> Dataset[Example] | None:
    """The requests that the workload is, if any, as they are kept: the user's turn, and where a row has its answer, how
    many tokens one may have. Raises InvalidRequest."""
    if not workload.requests:
        return None
    rows = [
        {"prompt": each["input_text"], "completion": str(each.get("max_tokens") or workload.answer_tokens)}
        for each in workload.requests
    ]
    return datasets.read(rows, "evaluate", "objective.workload.requests")


def requests_of(folder: Path) -> list[dict[str, Any]] | None:
    """The requests that were kept in the goal's folder, as they were given; None: there are none."""
    file = folder / REQUESTS
    if not file.is_file():
        return None
    rows = datasets.load(file, "evaluate")
    return [{"input_text": row.turns[-1]["content"], "max_tokens": int(row.answer)} for row in rows]


def read(objective: QualityObjective, settings: Settings) -> Files:
    """The rows, read and checked. Raises InvalidRequest, NotFound, TooLarge."""
    train = rows_of("train_dataset", objective.train_dataset_path, objective.train_dataset, "lora", settings)
    held_out = rows_of("eval_dataset", objective.eval_dataset_path, objective.eval_dataset, "evaluate", settings)
    other = rows_of(
        "regression_dataset", objective.regression_dataset_path, objective.regression_dataset, "evaluate", settings
    )
    if train is None:
        raise InvalidRequest("objective: give train_dataset_path, or train_dataset, the rows that it is to learn")
    if held_out is None:
        raise InvalidRequest("objective: give eval_dataset_path, or eval_dataset: held-out rows, by which it is judged")
    same = datasets.overlap(train.rows, held_out.rows)
    if pairs := sorted([*same.rows, *same.prompts], key=lambda pair: pair[1]):
        told = ", ".join(f"{here} (line {there} of train_dataset)" for there, here in pairs[:_MOST_TOLD])
        more = f" and {len(pairs) - _MOST_TOLD} more" if len(pairs) > _MOST_TOLD else ""
        raise InvalidRequest(
            f"objective: eval_dataset asks what train_dataset teaches, in line {told}{more}: answers that were learnt "
            "by heart would be judged; take those rows out of one of them"
        )
    check_judged(held_out.rows, judged_by(objective, [objective.metric]))
    files = {TRAIN: train, HELD_OUT: held_out}
    if other is not None:
        check_judged(other.rows, judged_by(objective, [regression_metric(objective)]))
        files[REGRESSION] = other
    return files


def warnings(files: Files) -> list[str]:
    """What may be wrong with the rows."""
    told = []
    if REGRESSION not in files:
        told.append("without regression_dataset nobody will know what it has lost beside what it has learnt")
    rows = files[HELD_OUT].rows
    if (count := len({_asks(row) for row in rows})) < _FEW_ROWS:
        told.append(
            f"{len(rows)} held-out rows{f', {count} of them different,' if count < len(rows) else ''} tell little: by "
            "chance alone some of so few are better or worse"
        )
    return told


def _asks(row: Example) -> tuple[str, ...]:
    """The same of rows that ask the same."""
    return (*(turn["content"] for turn in row.turns), row.text)


def plan(objective: QualityObjective, name: str, job: JobPlan, most: int) -> GoalPlan:
    """How it would be pursued, with at most so many trainings of which each takes what `job` says."""
    about = f", each about {job.seconds:.0f} s on the {'GPU' if job.device == 'cuda' else 'CPU'}" if job.seconds else ""
    held_out = f"{job.eval_rows} held-out rows"
    first = f"judge '{name}', as it is served, by {held_out}: {objective.metric}, of which {wanted(objective)}"
    steps = [
        first,
        f"train, at most {most} times{about}, until a version reaches that and does not lose to the present one"
        + (" nor what the regression rows ask" if job.regression_rows else ""),
        f"promote it, and watch it for {objective.watch_seconds:g} s: should it fail, the present one answers again",
        f"judge it, as it is served, by the {held_out}",
    ]
    if not most:
        steps = [first, "train nothing (max_jobs is 0): where it does not reach that, the goal has failed"]
    return GoalPlan(
        steps=steps,
        rows=job.rows,
        eval_rows=job.eval_rows,
        regression_rows=job.regression_rows,
        max_jobs=most,
        seconds=round(job.seconds + objective.watch_seconds if most else 0.0, 1),
        memory_mb=job.memory_mb,
    )
