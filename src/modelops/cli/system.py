"""The commands about the coordinator itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelops.cli.common import FAILED, client_command
from modelops.cli.terminal import print_json

if TYPE_CHECKING:
    from modelops.client import Client


@client_command("status")
def status(client: Client, as_json: bool) -> None:
    """Show the machine and what runs on it."""
    found = client.status()
    if as_json:
        print_json(found)
        return
    click.echo(f"ModelOps Coordinator {found.version}, up {found.uptime_seconds:.0f} s")
    for device in found.devices:
        click.echo(
            f"{device.device} ({device.name}): {device.used_mb} of {device.total_mb} MB used, "
            f"{device.reserved_mb} MB held by models, {device.utilization_percent:.0f} % busy"
        )
    click.echo(
        f"models loaded: {found.models_loaded}, requests active: {found.active_requests}, "
        f"waiting: {found.queued_requests}"
    )
    click.echo(f"learning jobs running: {found.learning_jobs_running}, goals pursued: {found.goals_active}")


@client_command("health")
def health(client: Client, as_json: bool) -> None:
    """Say whether the coordinator can serve.

    The exit status is 0 only if it is healthy.
    """
    found = client.health()
    if as_json:
        print_json(found)
    else:
        click.echo(found.status)
        for name, state in found.components.items():
            click.echo(f"  {name}: {state}")
    if found.status != "healthy":
        raise SystemExit(FAILED)
