"""64 clients at once on one model, over all transports: everyone is answered, or refused with a reason."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.wires import TRANSPORTS, Refused, Wire

CLIENTS = 64
REFUSALS = {"overloaded", "rate_limited", "deadline_exceeded"}


@pytest.mark.engine
def test_64_clients_at_once_are_all_answered_or_refused(real: dict[str, Wire]) -> None:
    together = threading.Barrier(CLIENTS)

    def ask(number: int) -> str:
        wire = real[TRANSPORTS[number % 3]]
        asked = {"model_name": "smollm2", "input_text": f"What is {number} plus one?", "max_tokens": 4}
        together.wait(30)
        if number % 2:
            answer = wire.call("infer", asked)
            if answer.code:
                return answer.code
            result = answer.result
        else:
            try:
                *chunks, last = wire.stream(asked)
            except Refused as refused:
                return refused.answer.code
            result = last.final
            assert "".join(chunk.text for chunk in chunks) == result.output_text
        assert result.success
        assert 0 < result.tokens_generated <= 4
        return "answered"

    with ThreadPoolExecutor(CLIENTS) as threads:
        outcomes = list(threads.map(ask, range(CLIENTS)))
    assert len(outcomes) == CLIENTS
    assert set(outcomes) <= REFUSALS | {"answered"}
    assert "answered" in outcomes
    state = real["rest"].call("get_model", {"model_name": "smollm2"}).result
    assert (state.status, state.active_requests, state.queued_requests) == ("loaded", 0, 0)
