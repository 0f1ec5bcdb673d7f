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

if TYPE_CHECKING:
    from modelops.settings import Settings

FAILED, MISUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

P = ParamSpec("P")
R = TypeVar("R")


def fails_well(command: Callable[P, R]) -> Callable[P, R]:
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


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
url_option = click.option(
    "--url", envvar="MODELOPS_URL", help="The coordinator's REST address.  [default: http://127.0.0.1:8008]"
)
key_option = click.option("--api-key", envvar="MODELOPS_API_KEY", help="Better given as MODELOPS_API_KEY.")
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


def client_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command that talks to a coordinator: it gets a client, and the options that say which."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def connected(url: str | None, api_key: str | None, **options: Any) -> None:
            from modelops.client import DEFAULT_URL, Client

            with Client(url or DEFAULT_URL, api_key=api_key) as client:
                function(client, **options)

        return main.command(name)(url_option(key_option(as_json_option(fails_well(connected)))))

    return decorate


def load_settings(config: Path | None, flags: dict[str, object]) -> Settings:
    """The settings, or the end of the command with what is wrong with them."""
    from modelops import settings

    try:
        return settings.load(config, flags=flags)
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from None
