"""Every code is in every transport's table, and the tables are those of docs/spec/contract.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modelops.api.errors import BY_CODE, InternalError
from modelops.transports import grpc, messages, problems

CONTRACT = Path(__file__).parents[2] / "docs/spec/contract.md"


@pytest.mark.parametrize("table", [problems.STATUS, grpc.STATUS, messages.STATUS], ids=["rest", "grpc", "zmq"])
def test_every_code_is_in_the_table_and_no_other(table: dict[str, object]) -> None:
    assert set(table) == set(BY_CODE) | {InternalError.code}


def test_the_tables_are_those_of_the_contract() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (\d+)[^|]* \| ([A-Z_ /]+)", CONTRACT.read_text(), re.MULTILINE)
    assert len(rows) == 11
    for code, http, names in rows:
        assert problems.STATUS[code] == int(http)
        assert grpc.STATUS[code].name in [name.strip() for name in names.split("/")]
        assert messages.STATUS[code] == code
