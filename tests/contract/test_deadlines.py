"""A caller's deadline ends its request wherever it stands, on all transports, and gives back what it held."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Answer, Refused, Wire
from support import serving, tiny_gguf, wait_until

ASKED = {"model_name": "m", "input_text": "Hello", "max_tokens": 2000}
ONE_SLOT = {"MODELOPS_ENGINE__SLOTS": "1"}

Serve = Callable[..., contextlib.AbstractContextManager[dict[str, Wire]]]


@contextlib.contextmanager
def one_slot(folder: Path, fake: dict[str, Any], **env: str) -> Iterator[dict[str, Wire]]:
    """Clients of a coordinator whose model `m` answers one request at a time."""
    links = [("m", tiny_gguf(folder / "tiny"))]
    with serving(folder, links=links, fake=fake, env=ONE_SLOT | env) as running, wires.connected(running) as clients:
        yield clients
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Wire]]:
    """An engine that reads its prompt for a minute."""
    with one_slot(tmp_path_factory.mktemp("mute"), {"prompt_s": 60}) as clients:
        assert clients["rest"].call("load_model", {"model_name": "m"}).code == ""
        yield clients


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Wire]]:
    """An engine that answers 2,000 tokens in 100 s."""
    with one_slot(tmp_path_factory.mktemp("steady"), {"token_s": 0.05}) as clients:
        assert clients["rest"].call("load_model", {"model_name": "m"}).code == ""
        yield clients


def past_the_deadline(transport: str, answer: Answer, operation: str = "infer") -> None:
    if transport == "grpc":  # the client's own library may see the deadline first, and then knows no more than that
        assert answer.status == "DEADLINE_EXCEEDED"
    else:
        assert answer.code == "deadline_exceeded", answer.seen
    if transport == "rest":
        assert answer.status == "504"
        conforms(BY_NAME[operation].route, answer)


def at_rest(wire: Wire) -> bool:
    told = wire.call("get_model", {"model_name": "m"}).result
    return bool(told.active_requests == told.queued_requests == 0)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_a_deadline_ends_a_request_before_its_first_token(
    transport: str, streamed: bool, mute: dict[str, Wire]
) -> None:
    wire = mute[transport]
    if streamed:
        with pytest.raises(Refused) as refused:
            list(wire.stream(ASKED, timeout_s=0.3))
        answer = refused.value.answer
    else:
        answer = wire.call("infer", ASKED, timeout_s=0.3)
    past_the_deadline(transport, answer)
    wait_until(lambda: at_rest(wire), what="the slot to be free")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_deadline_ends_a_request_that_waits_for_a_slot(transport: str, steady: dict[str, Wire]) -> None:
    wire = steady[transport]
    holder = steady["rest"].stream(ASKED)
    next(holder)
    past_the_deadline(transport, wire.call("infer", ASKED, timeout_s=0.3))
    wait_until(lambda: wire.call("get_model", {"model_name": "m"}).result.queued_requests == 0)
    assert next(holder).text
    holder.close()
    assert wire.call("infer", ASKED | {"max_tokens": 1}).code == ""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_deadline_within_an_answer_ends_it_with_what_there_is(transport: str, steady: dict[str, Wire]) -> None:
    wire = steady[transport]
    chunks = []
    try:
        for chunk in wire.stream(ASKED, timeout_s=1.0):
            chunks.append(chunk)
    except Refused as refused:
        assert transport == "grpc"
        past_the_deadline(transport, refused.answer)
        assert chunks[0].text == "w0 "
    else:
        last = chunks.pop()
        assert (last.done, last.final.success) == (True, False)
        assert last.final.output_text == "".join(chunk.text for chunk in chunks)
        assert last.final.output_text.startswith("w0 ")
        assert "time" in last.final.error_message
    wait_until(lambda: at_rest(wire), what="the slot to be free")


def test_the_servers_own_bound_holds_without_a_callers(tmp_path: Path) -> None:
    with one_slot(tmp_path, {"prompt_s": 60}, MODELOPS_SERVER__REQUEST_TIMEOUT_S="0.5") as clients:
        rest = clients["rest"]
        # Not waited for: the bound would hold for the load too.
        assert rest.call("load_model", {"model_name": "m", "wait": False}).status == "202"
        wait_until(lambda: rest.call("get_model", {"model_name": "m"}).result.status == "loaded")
        with ThreadPoolExecutor(len(TRANSPORTS)) as threads:
            answers = list(threads.map(lambda wire: wire.call("infer", ASKED), clients.values()))
        assert [answer.code for answer in answers] == ["deadline_exceeded"] * 3
        assert [answer.status for answer in answers] == ["504", "DEADLINE_EXCEEDED", ""]
        wait_until(lambda: at_rest(rest), what="the slot to be free")


def test_a_deadline_ends_the_wait_for_a_load_and_not_the_load(tmp_path: Path) -> None:
    with one_slot(tmp_path, {"load_s": 3}) as clients:
        for transport, wire in clients.items():
            past_the_deadline(transport, wire.call("load_model", {"model_name": "m"}, timeout_s=0.3), "load_model")
        rest = clients["rest"]
        wait_until(lambda: rest.call("get_model", {"model_name": "m"}).result.status == "loaded")
