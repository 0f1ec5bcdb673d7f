from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.api.errors import EngineFailed, NotAvailable, NotFound
from modelops.engines.llama_cpp import automatic_batch
from modelops.serving.catalog import Version
from modelops.serving.devices import usable_cores
from modelops.serving.tuning import Tuned, Wish, tune
from modelops.settings import EngineSettings
from support import FAKE_ENGINE, tiny_gguf

GB = 2**30


def version(file: Path) -> Version:
    return Version("m", 1, "llm", file, file.name, "")


def tuned(file: Path, wish: Wish = Wish(), **settings: object) -> Tuned:  # noqa: B008 - frozen
    return tune(version(file), wish, EngineSettings.model_validate(settings))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(("wanted", "given"), [(256, 256), (2048, 2048), (4096, 2048)])
def test_the_context_is_at_most_the_models_own(tiny: Path, wanted: int, given: int) -> None:
    found = tuned(tiny, context_length=wanted)
    assert found.spec.context_length == given
    assert found.need == tuned(tiny, context_length=given).need


def test_a_model_that_names_no_context_gets_the_configured_one(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "m.gguf", llama__context_length=0)
    assert tuned(file, context_length=8192).spec.context_length == 8192


@pytest.mark.parametrize(("asked", "engine"), [(0, -1), (-1, 0), (1, 1), (99, 99)])
def test_gpu_layers_in_the_engines_own_words(tiny: Path, asked: int, engine: int) -> None:
    assert tuned(tiny, Wish(gpu_layers=asked)).spec.gpu_layers == engine


def test_quantised_weights_are_served_as_they_are(tiny: Path) -> None:
    assert tuned(tiny, Wish(quantization=True)) == tuned(tiny)


def test_full_weights_are_not_quantised_in_this_release(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "full.gguf", tensor_type=1)
    with pytest.raises(NotAvailable, match="not quantised"):
        tuned(file, Wish(quantization=True))
    assert tuned(file).spec.file == file


def test_a_file_that_is_gone_is_not_found_and_its_folder_stays_unknown(tiny: Path) -> None:
    tiny.unlink()
    with pytest.raises(NotFound, match=r"the file of 'm' is gone: 'tiny\.gguf'") as refused:
        tuned(tiny)
    assert str(tiny.parent) not in refused.value.message


def test_the_time_to_load_grows_with_the_file(tiny: Path) -> None:
    with tiny.open("r+b") as file:
        file.truncate(3 * GB)  # sparse
    assert tuned(tiny, load_timeout_s=10, load_timeout_s_per_gb=20).spec.load_timeout_s == pytest.approx(10 + 3 * 20)


def test_settings_are_obeyed(tiny: Path) -> None:
    spec = tuned(
        tiny, executable=str(FAKE_ENGINE), slots=3, threads=5, batch_size=77, cache_ram_mb=9, stop_timeout_s=1.5
    ).spec
    assert (spec.executable, spec.slots, spec.threads) == (str(FAKE_ENGINE), 3, 5)
    assert (spec.batch_size, spec.cache_ram_mb, spec.stop_timeout_s) == (77, 9, 1.5)


def test_zero_means_what_suits_this_machine(tiny: Path) -> None:
    spec = tuned(tiny).spec
    assert spec.threads == usable_cores()
    assert spec.batch_size == automatic_batch(tiny.stat().st_size, usable_cores(), on_gpu=False)
    assert tuned(tiny, Wish(gpu_layers=9), threads=1).spec.batch_size == 2048


def test_an_engine_that_is_no_program_is_refused_without_its_folder(tiny: Path) -> None:
    with pytest.raises(EngineFailed, match="'llama-server'") as refused:
        tuned(tiny, executable=str(tiny.parent / "llama-server"))
    assert str(tiny.parent) not in refused.value.message


sizes = st.integers(0, 2**44)
threads = st.integers(1, 512)


@given(size=sizes, cores=threads, gpu=st.booleans())
def test_an_automatic_batch_is_a_power_of_two_within_bounds(size: int, cores: int, gpu: bool) -> None:
    batch = automatic_batch(size, cores, gpu)
    assert batch.bit_count() == 1
    assert 32 <= batch <= 2048


@given(size=sizes, cores=threads, larger=sizes, more=threads)
def test_an_automatic_batch_grows_with_the_cores_and_shrinks_with_the_file(
    size: int, cores: int, larger: int, more: int
) -> None:
    batch = automatic_batch(size, cores, on_gpu=False)
    assert automatic_batch(size + larger, cores, on_gpu=False) <= batch
    assert automatic_batch(size, cores + more, on_gpu=False) >= batch
