"""The line that the log has for each call names its trace, so that one is found by the other."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from collector import Context, collecting
from contract.wires import BY_NAME
from modelops.access import Credentials
from modelops.service import Call, Coordinator
from service.asking import Start, ask


async def line(door: Coordinator, carried: dict[str, str], caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """What the log says of a call of ours."""
    caplog.clear()
    call = Call("1", "test", trace=carried)
    with door.following(call):
        admitted = await door.admit(call, BY_NAME["infer"], Credentials(""))
        await door.perform(admitted, BY_NAME["infer"], ask())
    (record,) = (record for record in caplog.records if record.name == "modelops.requests")
    return vars(record)


async def test_the_line_of_a_call_names_its_trace(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelops.requests")
    with collecting() as collector:
        async with start(tracing={"otlp_endpoint": collector.url}) as parts:
            for flags in ("01", "00"):  # also of a trace that its caller does not record
                context = Context()
                told = await line(parts.coordinator, context.carried(flags), caplog)
                assert told["trace_id"] == context.trace_id
            assert len((await line(parts.coordinator, {}, caplog))["trace_id"]) == 32


async def test_without_traces_the_line_names_none(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelops.requests")
    async with start() as parts:
        assert "trace_id" not in await line(parts.coordinator, Context().carried(), caplog)
