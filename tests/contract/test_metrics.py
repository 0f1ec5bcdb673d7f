"""Calls are counted once, in the same way over each transport, and nobody can make series at will."""

from __future__ import annotations

import random
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract import wires
from contract.wires import TRANSPORTS, Refused, Wire
from metrics.pages import Samples, moved, scraped, value
from support import Served, make_key, serving, tiny_gguf, wait_until

#: Calls of one run over one transport.
CALLS = 500
MODELS = ("m", "slow", "sick")
TYPED = {"vectors": "embedding", "scores": "reranker"}

#: What the machine does meanwhile is not for calls to say.
MACHINES = ("moc_system", "moc_event_loop", "moc_state_file")

Call = tuple[str, dict[str, Any]]
HELLO = [{"role": "user", "content": "Hello"}]
#: A learning job that is not created.
JUDGED: dict[str, Any] = {
    "job_type": "evaluate",
    "model_name": "m",
    "dataset": [{"prompt": "a", "completion": "b"}],
    "dry_run": True,
}
#: A goal that is not.
KEPT: dict[str, Any] = {
    "title": "it answers",
    "objective": {"type": "availability", "models": ["m"]},
    "dry_run": True,
}
#: In chunks: what is asked, and whether it is left after the first of them.
STREAMS = {
    "stream": ("infer", False),
    "left": ("infer", True),
    "talk": ("chat", False),
    "walked off": ("chat", True),
    "watched": ("watch_job", False),
    "awaited": ("watch_goal", False),
}
#: What is mixed.
MIXED: tuple[Call, ...] = (
    ("infer", {"model_name": "m", "input_text": "Hello", "max_tokens": 5}),
    ("infer", {"model_name": "m", "input_text": "Hello", "max_tokens": 1, "temperature": 0.0}),
    ("stream", {"model_name": "m", "input_text": "Hello", "max_tokens": 3}),
    ("left", {"model_name": "slow", "input_text": "Hello", "max_tokens": 2000}),
    ("chat", {"model_name": "m", "messages": HELLO, "max_tokens": 4}),
    ("chat", {"model_name": "nobody", "messages": HELLO}),
    ("talk", {"model_name": "m", "messages": HELLO, "max_tokens": 3}),
    ("walked off", {"model_name": "slow", "messages": HELLO, "max_tokens": 2000}),
    ("embed", {"model_name": "vectors", "inputs": ["a", "b"]}),
    ("rerank", {"model_name": "scores", "query": "a", "documents": ["a", "b"]}),
    ("infer", {"model_name": "nobody", "input_text": "Hello"}),
    ("stream", {"model_name": "nobody", "input_text": "Hello"}),
    ("infer", {"model_name": "m", "input_text": "Hello", "max_tokens": 100_000}),
    ("embed", {"model_name": "m", "inputs": ["a"]}),
    ("load_model", {"model_name": "m"}),
    ("load_model", {"model_name": "far", "model_path": "../../etc/passwd"}),
    ("unload_model", {"model_name": "nobody"}),
    ("get_model", {"model_name": "m"}),
    ("list_models", {}),
    ("list_versions", {"model_name": "m"}),
    ("create_job", JUDGED),
    ("create_job", JUDGED | {"model_name": "nobody"}),
    ("create_job", JUDGED | {"dataset": []}),
    ("list_jobs", {"status": "running"}),
    ("get_job", {"job_id": "nobody"}),
    ("cancel_job", {"job_id": "nobody"}),
    ("watched", {"job_id": "nobody"}),
    ("create_goal", KEPT),
    ("create_goal", KEPT | {"objective": {"type": "availability", "models": ["nobody"]}}),
    ("create_goal", KEPT | {"objective": {"type": "happiness"}}),
    ("list_goals", {"status": "all"}),
    ("get_goal", {"goal_id": "nobody"}),
    ("cancel_goal", {"goal_id": "nobody"}),
    ("awaited", {"goal_id": "nobody"}),
    ("status", {}),
    ("health", {}),
)
#: The streams that are read to their end.
ENDED = [call for call in MIXED if call[0] in ("stream", "talk") and call[1]["model_name"] == "m"]
REST = "moc_rest_requests_total"
OK = (("code", "ok"),)
PAGES = ("moc_operation_duration_seconds_count", (("operation", "metrics"),))
#: Failures that come together: the last of them makes all forgotten, so that each run begins alike.
TOGETHER: tuple[Call, ...] = (
    *[("infer", {"model_name": "sick", "input_text": "Hello"})] * 6,  # the sixth finds the breaker open
    ("unload_model", {"model_name": "sick", "force": True}),
    ("load_model", {"model_name": "sick"}),
)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("counted")
    links = [(name, tiny_gguf(folder / f"{name}.gguf", general__name=name)) for name in (*MODELS, *TYPED)]
    fake = {"models": {"slow": {"token_s": 0.02}, "sick": {"status": 500}}}
    with serving(folder / "data", links=links, fake=fake) as served:
        with wires.connected(served) as clients:
            for name in (*MODELS, *TYPED):
                fields = {"model_name": name, "model_path": f"{name}.gguf", "model_type": TYPED.get(name, "llm")}
                clients["rest"].ok("load_model", **fields)
        yield served
        assert "Traceback" not in served.log.read_text()


def mixed() -> list[Call]:
    chosen = random.Random(5)
    calls = [chosen.choice(MIXED) for _ in range(CALLS - 2 * len(TOGETHER))]
    for _ in range(2):
        place = chosen.randrange(len(calls))
        calls[place:place] = TOGETHER
    return calls


def perform(wire: Wire, call: Call) -> str:
    """Its code, as the counters have it."""
    name, fields = call
    if name not in STREAMS:
        return wire.call(name, fields).code or "ok"
    operation, leaves = STREAMS[name]
    try:
        chunks = wire.chunks(operation, fields)
        next(chunks)
        if leaves:
            chunks.close()
            return "cancelled"
        assert [chunk.done for chunk in chunks][-1]
    except Refused as refused:
        return refused.answer.code
    return "ok"


def settled(served: Served) -> Samples:
    """The samples, when nothing is under way any more."""

    def quiet() -> Samples | None:
        found = scraped(served.rest)
        return None if value(found, "moc_bulkhead_active_requests") else found

    wait_until(quiet, what="the end of all requests")
    return scraped(served.rest)


def changes(before: Samples, after: Samples, protocol: str) -> dict[str, float]:
    """What has moved by calls, without times, and without the name of the protocol."""
    found: dict[str, float] = defaultdict(float)
    for (name, labels), change in moved(before, after, "moc_").items():
        told = {key: text for key, text in labels if text != protocol}
        if name.endswith(("_sum", "_bucket", "_measured_bytes")) or name.startswith(MACHINES):
            continue
        if told.get("model") == "slow" and "tokens" in name:  # how far it comes before it is left is chance
            continue
        if told.get("operation") == "metrics" or (
            protocol != "rest" and (name == REST or ("protocol", "rest") in labels)
        ):
            continue  # the pages
        found[f"{name.replace(protocol, 'PROTOCOL')} {sorted(told.items())}"] += change
    return found


def test_the_same_calls_move_the_same_counters_by_the_same_amounts(counted: Served) -> None:
    calls, seen, codes = mixed(), {}, {}
    with wires.connected(counted) as clients:
        for protocol in TRANSPORTS:
            before = settled(counted)
            codes[protocol] = Counter(perform(clients[protocol], call) for call in calls)
            after = settled(counted)
            seen[protocol] = changes(before, after, protocol)
            if protocol == "rest":  # the pages themselves are asked for over it
                pages = moved(before, after, "moc_operation_duration_seconds_count")
                take(seen[protocol], "", pages.get(PAGES, 0))
            if protocol == "zmq":  # its client sees where a stream has ended by what comes next
                take(seen[protocol], "health", sum(call in ENDED for call in calls))
    assert codes["rest"] == codes["grpc"] == codes["zmq"]
    assert {*codes["rest"]} >= {"ok", "cancelled", "not_found", "invalid_request", "conflict", "engine_failed"}
    for protocol in TRANSPORTS:
        assert seen[protocol] == seen["grpc"]
    # They are what the caller counted.
    for code, number in codes["rest"].items():
        assert seen["rest"][f"moc_PROTOCOL_requests_total [('code', '{code}')]"] == number
    assert len(calls) == CALLS == sum(codes["rest"].values())


def take(found: dict[str, float], operation: str, number: float) -> None:
    """Take `number` calls that were answered from what has moved."""
    found["moc_PROTOCOL_requests_total [('code', 'ok')]"] -= number
    found["moc_request_duration_seconds_count []"] -= number
    if operation:
        found[f"moc_operation_duration_seconds_count [('operation', '{operation}')]"] -= number


def test_what_each_transport_cannot_read_counts_too(counted: Served) -> None:
    with wires.connected(counted) as clients:
        for protocol in TRANSPORTS:
            before = scraped(counted.rest)
            assert clients[protocol].send("infer", b"\xff\xfe no request").code == "invalid_request"
            found = moved(before, scraped(counted.rest), f"moc_{protocol}_requests_total")
            assert found.pop((f"moc_{protocol}_requests_total", (("code", "invalid_request"),))) == 1
            assert not found or protocol == "rest"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/health/live", "ok"),
        ("GET", "/nowhere", "not_found"),
        ("PATCH", "/models", "invalid_request"),
        ("GET", "/openapi.json", "ok"),
        ("POST", "/goals", "invalid_request"),
    ],
)
def test_every_request_over_http_counts(method: str, path: str, code: str, counted: Served) -> None:
    before = scraped(counted.rest)
    httpx.request(method, counted.rest + path)
    found = moved(before, scraped(counted.rest), "moc_rest_requests_total")
    wanted: Mapping[str, float] = Counter([code, "ok"])  # and the page before
    assert {dict(labels)["code"]: change for (_, labels), change in found.items()} == wanted


def test_made_up_names_make_no_series(counted: Served) -> None:
    with wires.connected(counted) as clients:
        for protocol in TRANSPORTS:  # of each kind of call once, so that its own series are there
            for number in range(2):
                strange(clients[protocol], number)
        before = scraped(counted.rest)
        for number in range(10_000):
            strange(clients[TRANSPORTS[number % 3] if number < 300 else "rest"], number)
        after = scraped(counted.rest)
    assert after.keys() == before.keys()
    found = moved(before, after, "moc_inference_requests_total")
    assert {dict(labels)["model"] for _, labels in found} == {"(unknown)"}
    assert sum(found.values()) == 6667


def strange(wire: Wire, number: int) -> None:
    """A call that names a model that there is not."""
    name = f"made-up-{number}"
    match number % 3:
        case 0:
            wire.call("infer", {"model_name": name, "input_text": "Hello"})
        case 1:
            wire.call("embed", {"model_name": name, "inputs": ["Hello"]})
        case _:
            wire.call("get_model", {"model_name": name})


def test_a_removed_model_leaves_no_series(counted: Served, tmp_path: Path) -> None:
    with wires.connected(counted) as clients:
        wire = clients["rest"]
        wire.ok("load_model", model_name="gone", model_path="m.gguf")
        wire.ok("infer", model_name="gone", input_text="Hello")
        assert value(scraped(counted.rest), "moc_inference_requests_total", {"model": "gone"}) == 1
        wire.ok("unload_model", model_name="gone")
        wire.ok("remove_version", model_name="gone", model_version="all")
    assert not [labels for _, labels in scraped(counted.rest) if "gone" in dict(labels).values()]


def test_refusals_say_why(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "m.gguf"))]
    env = {"MODELOPS_MODELS__MAX_QUEUE": "0", "MODELOPS_ENGINE__SLOTS": "1"}
    with serving(tmp_path / "data", links=links, load=["m"], fake={"token_s": 0.05}, env=env) as served:
        slow = make_key(served.data_dir, "slow", "--scope", "infer", "--rate", "1/hour")
        admin = make_key(served.data_dir, "admin", "--scope", "admin")  # the later one: once it is known both are
        with wires.connected(served, admin) as clients:
            wire = clients["rest"]
            wire.key = "nonsense"  # while no key is known, anybody may call with any
            wait_until(lambda: wire.call("status").code == "unauthenticated", what="keys being known")
            wire.key = admin
            wait_until(lambda: wire.call("status").code == "", what="this key being known")
            holding = wire.stream({"model_name": "m", "input_text": "Hello", "max_tokens": 2000})
            next(holding)
            assert wire.call("infer", {"model_name": "m", "input_text": "Hello"}).code == "overloaded"
            wire.key = slow
            assert wire.call("infer", {"model_name": "m", "input_text": "Hello"}).code == "overloaded"
            assert wire.call("infer", {"model_name": "m", "input_text": "Hello"}).code == "rate_limited"
            assert wire.call("status").code == "permission_denied"
            wire.key = "nonsense"
            assert wire.call("status").code == "unauthenticated"
            holding.close()
        found = scraped(served.rest, admin)
    refused = [
        (dict(labels), number) for (name, labels), number in found.items() if name == "moc_requests_refused_total"
    ]
    reasons = {labels["reason"]: (labels["model"], number) for labels, number in refused}
    assert reasons.pop("unauthenticated")
    # Of those that are refused at the door nothing had been read.
    others = dict.fromkeys(("request_rate", "permission_denied"), ("(unknown)", 1))
    assert reasons == {"queue_full": ("m", 2), **others}


def refused(found: Samples, **labels: str) -> float:
    return value(found, "moc_requests_refused_total", labels)


def test_what_never_was_a_request_counts(counted: Served) -> None:
    host, _, port = counted.rest.removeprefix("http://").rpartition(":")
    before = scraped(counted.rest)
    for sent, status in ((b"nonsense\r\n\r\n", b" 400 "), (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, b" 431 ")):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            assert status in connection.recv(100)
    found = moved(before, scraped(counted.rest), REST)
    assert found == {(REST, (("code", "invalid_request"),)): 1, (REST, (("code", "too_large"),)): 1, (REST, OK): 1}


def test_other_names_of_this_machine_see_nothing(counted: Served) -> None:
    answer = httpx.get(f"{counted.rest}/metrics", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")


def test_many_pages_at_once_are_all_answered(counted: Served) -> None:
    with ThreadPoolExecutor(30) as asking:
        pages = list(asking.map(lambda _: scraped(counted.rest), range(30)))
    assert all(value(page, "moc_build_info") == 1 for page in pages)


@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_a_deadline_is_a_deadline_however_it_is_told(protocol: str, counted: Served) -> None:
    before = settled(counted)
    with wires.connected(counted) as clients:
        for _ in range(20):
            call = clients[protocol].call("infer", {"model_name": "slow", "input_text": "Hello"}, timeout_s=0.1)
            assert call.code == "deadline_exceeded" or call.status == "DEADLINE_EXCEEDED"
    found = moved(before, settled(counted), "moc_inference_errors_total", "moc_inference_requests_total")
    assert {dict(labels)["code"]: number for (_, labels), number in found.items()} == {"deadline_exceeded": 20}


def test_whoever_waits_in_vain_has_waited(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "m.gguf"))]
    env = {"MODELOPS_ENGINE__SLOTS": "1"}
    with (
        serving(tmp_path / "data", links=links, load=["m"], fake={"token_s": 0.05}, env=env) as served,
        wires.connected(served) as clients,
    ):
        holding = clients["rest"].stream({"model_name": "m", "input_text": "Hello", "max_tokens": 2000})
        next(holding)
        answer = clients["rest"].call("infer", {"model_name": "m", "input_text": "Hello"}, timeout_s=0.3)
        assert answer.code == "deadline_exceeded"
        holding.close()
        found, m = settled(served), (("model", "m"),)
    assert found["moc_inference_queue_wait_seconds_count", m] == 2
    assert found["moc_inference_queue_wait_seconds_sum", m] > 0.25
    assert found["moc_inference_time_to_first_token_seconds_count", m] == 1  # of the one that left, too
    assert ("moc_inference_latency_seconds_count", m) not in found
