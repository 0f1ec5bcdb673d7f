"""Every error has a status on every transport, and the tables are those of docs/spec/contract.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import modelops.app  # noqa: F401 - imports every part of the server, and so every error that it can raise
from modelops.api import errors
from modelops.api.errors import AlreadyLoaded, Conflict, ModelOpsError
from modelops.transports import grpc, messages, openapi, problems

CONTRACT = Path(__file__).resolve().parents[2] / "docs" / "spec" / "contract.md"
#: What a fault of ours and a feature to come are answered with: the specification leaves both open.
OURS = {"internal": (500, "INTERNAL"), "not_implemented": (501, "UNIMPLEMENTED")}


def documented() -> dict[str, tuple[int, str]]:
    """code → (HTTP, gRPC), from the table."""
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (\d{3})[^|]* \| ([^|]+) \|", CONTRACT.read_text(), re.MULTILINE)
    return {code: (int(status), said.split(",")[0].strip()) for code, status, said in rows}


def raised_by_the_server(kind: type[ModelOpsError] = ModelOpsError) -> set[type[ModelOpsError]]:
    below = {leaf for sub in kind.__subclasses__() for leaf in raised_by_the_server(sub)}
    return {leaf for leaf in {kind, *below} if leaf.__module__.startswith("modelops.")} - {ModelOpsError}


def test_the_contract_documents_eleven_codes() -> None:
    assert len(documented()) == 11


@pytest.mark.parametrize("table", [problems.STATUS, grpc.STATUS, messages.STATUS, openapi.STATUS, errors.BY_CODE])
def test_every_code_is_in_every_table(table: dict[str, object]) -> None:
    assert set(table) == set(documented()) | set(OURS)


def test_every_error_that_the_server_raises_has_one_of_the_codes() -> None:
    server = {kind for kind in raised_by_the_server() if not kind.__module__.startswith("modelops.client")}
    assert {kind.code for kind in server} == set(problems.STATUS)


@pytest.mark.parametrize(("code", "expected"), (documented() | OURS).items())
def test_statuses_are_the_documented_ones(code: str, expected: tuple[int, str]) -> None:
    http, rpc = expected
    assert problems.STATUS[code] == http
    assert openapi.STATUS[code][0] == http
    assert messages.STATUS[code] == code
    assert grpc.STATUS[code].name in rpc.split(" / ")


def test_already_loaded_is_a_conflict_on_the_wire() -> None:
    assert AlreadyLoaded.code == Conflict.code
    assert errors.BY_CODE["conflict"] is Conflict


def test_an_error_keeps_a_copy_of_its_details() -> None:
    details = {"needed_mb": "1"}
    error = errors.InsufficientMemory("no", retry_after_s=2.0, details=details)
    details.clear()
    assert (str(error), error.message, error.retry_after_s, error.details) == ("no", "no", 2.0, {"needed_mb": "1"})
