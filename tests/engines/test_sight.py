"""An engine is asked which GPUs it can use: once for each file, and one that does not tell harms nobody."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from modelops.engines.sight import Sight, account
from modelops.tasks import Tasks
from seeing import CUDA, engine, program


@pytest.fixture
async def sight() -> AsyncIterator[Sight]:
    tasks = Tasks("test")
    yield Sight(tasks)
    await tasks.close()


def times_asked(folder: Path) -> int:
    return len((folder / "asked").read_text().splitlines())


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        ("", ()),
        ("  (none)", ()),
        ("  BLAS: OpenBLAS (0 MiB, 0 MiB free)", ()),
        (CUDA, ("CUDA0",)),
        (f"{CUDA}\n  CUDA1: NVIDIA A100 (40000 MiB, 39000 MiB free)", ("CUDA0", "CUDA1")),
    ],
)
async def test_a_program_lists_what_it_can_use(tmp_path: Path, listed: str, gpus: tuple[str, ...]) -> None:
    found = await account(engine(tmp_path / "engine", listed))
    assert (found.gpus, found.said.status) == (gpus, 0)


async def test_the_package_tells_which_it_can_use_and_how_it_was_built() -> None:
    found = await account("")
    assert found.said.status == 0
    assert found.gpus is not None
    assert "CPU" in found.built


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("echo 'error: invalid argument: --list-devices'; exit 1", 1),
        ("echo 'Available devices:'; kill -ILL $$", -4),
        ("exit 0", 0),
        ("exec /nowhere/engine", 127),
        ("sleep 1000 & wait", None),
    ],
    ids=["refuses", "dies", "silent", "not there", "hangs"],
)
async def test_a_program_that_does_not_tell(
    tmp_path: Path, script: str, status: int | None, sight: Sight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.engines.sight.PATIENCE_S", 0.3 if status is None else 20.0)
    before, path = psutil.Process().children(recursive=True), program(tmp_path / "engine", script)
    found = await account(path)
    assert (found.gpus, found.said.status) == (None, status)
    assert not await sight.blind(path)
    assert psutil.Process().children(recursive=True) == before


async def test_one_that_cannot_be_started_at_all_does_not_tell(sight: Sight) -> None:
    assert not await sight.blind("/nowhere/engine")


async def test_it_is_asked_once_and_again_when_its_file_has_changed(
    tmp_path: Path, sight: Sight, caplog: pytest.LogCaptureFixture
) -> None:
    path = engine(tmp_path / "engine")
    assert all(await asyncio.gather(sight.blind(path), sight.blind(path)))
    assert await sight.blind(path)
    assert times_asked(tmp_path) == 1
    (line,) = [record for record in caplog.records if record.name == "modelops.engines.sight"]
    assert line.levelno == logging.WARNING
    assert "there is a GPU, and the engine was built for the CPU" in line.getMessage()
    assert "engine.executable" in line.getMessage()
    engine(tmp_path / "engine", CUDA)
    os.utime(path, ns=(1, 1))
    assert not await sight.blind(path)
    assert times_asked(tmp_path) == 2


async def test_one_that_was_stopped_is_asked_again(tmp_path: Path, sight: Sight) -> None:
    said = "if [ $(wc -l < asked) = 1 ]; then kill -KILL $$; fi; echo 'Available devices:'"
    path = program(tmp_path / "engine", f"cd {tmp_path}; echo asked >> asked; {said}")
    assert not await sight.blind(path), "it has not told"
    assert await sight.blind(path)
    assert times_asked(tmp_path) == 2


async def test_what_it_says_is_kept_also_where_nobody_waits_for_it_any_more(tmp_path: Path, sight: Sight) -> None:
    goes_on = tmp_path / "goes-on"
    path = program(
        tmp_path / "engine",
        f"echo asked >> {tmp_path}/asked; while [ ! -e {goes_on} ]; do sleep 0.01; done; echo 'Available devices:'",
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await sight.blind(path)
    goes_on.touch()
    assert await sight.blind(path)
    assert times_asked(tmp_path) == 1
