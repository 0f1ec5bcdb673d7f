"""Versions change under sixteen clients that never pause: no request fails, and each is answered by a version that was
active while it ran."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from chaos.callers import client, programs
from chaos.swapping import Asked, Swapped, clients, judge, swap
from modelops.api.errors import ModelOpsError
from modelops.client import Client
from support import Served, put, serving, tiny_gguf, wait_until

SWAPS = int(os.environ.get("CHAOS_SWAPS", "0"))  # 0: as many as are quick
CLIENTS = 16


@contextmanager
def looked_at(served: Served) -> Iterator[None]:
    """Somebody lists and describes the model all the time."""
    end = threading.Event()
    wrong: list[Exception] = []

    def look() -> None:
        with client(served) as asked:
            while not end.is_set():
                try:
                    asked.models(all=True)
                    asked.model("m")
                    asked.versions("m")
                    asked.explain("m")
                except Exception as error:
                    wrong.append(error)
                    return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(30)
    assert not wrong, wrong


def change(asked: Client, count: int, pick: random.Random, drain_first: float) -> list[Swapped]:
    """Let v2 and v1 answer in turns, so many times."""
    swaps: list[Swapped] = []
    for number in range(count):
        version = ("v2", "v1")[number % 2]
        # The first change has nothing to go back to.
        back = number > 0 and pick.random() < 0.5
        swaps.append(swap(asked, "m", version, back=back, drain_first=pick.random() < drain_first))
        told = {one.model_version: (one.active, one.previous) for one in asked.versions("m")}
        assert told[version] == (True, False), told
        assert told[("v1", "v2")[number % 2]] == (False, True), told
    return swaps


def at_the_end(served: Served, asked: Client, requests: list[Asked], swaps: list[Swapped]) -> None:
    """Nothing went wrong, both versions have answered, and one engine is left."""
    assert not judge(requests, "v1", swaps)
    assert {one.version for one in requests} == {"v1", "v2"}
    assert len(Counter(one.how for one in requests)) == 6
    wait_until(lambda: len(programs(served)) == 1, 20, "the end of the engines that were replaced")
    model = asked.model("m")
    assert abs(asked.status().devices[0].reserved_mb - model.memory_usage_mb) <= 1
    assert (model.active_requests, model.queued_requests) == (0, 0)
    assert model.model_version == swaps[-1].version


@pytest.mark.timeout(60 + 5 * SWAPS)
@pytest.mark.parametrize("drain_first", [0.0, 1.0, 0.3], ids=["beside", "after", "mixed"])
def test_no_request_fails_while_versions_change(tmp_path: Path, drain_first: float) -> None:
    """The engines tell the file that they were started with: so the version is the one that did answer."""
    for name in ("m", "other"):
        tiny_gguf(tmp_path / "models" / f"{name}.gguf")
    seed = random.randrange(1_000_000)
    fake = {"echo": True, "prompt_s": 0.02, "token_s": 0.03}
    with serving(tmp_path, load=["m"], fake=fake) as served, client(served) as asked:
        asked.register("m", "other.gguf")
        request = {"model_name": "m", "input_text": "Hello", "max_tokens": 1}
        with clients(served, CLIENTS, lambda _: request) as asking, looked_at(served):
            wait_until(lambda: len(asking.asked) > CLIENTS)
            swaps = change(asked, SWAPS or 10, random.Random(seed), drain_first)
            before = len(asking.asked)
            wait_until(lambda: len(asking.asked) > before + CLIENTS)
        print(f"seed {seed}: {len(asking.asked)} requests, {len(swaps)} swaps")
        at_the_end(served, asked, asking.asked, swaps)
        files = {"v1": "m.gguf", "v2": "other.gguf"}
        for one in asking.asked:
            flags = json.loads(one.text)["flags"]
            assert Path(flags[flags.index("--model") + 1]).name == files[one.version]


@pytest.mark.engine
@pytest.mark.timeout(120 + 10 * SWAPS)
def test_no_request_fails_while_versions_of_a_real_model_change(tmp_path: Path, smollm2: Path) -> None:
    put(smollm2, tmp_path / "models" / "other.gguf")
    request = {"model_name": "m", "max_tokens": 12, "raw": True, "temperature": 0.0}
    with serving(tmp_path, links=[("m", smollm2)], load=["m"]) as served, client(served) as asked:
        asked.register("m", "other.gguf")
        with clients(served, CLIENTS, lambda number: request | {"input_text": f"Count from {number}."}) as asking:
            wait_until(lambda: len(asking.asked) > CLIENTS, 60)
            began = time.monotonic()
            swaps = change(asked, SWAPS or 3, random.Random(1), 0.0)
            took = time.monotonic() - began
            before = len(asking.asked)
            wait_until(lambda: len(asking.asked) > before + CLIENTS, 60)
        print(f"{len(asking.asked)} requests, {len(swaps)} swaps in {took:.1f} s")
        at_the_end(served, asked, asking.asked, swaps)


@contextmanager
def slowly(tmp_path: Path) -> Iterator[tuple[Served, Client]]:
    """A model with two versions that take a second to load."""
    for name in ("m", "other"):
        tiny_gguf(tmp_path / "models" / f"{name}.gguf")
    with serving(tmp_path, load=["m"], fake={"load_s": 1.0}) as served, client(served) as asked:
        asked.register("m", "other.gguf")
        yield served, asked


@pytest.mark.parametrize("drain_first", [False, True], ids=["beside", "after"])
@pytest.mark.parametrize("how", ["hangs up", "runs out of time"])
def test_a_change_whose_caller_leaves_is_whole(tmp_path: Path, how: str, drain_first: bool) -> None:
    """The version that answers is the one that is active, whoever waits for it."""
    with slowly(tmp_path) as (served, asked):
        connection = HTTPConnection(served.rest.removeprefix("http://"), timeout=30)
        body = json.dumps({"model_version": "v2", "drain_first": drain_first})
        headers = {"Content-Type": "application/json"}
        if how == "hangs up":
            (old,) = programs(served)
            connection.request("POST", "/models/m/activate", body, headers)
            wait_until(lambda: {one.pid for one in programs(served)} - {old.pid}, what="an engine of v2")
        else:
            connection.request("POST", "/models/m/activate", body, headers | {"X-Request-Timeout": "0.3"})
            assert json.loads(connection.getresponse().read())["code"] == "deadline_exceeded"
        connection.close()
        wait_until(lambda: asked.model("m").model_version == "v2" and asked.model("m").status == "loaded", what="v2")
        wait_until(
            lambda: [(one.active, one.previous) for one in asked.versions("m")] == [(False, True), (True, False)]
        )
        assert asked.roll_back("m").model_version == "v1"


@pytest.mark.parametrize("drain_first", [False, True], ids=["beside", "after"])
def test_who_waits_for_a_change_is_told_that_the_coordinator_ends(tmp_path: Path, drain_first: bool) -> None:
    with slowly(tmp_path) as (served, asked):
        told: list[ModelOpsError] = []

        def activate() -> None:
            try:
                asked.activate("m", "v2", drain_first=drain_first)
            except ModelOpsError as error:
                told.append(error)

        (old,) = programs(served)
        thread = threading.Thread(target=activate, daemon=True)
        thread.start()
        wait_until(lambda: {one.pid for one in programs(served)} - {old.pid}, what="an engine of v2")
        assert served.stop() == 0
        thread.join(10)
        assert [error.code for error in told] == ["overloaded"]
        assert not served.engines()
