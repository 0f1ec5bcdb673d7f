"""`modelops goals create`: what is to be reached, as it is written on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelops.cli.common import client_command, client_group
from modelops.cli.goals import goals, watched
from modelops.cli.sets import RowSet, options, rows
from modelops.cli.terminal import print_json, print_line

if TYPE_CHECKING:
    from modelops.client import Client

_PRIORITIES = ("low", "medium", "high", "critical")
_METRICS = ("exact_match", "contains", "f1", "rouge_l", "perplexity")
_FORMATS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "F16", "BF16")
_ROWS = (
    RowSet("train", "train_dataset", "What it learns"),
    RowSet("eval", "eval_dataset", "Held-out rows, by which it is judged"),
    RowSet("regression", "regression_dataset", "Rows of other things, which are not to be lost"),
)
_TEXTS = (RowSet("text", "text_dataset", "Rows that show what another format loses"),)
_LONGEST_TITLE = 128
#: How a goal is created, whatever it is for.
_MAKING = (
    click.option("--idempotency-key", metavar="KEY", help="Repeated with the same key nothing more is created."),
    click.option("--dry-run", is_flag=True, help="Say how it would be pursued, and create nothing."),
    click.option("--watch", "watches", is_flag=True, help="Show how it goes, until it has ended."),
)
_WISHED = (
    click.option("--title", metavar="TEXT", help="What it is called.  [default: what is to be reached]"),
    click.option("--description", metavar="TEXT", help="Kept with the goal."),
    click.option("--priority", type=click.Choice(_PRIORITIES), help="Which goes first.  [default: medium]"),
    click.option("--by", "target_completion", metavar="TIME", help="It has failed if it is not completed by then."),
    click.option("--max-seconds", type=float, help="It has failed after so many seconds of being active."),
    *_MAKING,
)
_MODEL = click.argument("model_name", metavar="MODEL")


def _all(decorators: tuple[Any, ...]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for each in reversed(decorators):
            command = each(command)
        return command

    return decorate


@client_group("create", group=goals)
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The request as it stands: a JSON object with title and objective.",
)
@_all(_MAKING)
def create(
    client: Client, file: Path | None, idempotency_key: str | None, dry_run: bool, watches: bool, as_json: bool
) -> None:
    """Create a goal: quality, serving or availability.

    Its other form is --from FILE, which holds a request of the API.
    """
    from modelops.api.goals import CreateGoalRequest
    from modelops.cli.rows import read_request

    if file is None:
        raise click.UsageError("say what is to be reached: quality, serving or availability; or give --from FILE")
    request = read_request(file)
    CreateGoalRequest.parse(request)
    if dry_run:
        request["dry_run"] = True
    _created(client, request, idempotency_key=idempotency_key, watches=watches, as_json=as_json)


@client_command("quality", group=create)
@_MODEL
@options(_ROWS)
@click.option(
    "--metric", type=click.Choice(_METRICS), default="exact_match", show_default=True, help="How it is judged."
)
@click.option("--target", type=float, required=True, help="At least this, from 0 to 1; of perplexity at most this.")
@click.option("--regression-metric", type=click.Choice(_METRICS), help="How --regression is judged, if otherwise.")
@click.option("--tolerance", "regression_tolerance", type=float, help="What --regression may lose.  [default: 0.02]")
@click.option("--max-tokens", type=int, help="Longest answer to a row.  [default: 64]")
@click.option("--set", "written", multiple=True, metavar="NAME=VALUE", help="A parameter of the training: rank=8.")
@click.option("--watch-seconds", type=float, help="How long the new version is watched.  [default: 60]")
@click.option("--max-jobs", type=int, help="It has failed after so many trainings.")
@_all(_WISHED)
def quality(
    client: Client,
    model_name: str,
    metric: str,
    target: float,
    regression_metric: str | None,
    regression_tolerance: float | None,
    max_tokens: int | None,
    written: tuple[str, ...],
    watch_seconds: float | None,
    **others: Any,
) -> None:
    """Fine-tune a model until it answers held-out rows well.

    The served model is what is judged: a new version answers only if it reaches the target, and loses neither to the
    present one nor what --regression holds.
    """
    from modelops.api.errors import InvalidRequest
    from modelops.cli.rows import parameters

    given = rows(_ROWS, others)
    for name, field in (("train", "train_dataset"), ("eval", "eval_dataset")):
        if not (given.get(field) or given.get(f"{field}_path")):
            raise InvalidRequest(
                f"give the rows: --{name} FILE, or --{name}-path PATH for a file that the coordinator has"
            )
    objective = {
        "type": "quality",
        "model_name": model_name,
        **given,
        "metric": metric,
        "target": target,
        "regression_metric": regression_metric,
        "regression_tolerance": regression_tolerance,
        "max_tokens": max_tokens,
        "parameters": parameters("lora", written) or None,
        "watch_seconds": watch_seconds,
    }
    _wished(client, objective, f"{metric} {target:g} of {model_name}", **others)


@client_command("serving", group=create)
@_MODEL
@click.option("--prompt-tokens", type=int, help="Length of a prompt.  [default: 512]")
@click.option("--answer-tokens", type=int, help="Length of an answer.  [default: 128]")
@click.option("--concurrency", type=int, help="Requests at once.  [default: 4]")
@click.option("--shared-prefix", type=float, help="Part of each prompt that is the same in all.  [default: 0]")
@click.option(
    "--requests",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Real ones instead of lengths: JSONL with "input_text" and "max_tokens".',
)
@click.option("--p95-ms", "p95_latency_ms", type=float, help="95 of 100 answers come within this.")
@click.option("--min-tps", "min_tokens_per_second", type=float, help="Tokens of all answers per second.")
@click.option("--max-memory-mb", type=int, help="What the model may take.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(_FORMATS),
    multiple=True,
    help="A format that the weights may be written in. May be repeated.  [default: Q8_0, Q4_0, for long prompts BF16]",
)
@click.option("--keep-format", is_flag=True, help="The weights stay as they are.")
@click.option("--max-perplexity-increase", type=float, help="What a format may lose.  [default: 0.01]")
@options(_TEXTS)
@click.option("--draft", "draft_model_name", metavar="MODEL", help="A small model that may guess ahead for it.")
@click.option("--watch-seconds", type=float, help="How long new settings are watched.  [default: 30]")
@_all(_WISHED)
def serving(
    client: Client,
    model_name: str,
    prompt_tokens: int | None,
    answer_tokens: int | None,
    concurrency: int | None,
    shared_prefix: float | None,
    requests: Path | None,
    p95_latency_ms: float | None,
    min_tokens_per_second: float | None,
    max_memory_mb: int | None,
    formats: tuple[str, ...],
    keep_format: bool,
    max_perplexity_increase: float | None,
    draft_model_name: str | None,
    watch_seconds: float | None,
    **others: Any,
) -> None:
    """Find and apply the settings that serve a model well.

    Without a target the fastest are looked for. They are measured on this machine, in engines of their own, and applied
    only where they are better than the present ones.
    """
    from modelops.api.errors import InvalidRequest
    from modelops.cli.rows import read_rows

    if keep_format and formats:
        raise InvalidRequest("--format and --keep-format exclude each other; leave one out")
    workload = {
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "concurrency": concurrency,
        "shared_prefix": shared_prefix,
        "requests": read_rows(requests) if requests else None,
    }
    objective = {
        "type": "serving",
        "model_name": model_name,
        "workload": _given(workload),
        "p95_latency_ms": p95_latency_ms,
        "min_tokens_per_second": min_tokens_per_second,
        "max_memory_mb": max_memory_mb,
        "formats": list(formats) if formats or keep_format else None,
        "max_perplexity_increase": max_perplexity_increase,
        **rows(_TEXTS, others),
        "draft_model_name": draft_model_name,
        "watch_seconds": watch_seconds,
    }
    _wished(client, objective, f"serve {model_name} well", **others)


@client_command("availability", group=create)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--until", metavar="TIME", help="It is completed then; else it ends when it is cancelled.")
@click.option("--probe-seconds", type=float, help="Between two probes of a model.  [default: 5]")
@click.option("--probe-timeout-seconds", type=float, help="In which a probe is answered.  [default: 30]")
@_all(_WISHED)
def availability(
    client: Client,
    models: tuple[str, ...],
    until: str | None,
    probe_seconds: float | None,
    probe_timeout_seconds: float | None,
    **others: Any,
) -> None:
    """Keep models loaded and answering.

    They are loaded again whenever they are gone, and probed with a request of one token.
    """
    from modelops.cli.rows import moment

    objective = {
        "type": "availability",
        "models": list(models),
        "until": moment(until, "--until"),
        "probe_seconds": probe_seconds,
        "probe_timeout_seconds": probe_timeout_seconds,
    }
    _wished(client, objective, f"keep {', '.join(models)} answering", **others)


# --- helpers ---
def _wished(
    client: Client,
    objective: dict[str, Any],
    in_words: str,
    *,
    title: str | None,
    target_completion: str | None,
    max_seconds: float | None,
    max_jobs: int | None = None,
    idempotency_key: str | None,
    watches: bool,
    as_json: bool,
    **others: Any,
) -> None:
    """Create a goal of what was written; `others` are fields of the request as they are."""
    from modelops.api.goals import GoalLimits, objective_of
    from modelops.cli.rows import moment

    objective, limits = _given(objective), _given({"max_jobs": max_jobs, "max_seconds": max_seconds})
    objective_of(objective)  # mistakes cost no round trip
    GoalLimits.parse(limits)
    request = _given(others) | {
        "title": title or in_words[:_LONGEST_TITLE],
        "objective": objective,
        "target_completion": moment(target_completion, "--by"),
        "limits": limits,
    }
    _created(client, _given(request), idempotency_key=idempotency_key, watches=watches, as_json=as_json)


def _created(
    client: Client, request: dict[str, Any], *, idempotency_key: str | None, watches: bool, as_json: bool
) -> None:
    from modelops.cli.goalwords import plan, wish

    goal = client.create_goal(**request, idempotency_key=idempotency_key)
    dry_run = request.get("dry_run", False)
    if watches and not dry_run:
        watched(client, goal, as_json=as_json)
        return
    if as_json:
        print_json(goal)
        return
    for warning in goal.warnings:
        print_line(f"warning: {warning}", err=True)
    told = "nothing was created; it would be" if dry_run else f"goal {goal.goal_id} is {goal.status}:"
    for line in (f"{told} {wish(goal)}", *plan(goal)):
        print_line(line)
    if not dry_run:
        click.echo(f"'modelops goals watch {goal.goal_id}' shows how it goes", err=True)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what was not said."""
    return {name: value for name, value in fields.items() if value is not None and value is not False}
