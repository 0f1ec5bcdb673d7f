"""`modelops goals`: what is to be reached, which the coordinator finds the way to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from modelops.cli.common import FAILED, client_command, main
from modelops.cli.terminal import print_json, print_line, print_table, spinner

if TYPE_CHECKING:
    from modelops.api.goals import Goal
    from modelops.client import Client

_STATUSES = ("pending", "active", "completed", "failed", "cancelled", "all")


@main.group()
def goals() -> None:
    """Say what is to be reached; how, is found and done.

    The coordinator trains, measures and sets what is needed, checks what came of it, and takes it back where that is
    worse.
    """


@client_command("list", group=goals)
@click.option("--status", type=click.Choice(_STATUSES), help="Only those.  [default: those that have not ended]")
def list_goals(client: Client, status: Any, as_json: bool) -> None:
    """List the goals, the newest first."""
    from modelops.cli.goalwords import state
    from modelops.cli.jobwords import moment

    found = client.list_goals(status)
    if as_json:
        click.echo(json.dumps([json.loads(goal.model_dump_json()) for goal in found]))
    elif found:
        columns = ("ID", "TYPE", "TITLE", "STATUS", "NOW", "CREATED")
        cells = [
            (
                goal.goal_id,
                str(goal.objective.get("type")),
                goal.title,
                state(goal),
                goal.message,
                moment(goal.created_at),
            )
            for goal in found
        ]
        print_table(columns, cells)
    else:
        told = {"all": "there are no goals", None: "there are no goals that have not ended"}
        click.echo(told.get(status, f"there are no {status} goals"))


@client_command("show", group=goals)
@click.argument("goal_id", metavar="ID")
def show(client: Client, goal_id: str, as_json: bool) -> None:
    """Show all that is known of a goal: each step, and why."""
    from modelops.cli.goalwords import show as printed

    goal = client.get_goal(goal_id)
    print_json(goal) if as_json else printed(goal)


@client_command("watch", group=goals)
@click.argument("goal_id", metavar="ID")
def watch(client: Client, goal_id: str, as_json: bool) -> None:
    """Show how a goal is pursued, until it has ended.

    Ctrl-C ends the watching, and not the goal. The exit status is 0 if the goal is completed. Where standard output is
    no terminal its events are printed as lines; with --json, as objects.
    """
    watched(client, client.get_goal(goal_id), as_json=as_json)


@client_command("cancel", group=goals)
@click.argument("goal_id", metavar="ID")
@click.option("--reason", default="", help="Kept with the goal.")
def cancel(client: Client, goal_id: str, reason: str, as_json: bool) -> None:
    """Cancel a goal; what it has not finished is taken back."""
    with spinner(f"cancelling {goal_id}", as_json):
        goal = client.cancel_goal(goal_id, reason)
    if as_json:
        print_json(goal)
    else:
        click.echo(f"goal {goal.goal_id} is {'being cancelled' if goal.status == 'active' else goal.status}")


def watched(client: Client, goal: Goal, *, as_json: bool) -> None:
    """Show how it goes, and what came of it. Raises SystemExit where it is not completed."""
    from modelops.cli.goalwatch import lines, live
    from modelops.cli.goalwords import came_of
    from modelops.cli.screen import is_terminal

    try:
        drawn = is_terminal() and not as_json
        ended = live(client, goal) if drawn else lines(client, goal.goal_id, as_json=as_json)
    except KeyboardInterrupt:
        click.echo(
            f"the goal goes on; 'modelops goals watch {goal.goal_id}' shows it again, "
            f"'modelops goals cancel {goal.goal_id}' ends it",
            err=True,
        )
        raise
    if not as_json:
        for told in came_of(ended):
            print_line(told, err=ended.status != "completed")
    if ended.status != "completed":
        raise SystemExit(FAILED)
