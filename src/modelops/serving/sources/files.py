"""Files on this machine: digests, room on the disk, and what has been fetched of a file that is not whole yet.

What is not whole lies in `.partial/<the file's name>/` beside the file to be, and is never seen as a model. One process
at a time works there: the kernel's lock on `lock` says which, and ends with it. Blocking; it knows nothing of networks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from modelops.api.errors import Conflict, InternalError
from modelops.serving.sources.errors import DiskFull

#: The folder of all partial files, beside the models.
PARTIAL = ".partial"

_BLOCK = 1 << 20
_SYNC_EVERY = 64 << 20  # bytes: what a loss of power may cost
_MOST_ROUNDS = 100
_WAITING_S = 0.25  # between two looks at what the other fetch has brought


def sha256(file: Path, stop: threading.Event | None = None) -> str:
    """The file's digest in hexadecimal; reads the whole file. Setting `stop` ends it early, with a digest of no use."""
    return sha256_of([file], stop)


def sha256_of(files: Iterable[Path], stop: threading.Event | None = None) -> str:
    """As `sha256`, of several files one behind another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while (block := stream.read(_BLOCK)) and not (stop and stop.is_set()):
                digest.update(block)
    return digest.hexdigest()


def has_digest(file: Path, digest: str) -> bool:
    """Whether `file` is there and has the digest `digest`, in hexadecimal; without a digest nothing has it."""
    return bool(digest) and file.is_file() and sha256(file) == digest


def require_room(folder: Path, needed: int, reserve: int) -> None:
    """Raises DiskFull unless `needed` bytes fit on the disk of `folder` and leave `reserve` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed + reserve > free:
        raise DiskFull(
            f"{needed} more bytes do not fit on the disk of the models: {free} are free, of which {reserve} stay free; "
            "remove what is not needed there",
            details={"resource": "disk", "needed_bytes": str(needed), "free_bytes": str(free)},
        )


class Part:
    """One file of a fetch: the bytes so far in `path`, and what is known of it in `notes`, kept with them."""

    def __init__(self, path: Path, notes: dict[str, Any], same_boot: bool, record: Callable[[], None]) -> None:
        self.path = path
        self.notes = notes
        self._record = record
        # After a loss of power only what was synced is sure; a killed process loses nothing that it wrote.
        if not path.is_file():
            notes.clear()
        elif not same_boot and path.stat().st_size > notes.get("synced", 0):
            os.truncate(path, notes.get("synced", 0))

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return bool(self.notes.get("whole"))

    def note(self, **notes: Any) -> None:
        """Keep `notes`, across processes."""
        self.notes.update(notes)
        self._record()

    def restart(self, length: int = 0) -> None:
        """Forget everything behind byte `length`; and all notes, when that is everything."""
        if length:
            os.truncate(self.path, length)
        else:
            self.path.unlink(missing_ok=True)
            self.notes.clear()
        self._record()

    def adopt(self, file: Path) -> None:
        """Take the whole `file` that somebody else keeps: a second name for it, or a copy where there can be none.

        It must never be written to. So it is noted as whole before it is in place: nothing is cut off or added then.
        """
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        try:
            os.link(file, new)
        except OSError:
            shutil.copyfile(file, new)
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
            self.note(whole=True, synced=os.fstat(stream.fileno()).st_size)
        new.replace(self.path)

    @contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """A function that writes at the end. Each block is with the kernel when it returns: a kill loses none."""
        with self.path.open("ab", buffering=0) as stream:
            unsynced = 0

            def write(block: bytes) -> None:
                nonlocal unsynced
                rest = memoryview(block)
                while rest:
                    rest = rest[stream.write(rest) :]
                unsynced += len(block)
                if unsynced >= _SYNC_EVERY:
                    unsynced = 0
                    self._sync(stream)

            yield write

    def finish(self, *, whole: bool = True, **notes: Any) -> None:
        """Sync what is there to the disk, and note whether it is whole."""
        with self.path.open("ab") as stream:
            self._sync(stream)
        self.note(whole=whole, **notes)

    def _sync(self, stream: IO[bytes]) -> None:
        os.fsync(stream.fileno())
        self.note(synced=os.fstat(stream.fileno()).st_size)


class Partial:
    """All that has been fetched for one target, held by this process. Made by `claim` only."""

    def __init__(self, folder: Path, lock: IO[str], identity: str) -> None:
        self.folder = folder
        self._lock = lock
        self._notes = self._read()
        self._parts: dict[int, Part] = {}
        self._same_boot = self._notes.get("boot", "") == _boot() != ""
        self._notes["boot"] = _boot()
        self.bind("source", identity)
        for index in list(self._notes.get("parts", {})):
            self.part(int(index))

    def part(self, index: int) -> Part:
        """File number `index` of the fetch."""
        if index not in self._parts:
            notes = self._notes.setdefault("parts", {}).setdefault(str(index), {})
            self._parts[index] = Part(self.folder / f"{index}.data", notes, self._same_boot, self.record)
        return self._parts[index]

    def bind(self, name: str, value: Any) -> None:
        """Everything that is kept holds for this `value` of `name` only: what came under another one is removed."""
        if self._notes.get(name) != value:
            self.discard()
            self._notes[name] = value

    def record(self, **notes: Any) -> None:
        """Keep the notes of all parts, and `notes`, so that they are whole after a loss of power."""
        self._notes |= notes
        new = self.folder / "notes.new"
        with new.open("w") as stream:
            json.dump(self._notes, stream)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.folder / "notes")

    def discard(self) -> None:
        """Remove everything that was fetched."""
        for entry in self.folder.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)  # a killed one's child may be dying in there
            else:
                entry.unlink()
        self._notes.pop("parts", None)
        self._parts = {}

    def publish(self, targets: Sequence[Path]) -> None:
        """Give every part its name, the first one last, on the disk for good; then tidy up."""
        for index in reversed(range(len(targets))):
            self.part(index).path.replace(targets[index])
            if index <= 1:
                _sync_folder(targets[0].parent)  # the first name is never on the disk before the others
        self._lock.truncate(0)
        self._lock.write(self._notes["source"])  # whoever waits for the lock learns what has been brought
        self._lock.flush()
        self._remove()

    def close(self) -> None:
        """Remove the folder if it keeps nothing for another time."""
        kept = (entry for entry in self.folder.iterdir() if entry.name not in ("lock", "notes", "notes.new"))
        if not any(entry.is_dir() or entry.stat().st_size for entry in kept):
            self._remove()

    def _remove(self) -> None:
        self.discard()
        (self.folder / "lock").unlink()
        for folder in (self.folder, self.folder.parent):
            with contextlib.suppress(OSError):  # another fetch has come in between, or is at work beside this one
                folder.rmdir()

    def _read(self) -> dict[str, Any]:
        try:
            notes = json.loads((self.folder / "notes").read_text())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}


@contextmanager
def claim(target: Path, identity: str, waiting: Callable[[int, int], None]) -> Iterator[Partial | None]:
    """The right to fetch the source `identity` to `target`, for as long as the context lasts.

    While another process has it, this one waits and tells `waiting` how far the other is. None when that one has
    brought the very same source. Raises Conflict when it has brought another one, and OSError for what the folder does
    not allow. To be called in a process's main thread.
    """
    folder = target.parent / PARTIAL / target.name
    for _ in range(_MOST_ROUNDS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("a+")
        except FileNotFoundError:  # the fetch before this one has just tidied up
            continue
        with lock:
            _acquire(lock, folder, waiting)
            if _is_at(lock, folder / "lock"):
                partial = Partial(folder, lock, identity)
                try:
                    yield partial
                finally:
                    if _is_at(lock, folder / "lock"):
                        partial.close()
                return
            lock.seek(0)
            brought = lock.read()
        if brought == identity:
            yield None
            return
        if brought:
            raise Conflict(f"another source has just been fetched to '{target.name}'; give this one another name")
    raise InternalError("the folder of partial files keeps vanishing; something else removes it")


def prune(folder: Path) -> tuple[list[str], int]:
    """Remove what abandoned fetches into `folder` have left; what they were to bring, and the bytes that were freed.

    A fetch that is under way is left alone.
    """
    removed: list[str] = []
    freed = 0
    for partial in sorted((folder / PARTIAL).glob("*/")):
        with contextlib.suppress(OSError), (partial / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed += sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
            shutil.rmtree(partial)
            removed.append(partial.name)
    return removed, freed


def _acquire(lock: IO[str], folder: Path, waiting: Callable[[int, int], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass

    def look(_signal: int, _frame: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            done = sum(entry.stat().st_size for entry in folder.glob("*.data"))
            notes = json.loads((folder / "notes").read_text())
            parts = [part.get("total", 0) for part in notes.get("parts", {}).values()]
            waiting(done, notes.get("total", sum(parts)))

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _WAITING_S, _WAITING_S)
    try:
        waiting(0, 0)
        fcntl.flock(lock, fcntl.LOCK_EX)  # woken by the kernel; a look in between does not end it
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _boot() -> str:
    """What this run of the machine is called; empty where nothing says so."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""
