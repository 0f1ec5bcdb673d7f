"""Goals in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelops.cli.jobwords import figures, flat, lasting, moment, plain
from modelops.cli.terminal import print_line, print_table

if TYPE_CHECKING:
    from modelops.api.goals import Goal, GoalEvent, GoalStep

_WIDTH = 12  # columns of what stands before each line of a goal's description
_MOST = 6  # figures of one step's result


def wish(goal: Goal) -> str:
    """What is to be reached."""
    told = goal.objective
    match told.get("type"):
        case "quality":
            bound = "at most" if told.get("metric") == "perplexity" else "at least"
            return f"quality of {told['model_name']}: {told.get('metric')} {bound} {plain(told.get('target'))}"
        case "serving":
            wishes = (
                ("p95_latency_ms", "95 of 100 answers within {} ms"),
                ("min_tokens_per_second", "at least {} tokens/s"),
                ("max_memory_mb", "at most {} MB"),
            )
            given = [text.format(plain(told[name])) for name, text in wishes if told.get(name) is not None]
            return f"serving of {told['model_name']}: {', '.join(given) or 'as fast as it goes'}"
        case "availability":
            until = f" until {told['until']}" if told.get("until") else ""
            return f"availability of {', '.join(told['models'])}{until}"
    return str(told.get("type", ""))


def state(goal: Goal) -> str:
    """How the goal stands, in a few words."""
    return f"active {goal.progress:.0%}" if goal.status == "active" and goal.progress else goal.status


def plan(goal: Goal) -> Iterator[str]:
    """How it would be pursued, line by line."""
    if not (told := goal.plan):
        return
    for number, step in enumerate(told.steps, 1):
        yield f"  {number}. {step}"
    counts = ((told.rows, "rows"), (told.eval_rows, "held out"), (told.regression_rows, "of other things"))
    parts = [f"{count} {what}" for count, what in counts if count]
    parts += [f"at most {told.max_jobs} trainings"] * bool(told.max_jobs)
    parts += [f"about {lasting(told.seconds)}"] * (told.seconds >= 1)
    parts += [f"{told.memory_mb} MB of memory"] * bool(told.memory_mb)
    if parts:
        yield f"  {', '.join(parts)}"


def line(event: GoalEvent) -> str:
    """An event in one line."""
    told = ": ".join(filter(None, (event.message, figures(event.metrics))))
    return f"{moment(event.at)}  {event.kind:<8}  {event.step:<10}  {told}".rstrip()


def came_of(goal: Goal) -> Iterator[str]:
    """How the goal has ended, line by line."""
    if goal.status == "failed":
        yield f"modelops: goal {goal.goal_id} failed: {goal.error_message}"
    elif goal.status == "cancelled":
        why = f": {goal.error_message}" if goal.error_message else ""
        yield f"modelops: goal {goal.goal_id} was cancelled{why}"
    else:
        yield f"goal {goal.goal_id} is completed: {wish(goal)}"
        for name, value in flat(goal.result):
            if not (_is_table(value) or value in (None, "", []) or name.count(".") > 1):  # 'show' tells all of it
                yield f"  {name}: {plain(value)}"


def show(goal: Goal) -> None:
    """Print all that is known of the goal: what it does and why, each step that was taken, and the result."""
    for name, told in _description(goal):
        print_line(f"{name:<{_WIDTH}}{told}")
    for told in plan(goal):
        print_line(told)
    if goal.steps:
        print_line()
        print_table(("STEP", "ACTION", "WHY", "TOOK", "CAME OF IT"), map(_step, goal.steps))
    if goal.result:
        print_line()
        tables = {name: value for name, value in goal.result.items() if _is_table(value)}
        rest = {name: value for name, value in goal.result.items() if name not in tables}
        print_table(("RESULT", "VALUE"), [(name, plain(value)) for name, value in flat(rest)])
        for name, rows in tables.items():
            print_line()
            print_line(f"{name}:")
            _print_rows(rows)


def counted(goal: Goal) -> Iterator[tuple[str, str]]:
    """What is counted of the goal as a whole, and of each thing that it is about."""
    within = {name: value for name, value in goal.metrics.items() if isinstance(value, Mapping)}
    if whole := {name: value for name, value in goal.metrics.items() if name not in within}:
        yield "counted", figures(whole)
    for name, each in within.items():
        yield name, ", ".join(f"{key} {plain(value)}" for key, value in flat(each) if value != [])


def outcome(step: GoalStep) -> str:
    """What came of a step, short."""
    if step.error_message:
        return step.error_message
    found = [
        f"{name} {len(value) if _is_table(value) else plain(value)}"
        for name, value in flat(step.result)
        if value not in (None, "", [])
    ]
    return ", ".join(found[:_MOST]) + (", …" if len(found) > _MOST else "")


def _description(goal: Goal) -> Iterator[tuple[str, str]]:
    yield "goal", goal.goal_id
    yield "title", goal.title
    if goal.description:
        yield "about", goal.description
    yield "what", wish(goal)
    yield "status", state(goal)
    if goal.message:
        yield "now", goal.message
    if goal.error_message:
        yield "why", goal.error_message
    yield "priority", goal.priority
    times = {
        "created": goal.created_at,
        "started": goal.started_at,
        "ended": goal.completed_at,
        "to be completed by": goal.target_completion,
    }
    yield "times", ", ".join(f"{name} {moment(at)}" for name, at in times.items() if at)
    if goal.attempts > 1:
        yield "attempts", str(goal.attempts)
    if limits := [f"{name} {plain(value)}" for name, value in goal.limits.items() if value is not None]:
        yield "limits", ", ".join(limits)
    yield from counted(goal)
    if goal.learning_job_ids:
        yield "jobs", ", ".join(goal.learning_job_ids)
    for warning in goal.warnings:
        yield "warning", warning


def _step(step: GoalStep) -> tuple[str, ...]:
    took = lasting((step.completed_at - step.started_at).total_seconds()) if step.completed_at else "…"
    return str(step.number), step.action, step.reason, took, outcome(step)


def _is_table(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the names of what any of them has something of."""
    flattened = [dict(flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flattened for name, value in row.items() if value not in (None, "", [])))
    print_table([name.upper() for name in names], [[plain(row.get(name)) for name in names] for row in flattened])
