"""Engines that take turns on the cores: both go on all the time, and a paused one is never left so, whatever happens to
it, to its callers or to the coordinator.

Each engine has a thread for every core, so that two that are busy never fit side by side.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos.callers import Reader, alive, client, model_of, programs, stream_rest
from modelops.serving.devices import usable_cores
from support import Served, serving, tiny_gguf, wait_until

pytestmark = pytest.mark.alone

ALL = {"MODELOPS_ENGINE__THREADS": str(usable_cores())}
#: An order that waits for no turn: far less than the requests in flight would take.
PROMPT_S = 3.0
#: Between two tokens, for a reader to see that it goes on.
GAP_S = 1.0


@contextmanager
def two(folder: Path, fake: dict[str, Any], **env: str) -> Iterator[Served]:
    """A coordinator with `a` and `b` loaded, in engines that behave as told."""
    for name in ("a", "b"):
        tiny_gguf(folder / "models" / f"{name}.gguf")
    with serving(folder, load=["a", "b"], fake=fake, env=ALL | env) as served:
        yield served


def busy(served: Served, name: str, **request: Any) -> Reader:
    """A call that is being answered."""
    reader = Reader(served, "rest", model_name=name, **{"max_tokens": 2048} | request)
    wait_until(lambda: reader.chunks or reader.error, 30, "the beginning of an answer")
    return reader


def paused(served: Served) -> dict[str, psutil.Process]:
    """The engines that are paused, by model."""
    return {model_of(one): one for one in programs(served) if one.status() == psutil.STATUS_STOPPED}


def until_paused(served: Served, name: str) -> psutil.Process:
    """The engine of `name` as soon as it is paused: it is for a quarter of a second."""
    found: dict[str, psutil.Process] = wait_until(lambda: name in (now := paused(served)) and now, what="a turn")
    return found[name]


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"{what} took {took:.1f} s"


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_two_engines_that_share_the_cores_both_go_on(tmp_path: Path, smollm2: Path) -> None:
    """The longest gap is three turns of the other and what the machine does meanwhile: of a busy one it is looked at
    again, not judged milder."""
    gaps: list[float] = []
    with serving(tmp_path, links=[(name, smollm2) for name in "ab"], load=["a", "b"], env=ALL) as served:
        engines = {model_of(program): program for program in programs(served)}
        while len(gaps) < 6 and min(gaps, default=GAP_S) >= GAP_S:
            gaps.append(longest_gap(served, engines))
            assert not paused(served)
    assert min(gaps) < GAP_S, gaps


def longest_gap(served: Served, engines: dict[str, psutil.Process]) -> float:
    """The longest time between two tokens of one model while both answer for some seconds, and take turns."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    both, end = threading.Barrier(len(engines)), threading.Event()

    def read(name: str) -> None:
        request = {"model_name": name, "input_text": "Count from 1 to a million: 1, 2,", "raw": True}
        with closing(stream_rest(served, request | {"max_tokens": 2048, "temperature": 0.0})) as chunks:
            next(chunks)
            both.wait(60)
            for chunk in chunks:
                assert not chunk["done"], "the answer ended early"
                times[name].append(time.monotonic())
                if end.is_set():
                    return

    threads = [threading.Thread(target=read, args=(name,), daemon=True) for name in engines]
    for thread in threads:
        thread.start()
    seen: set[str] = set()

    def enough() -> bool:
        seen.update(name for name, engine in engines.items() if engine.status() == psutil.STATUS_STOPPED)
        return all(moments and moments[-1] - moments[0] > 3.0 for moments in times.values())

    wait_until(enough, 60, "three seconds of answers")
    end.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert seen == engines.keys(), "they took turns"
    return max(after - before for moments in times.values() for before, after in pairwise(moments))


def test_when_one_has_ended_the_other_is_not_paused(tmp_path: Path) -> None:
    with two(tmp_path, {"token_s": 0.01}) as served:
        reader = busy(served, "a")
        for number in range(5):
            short = busy(served, "b", max_tokens=10 + 20 * number)
            until_paused(served, "a")
            assert short.ended()["success"]
            wait_until(lambda: not paused(served), PROMPT_S, "that nobody is paused")
        assert reader.reading
        reader.hang_up()
        wait_until(lambda: not paused(served), PROMPT_S, "that nobody is paused")


def test_a_call_of_a_paused_engine_is_cancelled_at_once(tmp_path: Path) -> None:
    with two(tmp_path, {"token_s": 0.01}) as served, client(served) as asked:
        going, leaving = busy(served, "a"), busy(served, "b")
        until_paused(served, "b")
        with within(PROMPT_S, "cancelling"):
            leaving.hang_up()
            wait_until(lambda: asked.model("b").active_requests == 0)
            wait_until(lambda: not paused(served), what="that nobody is paused")
        assert going.reading
        assert asked.infer("b", "Hello", max_tokens=2).success
        going.hang_up()


def test_a_paused_engine_is_unloaded(tmp_path: Path) -> None:
    with two(tmp_path, {"token_s": 0.01}) as served, client(served) as asked:
        going, ended = busy(served, "a"), busy(served, "b")
        engine = until_paused(served, "b")
        with within(PROMPT_S, "an unload by force"):
            asked.unload("b", force=True)
        assert not alive(engine)
        ended.join(10)
        assert not ended.chunks[-1]["final"]["success"]
        assert going.reading
        # Without force, after the call in flight, which goes on in its turns.
        short = busy(served, "b", max_tokens=50)
        engine = until_paused(served, "b")
        asked.unload("b")
        assert short.ended()["success"]
        assert not alive(engine)
        assert not paused(served)
        assert going.reading
        going.hang_up()


@pytest.mark.parametrize("victim", ["the paused one", "the other"])
def test_an_engine_that_is_killed_in_a_turn_leaves_nobody_paused(tmp_path: Path, victim: str) -> None:
    with two(tmp_path, {"token_s": 0.01}) as served, client(served) as asked:
        readers = {name: busy(served, name) for name in ("a", "b")}
        until_paused(served, "b")
        name, other = ("b", "a") if victim == "the paused one" else ("a", "b")
        next(one for one in programs(served) if model_of(one) == name).kill()
        readers[name].join(10)
        assert not readers[name].is_alive()
        assert "was killed by SIGKILL" in readers[name].chunks[-1]["final"]["error_message"]
        wait_until(lambda: not paused(served), PROMPT_S, "that nobody is paused")
        count = len(readers[other].chunks)
        wait_until(lambda: len(readers[other].chunks) > count + 20, PROMPT_S, "the other goes on")
        assert asked.infer(name, "Hello", max_tokens=2).success
        readers[other].hang_up()


def test_sigterm_finishes_the_answers_of_engines_that_take_turns(tmp_path: Path) -> None:
    with two(tmp_path, {"token_s": 0.01}) as served:
        readers = [busy(served, name, max_tokens=80) for name in ("a", "b")]
        until_paused(served, "a")
        assert served.stop() == 0
        assert all(reader.ended()["tokens_generated"] == 80 for reader in readers)


def test_the_end_does_not_wait_for_a_paused_engine(tmp_path: Path) -> None:
    env = {"MODELOPS_SERVER__DRAIN_S": "0", "MODELOPS_ENGINE__STOP_TIMEOUT_S": "3600"}
    with two(tmp_path, {"token_s": 0.01}, **env) as served:
        readers = [busy(served, name) for name in ("a", "b")]
        tree = served.engines()
        until_paused(served, "a")
        with within(PROMPT_S, "the end"):
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(20) == 0
        assert not any(map(alive, tree))
        for reader in readers:
            assert "shutting down" in reader.ended()["error_message"]
