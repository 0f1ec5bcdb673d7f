"""`keys` and `tls`: who may call, and how what crosses the network is encrypted. They work on this machine's files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelops.cli.common import as_json_option, config_option, data_dir_option, fails_well, load_settings, main
from modelops.cli.terminal import print_table

if TYPE_CHECKING:
    from modelops.access import Key
    from modelops.settings import Settings
    from modelops.store.keys import KeyQueries

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_AGE = re.compile(r"(\d{1,9})\s*(m|h|d|w)")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_LIFE_S = 100 * 366 * 86_400
_SCOPES = ("infer", "models", "learning", "goals", "metrics", "admin")
_PRIORITIES = ("low", "medium", "high", "critical")


@main.group()
def keys() -> None:
    """Make, list and revoke the keys of callers.

    As soon as there is one key, every caller needs one. A running coordinator notices at once.
    """


@keys.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(_SCOPES), help="May be repeated.  [default: infer]")
@click.option(
    "--rate", default="", metavar="RATE", help="Most requests, as 10/second or 600/minute.  [default: no limit]"
)
@click.option("--tokens", "token_rate", default="", metavar="RATE", help="Most tokens, as 60000/minute.")
@click.option(
    "--priority", type=click.Choice(_PRIORITIES), default="medium", help="Share of a busy model.", show_default=True
)
@click.option("--expires", metavar="WHEN", help="90d, 12h, or a date: 2027-01-31.  [default: never]")
@click.option(
    "--certificate", is_flag=True, help="For a client certificate whose common name is NAME; there is no text."
)
@config_option
@data_dir_option
@as_json_option
@fails_well
def create(
    name: str,
    scopes: tuple[str, ...],
    rate: str,
    token_rate: str,
    priority: Any,
    expires: str | None,
    certificate: bool,
    config: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a key called NAME, and show it: once."""
    from modelops.access import Key, new_text
    from modelops.api.errors import Conflict, InvalidRequest

    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"'{name}' is no name: up to 64 letters, digits, and . _ @ + - after the first")
    if rate or token_rate:
        from modelops.service.rates import parse  # which takes as long to import as all else together

        for written in filter(None, (rate, token_rate)):
            parse(written)
    now = time.time()
    text, number, digest = new_text()
    key = Key(
        id=number,
        name=name,
        digest="" if certificate else digest,
        scopes=frozenset(scopes or ("infer",)),  # type: ignore[arg-type] # click has checked them
        priority=priority,
        rate=rate,
        token_rate=token_rate,
        created_at=now,
        expires_at=_when(expires, now) if expires else None,
    )

    settings = load_settings(config, {"data_dir": data_dir})
    if not _with_keys(settings, lambda queries: queries.add(key), make=True):
        raise Conflict(f"there is a key '{name}' already; revoke it first, or choose another name")
    file = _state_file(settings)
    if as_json:
        click.echo(json.dumps({**_told(key), "key": None if certificate else text, "file": str(file)}))
        return
    # In another folder than the coordinator's it would open nothing.
    click.echo(f"kept in {file}; the coordinator that uses this folder takes it at once", err=True)
    if certificate:
        click.echo(f"Whoever shows a certificate of '{name}' may call now.")
    else:
        click.echo("This is shown once; keep it where only its user can read it.", err=True)
        click.echo(text)


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="Those that were revoked or have expired, too.")
@config_option
@data_dir_option
@as_json_option
@fails_well
def list_keys(everything: bool, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """List the keys; their texts are kept nowhere."""
    found = _with_keys(load_settings(config, {"data_dir": data_dir}), lambda queries: queries.all())
    told = [_told(key) for key in found]
    shown = told if everything else [one for one in told if one["state"] == "valid"]
    if as_json:
        click.echo(json.dumps({"keys": shown}))
        return
    if not told:
        click.echo("there are no keys: whoever reaches the coordinator may use it")
        return
    heads = ("name", "id", "scopes", "priority", "rate", "tokens", "expires", "state")
    rows = [[_cell(one[head]) for head in heads] for one in shown]
    print_table([head.upper() for head in heads], rows)


@keys.command("revoke")
@click.argument("name")
@config_option
@data_dir_option
@as_json_option
@fails_well
def revoke(name: str, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Revoke the key called NAME, for good.

    A running coordinator refuses it within a second.
    """
    from modelops.api.errors import NotFound

    settings = load_settings(config, {"data_dir": data_dir})
    if not _with_keys(settings, lambda queries: queries.revoke(name, time.time())):
        raise NotFound(f"there is no valid key '{name}'; 'modelops keys list' shows those that there are")
    click.echo(json.dumps({"name": name, "state": "revoked"}) if as_json else f"'{name}' is revoked")


@keys.command("curve")
@click.option("--client", is_flag=True, help="Print a key pair for a client instead; nothing is kept.")
@config_option
@data_dir_option
@as_json_option
@fails_well
def curve(client: bool, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Make the key pair that ZMQ is encrypted with.

    Where there is one already its public key is shown, which clients need. `serve` uses the pair (CURVE) when
    tls.curve_file names its file.
    """
    import zmq

    if client:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        told = {"public_key": public, "secret_key": secret}
        click.echo(json.dumps(told) if as_json else f"public key: {public}\nsecret key: {secret}")
        return
    settings = load_settings(config, {"data_dir": data_dir})
    file = settings.tls.curve_file or settings.data_dir / "curve.key"
    if not file.exists():
        write_secret(file, zmq.curve_keypair()[1] + b"\n")
    from modelops.transports.listening import CertificateError, key_pair

    try:
        public = key_pair(file).public.decode()
    except CertificateError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps({"public_key": public, "file": str(file)}))
        return
    click.echo(f"public key: {public}")
    if settings.tls.curve_file is None:
        click.echo(f"serve with it: modelops serve --curve-file {file}", err=True)


@main.group()
def tls() -> None:
    """Certificates."""


@tls.command("self-signed")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="What clients call this machine; may be repeated.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, help="How long it is valid.", show_default=True)
@config_option
@data_dir_option
@as_json_option
@fails_well
def self_signed(hosts: tuple[str, ...], days: int, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Make a certificate for a first try.

    It is for localhost, this machine's name, and each --host; one made before is replaced. Clients have to be
    given the certificate's file, for no authority vouches for it.
    """
    from modelops.cli.certificates import make_self_signed

    folder = load_settings(config, {"data_dir": data_dir}).data_dir / "tls"
    cert, key = folder / "cert.pem", folder / "key.pem"
    chain, private_key, names = make_self_signed(hosts, days)
    write_secret(key, private_key)
    write_secret(cert, chain, mode=0o644)
    if as_json:
        click.echo(json.dumps({"cert_file": str(cert), "key_file": str(key), "names": names}))
        return
    click.echo(f"a certificate for {', '.join(names)}, for {days} days:")
    click.echo(f"  modelops serve --tls-cert-file {cert} --tls-key-file {key}")
    click.echo(f"  modelops status --url https://localhost:8008 --ca-file {cert}")


def write_secret(file: Path, content: bytes, mode: int = 0o600) -> None:
    """Write the file whole or not at all; never, not even for a moment, readable by others."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as written:
                written.write(content)
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None


def _state_file(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "state.db"


def _with_keys(settings: Settings, work: Callable[[KeyQueries], Coroutine[Any, Any, T]], *, make: bool = False) -> T:
    """Do something with the keys in the state file, whether or not a coordinator runs on it.

    Raises NotFound where there is none, unless it is to be made.
    """
    from modelops.api.errors import NotFound
    from modelops.store.database import StateFileError, open_database
    from modelops.store.keys import KeyQueries

    file = _state_file(settings)

    async def opened() -> T:
        if make:
            settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            try:
                file.stat()
            except FileNotFoundError:
                raise NotFound(
                    f"there is no state file in {settings.data_dir}: no key was made in this folder, and no "
                    "coordinator has used it; --data-dir names another"
                ) from None
        database = await open_database(file)
        try:
            return await work(KeyQueries(database))
        finally:
            await database.dispose()

    try:
        return asyncio.run(opened())
    except StateFileError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{settings.data_dir} cannot be used: {error.strerror}") from None


def _when(written: str, now: float) -> float:
    """Seconds since the epoch. Raises InvalidRequest."""
    from modelops.api.errors import InvalidRequest

    if age := _AGE.fullmatch(written):
        at = now + int(age[1]) * _SECONDS[age[2]]
    else:
        try:
            when = datetime.fromisoformat(written)
        except ValueError:
            raise InvalidRequest(f"'{written}' is no time; one is written 90d, 12h, 30m or 2027-01-31") from None
        at = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if at <= now:
        raise InvalidRequest(f"'{written}' is over already")
    if at > now + _LONGEST_LIFE_S:
        raise InvalidRequest(f"'{written}' is more than a hundred years ahead; without --expires a key never expires")
    return at


def _told(key: Key) -> dict[str, Any]:
    def moment(at: float | None) -> str | None:
        return (
            None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        )

    expired = key.expires_at is not None and key.expires_at <= time.time()
    return {
        "name": key.name,
        "id": key.id,
        "scopes": sorted(key.scopes),
        "priority": key.priority,
        "rate": key.rate,
        "tokens": key.token_rate,
        "certificate": not key.digest,
        "created": moment(key.created_at),
        "expires": moment(key.expires_at),
        "state": "revoked" if key.revoked_at is not None else "expired" if expired else "valid",
    }


def _cell(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value or "-")
