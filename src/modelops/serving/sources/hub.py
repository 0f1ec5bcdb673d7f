"""Files of the Hugging Face hub. huggingface_hub says where a file is, how long, and what digest it has.

Its settings apply (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE), the token that `hf auth login` keeps, and its
cache: what is there is linked or copied, not fetched. The bytes of all else come over `https`, because the library
keeps nothing of a transfer that is cut short. The endpoint is the operator's choice, so it may be a private address;
where it redirects to is judged as ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from modelops.api.errors import InvalidRequest, NotAvailable, NotFound
from modelops.serving.sources.errors import FetchFailed
from modelops.serving.sources.files import Part, Partial, require_room
from modelops.serving.sources.https import Download
from modelops.serving.sources.report import Report
from modelops.serving.sources.source import HubSource, Policy, numbered

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Listed:
    """What the hub says of one file; or where it is in the cache."""

    file: str
    size: int
    digest: str
    url: str
    cached: Path | None


def fetch(source: HubSource, partial: Partial, policy: Policy, report: Report) -> list[str]:
    """Bring all files of `source` into `partial`; what the hub says of their digests. Raises ModelOpsError."""
    try:
        import huggingface_hub  # noqa: F401 - whether it is there; late, as it is an extra and slow to import
    except ImportError:
        raise NotAvailable(
            "hf:// needs a package that is not installed: pip install 'modelops-coordinator[hub]'"
        ) from None
    listed = _list(source, report)
    partial.bind("listed", [[file.size, file.digest] for file in listed])  # a branch may have moved on
    report.total = sum(file.size for file in listed)
    missing = sum(file.size - partial.part(index).size for index, file in enumerate(listed))
    require_room(partial.folder, max(missing, 0), policy.reserve_bytes)
    partial.record(total=report.total)
    for index, file in enumerate(listed):
        _bring(source, file, partial.part(index), policy, report)
        report.before += partial.part(index).size
    return [file.digest for file in listed]


def _bring(source: HubSource, file: _Listed, part: Part, policy: Policy, report: Report) -> None:
    if file.cached and not part.whole:
        report.busy()
        part.adopt(file.cached)
    elif not part.whole:
        name, known = f"{source.repo}/{file.file}", bool(file.digest or source.digests)
        Download(file.url, part, policy, report, name=name, digest=known, headers=_authorization(), trusted=True).run()
    if file.size and part.size != file.size:
        found = part.size
        part.restart()
        raise FetchFailed(
            f"'{file.file}' of '{source.repo}' came with {found} bytes, and the hub lists it with {file.size}; "
            "nothing of it was kept"
        )


def _list(source: HubSource, report: Report) -> list[_Listed]:
    """Every file, all of one commit."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    found: list[_Listed] = []
    revision = source.revision or "main"
    for index in range(source.count):
        report.begin(0, 0)
        file = source.file if source.count == 1 else numbered(source.file, index)
        try:
            told = get_hf_file_metadata(hf_hub_url(source.repo, file, revision=revision))
            revision = told.commit_hash or revision  # what follows is of the same commit, whatever is pushed meanwhile
            digest = told.etag if told.etag and _SHA256.fullmatch(told.etag) else ""
            size, url = told.size or 0, hf_hub_url(source.repo, file, revision=revision)
        except HFValidationError:
            raise InvalidRequest(f"'{source.repo}' is no name of a repository on the hub") from None
        except Exception as error:  # noqa: BLE001 - the library's errors share no base; _explain tells them apart
            cached = try_to_load_from_cache(source.repo, file, revision=revision)
            if not isinstance(cached, str) or not _is_unreachable(error):
                _explain(source, error)
            digest, size, url = "", 0, ""
        else:
            cached = try_to_load_from_cache(source.repo, file, revision=revision)
        here = Path(cached).resolve() if isinstance(cached, str) else None
        found.append(_Listed(file, size or (here.stat().st_size if here else 0), digest, url, here))
    return found


def _authorization() -> dict[str, str]:
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub gave no answer, so that the cache may answer for it."""
    return getattr(error, "response", None) is None


def _explain(source: HubSource, error: Exception) -> NoReturn:
    from huggingface_hub import errors

    where = f"'{source.origin}'"
    if isinstance(error, errors.GatedRepoError):
        raise FetchFailed(
            f"{where} is open to those only whom its owners admit: accept its terms on the hub, and set HF_TOKEN"
        ) from None
    if isinstance(error, errors.RepositoryNotFoundError):
        raise NotFound(f"the hub has no repository '{source.repo}', or it is private and needs HF_TOKEN") from None
    if isinstance(error, errors.RevisionNotFoundError):
        raise NotFound(f"'{source.repo}' has no revision '{source.revision or 'main'}'") from None
    if isinstance(error, errors.EntryNotFoundError):
        raise NotFound(f"{where} has no file '{source.file}'") from None
    if isinstance(error, errors.OfflineModeIsEnabled):
        raise FetchFailed(
            f"'{source.file}' of {where} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"
        ) from None
    if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
        raise error
    status = getattr(getattr(error, "response", None), "status_code", None)
    why = f"it answered HTTP {status}" if status else "it could not be reached"
    raise FetchFailed(f"the hub did not say where '{source.file}' of {where} is: {why}; try again later") from None
