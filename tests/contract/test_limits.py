"""What cannot be served now is refused at once, with what the caller needs to know to come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Refused
from support import serving, wait_until

ASKED = {"model_name": "m", "input_text": "Hello", "max_tokens": 2000}


def test_a_full_queue_refuses_and_says_when_to_try_again(tiny: Path, tmp_path: Path) -> None:
    env = {"MODELOPS_MODELS__MAX_QUEUE": "0", "MODELOPS_ENGINE__SLOTS": "1"}
    with (
        serving(tmp_path, links=[("m", tiny)], load=["m"], fake={"token_s": 0.05}, env=env) as running,
        wires.connected(running) as clients,
    ):
        holder = clients["zmq"].stream(ASKED)
        next(holder)
        for transport, wire in clients.items():
            whole = wire.call("infer", ASKED)
            with pytest.raises(Refused) as refused:
                list(wire.stream(ASKED))
            for answer in (whole, refused.value.answer):
                assert answer.code == "overloaded", answer.seen
                assert answer.status in ("503", "UNAVAILABLE", "")
                assert answer.retry_after_s == 1.0
            if transport == "rest":
                assert whole.headers["retry-after"] == "1"
                conforms(BY_NAME["infer"].route, whole)
        assert next(holder).text == "w1 "
        holder.close()
        for wire in clients.values():
            wait_until(
                lambda wire=wire: wire.call("get_model", {"model_name": "m"}).result.active_requests == 0  # type: ignore[misc]
            )
            assert wire.call("infer", ASKED | {"max_tokens": 1}).code == ""


@pytest.mark.parametrize(("operation", "fields"), [("load_model", {"model_name": "m"}), ("infer", ASKED)])
def test_a_model_that_does_not_fit_is_refused_with_the_bill(
    operation: str, fields: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    env = {"MODELOPS_MEMORY__BUDGET_MB": "1"}
    with serving(tmp_path, links=[("m", tiny)], fake={}, env=env) as running, wires.connected(running) as clients:
        bills = []
        for transport in TRANSPORTS:
            answer = clients[transport].call(operation, fields)
            assert answer.code == "insufficient_memory", answer.seen
            assert answer.status in ("507", "RESOURCE_EXHAUSTED", "")
            if transport == "rest":
                conforms(BY_NAME[operation].route, answer)
            bills.append(answer.details)
            assert answer.details["needed_mb"] in answer.message
        assert bills[0] == bills[1] == bills[2]
        assert int(bills[0].pop("needed_mb")) > 1
        sums = {"free_mb": "1", "reserved_mb": "0", "evictable_mb": "0"}
        assert bills[0] == sums | {f"{key}.cpu": value for key, value in sums.items()}
        # It is refused, not broken: nothing was started, and the state says so.
        assert clients["rest"].call("get_model", {"model_name": "m"}).result.status == "available"
        assert running.engines() == []
