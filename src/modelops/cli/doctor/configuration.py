"""The configuration: where the settings come from, what looks like one and is none, the catalogue, the rates."""

from __future__ import annotations

import asyncio
import difflib
import importlib.util
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from modelops.cli.doctor.findings import Area, Finding, count
from modelops.settings import NOT_SETTINGS, PREFIX, ModelEntry, Settings, SettingsError, described

AREA = Area("configuration")
_KEY = re.compile(r"setting '([\w.]+)'")
_ALIKE = re.compile(r"_*MODEL_?OPS?_+")
_PATIENCE_S = 1.0


def refused(error: SettingsError, config: Path | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Why the settings cannot be used, a finding for each reason."""
    file = _file(config, environ)
    for line in str(error).splitlines():
        key = _KEY.search(line)
        variable = PREFIX + key[1].replace(".", "__").upper() if key else line.partition(" ")[0]
        if variable in environ:
            mend = f"correct the variable {variable}, or take it out: unset {variable}"
        elif key:
            mend = f"correct it in {file or 'the configuration'}; docs/settings.md tells every setting"
        else:
            mend = "correct that file, or name another with --config or MODELOPS_CONFIG"
        yield AREA.wrong("settings", line, mend)


def sources(config: Path | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Where the settings come from. Their values are not told: some are secret."""
    file = _file(config, environ)
    variables = [name for name in environ if name.startswith(PREFIX) and name not in NOT_SETTINGS]
    parts = [str(file)] if file else []
    parts += [count(len(variables), "variable")] if variables else []
    yield AREA.ok("settings", f"valid, from {' and '.join(parts)}" if parts else "valid: the defaults")


def variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that nobody reads, although they look as if they were settings."""
    known = {PREFIX + key.replace(".", "__").upper() for key, _, _ in described()} | NOT_SETTINGS
    for name in sorted(environ):
        if not name.startswith(PREFIX) and _ALIKE.match(name.upper()):
            likely = PREFIX + _ALIKE.sub("", name.upper(), count=1)
            close = difflib.get_close_matches(likely, known, n=1, cutoff=0.7)
            mend = f"call it {close[0]}" if close else f"unset {name}, or call it {PREFIX}SECTION__KEY"
            yield AREA.warning("variables", f"{name} looks like a setting, and is not read", mend)


def catalogue(settings: Settings) -> Iterator[Finding]:
    """The file that names models, if there is one."""
    from modelops.app import StartError, catalogue_of

    file = settings.models.catalogue
    if file is None:
        return
    try:
        entries = catalogue_of(settings)
    except StartError as error:
        for line in str(error).splitlines():
            yield AREA.refused("catalogue", line, f"correct {file} (docs/models.md), or leave out models.catalogue")
        return
    yield AREA.ok("catalogue", f"{count(len(entries), 'model')} in {file}")
    for name, entry in entries.items():
        yield from _entry(name, entry, settings)


def _entry(name: str, entry: ModelEntry, settings: Settings) -> Iterator[Finding]:
    from modelops.api.errors import InvalidRequest
    from modelops.serving import sources

    where = f"correct [{name}] in {settings.models.catalogue}"
    roots = [settings.models_dir, *settings.models.roots]
    if entry.file and not any((root / entry.file).is_file() for root in roots):
        searched = ", ".join(map(str, roots))
        yield AREA.warning("catalogue", f"'{name}' is the file '{entry.file}', which is not in {searched}", where)
    if entry.source:
        try:
            parsed = sources.parse(entry.source)
        except InvalidRequest as error:
            yield AREA.warning("catalogue", f"'{name}' cannot be fetched: {error.message}", where)
            return
        if isinstance(parsed, sources.HubSource) and importlib.util.find_spec("huggingface_hub") is None:
            need = f"'{name}' comes from the Hugging Face hub, and the package for it is not installed"
            yield AREA.warning("catalogue", need, "pip install 'modelops-coordinator[hub]'")


def rates(settings: Settings) -> Iterator[Finding]:
    """Where the callers' rates are counted, if not in the coordinator."""
    from modelops.app import StartError, rates_of

    url = settings.rates.redis_url
    if not url:
        return
    try:
        asyncio.run(rates_of(settings).close())
    except StartError as error:
        found, _, todo = str(error).partition(": ")
        yield AREA.refused("rates", found, todo or "correct rates.redis_url (MODELOPS_RATES__REDIS_URL)")
        return
    parts = urlsplit(url)
    where = f"Redis at {parts.hostname or 'localhost'}:{parts.port or 6379}"  # never its password
    reason = _unreachable(url)
    if reason:
        mend = "start it, or correct rates.redis_url; until it answers, each coordinator counts for itself"
        yield AREA.warning("rates", f"{where} does not answer ({reason})", mend)
    else:
        yield AREA.ok("rates", f"{where} answers")


def traces(settings: Settings) -> Iterator[Finding]:
    """Where traces are sent, if they are."""
    from modelops.app import StartError, tracing_of

    endpoint = settings.tracing.otlp_endpoint
    if not endpoint:
        return
    try:
        tracing_of(settings).close()
    except StartError as error:
        found, _, todo = str(error).partition(": ")
        mend = todo or "correct tracing.otlp_endpoint (MODELOPS_TRACING__OTLP_ENDPOINT)"
        yield AREA.refused("traces", found, mend)
        return
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except OSError as error:
        mend = "start it, or correct tracing.otlp_endpoint; until it answers, traces are lost, and nothing else"
        yield AREA.warning(
            "traces", f"the collector at {host}:{port} does not answer ({error.strerror or error})", mend
        )
    else:
        yield AREA.ok("traces", f"the collector at {host}:{port} answers")


def _unreachable(url: str) -> str:
    """Why Redis cannot be asked; empty where it can."""
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S) as client:
            client.ping()
    except (redis.RedisError, OSError) as error:
        return type(error).__name__  # its text may hold the address, and so the password
    return ""


def _file(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = environ.get(f"{PREFIX}CONFIG")
    return config or (Path(named) if named else None)
