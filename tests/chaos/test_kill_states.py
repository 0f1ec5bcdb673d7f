"""`kill -9` of the coordinator in each state of a load, an unload, an eviction and a swap: nothing outlives it, and the
next one has the same models, in the versions that were active, and a ledger that is the sum of what lives."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos.callers import Reader, client, kill, model_of, programs, until_noted
from modelops.api.errors import EngineFailed, ModelOpsError
from modelops.client import Client
from modelops.serving.devices import usable_cores
from support import Served, serving, tiny_gguf, wait_until

ORPHAN_S = 2.0
#: A load that lasts long enough to be met.
LOAD_S = 1.5
#: Room for one of the models of these tests.
ONE_MB = "70"


class Scene:
    """A coordinator that is to be killed, with the models `m` and `n`, `m` in two versions."""

    def __init__(self, served: Served, asked: Client) -> None:
        self.served = served
        self.asked = asked
        self._threads: list[threading.Thread] = []

    def begin(self, deed: Callable[[], object]) -> None:
        """Ask for something whose answer will not come."""

        def run() -> None:
            with contextlib.suppress(ModelOpsError):
                deed()

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def busy(self, model: str = "m") -> None:
        """A call of the model that is being answered."""
        reader = Reader(self.served, "rest", model_name=model, max_tokens=2048)
        wait_until(lambda: reader.chunks, what="the beginning of an answer")
        self._threads.append(reader)

    def until(self, status: str, model: str = "m") -> None:
        """Wait until the model is that."""
        wait_until(lambda: self.asked.model(model).status == status, what=f"'{model}' {status}")

    def kill(self) -> None:
        """The coordinator is killed; all that it had started is gone."""
        kill(self.served, ORPHAN_S)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@dataclass(frozen=True)
class State:
    """`reach` it, kill, and then these are `wanted`, each in a version."""

    reach: Callable[[Scene], None]
    wanted: Mapping[str, str]
    fake: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


# --- loads ---
def probing(scene: Scene) -> None:
    scene.begin(lambda: scene.asked.load("m"))
    wait_until(lambda: programs(scene.served), what="a probe")
    assert scene.asked.model("m").status == "available"


def told_that_it_loads(scene: Scene) -> None:
    scene.asked.load("m", wait=False)


def loading(scene: Scene) -> None:
    scene.asked.load("m", wait=False)
    wait_until(lambda: programs(scene.served), what="an engine")
    assert scene.asked.model("m").status == "loading"


def loading_for_a_request(scene: Scene) -> None:
    scene.begin(lambda: scene.asked.infer("m", "Hello"))
    scene.until("loading")
    until_noted(scene.served, "m", wanted=True)


def loaded(scene: Scene) -> None:
    scene.asked.load("m")
    scene.asked.load("n", pin=True, context_length=512)


def failed(scene: Scene) -> None:
    with pytest.raises(EngineFailed):
        scene.asked.load("m")
    until_noted(scene.served, "m", wanted=False)


def restarting(scene: Scene) -> None:
    scene.asked.load("m")
    (engine,) = programs(scene.served)
    engine.kill()
    starts = scene.served.data_dir / "starts"
    wait_until(lambda: len(starts.read_text().splitlines()) == 3 and not programs(scene.served), what="a back-off")
    assert scene.asked.model("m").status == "loading"


def busy(scene: Scene) -> None:
    scene.asked.load("m")
    scene.busy()


def paused(scene: Scene) -> None:
    for name in ("m", "n"):
        scene.asked.load(name)
        scene.busy(name)
    wait_until(
        lambda: any(program.status() == psutil.STATUS_STOPPED for program in programs(scene.served)), what="a turn"
    )


# --- unloads ---
def unloading_when_it_is_done(scene: Scene) -> None:
    busy(scene)
    scene.begin(lambda: scene.asked.unload("m"))
    scene.until("unloading")
    until_noted(scene.served, "m", wanted=False)


def stopping(scene: Scene) -> None:
    scene.asked.load("m")
    scene.begin(lambda: scene.asked.unload("m"))
    scene.until("unloading")
    until_noted(scene.served, "m", wanted=False)


def unloaded(scene: Scene) -> None:
    scene.asked.load("m")
    scene.asked.load("n")
    scene.asked.unload("m")


def unloaded_by_force(scene: Scene) -> None:
    busy(scene)
    scene.asked.unload("m", force=True)


# --- evictions ---
def evicting(scene: Scene) -> None:
    scene.asked.load("n")
    scene.asked.load("m", wait=False)
    scene.until("unloading", "n")
    assert scene.asked.model("m").status == "loading"


def evicted(scene: Scene) -> None:
    scene.asked.load("n")
    scene.asked.load("m")


# --- swaps ---
def two_versions(scene: Scene) -> None:
    scene.asked.load("m")
    scene.asked.register("m", "other.gguf")


def starting_beside(scene: Scene) -> None:
    two_versions(scene)
    scene.begin(lambda: scene.asked.activate("m", "v2"))
    wait_until(lambda: len(programs(scene.served)) == 2, what="an engine of v2")
    assert scene.asked.model("m").model_version == "v1"


def retiring(scene: Scene) -> None:
    two_versions(scene)
    scene.busy()
    scene.asked.activate("m", "v2")
    assert len(programs(scene.served)) == 2


def draining_first(scene: Scene) -> None:
    two_versions(scene)
    scene.busy()
    scene.begin(lambda: scene.asked.activate("m", "v2", drain_first=True))
    scene.until("unloading")


def starting_after(scene: Scene) -> None:
    two_versions(scene)
    (old,) = programs(scene.served)
    scene.begin(lambda: scene.asked.activate("m", "v2", drain_first=True))
    wait_until(lambda: old.pid not in {one.pid for one in programs(scene.served)} and programs(scene.served))
    assert scene.asked.model("m").status == "loading"


def activated(scene: Scene) -> None:
    two_versions(scene)
    scene.asked.activate("m", "v2")


def rolled_back(scene: Scene) -> None:
    activated(scene)
    scene.asked.roll_back("m")


SLOW = {"token_s": 0.02}
LASTS = {"load_s": LOAD_S}
DEAF = {"ignore_term": True}
ENDLESS = {"MODELOPS_ENGINE__STOP_TIMEOUT_S": "3600"}
ONE = {"MODELOPS_MEMORY__BUDGET_MB": ONE_MB}
BROKEN = {"count_file": "starts", "load_fails": ["", *["no such tensor"] * 9]}
STATES = {
    "probing": State(probing, {}, LASTS, {"MODELOPS_ENGINE__PROBE": "true"}),
    "told that it loads": State(told_that_it_loads, {"m": "v1"}, LASTS),
    "loading": State(loading, {"m": "v1"}, LASTS),
    "loading for a request": State(loading_for_a_request, {"m": "v1"}, LASTS),
    "loaded": State(loaded, {"m": "v1", "n": "v1"}),
    "failed": State(failed, {}, {"load_fails": "no such tensor"}),
    "restarting": State(restarting, {"m": "v1"}, BROKEN),
    "busy": State(busy, {"m": "v1"}, SLOW),
    "paused": State(paused, {"m": "v1", "n": "v1"}, SLOW, {"MODELOPS_ENGINE__THREADS": str(usable_cores())}),
    "unloading when it is done": State(unloading_when_it_is_done, {}, SLOW),
    "stopping": State(stopping, {}, DEAF, ENDLESS),
    "unloaded": State(unloaded, {"n": "v1"}),
    "unloaded by force": State(unloaded_by_force, {}, SLOW),
    "evicting": State(evicting, {"m": "v1"}, DEAF, ENDLESS | ONE),
    "evicted": State(evicted, {"m": "v1"}, {}, ONE),
    "v2 is starting beside v1": State(starting_beside, {"m": "v1"}, LASTS),
    "v1 is retiring": State(retiring, {"m": "v2"}, SLOW),
    "v1 is drained first": State(draining_first, {"m": "v1"}, SLOW),
    "v2 is starting after v1": State(starting_after, {"m": "v1"}, LASTS),
    "v2 is active": State(activated, {"m": "v2"}),
    "v1 is active again": State(rolled_back, {"m": "v1"}),
}


def comes_back(folder: Path, wanted: Mapping[str, str], env: Mapping[str, str]) -> None:
    """The next coordinator has these models and nothing else, and they answer."""
    with serving(folder, fake={}, env=dict(env)) as again, client(again) as asked:

        def back() -> bool:
            found = asked.models()
            now = {model.model_name: model.model_version for model in found if model.status == "loaded"}
            return now == wanted and len(found) == len(wanted)

        wait_until(back, 20, f"{dict(wanted)}")
        wait_until(lambda: sorted(map(model_of, programs(again))) == sorted(wanted), what="one engine for each")
        held = sum(model.memory_usage_mb for model in asked.models())
        assert 0 <= asked.status().devices[0].reserved_mb - held <= len(wanted)
        for name, version in wanted.items():
            answer = asked.infer(name, "Hello", max_tokens=2)
            assert (answer.output_text, answer.model_version) == ("w0 w1 ", version)
        for name in wanted:
            asked.unload(name)
        assert asked.status().devices[0].reserved_mb == 0
        wait_until(lambda: not again.engines(), what="the end of every engine")


@pytest.mark.parametrize("name", STATES)
def test_a_kill_loses_nothing_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    state = STATES[name]
    for model in ("m", "n", "other"):
        tiny_gguf(tmp_path / "models" / f"{model}.gguf")
    fake = dict(state.fake)
    if "count_file" in fake:
        fake["count_file"] = str(tmp_path / fake["count_file"])
    env = {"MODELOPS_ENGINE__SLOTS": "1", **state.env}
    with serving(tmp_path, fake=fake, env=env) as served, client(served) as asked:
        scene = Scene(served, asked)
        state.reach(scene)
        scene.kill()
    comes_back(tmp_path, state.wanted, env | {"MODELOPS_ENGINE__PROBE": "false"})


def test_a_kill_while_what_was_loaded_comes_back_loses_nothing(tmp_path: Path) -> None:
    for model in ("m", "n"):
        tiny_gguf(tmp_path / "models" / f"{model}.gguf")
    with serving(tmp_path, fake={}) as served, client(served) as asked:
        scene = Scene(served, asked)
        asked.load("m")
        asked.load("n")
        scene.kill()
    with serving(tmp_path, fake=LASTS) as served, client(served) as asked:
        scene = Scene(served, asked)
        wait_until(lambda: len(programs(served)) == 2, what="two engines that are starting")
        scene.kill()
    comes_back(tmp_path, {"m": "v1", "n": "v1"}, {})
