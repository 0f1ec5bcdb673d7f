from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufs import make
from modelops.engines.base import EngineSpec
from modelops.engines.llama_cpp import Engine
from modelops.engines.probe import Projection, Share
from modelops.serving.estimates import (
    Estimates,
    Past,
    Taken,
    beside_units,
    choose,
    measured_bytes,
    projected_bytes,
    settings_key,
    unused_bytes,
)
from modelops.serving.gguf import Header, read_header
from modelops.serving.memory import DRIVER_LIBRARY_BYTES, LIBRARY_BYTES, MB, Need, need
from modelops.store.database import open_database
from modelops.store.estimates import EstimateQueries, EstimateRow
from support import FAKE_ENGINE

SPEC = EngineSpec(
    model_name="m",
    file=Path("/srv/models/m.gguf"),
    executable="",
    slots=2,
    context_length=512,
    threads=1,
    batch_size=128,
    cache_ram_mb=0,
    gpu_layers=0,
    load_timeout_s=20.0,
    stop_timeout_s=2.0,
)


def header_of(folder: Path, words: int) -> Header:
    """A file's header, each another's."""
    return read_header(make(folder / f"{words}.gguf", words=words))


def computed(total: int = 1000 * MB) -> Need:
    parts = {"weights": total - 100 * MB, "process": 70 * MB, "prompt cache": 30 * MB}
    return Need(layers=(), output=0, tied=0, host=total, compute=0, parts=parts)


def test_a_load_with_the_same_settings_says_best() -> None:
    found = choose(computed(), 1010 * MB, Past(1, 2, 1020 * MB), Past(1, 2, 3))
    assert found.total == found.need.total == 1020 * MB
    assert found.measured == 1020 * MB
    assert found.lines()[-1] == "estimate    1,020 MB, measured when it was last loaded like this"


def test_a_load_with_other_settings_says_how_far_off_the_projection_is() -> None:
    found = choose(computed(), 1010 * MB, None, Past(computed=500 * MB, projected=520 * MB, measured=535 * MB))
    assert (found.total, found.correction) == (1025 * MB, 15 * MB)
    assert found.lines() == [
        "projected   1,010 MB by the engine",
        "computed    1,000 MB: weights 900 MB, process 70 MB, prompt cache 30 MB",
        "correction  +15 MB",
        "estimate    1,025 MB, projected by the engine, corrected by an earlier load",
    ]


def test_without_a_projection_the_formula_is_corrected() -> None:
    other = Past(computed=500 * MB, projected=520 * MB, measured=490 * MB)
    assert choose(computed(), None, None, other).total == 990 * MB
    assert choose(computed(), 1100 * MB, None, replace(other, projected=None)).total == 1090 * MB


def test_on_first_sight_the_engine_says_and_else_the_formula() -> None:
    assert choose(computed(), 1010 * MB, None, None).total == 1010 * MB
    alone = choose(computed(), None, None, None)
    assert alone.total == 1000 * MB
    assert [line.split()[0] for line in alone.lines()] == ["computed", "estimate"]


@given(
    total=st.integers(200 * MB, 2**45),
    projected=st.none() | st.integers(1, 2**45),
    measured=st.integers(1, 2**45),
    same=st.booleans(),
)
def test_the_parts_always_add_up_to_the_figure(total: int, projected: int | None, measured: int, same: bool) -> None:
    past = Past(total, projected, measured)
    found = choose(computed(total), projected, past if same else None, None if same else past)
    assert found.total == sum(found.need.parts.values()) == measured  # the other load was just this one


@pytest.mark.parametrize(
    ("projected", "logged"), [(1100 * MB, False), (1180 * MB, True), (860 * MB, True), (None, False)]
)
def test_a_formula_that_is_far_off_is_logged(
    caplog: pytest.LogCaptureFixture, projected: int | None, logged: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        choose(computed(), projected, None, None)
    assert bool(caplog.records) is logged


def test_what_the_engine_does_not_project_comes_on_top() -> None:
    projection = Projection({"Host": Share(900 * MB, 50 * MB, 5 * MB)})
    assert projected_bytes(projection, computed()) == (955 + 100) * MB


def on_gpu() -> Need:
    """Two layers and an output of 100 MB each."""
    parts = {"weights": 320, "compute": 40, "process": 70, "driver": 350, "prompt cache": 30}
    layers, output = (100 * MB, 100 * MB), 100 * MB
    host = (sum(parts.values()) - 340) * MB
    sizes = {name: size * MB for name, size in parts.items()}
    return Need(layers, output, tied=0, host=host, compute=40 * MB, parts=sizes, driver=600 * MB)


GPU = Projection({"Host": Share(20 * MB, 0, 15 * MB), "CUDA0": Share(200 * MB, 100 * MB, 38 * MB)})


def test_what_gpus_take_is_counted_as_the_formula_counts_it() -> None:
    assert projected_bytes(GPU, on_gpu()) == (35 + 300 + 450 + 25) * MB, "computing may all be in RAM"
    assert beside_units(GPU, on_gpu()) == 38 * MB
    assert beside_units(None, on_gpu()) == beside_units(Projection({"Host": Share(1, 2, 3)}), on_gpu()) == 40 * MB


@pytest.mark.parametrize(("gpu_layers", "mapped", "moved"), [(3, 20, 300), (2, 20 + 80, 200), (1, 20 + 80 + 90, 100)])
def test_of_what_gpus_hold_ram_takes_nothing(gpu_layers: int, mapped: int, moved: int) -> None:
    weights = [80 * MB, 90 * MB]
    beside = LIBRARY_BYTES + DRIVER_LIBRARY_BYTES + (30 + 25) * MB
    assert measured_bytes(210 * MB, GPU, on_gpu(), weights, gpu_layers) == (210 + mapped + moved) * MB + beside


async def test_what_a_gpu_holds_for_the_driver_is_learnt_from_any_load(
    queries: EstimateQueries, tmp_path: Path
) -> None:
    estimates = Estimates(queries, ask=False)
    header, other = header_of(tmp_path, 300), header_of(tmp_path, 301)
    told = json.dumps({"copied": 0, "devices": {"Host": [20 * MB, 0, 15 * MB], "CUDA0": [200 * MB, 100 * MB, 38 * MB]}})
    for of in (header, other):
        await queries.put(EstimateRow(of.digest, settings_key(SPEC), "gpu", on_gpu().total, 810 * MB, told, 0, 0.0))
    first = await estimates.estimate(SPEC, header, on_gpu(), "gpu")
    assert first.need.per_gpu == (38 + 600) * MB
    taken = Taken(at_load=200 * MB, answered=210 * MB, gpu_layers=3, per_gpu=700 * MB)
    await estimates.loaded(SPEC, header, on_gpu(), taken, "gpu")
    for known in (header, other):
        assert (await estimates.estimate(SPEC, known, on_gpu(), "gpu")).need.per_gpu == 700 * MB
    await estimates.loaded(SPEC, other, on_gpu(), replace(taken, per_gpu=680 * MB), "gpu")
    assert (await estimates.estimate(SPEC, header, on_gpu(), "gpu")).need.per_gpu == 700 * MB
    third, experts = header_of(tmp_path, 302), replace(header_of(tmp_path, 303), experts=(8, 2))
    assert (await estimates.estimate(SPEC, third, on_gpu(), "gpu")).need.per_gpu == (40 + 680 - 38) * MB, (
        "the least of any"
    )
    assert (await estimates.estimate(SPEC, experts, on_gpu(), "gpu")).need.per_gpu > 680 * MB, "its kind takes more"
    taken = Taken(at_load=200 * MB, answered=210 * MB, gpu_layers=3)  # now the driver does not tell
    await estimates.loaded(SPEC, header, on_gpu(), taken, "gpu")
    assert (await estimates.estimate(SPEC, header, on_gpu(), "gpu")).need.per_gpu == 700 * MB
    assert (await estimates.estimate(SPEC, header, computed(), "cpu")).need.driver == 0


@pytest.mark.parametrize("kind", ["experts", "recurrent"])
async def test_a_model_of_a_kind_that_should_take_more_says_nothing_of_others(
    queries: EstimateQueries, tmp_path: Path, kind: str
) -> None:
    estimates = Estimates(queries, ask=False)
    plain, special = header_of(tmp_path, 300), header_of(tmp_path, 301)
    special = replace(special, experts=(8, 2)) if kind == "experts" else replace(special, state_length=64)
    told = json.dumps({"copied": 0, "devices": {"Host": [20 * MB, 0, 15 * MB], "CUDA0": [200 * MB, 100 * MB, 38 * MB]}})
    for of in (plain, special):
        await queries.put(EstimateRow(of.digest, settings_key(SPEC), "gpu", on_gpu().total, 810 * MB, told, 0, 0.0))
    taken = Taken(at_load=200 * MB, answered=210 * MB, gpu_layers=3, per_gpu=(604 + 38) * MB)
    await estimates.loaded(SPEC, special, on_gpu(), taken, "gpu")  # it takes as any model
    assert (await estimates.estimate(SPEC, special, on_gpu(), "gpu")).need.per_gpu == (604 + 38) * MB, "known"
    assert (await estimates.estimate(SPEC, plain, on_gpu(), "gpu")).need.per_gpu == (600 + 38) * MB, "as on first sight"
    await estimates.loaded(SPEC, plain, on_gpu(), replace(taken, per_gpu=(620 + 38) * MB), "gpu")
    third = header_of(tmp_path, 302)
    assert (await estimates.estimate(SPEC, third, on_gpu(), "gpu")).need.per_gpu == (40 + 620) * MB


def test_mapped_weights_count_and_copied_ones_count_once() -> None:
    projection = Projection({"Host": Share(900 * MB, 50 * MB, 5 * MB)}, copied=300 * MB)
    assert measured_bytes(400 * MB, projection, computed()) == (400 + 600 + 30) * MB + LIBRARY_BYTES
    assert measured_bytes(400 * MB, None, computed()) == (400 + 900 + 30) * MB + LIBRARY_BYTES


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_are_copied_are_read_from_the_copy_only(tmp_path: Path, tied: bool) -> None:
    file = make(
        tmp_path / "m.gguf", layers=4, width=512, heads=8, feed_forward=1024, words=2048, kind="q4_0", tied=tied
    )
    header = read_header(file)
    again = header.input_bytes if tied else 0  # it is the embeddings, too
    told = Projection({"Host": Share(9 * MB, 1, 1)}, copied=5 * MB)
    sizes = need(header, slots=1, context_length=512, batch_size=128, cache_ram_mb=50)
    assert unused_bytes(told, header, sizes, 0) == 5 * MB - again
    assert unused_bytes(replace(told, copied=0), header, sizes, 900 * MB) == 0, "the engine says that it copies none"

    with_driver = need(header, slots=1, context_length=512, batch_size=128, cache_ram_mb=50, on_gpu=True)
    for projection, of in ((None, sizes), (GPU, with_driver)):  # nothing tells how many: we see it
        own = sizes.total - sizes.parts["weights"] - sizes.later - LIBRARY_BYTES
        assert unused_bytes(projection, header, of, own + header.reordered_bytes + again) == header.reordered_bytes
        assert unused_bytes(projection, header, of, own) == 0
        assert unused_bytes(projection, header, of, own + 900 * MB) == header.reordered_bytes
        assert unused_bytes(projection, header, of, own + 900 * MB, gpu_layers=2) == 0
    assert header.reordered_bytes > 4 * MB


def test_weights_in_another_form_are_not_copied(tmp_path: Path) -> None:
    assert read_header(make(tmp_path / "m.gguf", kind="q8_0")).reordered_bytes == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, slots=3),
        replace(SPEC, context_length=513),
        replace(SPEC, batch_size=64),
        replace(SPEC, cache_type="q8_0"),
        replace(SPEC, gpu_layers=1),
        replace(SPEC, tensor_split=(1, 2)),
        replace(SPEC, executable="/usr/bin/llama-server"),
        replace(SPEC, task="embed"),
    ],
)
def test_what_changes_memory_changes_the_key(other: EngineSpec) -> None:
    assert settings_key(other) != settings_key(SPEC)


def test_what_does_not_change_memory_keeps_the_key() -> None:
    assert settings_key(replace(SPEC, model_name="n", file=Path("/n"), load_timeout_s=1)) == settings_key(SPEC)


@pytest.fixture
async def queries(tmp_path: Path) -> AsyncIterator[EstimateQueries]:
    database = await open_database(tmp_path / "state.db")
    yield EstimateQueries(database)
    await database.dispose()


def sized(spec: EngineSpec, header: Header) -> Need:
    return need(
        header,
        slots=spec.slots,
        context_length=spec.context_length,
        batch_size=spec.batch_size,
        cache_ram_mb=spec.cache_ram_mb,
    )


async def test_what_was_loaded_once_is_known_better(queries: EstimateQueries, tmp_path: Path) -> None:
    """A real engine: projected, loaded, measured; then the same again, and with other settings."""
    spec = replace(SPEC, file=make(tmp_path / "m.gguf", layers=8, width=1024, feed_forward=3072, heads=16, words=4096))
    header = read_header(spec.file)
    estimates = Estimates(queries)
    first = await estimates.estimate(spec, header, sized(spec, header))
    assert first.projected is not None
    assert first.projection is not None
    assert first.total == first.projected
    engine = Engine(spec, tmp_path / "e.sock")
    await engine.start()
    taken = Taken(engine.taken_bytes(), engine.taken_bytes())
    measured = await estimates.loaded(spec, header, sized(spec, header), taken)
    await engine.stop()
    assert first.total == pytest.approx(measured, abs=32 * MB)

    assert (await estimates.estimate(spec, header, sized(spec, header))).total == measured
    more = replace(spec, context_length=8192)
    other = await estimates.estimate(more, header, sized(more, header))
    assert other.measured is None
    assert other.correction == measured - first.projected


async def test_a_projection_is_asked_for_once(queries: EstimateQueries, tmp_path: Path) -> None:
    spec = replace(SPEC, file=make(tmp_path / "m.gguf"))
    header = read_header(spec.file)
    first = await Estimates(queries).estimate(spec, header, sized(spec, header))
    spec.file.unlink()  # now it could not be probed
    again = await Estimates(queries).estimate(spec, header, sized(spec, header))
    assert first.projected == again.projected is not None


async def test_where_no_engine_tells_the_formula_answers(queries: EstimateQueries, tmp_path: Path) -> None:
    spec = replace(SPEC, file=make(tmp_path / "m.gguf"), executable=str(FAKE_ENGINE))
    header = read_header(spec.file)
    found = await Estimates(queries).estimate(spec, header, sized(spec, header))
    assert (found.projected, found.total) == (None, sized(spec, header).total)
