"""`modelops jobs`: models fine-tuned and judged, on the coordinator's machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from modelops.cli.common import FAILED, client_command, main
from modelops.cli.sets import RowSet, by_options, errors_by_options, options, rows
from modelops.cli.terminal import print_json, print_line, print_table, spinner

if TYPE_CHECKING:
    from modelops.api.learning import JobStatus, JobType, LearningJob, Priority
    from modelops.client import Client

_TYPES = ("lora", "dpo", "evaluate")
_STATUSES = ("pending", "running", "completed", "failed", "cancelled")
_PRIORITIES = ("low", "medium", "high", "critical")
_SETS = (
    RowSet("data", "dataset", "What it learns, or is asked"),
    RowSet("eval", "eval_dataset", "Held-out rows, which show how good it has become"),
    RowSet("regression", "regression_dataset", "Rows of other things, which show what it has lost"),
)
_OTHERS = {"output_model_name": "--as"}


@main.group()
def jobs() -> None:
    """Fine-tune models, and judge them.

    A job is worked on by the coordinator, one after the other, and gives way to requests.
    """


@client_command("create", group=jobs)
@click.argument("job_type", metavar="TYPE", type=click.Choice(_TYPES))
@click.argument("model")
@options(_SETS)
@click.option("--set", "written", multiple=True, metavar="NAME=VALUE", help="A parameter: rank=8. May be repeated.")
@click.option(
    "--as", "output_model_name", metavar="NAME", help="What is published: MODEL:NAME, an adapter, or a whole model."
)
@click.option("--priority", type=click.Choice(_PRIORITIES), help="Which goes first.  [default: medium]")
@click.option("--idempotency-key", metavar="KEY", help="Repeated with the same key nothing more is created.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and create nothing.")
@click.option("--watch", "watches", is_flag=True, help="Show how it goes, until it has ended.")
def create(
    client: Client,
    job_type: JobType,
    model: str,
    written: tuple[str, ...],
    output_model_name: str | None,
    priority: Priority | None,
    idempotency_key: str | None,
    dry_run: bool,
    watches: bool,
    as_json: bool,
    **sets: Any,
) -> None:
    """Create a job: lora (answers to be learnt), dpo (answers that are preferred to others), or evaluate.

    Each line of a FILE is {"prompt": "…", "completion": "…"}, {"messages": […]} or {"text": "…"}; of dpo {"prompt",
    "chosen", "rejected"}. The file is read here and sent; what is too large for that is put under one of the
    coordinator's dataset roots, and named with --data-path.
    """
    from modelops.cli.jobwords import plan
    from modelops.cli.rows import parameters

    given = {"parameters": parameters(job_type, written), **_rows(sets)}
    with errors_by_options(_SETS, _OTHERS):
        job = client.create_job(
            job_type,
            model,
            idempotency_key=idempotency_key,
            output_model_name=output_model_name,
            priority=priority,
            dry_run=dry_run or None,
            **given,
        )
    if watches and not dry_run:
        _watch(client, job, as_json=as_json)
        return
    if as_json:
        print_json(job)
        return
    for warning in job.warnings:
        print_line(f"warning: {by_options(warning, _SETS, _OTHERS)}", err=True)
    if dry_run:
        print_line(f"nothing was created; it would be {plan(job)}")
    else:
        print_line(f"job {job.job_id} is {job.status}: {plan(job)}")
        click.echo(f"'modelops jobs watch {job.job_id}' shows how it goes", err=True)


def _rows(sets: dict[str, Any]) -> dict[str, Any]:
    from modelops.api.errors import InvalidRequest

    given = rows(_SETS, sets)
    if not (given.get("dataset") or given.get("dataset_path")):
        raise InvalidRequest("give the rows: --data FILE, or --data-path PATH for a file that the coordinator has")
    return given


@client_command("list", group=jobs)
@click.option("--status", type=click.Choice(_STATUSES), help="Only those.")
def list_jobs(client: Client, status: JobStatus | None, as_json: bool) -> None:
    """List the jobs, the newest first."""
    from modelops.cli.jobwords import moment, state

    found = client.list_jobs(status)
    if as_json:
        click.echo(json.dumps([json.loads(job.model_dump_json()) for job in found]))
    elif found:
        columns = ("ID", "TYPE", "MODEL", "PUBLISHES", "STATUS", "CREATED")
        rows = [
            (job.job_id, job.job_type, job.model_name, job.output_model_name, state(job), moment(job.created_at))
            for job in found
        ]
        print_table(columns, rows)
    else:
        click.echo(f"there are no {status} jobs" if status else "there are no jobs")


@client_command("show", group=jobs)
@click.argument("job_id", metavar="ID")
def show(client: Client, job_id: str, as_json: bool) -> None:
    """Show all that is known of a job: how far it is, or what came of it."""
    from modelops.cli.jobwords import show as printed

    job = client.get_job(job_id)
    print_json(job) if as_json else printed(job)


@client_command("watch", group=jobs)
@click.argument("job_id", metavar="ID")
def watch(client: Client, job_id: str, as_json: bool) -> None:
    """Show how a job goes, until it has ended.

    Ctrl-C ends the watching, and not the job. The exit status is 0 if the job is completed. Where standard output is no
    terminal its events are printed as lines; with --json, as objects.
    """
    _watch(client, client.get_job(job_id), as_json=as_json)


@client_command("logs", group=jobs)
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
def logs(client: Client, job_id: str, follow: bool, as_json: bool) -> None:
    """Print what has happened to a job, line by line."""
    from modelops.cli.jobwatch import lines

    if follow:
        client.get_job(job_id)  # a coordinator that is not there at all is not waited for
    lines(client, job_id, follow=follow, as_json=as_json)


@client_command("cancel", group=jobs)
@click.argument("job_id", metavar="ID")
@click.option("--reason", default="", help="Kept with the job.")
def cancel(client: Client, job_id: str, reason: str, as_json: bool) -> None:
    """Cancel a job; what it has done so far is thrown away."""
    with spinner(f"cancelling {job_id}", as_json):
        job = client.cancel_job(job_id, reason)
    if as_json:
        print_json(job)
    elif job.status == "running":
        click.echo(f"job {job.job_id} is being cancelled")
    else:
        click.echo(f"job {job.job_id} is {job.status}")


def _watch(client: Client, job: LearningJob, *, as_json: bool) -> None:
    from modelops.cli.jobwatch import lines, live
    from modelops.cli.jobwords import came_of
    from modelops.cli.screen import is_terminal

    try:
        if as_json or not is_terminal():
            ended = lines(client, job.job_id, follow=True, as_json=as_json)
        else:
            ended = live(client, job)
    except KeyboardInterrupt:
        click.echo(
            f"the job goes on; 'modelops jobs watch {job.job_id}' shows it again, "
            f"'modelops jobs cancel {job.job_id}' ends it",
            err=True,
        )
        raise
    if not as_json:
        click.echo(came_of(ended), err=ended.status != "completed")
    if ended.status != "completed":
        raise SystemExit(FAILED)
