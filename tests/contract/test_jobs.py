"""Learning jobs over each transport: created once, told alike, watched from wherever somebody was."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest

import model_ops_pb2 as pb
from contract.wires import TRANSPORTS, Refused, Rest, Wire, refusal
from kept_jobs import CREATED, ENDED, EVENTS, JOB, keep
from modelops.store.jobs import EventRow
from support import Served, serving, tiny_gguf

ROWS = [{"prompt": "größer", "completion": "🌊"}, {"text": "one"}]
JUDGED: dict[str, Any] = {"job_type": "evaluate", "model_name": "m", "dataset": ROWS, "parameters": {"max_tokens": 4}}
LIMIT = 20_000

each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with one job that has ended, which works on no others."""
    folder = tmp_path_factory.mktemp("jobs")
    keep(folder / "data")
    env = {"MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0", "MODELOPS_SERVER__MAX_BODY_BYTES": str(LIMIT)}
    names = ("m", *(f"m-{transport}" for transport in TRANSPORTS))
    links = [(name, tiny_gguf(folder / "m.gguf")) for name in names]
    with serving(folder / "data", links=links, fake={}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def ids(wire: Wire) -> list[str]:
    return [job.job_id for job in wire.ok("list_jobs").jobs]


# --- created ---
@each_transport
def test_a_create_that_is_repeated_creates_nothing_more(transport: str, called: dict[str, Wire]) -> None:
    wire, before = called[transport], len(ids(called["rest"]))
    wire.create_key = f"once over {transport}"
    first = wire.ok("create_job", **JUDGED)
    assert (first.job_id != "", first.plan.rows) == (True, 2)
    turned = [dict(reversed(row.items())) for row in ROWS]  # objects have no order, and over gRPC any
    again = wire.ok("create_job", **(JUDGED | {"dataset": turned}))
    assert (again.job_id, again.HasField("plan")) == (first.job_id, False)
    for other in called.values():  # however it came
        other.create_key = wire.create_key
        assert other.ok("create_job", **JUDGED).job_id == first.job_id
        assert other.call("create_job", JUDGED | {"priority": "low"}).code == "conflict", "that is another job"
    assert len(ids(wire)) == before + 1
    wire.create_key = f"another over {transport}"
    assert wire.ok("create_job", **JUDGED).job_id != first.job_id


@pytest.mark.parametrize("key", ["x" * 256, "a\tb", ""], ids=["long", "tab", "empty"])
def test_what_is_no_key_is_refused(key: str, called: dict[str, Wire], served: Served) -> None:
    for transport in ("rest", "grpc"):
        called[transport].create_key = key
        if (transport, key) == ("grpc", "a\tb"):
            continue  # which its client does not send
        answer = called[transport].call("create_job", JUDGED)
        assert (answer.code, "1 to 255 printable" in answer.message) == ("invalid_request", True), transport
        assert called[transport].call("list_jobs").code == ""  # who creates nothing may call it what they like
    called["zmq"].create_key = "a\tb"
    assert called["zmq"].call("create_job", JUDGED).code == "invalid_request"


def test_over_rest_a_dry_run_is_no_creation(clients: dict[str, Wire]) -> None:
    rest, before = clients["rest"], ids(clients["rest"])
    answer = rest.call("create_job", JUDGED | {"dry_run": True})
    assert (answer.status, answer.result.job_id, answer.result.plan.rows) == ("200", "", 2)
    assert ids(rest) == before
    answer = rest.call("create_job", JUDGED)
    assert (answer.status, answer.result.status) == ("201", "pending")
    assert ids(rest) == [answer.result.job_id, *before]


@each_transport
def test_whole_numbers_and_others_are_what_they_are_as_json(transport: str, clients: dict[str, Wire]) -> None:
    parameters = {"max_tokens": 7, "metrics": ["f1", "rouge_l"], "system": "Be 1.0 brief."}
    job = clients[transport].ok("create_job", **(JUDGED | {"parameters": parameters}))
    assert dict(job.parameters) == {**parameters, "max_tokens": 7.0}
    for wrong in ({"max_tokens": 7.5}, {"max_tokens": "7"}, {"max_tokens": None}, {"max_tokens": [7]}, {"nope": 1}):
        answer = clients[transport].call("create_job", JUDGED | {"parameters": wrong})
        assert answer.code == "invalid_request"
        assert next(iter(wrong)) in answer.message


def test_rows_that_are_wrong_are_told_alike(clients: dict[str, Wire]) -> None:
    rows = [*ROWS, {"prompt": 1, "completion": None}, {"prompt": "a"}, {}, {"text": "x", "more": [{"x": 1.5}, True]}]
    told = {name: wire.call("create_job", JUDGED | {"dataset": rows}) for name, wire in clients.items()}
    assert {answer.code for answer in told.values()} == {"invalid_request"}
    assert len({answer.message for answer in told.values()}) == 1
    assert "row 3" in told["rest"].message


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_what_json_has_not_is_refused_over_grpc_too(number: str, clients: dict[str, Wire]) -> None:
    answer = clients["grpc"].call("create_job", JUDGED | {"parameters": {"max_tokens": float(number)}})
    assert answer.code == "invalid_request"
    assert "no number that JSON has" in answer.message


def test_a_field_within_free_form_values_that_nobody_knows_is_refused(clients: dict[str, Wire]) -> None:
    request = pb.CreateJobRequest(job_type="evaluate", model_name="m")
    inner = b"\x0a\x05\x0a\x01a\x12\x00"  # {"a": null}, of a Value that has nothing
    raw = request.SerializeToString() + b"\x32" + bytes([len(inner) + 3]) + inner + b"\x98\x06\x01"  # and field 99
    answer = clients["grpc"].send("create_job", raw)
    assert (answer.code, "unknown field number 99" in answer.message) == ("invalid_request", True)


@each_transport
def test_rows_that_are_too_many_are_put_into_a_file(transport: str, clients: dict[str, Wire]) -> None:
    rows = [{"text": "x" * 1000}] * (LIMIT // 1000 + 1)
    answer = clients[transport].call("create_job", JUDGED | {"dataset": rows})
    assert answer.code == "too_large"
    assert "dataset_path" in answer.message
    other = clients[transport].call("infer", {"model_name": "m", "input_text": "x" * (LIMIT + 1)})
    assert (other.code, "dataset_path" in other.message) == ("too_large", False)


@each_transport
def test_what_a_job_is_about_is_not_removed_before_it_has_ended(transport: str, clients: dict[str, Wire]) -> None:
    wire, model = clients[transport], f"m-{transport}"
    first, second = [wire.ok("create_job", **(JUDGED | {"model_name": model})).job_id for _ in range(2)]
    for job_id in (first, second):
        for version in ("v1", "all"):
            answer = wire.call("remove_version", {"model_name": model, "model_version": version})
            assert (answer.code, answer.details) == ("conflict", {"job_id": job_id}), answer.seen
            assert f"'{model}' v1 is trained or judged by the learning job {job_id}; cancel that" in answer.message
        assert wire.ok("get_model", model_name=model).status == "available"
        wire.ok("cancel_job", job_id=job_id)
    assert list(wire.ok("remove_version", model_name=model, model_version="all").removed) == [f"{model} v1"]


# --- told ---
def test_over_rest_the_jobs_are_an_array(served: Served, clients: dict[str, Wire]) -> None:
    told = httpx.get(f"{served.rest}/learning/jobs", params={"status": "completed"}).json()
    assert told[-1]["job_id"] == ENDED
    assert told[-1]["result"] == JOB.result
    assert httpx.get(f"{served.rest}/learning/jobs", params={"status": "failed"}).json() == []
    for status in ("", "Completed", "all"):
        answer = httpx.get(f"{served.rest}/learning/jobs", params={"status": status})
        assert (answer.status_code, "status" in answer.json()["detail"]) == (400, True)


@each_transport
def test_nothing_runs(transport: str, clients: dict[str, Wire]) -> None:
    assert clients[transport].ok("status").learning_jobs_running == 0


# --- watched ---
@each_transport
@pytest.mark.parametrize("after", [0, 1, 2, 3, 7])
def test_a_watch_begins_after_what_is_known(transport: str, after: int, clients: dict[str, Wire]) -> None:
    events = list(clients[transport].chunks("watch_job", {"job_id": ENDED, "after": after}))
    numbers = [event.number for event in EVENTS if event.number > after]
    assert [event.number for event in events] == (numbers or [after])
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    assert [event.HasField("job") for event in events] == [event.done for event in events]
    assert events[-1].job.status == "completed"
    if after == 0:
        assert [event.kind for event in events] == ["step", "progress", "state"]
        assert dict(events[1].metrics) == {"rows": 1.0, "total_rows": 2.0}


def test_a_long_history_is_told_whole(served: Served, clients: dict[str, Wire]) -> None:
    long = [EventRow("", number, CREATED + number, "log", message=str(number)) for number in range(1, 1001)]
    keep(served.data_dir, replace(JOB, id="long"), long)
    seen = list(clients["grpc"].chunks("watch_job", {"job_id": "long"}))
    assert [event.number for event in seen] == [*range(1, 1001), 1000]  # the last one says that it has ended
    assert [event.done for event in seen] == [False] * 1000 + [True]
    seen = list(clients["grpc"].chunks("watch_job", {"job_id": "long", "after": 1}))
    assert [event.number for event in seen] == [*range(2, 1001)]
    assert seen[-1].done


@each_transport
def test_a_watch_of_what_goes_on_ends_when_the_time_is_up(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    job_id = wire.ok("create_job", **JUDGED).job_id
    for fields, timeout_s in (({"follow": False}, None), ({}, 0.4)):
        if transport == "grpc" and timeout_s:
            continue  # its clients end it themselves
        *_, last = wire.chunks("watch_job", {"job_id": job_id, **fields}, timeout_s=timeout_s)
        assert (last.done, last.job.job_id, last.job.status) == (True, job_id, "pending")


@each_transport
def test_somebody_who_watches_sees_the_end(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    job_id = wire.ok("create_job", **JUDGED).job_id
    events = wire.chunks("watch_job", {"job_id": job_id, "after": 0})
    clients["rest"].ok("cancel_job", job_id=job_id, reason="enough of it")
    seen = list(events)
    assert seen[-1].job.status == "cancelled"
    assert "enough of it" in seen[-1].message


@each_transport
def test_nobody_watches_what_there_is_not(transport: str, clients: dict[str, Wire]) -> None:
    for fields, code in (({"job_id": "none"}, "not_found"), ({"job_id": ENDED, "after": -1}, "invalid_request")):
        with pytest.raises(Refused) as refused:
            next(clients[transport].chunks("watch_job", fields))
        assert refused.value.answer.code == code


def test_who_comes_back_to_the_events_says_where_it_was(served: Served) -> None:
    url = f"{served.rest}/learning/jobs/{ENDED}/events"

    def numbers(last: str, query: str = "") -> list[int]:
        answer = httpx.get(url + query, headers={"Last-Event-ID": last})
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.text.split("\n\n")[:-1]]
        assert [block["id"] for block in blocks] == [str(json.loads(block["data"])["number"]) for block in blocks]
        return [int(block["id"]) for block in blocks]

    assert numbers("") == [1, 2, 3]
    assert numbers("1") == [2, 3]
    assert numbers("2", "?after=0") == [3]  # what comes back asks as it did before, and says where it is by now
    assert numbers("3", "?after=1") == [3]
    for wrong in ("x", "1.5", "-1", "9" * 30):
        answer = httpx.get(url, headers={"Last-Event-ID": wrong})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    for wrong in ("?after=x", "?after=", "?after=-1", "?follow=2", "?after=99999999999999999999999"):
        assert httpx.get(url + wrong).status_code == 400


def test_a_watch_that_is_left_ends(served: Served, clients: dict[str, Wire]) -> None:
    job_id = clients["rest"].ok("create_job", **JUDGED).job_id
    rest = Rest(served)
    events = [rest.chunks("watch_job", {"job_id": ENDED, "after": 0}) for _ in range(3)]
    for each in events:
        assert next(each).number == 1
        each.close()
    rest.close()
    assert clients["rest"].ok("cancel_job", job_id=job_id).status == "cancelled"


# --- cancelled ---
@each_transport
def test_what_has_ended_stays_as_it_ended(transport: str, clients: dict[str, Wire]) -> None:
    for _ in range(2):
        assert clients[transport].ok("cancel_job", job_id=ENDED).status == "completed"


def test_a_stub_made_from_the_proto_file_reads_all_of_it(served: Served) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        get: Any = channel.unary_unary(
            "/ModelOps/GetLearningJob", pb.GetJobRequest.SerializeToString, pb.LearningJob.FromString
        )
        job = get(pb.GetJobRequest(job_id=ENDED), timeout=10)
        assert job.result["scores"]["f1"] == 0.5
        assert job.started_at.ToSeconds() - job.created_at.ToSeconds() == 1
        with pytest.raises(grpc.RpcError) as error:
            get(pb.GetJobRequest(job_id="none"), timeout=10)
        assert refusal(error.value).code == "not_found"


def test_names_of_jobs_are_their_own(clients: dict[str, Wire]) -> None:
    made = [
        clients[name].ok("create_job", **JUDGED).job_id for name in itertools.islice(itertools.cycle(TRANSPORTS), 9)
    ]
    assert len(set(made)) == 9
    assert ids(clients["rest"])[:9] == made[::-1]
