"""Streams on all transports: the same answer as it is made, one end, and the truth where it is cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Wire
from support import serving


@pytest.mark.engine
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "fields",
    [
        {"input_text": "Write one sentence about rain."},
        {"input_text": "Write a haiku with emoji 🌊 and 日本語.", "temperature": 1.0, "seed": 7},
        {"input_text": "Count from one to ten in words.", "stop_sequences": ["four"]},
    ],
    ids=["greedy", "unicode", "stop"],
)
def test_the_chunks_of_a_stream_add_up_to_its_final_answer(
    transport: str, fields: dict[str, Any], real: dict[str, Wire]
) -> None:
    asked = {"model_name": "smollm2", "max_tokens": 24, "temperature": 0.0} | fields
    *chunks, last = real[transport].stream(asked)
    assert len(chunks) > 2
    assert not any(chunk.done or chunk.HasField("final") for chunk in chunks)
    assert all(chunk.text for chunk in chunks)
    assert last.done
    assert last.text == ""
    assert "".join(chunk.text for chunk in chunks) == last.final.output_text
    assert (last.final.success, last.final.error_message, last.final.model_version) == (True, "", "v1")
    assert 0 < last.final.tokens_generated <= 24
    assert last.final.latency_ms > 0


def test_an_empty_answer_is_a_stream_of_one_end(tiny: Path, tmp_path: Path) -> None:
    with (
        serving(tmp_path, links=[("silent", tiny)], fake={"tokens": 0}) as running,
        wires.connected(running) as clients,
    ):
        for wire in clients.values():
            (only,) = wire.stream({"model_name": "silent", "input_text": "Hello"})
            assert only.done
            assert (only.final.success, only.final.output_text, only.final.tokens_generated) == (True, "", 0)


def test_an_answer_cut_short_is_told_as_such(tiny: Path, tmp_path: Path) -> None:
    # A model for each case, because an engine that has crashed before is restarted after a pause.
    names = [f"{transport}-{kind}" for transport in TRANSPORTS for kind in ("whole", "stream")]
    links = [(name, tiny) for name in names]
    with serving(tmp_path, links=links, fake={"die_after": 3}) as running, wires.connected(running) as clients:
        for transport, wire in clients.items():
            whole = wire.call("infer", {"model_name": f"{transport}-whole", "input_text": "Hello"})
            assert whole.code == "engine_failed", whole.seen
            assert whole.status in ("502", "INTERNAL", "")
            assert "SIGKILL" in whole.message
            if transport == "rest":
                conforms(BY_NAME["infer"].route, whole)

            *chunks, last = wire.stream({"model_name": f"{transport}-stream", "input_text": "Hello"})
            assert [chunk.text for chunk in chunks] == ["w0 ", "w1 ", "w2 "]
            assert (last.done, last.final.success) == (True, False)
            assert (last.final.output_text, last.final.tokens_generated) == ("w0 w1 w2 ", 3)
            assert "SIGKILL" in last.final.error_message

            for kind in ("whole", "stream"):  # the next request is answered by a new engine
                after = wire.call(
                    "infer", {"model_name": f"{transport}-{kind}", "input_text": "Hello", "max_tokens": 2}
                )
                assert after.code == "", after.seen
                assert after.result.output_text == "w0 w1 "
        assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_conversation_cut_short_is_told_as_such(transport: str, tiny: Path, tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    links = [(kind, tiny) for kind in ("whole", "stream")]
    with serving(tmp_path, links=links, fake={"die_after": 3}) as running, wires.connected(running) as clients:
        wire = clients[transport]
        whole = wire.call("chat", asked | {"model_name": "whole"})
        assert whole.code == "engine_failed", whole.seen
        assert "SIGKILL" in whole.message
        if transport == "rest":
            conforms(BY_NAME["chat"].route, whole)
        *chunks, last = wire.chunks("chat", asked | {"model_name": "stream"})
        assert [chunk.text for chunk in chunks] == ["w0 ", "w1 ", "w2 "]
        assert (last.done, last.final.success, last.final.finish_reason) == (True, False, "")
        assert (last.final.message.content, last.final.tokens_generated) == ("w0 w1 w2 ", 3)
        assert "SIGKILL" in last.final.error_message
