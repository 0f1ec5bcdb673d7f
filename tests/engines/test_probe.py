"""An engine tells what it would take before it reads a weight, and one that cannot tell is no error."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ggufs import make
from modelops.engines.base import EngineSpec
from modelops.engines.probe import Projection, Share, parse, project
from modelops.serving.gguf import write_skeleton
from support import FAKE_ENGINE, tiny_gguf

MIB = 2**20
SPEC = EngineSpec(
    model_name="m",
    file=Path("/srv/models/m.gguf"),
    executable="",
    slots=2,
    context_length=4096,
    threads=1,
    batch_size=512,
    cache_ram_mb=0,
    gpu_layers=0,
    load_timeout_s=20.0,
    stop_timeout_s=2.0,
)
HEAD = "0.00.1 I common_memory_breakdown_print: | memory breakdown [MiB] | total   free    self   model   context   ..."


def row(text: str) -> str:
    return f"0.00.274.555 I common_memory_breakdown_print: | {text} |"


def test_the_table_is_read_device_by_device() -> None:
    found = parse(
        [
            HEAD,
            row("  - CUDA0 (RTX 4090)   | 24080 = 23000 + (  9001 =  8000 +     960 +      41) +        -99"),
            row("  - Host               |                   470 =    92 +     360 +      18                "),
            row("  - CPU_REPACK         |                    12 =    12 +       0 +       0                "),
        ]
    )
    assert found == Projection(
        {"CUDA0": Share(8000 * MIB, 960 * MIB, 41 * MIB), "Host": Share(104 * MIB, 360 * MIB, 18 * MIB)}, 12 * MIB
    )
    assert found.host.total == 482 * MIB


@pytest.mark.parametrize(
    "lines", [[], [HEAD], [row("  - CUDA0 (x) | 1 = 2 + (3 = 4 + 5 + 6) + 7")], [row("| - Host | x")]]
)
def test_what_is_no_whole_table_is_no_projection(lines: list[str]) -> None:
    assert parse(lines) is None


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


async def test_the_engine_projects_its_memory_and_is_gone(tmp_path: Path) -> None:
    before = children()
    file = make(tmp_path / "m.gguf", layers=8, width=1024, feed_forward=3072, heads=16, kv_heads=4, words=4096)
    found = await project(replace(SPEC, file=file))
    assert found is not None
    assert found.host.model == pytest.approx(file.stat().st_size, abs=2 * MIB)
    assert found.host.context == 64 * MIB
    assert found.host.compute == pytest.approx(32 * MIB, abs=MIB)
    assert children() == before


async def test_a_skeleton_is_projected_as_the_file_itself(smollm2: Path, tmp_path: Path) -> None:
    whole = await project(replace(SPEC, file=smollm2))
    assert whole is not None
    assert await project(replace(SPEC, file=write_skeleton(smollm2, tmp_path))) == whole


async def test_weights_in_another_order_are_copies(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"layers": 4, "width": 1024, "feed_forward": 3072, "heads": 16, "kv_heads": 16}
    found = await project(replace(SPEC, file=make(tmp_path / "m.gguf", kind="q4_0", **shape)))
    assert found is not None
    assert found.copied > 20 * MIB


def script(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("import sys; sys.exit('unknown argument: --fit')", id="an old engine"),
        pytest.param("import time; time.sleep(60)", id="a silent one"),
        pytest.param("import os; os.abort()", id="one that crashes"),
    ],
)
async def test_an_engine_that_cannot_tell_is_no_error(tmp_path: Path, body: str) -> None:
    before = children()
    engine = script(tmp_path / "engine", body)
    assert await project(replace(SPEC, executable=engine), timeout_s=0.5) is None
    assert children() == before


async def test_no_engine_and_the_wrong_one_tell_nothing(tmp_path: Path) -> None:
    assert await project(replace(SPEC, executable=str(tmp_path / "none")), timeout_s=2) is None
    assert await project(replace(SPEC, executable=str(FAKE_ENGINE))) is None  # it serves, and says nothing


async def test_a_file_that_the_engine_refuses_has_no_projection(tmp_path: Path) -> None:
    assert await project(replace(SPEC, file=tiny_gguf(tmp_path / "m.gguf"))) is None
