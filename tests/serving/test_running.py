"""What the machine shows of an engine: a real process, and devices that say what it holds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ggufs import make
from modelops.engines.llama_cpp import Engine
from modelops.engines.probe import Projection, Share, project
from modelops.serving.builds import Build
from modelops.serving.catalog import Version
from modelops.serving.devices import Device
from modelops.serving.estimates import choose, projected_bytes
from modelops.serving.events import Candidate
from modelops.serving.placement import HOST, MB, Layout, Wants
from modelops.serving.running import Running, room
from modelops.serving.tuning import tune
from modelops.serving.wishes import Wish
from modelops.settings import EngineSettings, MemorySettings
from support import FAKE_ENGINE

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Start = Callable[[Layout], Running]


@pytest.fixture
async def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """A running engine, laid out as is said."""
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({}))
    version = Version("m", 1, "llm", make(tmp_path / "m.gguf", layers=2), "m.gguf", "")
    settings = EngineSettings(executable=str(FAKE_ENGINE), context_length=512, slots=1)
    tuned = tune(version, Wish(), settings, cores=1, gpus=True)
    engine = Engine(tuned.spec, tmp_path / "e.sock")
    await engine.start()
    candidate = Candidate(1, Wants(tuned.need), slots=1)
    build = Build(version, Wish(), tuned, choose(tuned.need, None, None, None), candidate, "gpu")
    yield lambda layout: Running(build, layout, engine)
    await engine.stop()


def devices(held: Mapping[str, int], running: Running, others: int = 0) -> list[Device]:
    """RAM, and two GPUs of 1,000 MB of which the engine holds so much, in MB."""
    pid = max(running.engine.pids())
    return [
        Device(HOST, "", 2000 * MB, 1500 * MB),
        *(
            Device(gpu, "", 1000 * MB, (900 - size) * MB, used_by={pid: size * MB, 1: others * MB})
            for gpu, size in held.items()
        ),
    ]


async def test_what_the_driver_says_of_its_processes_is_its_own(started: Start) -> None:
    running = started(Layout({HOST: 100 * MB, "gpu0": 300 * MB}, (3, 0)))
    shown = devices({"gpu0": 250, "gpu1": 0}, running, others=7)
    held = running.holds(shown)
    assert held == {HOST: pytest.approx(running.engine.memory_bytes(), rel=0.1), "gpu0": 250 * MB}
    found = room(shown, {5: running}, MemorySettings(reserve_mb=100, gpu_reserve_mb=50))
    assert found.free == {HOST: 1400 * MB, "gpu0": 600 * MB, "gpu1": 850 * MB}
    ram = pytest.approx(running.engine.taken_bytes(), rel=0.1)
    assert found.taken == {5: {HOST: ram, "gpu0": 250 * MB, "gpu1": 0}}


def test_what_no_program_could_have_is_not_part_of_the_most_that_there_may_be() -> None:
    shown = [Device(HOST, "", 2000 * MB, 500 * MB), Device("gpu0", "", 1000 * MB, 100 * MB, withheld=30 * MB)]
    found = room(shown, {}, MemorySettings(reserve_mb=100, gpu_reserve_mb=50))
    assert found.most == {HOST: 1900 * MB, "gpu0": 920 * MB}


async def test_weights_that_were_copied_do_not_count_twice(started: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = started(Layout({HOST: 400 * MB}))
    projection = Projection({"Host": Share(270 * MB, 30 * MB, 10 * MB)}, copied=240 * MB)
    running = replace(
        running, build=replace(running.build, estimate=replace(running.build.estimate, projection=projection))
    )
    monkeypatch.setattr(running.engine, "taken_bytes", lambda: 300 * MB)
    for resident, held in ((585, 345), (330, 300)):  # of the second the machine has taken the pages back
        monkeypatch.setattr(running.engine, "memory_bytes", lambda size=resident: size * MB)
        assert running.holds(devices({}, running)) == {HOST: held * MB}
        assert running.seen == held * MB


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
async def test_a_real_engine_holds_what_it_was_planned_to_take(tmp_path: Path, kind: str) -> None:
    shape: dict[str, Any] = {
        "layers": 12,
        "width": 1024,
        "heads": 16,
        "feed_forward": 4096,
        "words": 8192,
        "kind": kind,
    }
    version = Version("m", 1, "llm", make(tmp_path / "m.gguf", **shape), "m.gguf", "")
    tuned = tune(version, Wish(), EngineSettings(context_length=512, slots=1), cores=1, gpus=False)
    projection = await project(tuned.spec)
    assert projection is not None
    estimate = replace(choose(tuned.need, projected_bytes(projection, tuned.need), None, None), projection=projection)
    build = Build(version, Wish(), tuned, estimate, Candidate(1, Wants(tuned.need), slots=1), "cpu")
    engine = Engine(tuned.spec, tmp_path / "e.sock")
    await engine.start()
    for known in (estimate, replace(estimate, projection=None)):
        running = Running(replace(build, estimate=known), Layout({}), engine)
        running.loaded(NOW)
        held = running.holds([Device(HOST, "", 1, 1)])[HOST]
        planned = estimate.total - tuned.need.later
        assert held == pytest.approx(planned, abs=32 * MB)
        assert held >= engine.taken_bytes()
    assert version.file.stat().st_size > 90 * MB, "or nobody would notice"
    await engine.stop()


async def test_where_the_driver_names_no_process_what_is_loaded_counts_as_taken(started: Start) -> None:
    running = started(Layout({HOST: 100 * MB, "gpu0": 300 * MB}, (3, 0)))
    shown = devices({"gpu0": 0}, running)
    assert running.counted(shown)["gpu0"] == 0, "it is loading still"
    running.loaded(NOW)
    assert running.counted(shown)["gpu0"] == 300 * MB
    assert running.holds(shown).keys() == {HOST}


async def test_simulated_devices_show_nothing(started: Start) -> None:
    running = started(Layout({HOST: 1, "gpu0": 1}, (3,)))
    running.loaded(NOW)
    shown = [replace(device, simulated=True) for device in devices({"gpu0": 250}, running)]
    assert running.counted(shown) == {}
    assert running.holds(shown).keys() == {HOST}


@pytest.mark.parametrize(("split", "count"), [((3, 0), 1), ((2, 1), 2), ((1, 1), 2), ((0, 1), 1)])
async def test_what_each_gpu_holds_beside_the_units_is_told(started: Start, split: tuple[int, int], count: int) -> None:
    running = started(Layout({}, split))
    running.loaded(NOW)
    need = running.build.tuned.need
    units = sum(need.units[-sum(split) :])
    units += need.visiting * count if sum(split) < 3 else 0
    shares = {
        gpu: (units // count + 400 * MB) // MB if part else 0 for gpu, part in zip(("gpu0", "gpu1"), split, strict=True)
    }
    taken = running.taken(devices(shares, running))
    assert taken is not None
    assert taken.gpu_layers == sum(split)
    assert taken.per_gpu == pytest.approx(400 * MB, abs=2 * MB)
    assert taken.at_load == pytest.approx(taken.answered, rel=0.1)
    unknown = running.taken(devices({"gpu0": 0, "gpu1": 0}, running))
    assert unknown is not None
    assert unknown.per_gpu == 0


async def test_of_what_has_no_unit_on_a_gpu_nothing_is_learnt_for_gpus(started: Start) -> None:
    running = started(Layout({}, (0, 0)))
    assert running.taken(devices({"gpu0": 0}, running)) is None
    in_ram = replace(running, build=replace(running.build, device="cpu"))
    taken = in_ram.taken(devices({"gpu0": 0}, running))
    assert taken is not None
    assert (taken.gpu_layers, taken.per_gpu) == (0, 0)


async def test_gpus_are_looked_at_again_every_minute_and_ram_is_not(started: Start) -> None:
    for split, again in (((3,), True), ((0,), False)):
        running = started(Layout({}, split))
        assert running.look(100.0)
        running.measured = True
        assert not running.look(159.0)
        assert running.look(161.0) is again
        assert not running.look(200.0)
