"""The data folder: whether it can be used, who uses it, and the state file in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

from modelops.cli.doctor.coordinator import Coordinator
from modelops.cli.doctor.findings import Area, Finding, gb, typed
from modelops.settings import Settings

AREA = Area("data folder")
_ANOTHER = "or choose another with data_dir (MODELOPS_DATA_DIR, --data-dir)"
_LITTLE = 5 * 2**30  # bytes of disk; a model of 7 billion weights takes as much
_STATE_FILES = ("state.db", "state.db-wal", "state.db-shm")


def folder(settings: Settings) -> Iterator[Finding]:
    """Whether the folder is there, or can be made, and may be written to."""
    data = settings.data_dir.absolute()
    there = _nearest(data)
    if not there.is_dir():
        yield AREA.wrong("folder", f"{there} is no folder", f"move it away, {_ANOTHER}")
    elif not _usable(there):
        what = f"{data} cannot be used" if there == data else f"{data} cannot be made or reached: {there} is closed"
        owner = _name(there.stat().st_uid)
        mend = f"sudo chown -R {_me()} {typed(there)}" if owner != _me() else f"chmod u+rwx {typed(there)}"
        yield AREA.wrong("folder", f"{what}; it belongs to {owner}, and you are {_me()}", f"{mend}, {_ANOTHER}")
    elif there == data:
        yield AREA.ok("folder", str(data))
    else:
        yield AREA.ok("folder", f"{data} is not there yet; the first start makes it")


def space(settings: Settings) -> Iterator[Finding]:
    """What the disk has left."""
    there = _nearest(settings.models_dir.absolute())
    free = shutil.disk_usage(there).free
    files = settings.models_dir.glob("*.gguf") if os.access(settings.models_dir, os.R_OK | os.X_OK) else ()
    largest = max((file.stat().st_size for file in files if file.is_file()), default=0)
    mend = "remove what is not needed: 'modelops prune' and 'modelops rm NAME' do, while a coordinator runs"
    if free < _LITTLE:
        yield AREA.warning("space", f"{gb(free)} of disk are free, which is little for models", mend)
    elif free < largest:
        yield AREA.warning("space", f"{gb(free)} of disk are free, less than the largest model ({gb(largest)})", mend)
    else:
        yield AREA.ok("space", f"{gb(free)} of disk are free")


def coordinator(running: Coordinator | None) -> Iterator[Finding]:
    """Whether one runs on the folder."""
    if running is None:
        yield AREA.ok("coordinator", "none runs on this folder")
        return
    listens = ", ".join(f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in running.listens())
    yield AREA.ok("coordinator", f"process {running.pid} runs on this folder, and listens on {listens or 'nothing'}")


def state_file(settings: Settings) -> Generator[Finding, None, bool | None]:
    """Whether it is whole, of this release, and nobody else's. Returns whether callers need a key; None: unknown."""
    from modelops.store.database import StateFileError
    from modelops.store.look import look

    file = settings.data_dir.absolute() / "state.db"
    try:
        file.stat()
    except FileNotFoundError:
        yield AREA.ok("state file", "none yet; the first start makes it")
        return False
    except OSError:
        return None  # the folder itself cannot be used, and that has been told
    yield from _private(settings.data_dir.absolute())
    try:
        seen = look(file)
    except OSError as error:
        yield AREA.wrong("state file", f"{file} cannot be read: {error.strerror}", f"sudo chown {_me()} {typed(file)}")
        return None
    except StateFileError as error:
        aside = typed(file.with_name("damaged"))  # its journals with it: beside another file they would damage that
        mend = (
            f"end the coordinator if one runs, and begin anew: mkdir {aside} && mv {typed(file)}* {aside}/ "
            "(models stay; keys and the choice of versions are lost)"
        )
        yield AREA.refused("state file", str(error), mend)
        return None
    keys = "every caller needs a key" if seen.need_keys else "there are no keys"
    yield AREA.ok("state file", f"whole, version {seen.version}; {keys}")
    return seen.need_keys


def _private(data: Path) -> Iterator[Finding]:
    """A start takes others' rights away, where the files are its own."""
    for name in _STATE_FILES:
        file = data / name
        try:
            found = file.stat()
        except OSError:
            continue
        if found.st_uid != os.geteuid() != 0:
            yield AREA.wrong(
                "state file", f"{file} belongs to {_name(found.st_uid)}", f"sudo chown {_me()} {typed(file)}"
            )
        elif found.st_mode & 0o077:
            yield AREA.warning(
                "state file", f"others may open {file}, which holds digests of keys", f"chmod 600 {typed(file)}"
            )


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest above it that is there."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _usable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _me() -> str:
    return _name(os.geteuid())


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
