"""What the commands share: options, how errors are told, and the group itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from modelops.cli.terminal import print_line

if TYPE_CHECKING:
    from modelops.api.errors import ModelOpsError
    from modelops.client import Client
    from modelops.settings import Settings

FAILED, MISUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
_LONGEST_LINE = 1024

P = ParamSpec("P")
R = TypeVar("R")


def tell(error: ModelOpsError, *, as_json: bool) -> None:
    """An error, as one line on standard error, or as one object."""
    if as_json:
        told = {"code": error.code, "error": error.message, "details": error.details}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    where = "; this command reads it from MODELOPS_API_KEY, or from --api-key-file"
    hint = where if error.code == "unauthenticated" else ""
    print_line(f"modelops: {error.message}{hint}", err=True)


def fails_well(command: Callable[P, R]) -> Callable[P, R]:
    """Errors become one line on standard error and an exit status; with --json, one object."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from modelops.api.errors import ModelOpsError

        try:
            return command(*args, **kwargs)
        except ModelOpsError as error:
            tell(error, as_json=bool(kwargs.get("as_json")))
            status = {"unreachable": UNREACHABLE, "invalid_request": MISUSED}.get(error.code, FAILED)
            raise SystemExit(status) from None
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has closed it (`modelops infer … | head`): that is no failure of ours to report.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(FAILED) from None

    return wrapped


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
url_option = click.option(
    "--url", envvar="MODELOPS_URL", help="The coordinator's REST address.  [default: http://127.0.0.1:8008]"
)
ca_option = click.option(
    "--ca-file",
    envvar="MODELOPS_CA_FILE",
    type=click.Path(path_type=Path),
    help="Trust the certificate, or the authority, in this file.",
)
key_option = click.option(
    "--api-key",
    envvar="MODELOPS_API_KEY",
    help="Seen by every user of this machine: better given as MODELOPS_API_KEY, or by --api-key-file.",
)
key_file_option = click.option(
    "--api-key-file", metavar="FILE", help="Read the key from the first line of this file; - for standard input."
)
data_dir_option = click.option("--data-dir", type=click.Path(path_type=Path), help="Where models and state are kept.")
config_option = click.option("--config", type=click.Path(path_type=Path), help="A TOML file with settings.")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="First steps:  modelops pull smollm2;  modelops serve --load smollm2;  "
    "and in another terminal:  modelops infer smollm2 'Hello!'",
)
@click.version_option(package_name="modelops-coordinator", prog_name="modelops")
def main() -> None:
    """One server for the language models of this machine: over gRPC, REST and ZMQ."""


def client_command(
    name: str, timeout_s: float | None = None, group: click.Group = main
) -> Callable[[Callable[..., None]], click.Command]:
    """A command that talks to a coordinator: it gets a client, and the options that say which. With `timeout_s` no
    answer is waited for any longer."""
    return lambda function: group.command(name)(_connected(function, timeout_s))


def client_group(name: str, group: click.Group = main) -> Callable[[Callable[..., None]], click.Group]:
    """As `client_command`; there are others below it, and by itself it does what the function does."""

    def decorate(function: Callable[..., None]) -> click.Group:
        @wraps(function)
        def alone(client: Client, **options: Any) -> None:
            context = click.get_current_context()
            if context.invoked_subcommand is None:
                function(client, **options)
            elif any(context.get_parameter_source(option) is _TYPED for option in context.params):
                raise click.UsageError(f"the options of '{context.invoked_subcommand}' stand behind it")

        return group.group(name, invoke_without_command=True)(_connected(alone, None))

    return decorate


_TYPED = click.core.ParameterSource.COMMANDLINE


def _connected(function: Callable[..., None], timeout_s: float | None) -> Callable[..., None]:
    @wraps(function)
    def connected(
        url: str | None, api_key: str | None, api_key_file: str | None, ca_file: Path | None, **options: Any
    ) -> None:
        from modelops.client import DEFAULT_URL, Client

        if api_key_file is not None:
            api_key = _key_in(api_key_file)
        with Client(url or DEFAULT_URL, api_key=api_key, timeout_s=timeout_s, ca_file=ca_file) as client:
            function(client, **options)

    decorated = as_json_option(fails_well(connected))
    return url_option(key_option(key_file_option(ca_option(decorated))))


def _key_in(file: str) -> str:
    """The key in the first line of a file. Raises InvalidRequest."""
    from modelops.api.errors import InvalidRequest

    typed = click.get_current_context().get_parameter_source("api_key")
    if typed is _TYPED:  # a file wins over the variable, as all options do
        raise InvalidRequest("--api-key and --api-key-file are two ways to give the one key; leave one out")
    try:
        if file == "-":
            found = sys.stdin.readline()
        else:
            with Path(file).open(encoding="utf-8", errors="replace") as opened:
                found = opened.readline(_LONGEST_LINE)
    except OSError as error:
        raise InvalidRequest(f"the key's file '{file}' cannot be read: {error.strerror}") from None
    if not (key := found.strip()):
        where = "standard input" if file == "-" else f"'{file}'"
        raise InvalidRequest(f"the first line of {where} is empty: there should be a key")
    return key


def load_settings(config: Path | None, flags: dict[str, object]) -> Settings:
    """The settings, or the end of the command with what is wrong with them."""
    from modelops import settings

    try:
        return settings.load(config, flags=flags)
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from None
