"""What docs/spec/contract.md says of errors, and a request that is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CONTRACT = Path(__file__).parents[2] / "docs/spec/contract.md"
GOOD: dict[str, Any] = {"model_name": "smollm2", "input_text": "Hello", "max_tokens": 1, "temperature": 0.0}


def documented() -> dict[str, tuple[str, set[str]]]:
    """code → (HTTP status, gRPC statuses): the table of the contract."""
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (\d+)[^|]* \| ([A-Z_ /]+)", CONTRACT.read_text(), re.MULTILINE)
    assert len(rows) == 11
    table = {code: (http, {name.strip() for name in names.split("/")}) for code, http, names in rows}
    return table | {"not_implemented": ("501", {"UNIMPLEMENTED"})}


ERRORS = documented()
