"""Which checks there are, and in which order. One that fails by itself is a finding too, and the others go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from modelops.cli.doctor import configuration, data, encryption, engine, machine, models, network
from modelops.cli.doctor.coordinator import Coordinator, find_coordinator
from modelops.cli.doctor.findings import Area, Finding
from modelops.settings import Settings, SettingsError, load

_OURS = "this check is broken itself: please report it with the line above (the other checks are not affected)"


def examine(config: Path | None, data_dir: Path | None) -> Iterator[Finding]:
    """Everything that is found, in the order in which a start would meet it."""
    environ = dict(os.environ)
    try:
        settings = load(config, environ, {"data_dir": data_dir})
    except SettingsError as error:
        yield from configuration.refused(error, config, environ)
        yield from carefully(configuration.AREA, "variables", lambda: configuration.variables(environ))
        yield from _without_settings()
        return
    yield from _with_settings(settings, config, environ)


def _without_settings() -> Iterator[Finding]:
    yield from carefully(machine.AREA, "machine", lambda: machine.this_machine(None))
    yield machine.AREA.warning(
        "the rest", "was not looked at: it depends on the settings", "mend the settings, then run this again"
    )


def _with_settings(settings: Settings, config: Path | None, environ: dict[str, str]) -> Iterator[Finding]:
    running: Coordinator | None = None
    need_keys: bool | None = None
    for area, name, check in (
        (configuration.AREA, "settings", lambda: configuration.sources(config, environ)),
        (configuration.AREA, "variables", lambda: configuration.variables(environ)),
        (configuration.AREA, "catalogue", lambda: configuration.catalogue(settings)),
        (configuration.AREA, "rates", lambda: configuration.rates(settings)),
        (configuration.AREA, "traces", lambda: configuration.traces(settings)),
        (data.AREA, "folder", lambda: data.folder(settings)),
        (data.AREA, "space", lambda: data.space(settings)),
    ):
        yield from carefully(area, name, check)

    def coordinator() -> Iterator[Finding]:
        nonlocal running
        running = find_coordinator(settings.data_dir)
        yield from data.coordinator(running)

    def state_file() -> Iterator[Finding]:
        nonlocal need_keys
        need_keys = yield from data.state_file(settings)

    yield from carefully(data.AREA, "coordinator", coordinator)
    yield from carefully(data.AREA, "state file", state_file)
    for area, name, check in (
        (network.AREA, "ports", lambda: network.ports(settings, running)),
        (network.AREA, "exposure", lambda: network.exposure(settings, need_keys)),
        (network.AREA, "certificate", lambda: encryption.certificate(settings)),
        (network.AREA, "CURVE key", lambda: encryption.curve_key(settings)),
        (engine.AREA, "engine", lambda: engine.engine(settings)),
        (machine.AREA, "machine", lambda: machine.this_machine(running)),
        (models.AREA, "roots", lambda: models.roots(settings)),
        (models.AREA, "models", lambda: models.found(settings, running)),
    ):
        yield from carefully(area, name, check)


def carefully(area: Area, name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `check` finds; where it fails by itself, that."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - whatever it is, the person who asks wants the rest of the answer
        yield area.warning(name, f"could not be looked at: {type(error).__name__}: {error}", _OURS)
