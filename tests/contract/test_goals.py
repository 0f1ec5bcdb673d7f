"""Goals over each transport: created once, told alike, watched from wherever somebody was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format

import model_ops_pb2 as pb
from contract import wires
from contract.wires import BY_NAME, TRANSPORTS, Refused, Wire, refusal
from kept_goals import EVENTS, GOAL, QUALITY, REACHED, STEPS, keep_goal
from metrics.pages import scraped, value
from support import Served, serving, tiny_gguf, wait_until

WISHED: dict[str, Any] = {
    "title": "it answers",
    "objective": {"type": "availability", "models": ["quick"]},
    "metadata": {"größer": ["🌊", 1, 2.5, None, {"x": True}]},
}
LIMIT = 20_000
HUGE = 10**400  # a number of JSON, and no double
WHEN = "2100-01-31T12:00:00Z"

each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with one goal that has ended, which pursues no others."""
    folder = tmp_path_factory.mktemp("goals")
    keep_goal(folder / "data")
    env = {
        "MODELOPS_GOALS__MAX_ACTIVE": "0",
        "MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0",
        "MODELOPS_SERVER__MAX_BODY_BYTES": str(LIMIT),
    }
    with serving(folder / "data", links=[("quick", tiny_gguf(folder / "quick.gguf"))], fake={}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def ids(wire: Wire) -> list[str]:
    return [goal.goal_id for goal in wire.ok("list_goals", status="all").goals]


def nested(depth: int) -> dict[str, Any]:
    """So many objects in each other."""
    return {"x": nested(depth - 1)} if depth > 1 else {}


def on(wire: Wire, moment: str) -> Any:
    """The time as the transport's own messages have it."""
    return datetime.fromisoformat(moment) if wire.name == "grpc" else moment


# --- created ---
@each_transport
def test_a_create_that_is_repeated_creates_nothing_more(transport: str, called: dict[str, Wire]) -> None:
    wire, before = called[transport], len(ids(called["rest"]))
    wire.create_key = f"once over {transport}"
    first = wire.ok("create_goal", **WISHED)
    assert (first.status, first.priority, first.attempts) == ("pending", "medium", 0)
    turned = WISHED | {"objective": dict(reversed(WISHED["objective"].items()))}  # objects have no order
    assert wire.ok("create_goal", **turned).goal_id == first.goal_id
    for other in called.values():  # however it came
        other.create_key = wire.create_key
        assert other.ok("create_goal", **WISHED).goal_id == first.goal_id
        assert other.call("create_goal", WISHED | {"priority": "low"}).code == "conflict", "that is another goal"
    assert len(ids(wire)) == before + 1
    wire.create_key = f"another over {transport}"
    assert wire.ok("create_goal", **WISHED).goal_id != first.goal_id


@pytest.mark.parametrize("key", ["x" * 256, "a\tb", ""], ids=["long", "tab", "empty"])
def test_what_is_no_key_is_refused(key: str, called: dict[str, Wire]) -> None:
    called["rest"].create_key = key
    answer = called["rest"].call("create_goal", WISHED)
    assert (answer.code, "1 to 255 printable" in answer.message) == ("invalid_request", True)


def test_over_rest_a_dry_run_is_no_creation(clients: dict[str, Wire]) -> None:
    rest, before = clients["rest"], ids(clients["rest"])
    answer = rest.call("create_goal", WISHED | {"dry_run": True})
    assert (answer.status, answer.result.goal_id) == ("200", "")
    assert list(answer.result.plan.steps)
    assert ids(rest) == before
    answer = rest.call("create_goal", WISHED)
    assert (answer.status, answer.result.status) == ("201", "pending")
    assert ids(rest) == [answer.result.goal_id, *before]


@each_transport
def test_what_was_asked_for_comes_back(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    objective = {"type": "availability", "models": ["quick"], "until": WHEN, "probe_seconds": 2}
    asked = WISHED | {
        "description": "all day",
        "priority": "critical",
        "objective": objective,
        "limits": {"max_seconds": 3600},
        "target_completion": on(wire, WHEN),
    }
    goal = wire.ok("create_goal", **asked)
    for told in (goal, wire.ok("get_goal", goal_id=goal.goal_id)):
        found = json_format.MessageToDict(told, preserving_proto_field_name=True)
        assert found["metadata"] == WISHED["metadata"]
        assert {name: found["objective"][name] for name in objective} == objective
        assert found["limits"] == {"max_seconds": 3600}
        assert (found["title"], found["description"], found["priority"]) == ("it answers", "all day", "critical")
        assert found["target_completion"] == WHEN


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"objective": {}}, "objective.type: one of quality, serving, availability"),
        ({"objective": {"type": "happiness"}}, "objective.type"),
        ({"objective": {"type": "availability", "models": []}}, "objective: models"),
        ({"objective": {"type": "availability", "models": ["quick"], "until": "soon"}}, "objective: until"),
        ({"objective": {"type": "availability", "models": ["quick"], "until": "2030-01-31"}}, "objective: until"),
        (
            {"objective": {"type": "availability", "models": ["quick"], "probe_second": 1}},
            "did you mean 'probe_seconds'",
        ),
        ({"objective": {"type": "serving", "model_name": "quick", "workload": {"concurrency": 0}}}, "concurrency"),
        ({"objective": {"type": "serving", "model_name": "quick", "formats": ["Q3_0"]}}, "formats"),
        ({"objective": QUALITY | {"target": 1.5}}, "objective: target"),
        ({"objective": QUALITY | {"metric": "perplexity"}}, "objective: target"),
        ({"objective": QUALITY | {"parameters": {"rank": -1}}}, "rank"),
        ({"limits": {"max_jobs": -1}}, "limits: max_jobs"),
        ({"limits": {"max_job": 1}}, "did you mean 'max_jobs'"),
        (
            {"limits": {"max_jobs": 1}, "objective": {"type": "availability", "models": ["quick"]}},
            "limits: max_jobs: a goal of the type availability",
        ),
        (
            {"limits": {"max_jobs": 1}, "objective": {"type": "serving", "model_name": "quick"}},
            "limits: max_jobs: a goal of the type serving",
        ),
        (
            {"objective": {"type": "serving", "model_name": "quick", "max_memory_mb": 2**31}},
            "objective: max_memory_mb",
        ),
        ({"metadata": nested(31)}, "metadata: must not be nested more than 30 deep"),
        ({"title": ""}, "title"),
        ({"title": "x" * 129}, "title"),
        ({"priority": "urgent"}, "priority"),
    ],
)
def test_what_is_wrong_is_told_alike(wrong: dict[str, Any], named: str, clients: dict[str, Wire]) -> None:
    before = ids(clients["rest"])
    told = {name: wire.call("create_goal", WISHED | wrong) for name, wire in clients.items()}
    if wrong.get("title") == "":
        del told["grpc"]  # there it is not given at all, which is told in other words
    assert {answer.code for answer in told.values()} == {"invalid_request"}
    assert len({answer.message for answer in told.values()}) == 1
    assert named in told["rest"].message
    assert ids(clients["rest"]) == before


@pytest.mark.parametrize("transport", ["rest", "zmq"])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"metadata": {"n": HUGE}}, "metadata: must not hold a number that no double holds"),
        ({"metadata": {"n": [{"m": -HUGE}]}}, "metadata"),
        ({"metadata": nested(100)}, "metadata: must not be nested"),
        ({"objective": {"type": "serving", "model_name": "quick", "max_memory_mb": 10**309}}, "objective"),
        ({"objective": WISHED["objective"] | {"probe_seconds": HUGE}}, "objective"),
        ({"limits": {"max_seconds": HUGE}}, "limits"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_not_all_transports_can_hold_is_refused(
    transport: str, wrong: dict[str, Any], named: str, clients: dict[str, Wire]
) -> None:
    before = ids(clients["grpc"])
    answer = clients[transport].call("create_goal", WISHED | wrong)
    assert (answer.code, named in answer.message) == ("invalid_request", True), answer.seen
    assert ids(clients["grpc"]) == before


@each_transport
def test_what_just_can_be_held_is_told_on_every_transport(transport: str, clients: dict[str, Wire]) -> None:
    kept = nested(30) | {"n": [1.7e308, -(2**53), 5e-324]}
    goal_id = clients[transport].ok("create_goal", **WISHED | {"metadata": kept}).goal_id
    for wire in clients.values():
        *_, event = wire.chunks("watch_goal", {"goal_id": goal_id, "follow": False})
        listed = next(goal for goal in wire.ok("list_goals").goals if goal.goal_id == goal_id)
        for told in (listed, wire.ok("get_goal", goal_id=goal_id), event.goal):
            assert json_format.MessageToDict(told.metadata) == kept


@each_transport
@pytest.mark.parametrize(
    "objective",
    [
        {"type": "availability", "models": ["quick", "nobody"]},
        {"type": "serving", "model_name": "nobody"},
        QUALITY | {"model_name": "nobody"},
    ],
    ids=lambda objective: objective["type"],
)
def test_models_that_there_are_not_are_not_found(
    transport: str, objective: dict[str, Any], clients: dict[str, Wire]
) -> None:
    answer = clients[transport].call("create_goal", WISHED | {"objective": objective})
    assert (answer.code, "nobody" in answer.message) == ("not_found", True)


@pytest.mark.parametrize(
    "moment", ["soon", "2030-01-31", "2030-01-31T12:00:00", "9999-12-31T23:59:59Z", "", 5, True, {}]
)
def test_what_is_no_time_is_refused(moment: Any, clients: dict[str, Wire]) -> None:
    for transport in ("rest", "zmq"):
        answer = clients[transport].call("create_goal", WISHED | {"target_completion": moment})
        assert (answer.code, "target_completion" in answer.message) == ("invalid_request", True)


def test_a_timestamp_that_no_day_has_is_refused(clients: dict[str, Wire]) -> None:
    request = pb.CreateGoalRequest(title="x")
    request.objective.update(WISHED["objective"])
    for seconds, nanos in ((2**62, 0), (-(2**62), 0), (-1, 0), (1, -5), (1, 2**31 - 1)):
        request.target_completion.seconds, request.target_completion.nanos = seconds, nanos
        assert clients["grpc"].send("create_goal", request.SerializeToString()).code == "invalid_request"
    assert clients["grpc"].send("create_goal", request.SerializeToString() + b"\x2a\x03\x98\x06\x01").code == (
        "invalid_request"
    )


@each_transport
def test_what_has_passed_already_is_no_target(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    past = on(wire, "2001-01-31T12:00:00+02:00")
    answer = wire.call("create_goal", WISHED | {"target_completion": past})
    assert (answer.code, "target_completion" in answer.message) == ("invalid_request", True)


@each_transport
def test_rows_that_are_too_many_are_put_into_a_file(transport: str, clients: dict[str, Wire]) -> None:
    objective = QUALITY | {"train_dataset": [{"text": "x" * 1000}] * (LIMIT // 1000 + 1)}
    answer = clients[transport].call("create_goal", WISHED | {"objective": objective})
    assert (answer.code, "dataset roots" in answer.message) == ("too_large", True)


@each_transport
def test_two_goals_that_contradict_each_other_are_told_apart(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    asked = WISHED | {"objective": {"type": "serving", "model_name": "quick", "text_dataset": [{"text": "one two"}]}}
    first = wire.ok("create_goal", **asked)
    answer = wire.call("create_goal", asked)
    assert (answer.code, first.goal_id in answer.message) == ("conflict", True)
    assert wire.ok("cancel_goal", goal_id=first.goal_id).status == "cancelled"
    again = wire.ok("create_goal", **asked)
    wire.ok("cancel_goal", goal_id=again.goal_id)


# --- told ---
@each_transport
def test_a_goal_is_told_with_its_steps(transport: str, clients: dict[str, Wire]) -> None:
    goal = clients[transport].ok("get_goal", goal_id=REACHED)
    assert [(step.number, step.action, step.reason) for step in goal.steps] == [
        (step.number, step.action.kind, step.why) for step in STEPS
    ]
    assert goal.steps[1].arguments["parameters"]["epochs"] == 3
    assert goal.steps[1].completed_at.ToDatetime(UTC).timestamp() == GOAL.created_at + 101.5
    assert list(goal.learning_job_ids) == ["j1", "j2"]
    assert json_format.MessageToDict(goal.result) == GOAL.result
    assert (goal.status, goal.progress, goal.priority) == ("completed", 1.0, "high")


def test_over_rest_the_goals_are_an_array(served: Served, clients: dict[str, Wire]) -> None:
    told = httpx.get(f"{served.rest}/goals", params={"status": "completed"}).json()
    assert [goal["goal_id"] for goal in told] == [REACHED]
    assert told[0]["result"] == GOAL.result
    assert httpx.get(f"{served.rest}/goals", params={"status": "failed"}).json() == []
    for status in ("", "Completed", "running"):
        answer = httpx.get(f"{served.rest}/goals", params={"status": status})
        assert (answer.status_code, "status" in answer.json()["detail"]) == (400, True)


@each_transport
def test_without_a_status_those_are_listed_that_have_not_ended(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    made = [wire.ok("create_goal", **WISHED).goal_id for _ in range(2)]
    wire.ok("cancel_goal", goal_id=made[0])

    def listed(**status: str) -> list[str]:
        return [goal.goal_id for goal in wire.ok("list_goals", **status).goals]

    assert listed()[0] == listed(status="pending")[0] == made[1]
    assert not {made[0], REACHED} & {*listed()}
    assert listed(status="cancelled")[0] == made[0]
    assert listed(status="completed") == [REACHED]
    assert listed(status="all")[:2] == made[::-1]
    assert REACHED in listed(status="all")


@each_transport
def test_nothing_is_pursued(transport: str, clients: dict[str, Wire]) -> None:
    assert clients[transport].ok("status").goals_active == 0


@each_transport
@pytest.mark.parametrize("operation", ["get_goal", "watch_goal", "cancel_goal"])
def test_goals_that_there_are_not_are_not_found(transport: str, operation: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    if BY_NAME[operation].stream:
        with pytest.raises(Refused) as refused:
            next(wire.chunks(operation, {"goal_id": "none"}))
        answer = refused.value.answer
    else:
        answer = wire.call(operation, {"goal_id": "none"})
    assert (answer.code, "no goal 'none'" in answer.message) == ("not_found", True)


# --- watched ---
@each_transport
@pytest.mark.parametrize("after", [0, 1, 2, 3, 7])
def test_a_watch_begins_after_what_is_known(transport: str, after: int, clients: dict[str, Wire]) -> None:
    events = list(clients[transport].chunks("watch_goal", {"goal_id": REACHED, "after": after}))
    numbers = [event.number for event in EVENTS if event.number > after]
    assert [event.number for event in events] == (numbers or [after])
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    assert [event.HasField("goal") for event in events] == [event.done for event in events]
    assert events[-1].goal.status == "completed"
    if after == 0:
        assert [event.kind for event in events] == ["step", "progress", "state"]
        assert dict(events[1].metrics) == {"rows": 1.0, "total_rows": 2.0}


@each_transport
def test_a_watch_of_what_goes_on_ends_when_the_time_is_up(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    goal_id = wire.ok("create_goal", **WISHED).goal_id
    for fields, timeout_s in (({"follow": False}, None), ({}, 0.4)):
        if transport == "grpc" and timeout_s:
            continue  # its clients end it themselves
        *_, last = wire.chunks("watch_goal", {"goal_id": goal_id, **fields}, timeout_s=timeout_s)
        assert (last.done, last.goal.goal_id, last.goal.status) == (True, goal_id, "pending")


@each_transport
def test_somebody_who_watches_sees_the_end(transport: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    goal_id = wire.ok("create_goal", **WISHED).goal_id
    events = wire.chunks("watch_goal", {"goal_id": goal_id, "after": 0})
    clients["rest"].ok("cancel_goal", goal_id=goal_id, reason="enough of it")
    seen = list(events)
    assert seen[-1].goal.status == "cancelled"
    assert "enough of it" in seen[-1].message


def test_who_comes_back_to_the_events_says_where_it_was(served: Served) -> None:
    url = f"{served.rest}/goals/{REACHED}/events"

    def numbers(last: str, query: str = "") -> list[int]:
        answer = httpx.get(url + query, headers={"Last-Event-ID": last})
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.text.split("\n\n")[:-1]]
        assert [block["id"] for block in blocks] == [str(json.loads(block["data"])["number"]) for block in blocks]
        return [int(block["id"]) for block in blocks]

    assert numbers("") == [1, 2, 3]
    assert numbers("1") == [2, 3]
    assert numbers("2", "?after=0") == [3]
    for wrong in ("?after=x", "?after=-1", "?follow=2"):
        assert httpx.get(url + wrong).status_code == 400
        assert httpx.get(url + wrong, headers={"Last-Event-ID": "1"}).status_code == 400


def test_who_comes_back_and_has_seen_all_of_it_is_answered_at_once(served: Served, clients: dict[str, Wire]) -> None:
    goal_id = clients["rest"].ok("create_goal", **WISHED).goal_id
    with httpx.stream("GET", f"{served.rest}/goals/{goal_id}/events?after=1", timeout=10) as answer:
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert next(answer.iter_lines()) == ":"


# --- cancelled ---
@each_transport
def test_what_has_ended_stays_as_it_ended(transport: str, clients: dict[str, Wire]) -> None:
    for _ in range(2):
        assert clients[transport].ok("cancel_goal", goal_id=REACHED, reason="too late").status == "completed"


def test_a_stub_made_from_the_proto_file_reads_all_of_it(served: Served) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        get: Any = channel.unary_unary("/ModelOps/GetGoal", pb.GetGoalRequest.SerializeToString, pb.Goal.FromString)
        goal = get(pb.GetGoalRequest(goal_id=REACHED), timeout=10)
        assert goal.result["after"]["exact_match"] == 0.975
        assert goal.started_at.ToSeconds() - goal.created_at.ToSeconds() == 1
        with pytest.raises(grpc.RpcError) as error:
            get(pb.GetGoalRequest(goal_id="none"), timeout=10)
        assert refusal(error.value).code == "not_found"


# --- pursued ---
def test_what_is_pursued_is_counted(tmp_path: Path) -> None:
    links = [("quick", tiny_gguf(tmp_path / "quick.gguf"))]
    with serving(tmp_path / "data", links=links, fake={"tokens": 1}) as served, wires.connected(served) as clients:

        def active(number: int) -> None:
            wait_until(lambda: {wire.ok("status").goals_active for wire in clients.values()} == {number})
            assert value(scraped(served.rest), "moc_goals_active_total") == number

        active(0)
        goal_id = clients["rest"].ok("create_goal", **WISHED).goal_id
        active(1)
        wait_until(lambda: clients["grpc"].ok("get_goal", goal_id=goal_id).metrics.fields["answered"].number_value)
        assert clients["zmq"].ok("cancel_goal", goal_id=goal_id).status in ("active", "cancelled")
        *_, last = clients["zmq"].chunks("watch_goal", {"goal_id": goal_id})
        assert (last.done, last.goal.status) == (True, "cancelled")
        assert [step.action for step in last.goal.steps] == ["load"]
        active(0)
