"""What several tests of goals share."""

from __future__ import annotations

import pytest

from goals.gates import Gate


@pytest.fixture
async def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Of what has to be fetched; it is closed."""
    return Gate(monkeypatch)
