"""What cannot be served now is refused at once, with what the caller needs to know to come back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Refused, Wire, Zmq
from support import serving, wait_until

ASKED = {"model_name": "m", "input_text": "Hello", "max_tokens": 2000}


def test_an_engine_that_fails_again_and_again_is_not_asked_for_a_while(tiny: Path, tmp_path: Path) -> None:
    links = [(transport, tiny) for transport in TRANSPORTS]
    with serving(tmp_path, links=links, fake={"status": 500}) as running, wires.connected(running) as clients:
        for transport, wire in clients.items():
            asked = ASKED | {"model_name": transport}
            codes = [wire.call("infer", asked).code for _ in range(3)]
            assert codes == ["engine_failed", "engine_failed", "overloaded"], "each is asked twice, and 5 failures do"
            answer = wire.call("infer", asked)
            assert (answer.code, answer.status) in [("overloaded", status) for status in ("503", "UNAVAILABLE", "")]
            assert 14 < (answer.retry_after_s or 0) <= 15
            assert "its engine answered 500" in answer.message
            if transport == "rest":
                assert answer.headers["retry-after"] == "15"
                conforms(BY_NAME["infer"].route, answer)
            info = wire.info(transport)
            assert info.status == "loaded"
            assert "not asked for another" in info.message
            wire.ok("unload_model", model_name=transport, force=True)
            assert wire.call("infer", asked).code == "engine_failed", "force forgets it"


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
                assert answer.retry_after_s == 1.0, "as long as nothing is known of its requests"
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


def test_when_to_try_again_follows_from_how_long_the_models_requests_take(tiny: Path, tmp_path: Path) -> None:
    seconds = {"quick": 0.4, "slow": 1.6}  # that five tokens take, at the least
    fake = {"models": {name: {"token_s": whole / 5} for name, whole in seconds.items()}}
    env = {"MODELOPS_MODELS__MAX_QUEUE": "2", "MODELOPS_ENGINE__SLOTS": "1"}
    links = [(name, tiny) for name in seconds]
    with (
        serving(tmp_path, links=links, load=list(seconds), fake=fake, env=env) as running,
        wires.connected(running) as clients,
    ):
        told: dict[str, list[float]] = {}
        for name, least in seconds.items():
            asked = ASKED | {"model_name": name}
            clients["rest"].ok("infer", **asked | {"max_tokens": 5})  # so that much is known of its requests
            with holding(clients["zmq"], asked, 3):
                wait_until(lambda name=name: clients["rest"].info(name).queued_requests == 2)  # type: ignore[misc]
                refused = [clients[transport].call("infer", asked) for transport in (*TRANSPORTS, "rest", "grpc")]
            assert {answer.code for answer in refused} == {"overloaded"}
            found = told[name] = [answer.retry_after_s or 0 for answer in refused]
            step = found[0]
            assert least <= step < least + 1.0, "a place is free when one has been served"
            # Each is told a later time by as much, less what has passed since the one before was refused.
            assert all(0 < later - earlier <= step + 0.01 for earlier, later in pairwise(found[:3])), found
            assert found[3:] == pytest.approx([3 * step] * 2, abs=0.01), "when all three will have been served"
        assert all(quick < slow for quick, slow in zip(told["quick"], told["slow"], strict=True))


@contextlib.contextmanager
def holding(wire: Wire, asked: dict[str, Any], count: int) -> Iterator[None]:
    """As many requests under way, until the connection is closed."""
    assert isinstance(wire, Zmq)
    with wire.dealer() as connection:
        for number in range(count):
            message = {"action": "infer", "payload": asked, "request_id": str(number)}
            connection.send_multipart([b"", json.dumps(message).encode()])
        yield


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
        sums = {"free_mb": "1", "reserved_mb": "0", "evictable_mb": "0", "others_mb": "0"}
        assert bills[0] == sums | {f"{key}.cpu": value for key, value in sums.items()}
        # It is refused, not broken: nothing was started, and the state says so.
        assert clients["rest"].call("get_model", {"model_name": "m"}).result.status == "available"
        assert running.engines() == []
