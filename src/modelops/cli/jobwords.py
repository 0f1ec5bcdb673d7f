"""Learning jobs in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from modelops.cli.terminal import legible, print_line, print_table

if TYPE_CHECKING:
    from modelops.api.learning import JobEvent, LearningJob
    from modelops.api.types import ModelVersion

_WIDTH = 12  # columns of what stands before each line of a job's description
#: Figures of scores that are no scores.
_COUNTS = ("rows", "tokens", "seconds")
#: How the message of a job begins that waits.
_WAITS = "it waits for memory"
_SETS = {"held_out": "held out", "regression": "regression"}


def plan(job: LearningJob) -> str:
    """What the job is, and about what it takes."""
    what = f"{job.job_type} of {job.model_name}" + (f", as {job.output_model_name}" if job.output_model_name else "")
    if not (told := job.plan):
        return what
    rows = f"{told.rows} rows"
    if told.eval_rows or told.regression_rows:
        held_out = f"{told.eval_rows} held out" * bool(told.eval_rows)
        others = f"{told.regression_rows} of other things" * bool(told.regression_rows)
        rows += f" ({', '.join(filter(None, (held_out, others)))})"
    parts = [f"{rows}, about {told.tokens} tokens"]
    if told.steps:
        parts.append(f"{told.steps} steps on {told.device}, about {lasting(told.seconds)}")
    if told.memory_mb:
        parts.append(f"{told.memory_mb} MB of memory")
    return f"{what}: {', '.join((*parts, f'{told.disk_mb} MB of disk'))}"


def state(job: LearningJob) -> str:
    """How the job stands, in a few words."""
    if job.status != "running":
        return job.status
    paused = ", paused" if job.paused else ""
    waits = ", waits for memory" if job.message.startswith(_WAITS) else ""
    return f"{job.step or 'running'} {job.progress:.0%}{paused}{waits}"


def moment(at: datetime) -> str:
    """A time, as the clock on the wall has it."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def figures(metrics: Mapping[str, Any]) -> str:
    """What is measured of a job, the best known first."""
    left = dict(metrics)
    parts = []
    for what in ("step", "rows"):
        if what in left:
            total = left.pop(f"total_{what}" if what == "rows" else "total_steps", None)
            parts.append(f"{what} {left.pop(what)}" + (f" of {total}" if total else ""))
    named = {"train_loss": "loss", "eval_loss": "held-out loss"}
    parts += [f"{name} {left.pop(key):.4g}" for key, name in named.items() if is_number(left.get(key))]
    if is_number(left.get("tokens_per_second")):
        parts.append(f"{left.pop('tokens_per_second'):.0f} tokens/s")
    if is_number(left.get("eta_seconds")):
        parts.append(f"{lasting(left.pop('eta_seconds'))} left")
    return ", ".join((*parts, *(f"{key} {plain(value)}" for key, value in left.items())))


def line(event: JobEvent) -> str:
    """An event in one line."""
    said = "" if event.kind == "step" else event.message
    told = ": ".join(filter(None, (said, figures(event.metrics))))
    return f"{moment(event.at)}  {event.kind:<8}  {event.step:<8}  {told}".rstrip()


def came_of(job: LearningJob) -> str:
    """How the job has ended."""
    if job.status == "failed":
        return legible(f"modelops: job {job.job_id} failed: {job.error_message}")
    if job.status == "cancelled":
        why = f": {job.error_message}" if job.error_message else ""
        return legible(f"modelops: job {job.job_id} was cancelled{why}")
    result = job.result
    told = f"job {job.job_id} is completed"
    if job.output_model_name:
        active = "" if result.get("active") else "; 'modelops activate' lets it answer"
        told += f": it is '{result.get('model_name')}' {result.get('model_version')}{active}"
    found = [
        f"  {name}, {metric}: {before} → {after}" if before else f"  {metric}: {after}"
        for name, metric, before, after in scores(job)
    ]
    return "\n".join(map(legible, (told, *found)))


def scores(job: LearningJob) -> list[tuple[str, str, str, str]]:
    """(rows, metric, before, after) of all that was judged; of a job that only judges there is no before."""
    found = job.result.get("scores")
    if not isinstance(found, dict) or not found:
        return []
    if job.job_type == "evaluate":
        return [("", metric, "", plain(value)) for metric, value in found.items() if _is_score(metric, value)]
    told = []
    for name, judged in found.items():
        before, after = judged.get("before", {}), judged.get("after", {})
        told += [
            (_SETS.get(name, str(name)), str(metric), plain(before.get(metric)), plain(value))
            for metric, value in after.items()
            if _is_score(metric, value)
        ]
    return told


def _is_score(name: str, value: Any) -> bool:
    return name not in _COUNTS and is_number(value)


def show(job: LearningJob) -> None:
    """Print all that is known of the job."""
    for name, told in _description(job):
        print_line(f"{name:<{_WIDTH}}{told}")
    if found := scores(job):
        print_line()
        if job.job_type == "evaluate":
            print_table(("METRIC", "SCORE"), [(metric, after) for _, metric, _, after in found])
        else:
            print_table(("ROWS", "METRIC", "BEFORE", "AFTER"), found)


def lineage(version: ModelVersion) -> Iterator[tuple[str, str]]:
    """What a version was made from, where that is known: by a learning job, of which base, how, and how good it is."""
    made = version.lineage
    yield "digest", version.digest or "not computed yet"
    if not made:
        return
    yield "made by", f"learning job {made['job_id']}, {made['job_type']}"
    yield "base", f"{made['base_model']} {made['base_version']}, {made['base_digest']}"
    yield "rows", str(made["dataset_digest"])
    given = [f"{name} {plain(value)}" for name, value in flat(made["parameters"]) if value not in ("", [])]
    yield "parameters", ", ".join(given)
    for rows, judged in made["scores"].items():
        names = [name for name, value in judged["after"].items() if _is_score(name, value)]
        told = [f"{name} {plain(judged['before'][name])} → {plain(judged['after'][name])}" for name in names]
        yield rows.replace("_", " "), ", ".join(told)
    yield "parity", ", ".join(f"{name} {plain(value)}" for name, value in flat(made["parity"]) if value is not None)


def _description(job: LearningJob) -> Iterator[tuple[str, str]]:
    yield "job", job.job_id
    yield "what", plan(job)
    yield "status", f"{state(job)}{f': {job.message}' if job.message else ''}"
    if job.error_message:
        yield "why", job.error_message
    if job.step and job.status != "running":
        yield "step", job.step
    yield "priority", job.priority
    times = {"created": job.created_at, "started": job.started_at, "ended": job.completed_at}
    yield "times", ", ".join(f"{name} {moment(at)}" for name, at in times.items() if at)
    if job.attempts > 1:
        yield "attempts", str(job.attempts)
    if job.metrics:
        yield "measured", figures(job.metrics)
    given = [f"{name} {plain(value)}" for name, value in flat(job.parameters) if value not in ("", [])]
    yield "parameters", ", ".join(given)
    for warning in job.warnings:
        yield "warning", warning
    if job.output_model_name and job.result:
        active = "active" if job.result.get("active") else "not active"
        yield "published", f"{job.result.get('model_name')} {job.result.get('model_version')}, {active}"
    rest = {"model_name", "model_version", "active", "scores", "parity"}
    if told := {name: value for name, value in job.result.items() if name not in rest and value is not None}:
        yield "trained", ", ".join(f"{name} {plain(value)}" for name, value in flat(told))
    if parity := job.result.get("parity"):
        yield "parity", ", ".join(f"{name} {plain(value)}" for name, value in flat(parity) if value not in ("", None))


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """What is within each other, with dots between the names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def plain(value: Any) -> str:
    """A value, as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(plain, value)) or "none"
    return str(value)


def is_number(value: Any) -> bool:
    """Whether it is a number, and no truth."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def lasting(seconds: float) -> str:
    """How long something takes."""
    from modelops.cli.picture import duration

    return duration(seconds, 2)
