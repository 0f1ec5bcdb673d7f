"""A goal keeps models through killed engines, killed coordinators, and callers who load other models without end.

The machine has room for the kept models and one more, which callers fight for. `make soak` runs the long one
(AVAILABILITY_KILLS, AVAILABILITY_RESTARTS, AVAILABILITY_MODELS), and shows what was counted; with AVAILABILITY_REAL
the engines are real, each with the default model.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.callers import client, kill, model_of, programs
from modelops.api.errors import ModelOpsError
from modelops.api.goals import Goal
from modelops.client import Client
from support import Served, put, serving, tiny_gguf, wait_until

KILLS = int(os.environ.get("AVAILABILITY_KILLS", "3"))
RESTARTS = int(os.environ.get("AVAILABILITY_RESTARTS", "1"))
KEPT = tuple(f"kept{number}" for number in range(int(os.environ.get("AVAILABILITY_MODELS", "2"))))
REAL = bool(os.environ.get("AVAILABILITY_REAL"))
OTHERS = ("other0", "other1", "other2")
#: What one of them takes, and how long its load does; of a real one that is read in the log.
MODEL_MB, LOAD_S = (210, 0.0) if REAL else (44, 0.3)
SMALL = {"MODELOPS_ENGINE__CONTEXT_LENGTH": "512", "MODELOPS_ENGINE__SLOTS": "1"}
PROBE_S = 0.5
#: Longest time from the beginning of an outage until the model is loaded again, beside the load itself.
BACK_S = 2.0
EVICTED = "needs its memory"


class Storm:
    """Callers who ask the other models in turns, each of which has to be loaded for it in the place of the last."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(first,), daemon=True) for first in range(2)]
        self.told: Counter[str] = Counter()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a request was never answered"

    def _run(self, first: int) -> None:
        with client(self._served) as asked:
            for number in itertools.count(first):
                if self._end.is_set():
                    return
                try:
                    asked.infer(OTHERS[number % len(OTHERS)], "Hello", max_tokens=2)
                except ModelOpsError as error:
                    self.told[error.code] += 1
                    time.sleep(0.02)  # as a caller who was refused
                else:
                    self.told["answered"] += 1


class Life:
    """A data folder, and the coordinators that lived on it one after another, each in its storm."""

    def __init__(self, folder: Path, model: Path | None) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self.told: Counter[str] = Counter()
        self.goal_id = ""
        self.load_s = LOAD_S
        for name in (*KEPT, *OTHERS):
            file = folder / "models" / f"{name}.gguf"
            put(model, file) if model else tiny_gguf(file)
        self.served = self._begin()
        self._storm: Storm | None = None

    def _begin(self) -> Served:
        env = {"MODELOPS_MEMORY__BUDGET_MB": str(len(KEPT) * MODEL_MB + MODEL_MB + 10)}
        fake = None if REAL else {"load_s": LOAD_S}
        return self._stack.enter_context(serving(self._folder, fake=fake, env=env | SMALL if REAL else env))

    def storm(self) -> None:
        self._storm = Storm(self.served)

    def calm(self) -> None:
        """The storm is over, for now; in it no kept model was evicted."""
        if storm := self._storm:
            storm.stop()
            self.told += storm.told
            self._storm = None
        log = self.served.log.read_text()
        loads = re.findall(rf'"loaded (?:{"|".join(KEPT)}) in ([0-9.]+) s"', log) if REAL else []
        self.load_s = max([self.load_s, *map(float, loads)])
        evicted = [line for line in log.splitlines() if EVICTED in line]
        assert not [line for line in evicted if any(f"unloaded {name} " in line for name in KEPT)]
        self.told["evictions"] += len(evicted)

    def end(self) -> None:
        with contextlib.suppress(AssertionError):
            self.calm()
        self._stack.close()

    @contextlib.contextmanager
    def asked(self) -> Iterator[Client]:
        with client(self.served) as asked:
            yield asked

    def goal(self) -> Goal:
        with self.asked() as asked:
            return asked.get_goal(self.goal_id)

    def count(self, of: str) -> Any:
        return self.goal().metrics.get(of, 0)

    def kill_engine(self, name: str) -> None:
        (program,) = (program for program in programs(self.served) if model_of(program) == name)
        program.kill()

    def kill_coordinator(self) -> None:
        """SIGKILL, and the next one on the same folder, in a storm from its first moment on."""
        self.calm()
        kill(self.served)
        self.served = self._begin()
        self.storm()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        try:
            wait_until(condition, 30.0, what)
        except BaseException:
            goal = self.goal()
            print(goal.message, goal.metrics, *goal.steps, sep="\n")
            raise


@pytest.fixture
def life(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Life]:
    living = Life(tmp_path, request.getfixturevalue("smollm2") if REAL else None)
    try:
        yield living
    finally:
        living.end()


def test_kept_models_answer_through_it_all(life: Life) -> None:
    with life.asked() as asked:
        objective = {"type": "availability", "models": list(KEPT), "probe_seconds": PROBE_S}
        life.goal_id = asked.create_goal("kept", objective, priority="critical").goal_id
    life.until(lambda: life.count("answered") >= len(KEPT), "the first answers")
    life.storm()
    recovered = 0
    kills = itertools.cycle(KEPT)
    for after in range(RESTARTS + 1):
        for _ in range(KILLS // (RESTARTS + 1) + (after < KILLS % (RESTARTS + 1))):
            life.kill_engine(next(kills))
            recovered += 1
            life.until(lambda: life.count("recoveries") == recovered, f"recovery {recovered}")  # noqa: B023
        if after < RESTARTS:
            noted = life.goal().metrics
            life.kill_coordinator()
            assert life.count("probes") >= noted["probes"], "what was counted survives"
            recovered += len(KEPT)
            life.until(lambda: life.count("recoveries") == recovered, f"recovery {recovered}")  # noqa: B023
            assert life.count("answered") > noted["answered"]
    life.calm()
    with life.asked() as asked:
        assert {model.model_name: model.status for model in asked.models() if model.model_name in KEPT} == (
            dict.fromkeys(KEPT, "loaded")
        )
        asked.cancel_goal(life.goal_id, "enough")
        life.until(lambda: life.goal().status == "cancelled", "the end of the goal")
        result, each = life.goal().result, life.goal().metrics["models"]
        for name in OTHERS:  # none is kept any more
            assert asked.infer(name, "Hello", max_tokens=2).success
    print(
        f"\n{KILLS} engines and {RESTARTS} coordinators killed, {len(KEPT)} models kept: {result}; others: {life.told}"
    )
    print(
        "; ".join(f"{name}: {each[name]['recovery_s']}" for name in KEPT),
        f"the longest load: {life.load_s} s",
        sep="; ",
    )
    assert life.told["evictions"] > 1, "it was no storm"
    assert result["recoveries"] == recovered
    assert result["p95_recovery_s"] <= life.load_s + BACK_S
    assert result["share"] > 0.8
