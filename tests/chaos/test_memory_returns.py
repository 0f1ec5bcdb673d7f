"""What an engine held comes back: to the machine when the process is gone, and to the ledger just then."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import pytest

from chaos.callers import Reader, alive, client, programs, taken_mb
from modelops.serving.devices import host
from support import Served, serving, tiny_gguf, wait_until

MB = 2**20
LOADS = int(os.environ.get("CHAOS_LOADS", "4"))
#: What others do on the machine meanwhile; a model that was not given back would be several times as much.
NOISE_MB = 64


def reserved(served: Served) -> int:
    """What the ledger holds, in MB."""
    with client(served) as asked:
        return asked.status().devices[0].reserved_mb


@pytest.mark.engine
@pytest.mark.timeout(60 + 15 * LOADS)
def test_loading_and_unloading_again_and_again_costs_nothing(tmp_path: Path, smollm2: Path) -> None:
    with serving(tmp_path, links=[("m", smollm2)]) as served, client(served) as asked:
        coordinator = psutil.Process(served.process.pid)

        def once() -> None:
            assert asked.load("m").memory_usage_mb > 4 * NOISE_MB
            assert asked.infer("m", "Hello", max_tokens=4).success
            (program,) = programs(served)
            took.append(taken_mb(program))
            asked.unload("m")
            assert not alive(program)
            assert asked.status().devices[0].reserved_mb == 0

        took: list[float] = []
        once()  # what is kept from the first on, such as the file's pages, is no loss
        own, lost = coordinator.memory_info().rss / MB, 0.0
        for _ in range(3):  # others take memory meanwhile, and may keep it; what is lost is lost each time
            free = host().free / MB
            for _ in range(LOADS):
                once()
            with contextlib.suppress(pytest.fail.Exception):
                wait_until(lambda free=free: host().free / MB > free - NOISE_MB, 10)  # type: ignore[misc]
                break
            lost += free - host().free / MB
        else:
            pytest.fail(f"{3 * LOADS} loads cost {lost:.0f} MB")
        assert min(took) > 4 * NOISE_MB
        grown = coordinator.memory_info().rss / MB - own
        assert grown < 8, f"the coordinator has grown by {grown:.1f} MB"
        assert not served.engines()
        print(
            f"{LOADS} loads of {max(took):.0f} MB: {free - host().free / MB:+.1f} MB less free, {grown:+.1f} MB grown"
        )


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_memory_of_a_killed_engine_is_free_until_the_next_one_is_started(tmp_path: Path, state: str) -> None:
    tiny_gguf(tmp_path / "models" / "m.gguf")
    # The restart at once fails, the one after it succeeds.
    fake = {"token_s": 0.01, "count_file": str(tmp_path / "starts"), "load_fails": ["", "no such tensor"]}
    with serving(tmp_path, fake=fake, load=["m"]) as served, client(served) as asked:
        held = reserved(served)
        assert held > 0
        reader = Reader(served, "rest", max_tokens=2048) if state == "busy" else None
        wait_until(lambda: reader is None or reader.chunks)
        (engine,) = programs(served)
        engine.kill()
        wait_until(lambda: reserved(served) == 0, what="an empty ledger in the back-off")
        assert not programs(served)
        wait_until(lambda: asked.model("m").status == "loaded", what="a restart")
        assert abs(reserved(served) - held) <= 1
        assert len(programs(served)) == 1
        if reader:
            reader.join(10)
            assert not reader.chunks[-1]["final"]["success"]
        asked.unload("m")
        assert reserved(served) == 0
        assert not served.engines()


def test_the_memory_of_an_engine_that_cannot_be_restarted_is_free(tmp_path: Path) -> None:
    """Another model may have it meanwhile. Then the one that was killed is given up, and not stuck."""
    for name in ("m", "n"):
        tiny_gguf(tmp_path / "models" / f"{name}.gguf")
    fails = {"count_file": str(tmp_path / "starts"), "load_fails": ["", *["no such tensor"] * 3]}
    env = {"MODELOPS_MEMORY__BUDGET_MB": "70"}
    with serving(tmp_path, fake={"models": {"m": fails}}, load=["m"], env=env) as served, client(served) as asked:
        (engine,) = programs(served)
        engine.kill()
        wait_until(lambda: reserved(served) == 0, what="an empty ledger in a back-off")
        asked.load("n", pin=True)
        wait_until(lambda: asked.model("m").status == "available", what="the end of the restarts")
        assert asked.infer("n", "Hello", max_tokens=2).success
        asked.unload("n")
        assert asked.load("m", dry_run=True).plan
