"""The commands about the life of models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from modelops.cli.common import FAILED, client_command, client_group
from modelops.cli.terminal import print_json, print_table, spinner, watching

if TYPE_CHECKING:
    from modelops.api.types import LoadPlan, ModelLoadReply
    from modelops.client import Client


@client_command("load")
@click.argument("model")
@click.option("--path", default="", help="Its file under a model root, or a source; needed once.")
@click.option("--type", "model_type", type=click.Choice(["llm", "embedding", "reranker"]), help="[default: llm]")
@click.option("--gpu-layers", type=int, help="0: automatic; -1: none; N: exactly N.")
@click.option("--quantization", is_flag=True, default=None, help="Serve quantised weights.")
@click.option("--context-length", type=int, help="Tokens of prompt and answer together, per request.")
@click.option("--slots", type=int, help="Requests that it answers at once.")
@click.option("--cache-type", type=click.Choice(["f16", "q8_0", "q4_0"]), help="What its KV cache is stored as.")
@click.option("--keep-alive", help='How long it stays after its last answer: "5m", seconds, 0, or -1 for ever.')
@click.option("--pin", is_flag=True, default=None, help="Never evict it for another model.")
@click.option("--untuned", is_flag=True, default=None, help="Forget how a goal of serving tuned it.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it answers.")
def load(client: Client, model: str, path: str, no_wait: bool, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Load MODEL, so that its first caller need not wait."""
    if dry_run:
        reply = client.load(model, path, dry_run=True, **options)
        print_json(reply) if as_json else _print_plan(reply)
        return
    if ("://" in path or options.get("quantization")) and not no_wait and not as_json:  # it may take long: a bar
        client.load(model, path, wait=False, **options)
        if not watching(model, client.watch(model)):
            raise SystemExit(FAILED)
        found = client.model(model)
        click.echo(f"'{model}' is loaded: {found.model_version}, {found.memory_usage_mb} MB")
        return
    with spinner(f"loading {model}", as_json):
        reply = client.load(model, path, wait=not no_wait, **options)
    if as_json:
        print_json(reply)
    elif no_wait:
        click.echo(reply.message)
    else:
        click.echo(f"{reply.message}: {reply.model_version}, {reply.memory_usage_mb} MB")


@client_command("unload")
@click.argument("model")
@click.option("--force", is_flag=True, help="Do not wait for requests in flight.")
def unload(client: Client, model: str, force: bool, as_json: bool) -> None:
    """Unload MODEL and give its memory back."""
    with spinner(f"unloading {model}", as_json):
        reply = client.unload(model, force=force)
    freed = f": {reply.memory_freed_mb} MB are free again" if reply.memory_freed_mb else ""
    print_json(reply) if as_json else click.echo(f"{reply.message}{freed}")


@client_group("models")
@click.option("--all", "everything", is_flag=True, help="What is available too, not only what is loaded.")
def models(client: Client, everything: bool, as_json: bool) -> None:
    """List the models."""
    found = client.models(all=everything)
    if as_json:
        click.echo(json.dumps([json.loads(model.model_dump_json()) for model in found]))
    elif found:
        columns = ("NAME", "VERSION", "STATUS", "MEMORY", "ACTIVE", "QUEUED", "FILE")
        rows = []
        for model in found:
            memory = f"{model.memory_usage_mb} MB" if model.memory_usage_mb else ""
            status = f"{model.status}: {model.message}" if model.message else model.status
            status = f"{status}, pinned" if model.pinned else status
            counts = (str(model.active_requests), str(model.queued_requests))
            rows.append((model.model_name, model.model_version, status, memory, *counts, model.model_path))
        print_table(columns, rows)
    else:
        click.echo("no model is loaded; --all lists those that could be")


@client_command("show", group=models)
@click.argument("model")
def show(client: Client, model: str, as_json: bool) -> None:
    """Show MODEL as it stands, its versions, and what they were made from."""
    from modelops.cli.jobwords import lineage

    found, kept = client.model(model), client.versions(model)
    if as_json:
        told = {"model": found.model_dump(mode="json"), "versions": [it.model_dump(mode="json") for it in kept]}
        click.echo(json.dumps(told))
        return
    memory = f", {found.memory_usage_mb} MB" if found.memory_usage_mb else ""
    why = f": {found.message}" if found.message else ""
    click.echo(f"{found.model_name}: {found.model_type}, {found.status}{memory}{why}")
    if found.aliases:
        click.echo(f"also called {', '.join(found.aliases)}")
    if found.tuned:
        click.echo(f"tuned by a goal: {', '.join(f'{name} {value}' for name, value in found.tuned.items())}")
    for version in kept:
        mark = ", active" if version.active else ", previous" if version.previous else ""
        click.echo(f"\n{version.model_version}{mark}: {version.model_path}, {version.size_mb} MB")
        for name, line in lineage(version):
            click.echo(f"  {name:<11}{line}")


@client_command("explain")
@click.argument("model")
def explain(client: Client, model: str, as_json: bool) -> None:
    """Show where MODEL's memory goes, line by line."""
    found = client.explain(model)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.model_name} {found.model_version}")
    for line in found.computed:
        click.echo(f"  {line.name:<24}{line.mb:>10.1f} MB")
    sums = {
        "computed": found.computed_mb,
        "projected by the engine": found.projected_mb,
        "measured": found.measured_mb,
        "correction": found.correction_mb,
    }
    for name, size in sums.items():
        click.echo(f"{name:<26}" + (f"{size:>10.1f} MB" if size else f"{'-':>10}"))
    click.echo(f"{'a load reserves':<26}{found.chosen_mb:>10.1f} MB   ({found.chosen_from})")
    if found.per_gpu_mb:
        click.echo(f"{'on each GPU beside layers':<26}{found.per_gpu_mb:>10.1f} MB")
    if found.refusal:
        click.echo(f"now: {found.refusal}")
    elif found.plan:
        click.echo(f"now: {_placed(found.plan)}")


# --- versions ---
@client_command("versions")
@click.argument("model")
def versions(client: Client, model: str, as_json: bool) -> None:
    """List the versions of MODEL."""
    found = client.versions(model)
    if as_json:
        click.echo(json.dumps([json.loads(version.model_dump_json()) for version in found]))
        return
    rows = []
    for version in found:
        mark = "active" if version.active else "previous" if version.previous else ""
        registered = f"{version.registered_at:%Y-%m-%d %H:%M}" if version.registered_at else ""
        rows.append((version.model_version, mark, f"{version.size_mb} MB", registered, version.model_path))
    print_table(("VERSION", "", "SIZE", "REGISTERED", "FILE"), rows)


@client_command("register")
@click.argument("model")
@click.argument("path")
@click.option("--type", "model_type", type=click.Choice(["llm", "embedding", "reranker"]), help="[default: llm]")
def register(client: Client, model: str, path: str, model_type: str | None, as_json: bool) -> None:
    """Register PATH as MODEL's next version.

    PATH is a file under a model root, or a source. Nothing is loaded or activated, unless it is the first version.
    """
    with spinner(f"registering {model}", as_json):
        found = client.register(model, path, model_type=model_type)
    print_json(found) if as_json else click.echo(f"'{model}' {found.model_version}: {found.model_path}")


_drain_first = click.option(
    "--drain-first", is_flag=True, help="End the present engine first: for machines that cannot hold both."
)


@client_command("activate")
@click.argument("model")
@click.argument("version")
@_drain_first
def activate(client: Client, model: str, version: str, drain_first: bool, as_json: bool) -> None:
    """Let VERSION of MODEL answer from now on.

    Where the model is loaded, no request fails: the new engine is started beside the old one.
    """
    with spinner(f"activating {model} {version}", as_json):
        found = client.activate(model, version, drain_first=drain_first)
    print_json(found) if as_json else click.echo(f"'{model}' {found.model_version} is active")


@client_command("rollback")
@click.argument("model")
@_drain_first
def rollback(client: Client, model: str, drain_first: bool, as_json: bool) -> None:
    """Let the version of MODEL that was active before answer again."""
    with spinner(f"rolling {model} back", as_json):
        found = client.roll_back(model, drain_first=drain_first)
    print_json(found) if as_json else click.echo(f"'{model}' {found.model_version} is active")


@client_command("rm")
@click.argument("model")
@click.argument("version", default="all")
def rm(client: Client, model: str, version: str, as_json: bool) -> None:
    """Forget VERSION of MODEL, or all.

    Files in the coordinator's own models folder are deleted; files in your own folders stay.
    """
    found = client.remove(model, version)
    print_json(found) if as_json else click.echo(f"removed {', '.join(found.removed)}: {found.freed_mb} MB of disk")


@client_command("prune")
def prune(client: Client, as_json: bool) -> None:
    """Remove what nothing needs.

    Abandoned downloads, unused quantised copies, what training wrote beside its models, versions without a file.
    """
    found = client.prune()
    if as_json:
        print_json(found)
    else:
        click.echo(f"removed {', '.join(found.removed) or 'nothing'}: {found.freed_mb} MB of disk")


def _print_plan(reply: ModelLoadReply) -> None:
    assert reply.plan is not None
    click.echo(f"{reply.message}: {reply.model_version}, {_placed(reply.plan)}")


def _placed(plan: LoadPlan) -> str:
    where = ", ".join(
        f"{device.memory_mb} MB on {device.device}" + (f" ({_count(device.layers, 'layer')})" if device.layers else "")
        for device in plan.devices
    )
    evicting = f", evicting {' and '.join(plan.evict)}" if plan.evict else ""
    counts = f"{_count(plan.slots, 'slot')}, cache {plan.cache_type}, {_count(plan.threads, 'thread')}"
    return f"{where}{evicting}; context {plan.context_length}, {counts}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
