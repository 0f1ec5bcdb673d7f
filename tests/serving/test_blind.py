"""A machine with a GPU, and engines that can use it or not: where models are placed, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelops.serving.placement import HOST, MB, Plan
from modelops.serving.wishes import Wish
from seeing import CUDA, a_gpu, engine
from serving.house import Make


@pytest.mark.parametrize("asked", [0, 2, -1], ids=["automatic", "two layers", "none"])
async def test_a_model_of_an_engine_that_sees_no_gpu_is_placed_in_ram(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    a_gpu(monkeypatch)
    house = await make(engine={"executable": engine(tmp_path / "engine")})
    build, plan = await house.pool.preview(house.catalog.active("a"), Wish(gpu_layers=asked))
    assert isinstance(plan, Plan)
    assert plan.layout.reserve == {HOST: build.estimate.need.total}
    view = await house.load("a", gpu_layers=asked)
    assert (view.gpu_layers, set(view.memory)) == (0, {HOST})
    assert house.pool.reserved().keys() == {HOST}
    assert await house.ask() == "w0 w1 w2 "
    assert await house.pool.gpus() == []


@pytest.mark.parametrize("listed", [CUDA, "nothing that is understood"])
async def test_a_model_of_an_engine_that_may_see_it_is_placed_on_the_gpu(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    a_gpu(monkeypatch)
    path = Path(engine(tmp_path / "engine", listed))
    if listed != CUDA:
        path.write_text(path.read_text().replace("Available", "Other"))
    house = await make(engine={"executable": str(path)})
    view = await house.load()
    assert view.gpu_layers == 3
    assert house.pool.reserved()["gpu0"] == view.memory["gpu0"] > 0
    assert [gpu.device for gpu in await house.pool.gpus()] == ["gpu0"]


async def test_what_is_no_model_may_take_the_gpu_all_the_same(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu(monkeypatch)
    house = await make(engine={"executable": engine(tmp_path / "engine")})
    await house.load()
    async with house.pool.borrow("training", 10 * MB, 1000 * MB) as loan:
        assert loan.layout is not None
        assert loan.layout.reserve["gpu0"] == 1000 * MB
        assert house.pool.reserved()["gpu0"] == 1000 * MB
