from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.api.errors import EngineFailed, InvalidRequest, NotFound
from modelops.api.types import ModelType
from modelops.engines.llama_cpp import automatic_batch
from modelops.serving.catalog import Version
from modelops.serving.placement import HOST, Layout
from modelops.serving.tuning import Tuned, laid_out, need_of, tune
from modelops.serving.wishes import Tuning, Wish
from modelops.settings import EngineSettings
from support import FAKE_ENGINE, tiny_gguf

GB = 2**30
CORES = 2


def version(file: Path, model_type: ModelType = "llm") -> Version:
    return Version("m", 1, model_type, file, file.name, "")


def tuned(
    file: Path,
    wish: Wish = Wish(),  # noqa: B008 - frozen
    *,
    model_type: ModelType = "llm",
    gpus: bool = False,
    **settings: object,
) -> Tuned:
    return tune(version(file, model_type), wish, EngineSettings.model_validate(settings), CORES, gpus=gpus)


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


def test_a_wish_wins_over_the_settings(tiny: Path) -> None:
    wish = Wish(context_length=512, slots=7, cache_type="q8_0")
    spec = tuned(tiny, wish, context_length=1024, slots=2, cache_type="q4_0").spec
    assert (spec.context_length, spec.slots, spec.cache_type) == (512, 7, "q8_0")
    spec = tuned(tiny, Wish(), context_length=1024, slots=2, cache_type="q4_0").spec
    assert (spec.context_length, spec.slots, spec.cache_type) == (1024, 2, "q4_0")


def test_without_gpus_the_engine_decides_about_layers(tiny: Path) -> None:
    for wish in (Wish(), Wish(gpu_layers=-1), Wish(gpu_layers=9)):
        spec = tuned(tiny, wish).spec
        assert (spec.gpu_layers, spec.tensor_split) == (-1, ())
        assert laid_out(spec, Layout({HOST: 1})) == spec


@pytest.mark.parametrize(
    ("split", "layers", "told"), [((0,), 0, ()), ((3,), 3, (3,)), ((2, 1), 3, (2, 1)), ((0, 0), 0, ())]
)
def test_with_gpus_the_engine_is_told_where_each_layer_goes(
    tiny: Path, split: tuple[int, ...], layers: int, told: tuple[int, ...]
) -> None:
    spec = laid_out(tuned(tiny, gpus=True).spec, Layout({HOST: 1}, split))
    assert (spec.gpu_layers, spec.tensor_split) == (layers, told)


@pytest.mark.parametrize(
    ("split", "sees", "told"),
    [
        ((3, 0), ("GPU-a",), (3,)),
        ((0, 2), ("GPU-b",), (2,)),
        ((2, 1), ("GPU-a", "GPU-b"), (2, 1)),
        ((0, 0), (), ()),
    ],
)
def test_an_engine_sees_no_other_gpus_than_its_own(
    tiny: Path, split: tuple[int, ...], sees: tuple[str, ...], told: tuple[int, ...]
) -> None:
    spec = laid_out(tuned(tiny, gpus=True).spec, Layout({HOST: 1}, split), ["GPU-a", "GPU-b"])
    assert (spec.gpus, spec.tensor_split, spec.gpu_layers) == (sees, told, sum(split))
    assert laid_out(spec, Layout({HOST: 1}, (1, 1)), ["GPU-a", ""]).tensor_split == (1, 1), "one is not known"


def test_what_serves_answers_embeds_or_scores_by_its_models_type(tiny: Path) -> None:
    specs = {kind: tuned(tiny, model_type=kind, context_length=1024).spec for kind in ("llm", "embedding", "reranker")}
    assert {kind: spec.task for kind, spec in specs.items()} == {
        "llm": "generate",
        "embedding": "embed",
        "reranker": "rerank",
    }
    # A text to embed or to score is computed in one step, which therefore takes as long a one as there may be.
    assert [specs[kind].step_size for kind in ("embedding", "reranker")] == [1024, 1024]
    assert specs["llm"].step_size <= 512


@pytest.mark.parametrize(("pooling", "asked"), [(None, "mean"), (0, "mean"), (1, ""), (2, "")])
def test_a_model_that_pools_nothing_gives_the_mean_of_its_tokens(
    tmp_path: Path, pooling: int | None, asked: str
) -> None:
    named = {} if pooling is None else {"llama__pooling_type": pooling}
    file = tiny_gguf(tmp_path / "m.gguf", **named)
    assert tuned(file, model_type="embedding").spec.pooling == asked
    assert tuned(file).spec.pooling == ""


# --- smaller ways, for a bill ---
def test_smaller_ways_are_groups_of_one_setting_each_the_largest_first(tiny: Path) -> None:
    found = tuned(tiny, context_length=2048, slots=4)
    names = [list(dict.fromkeys(name for name, _ in group)) for group in found.alternatives]
    assert names == [
        ["context_length 1024", "context_length 512"],
        ["slots 2", "slots 1"],
        ["cache_type q8_0"],
        [f"context_length {context}, slots 1 and cache_type q8_0" for context in (1024, 512)],
    ]
    for group in found.alternatives:
        sizes = [need.total for _, need in group]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] < found.need.total


def test_a_smaller_way_followed_needs_what_it_said(tiny: Path) -> None:
    contexts, slots, caches, _ = tuned(tiny, context_length=2048, slots=4).alternatives
    assert tuned(tiny, Wish(context_length=1024), context_length=2048, slots=4).need == contexts[0][1]
    assert tuned(tiny, Wish(slots=1), context_length=2048, slots=4).need == slots[1][1]
    assert tuned(tiny, Wish(cache_type="q8_0"), context_length=2048, slots=4).need == caches[0][1]


def test_what_is_as_small_as_can_be_has_no_smaller_way(tiny: Path) -> None:
    smallest = Wish(context_length=256, slots=1, cache_type="q4_0")
    assert [way for group in tuned(tiny, smallest).alternatives for way in group] == []


def test_the_need_is_that_of_the_spec(tiny: Path) -> None:
    found = tuned(tiny, cache_ram_mb=10)
    assert found.need == need_of(found.header, found.spec)
    assert found.need.total - tuned(tiny).need.total == 10 * 2**20


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
    assert spec.threads == CORES
    assert spec.batch_size == automatic_batch(tiny.stat().st_size, CORES, on_gpu=False)
    with tiny.open("r+b") as file:
        file.truncate(GB)
    assert tuned(tiny).spec.batch_size == 32
    assert tuned(tiny, gpus=True).spec.batch_size == 2048
    assert tuned(tiny, Wish(gpu_layers=-1), gpus=True).spec.batch_size == 32


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


# --- what a goal turns ---
def test_what_was_tuned_wins_over_the_settings(tiny: Path) -> None:
    tuning = Tuning(batch_size=64, threads=1, flash_attention="off", speculation="ngram")
    spec = tuned(tiny, Wish(tuning=tuning), threads=5, batch_size=77).spec
    assert (spec.batch_size, spec.step_size, spec.threads) == (64, 64, 1)
    assert (spec.flash_attention, spec.speculation, spec.draft) == ("off", "ngram", None)
    spec = tuned(tiny, threads=5, batch_size=77).spec
    assert (spec.batch_size, spec.threads, spec.flash_attention, spec.speculation) == (77, 5, "", "")


def test_fewer_threads_take_shorter_steps_where_nothing_else_is_said(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "m.gguf")
    with file.open("r+b") as stream:
        stream.truncate(GB // 10)
    assert tuned(file, Wish(tuning=Tuning(threads=1))).spec.batch_size < tuned(file).spec.batch_size


def test_what_is_computed_in_one_step_has_no_other_batch(tiny: Path) -> None:
    wish = Wish(tuning=Tuning(batch_size=64))
    assert tuned(tiny, wish, model_type="embedding", context_length=1024).spec.batch_size == 1024


def test_scores_that_are_kept_take_memory(tiny: Path) -> None:
    without = tuned(tiny, Wish(tuning=Tuning(flash_attention="off"))).need
    assert without.parts["compute"] > tuned(tiny).need.parts["compute"]
    assert tuned(tiny, Wish(tuning=Tuning(flash_attention="on"))).need == tuned(tiny).need


def test_a_draft_model_is_loaded_beside_and_its_memory_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    draft = tiny_gguf(tmp_path / "draft.gguf", general__name="draft")
    with draft.open("r+b") as stream:
        stream.truncate(64 * 2**20)
    wish = Wish(tuning=Tuning(speculation="draft", draft="d"))
    found = tune(version(tiny), wish, EngineSettings(), CORES, draft=draft)
    assert (found.spec.speculation, found.spec.draft) == ("draft", draft)
    assert found.need.total - found.bare.total == found.need.parts["draft model"] + found.need.parts["guesses"] > 0
    assert found.bare == tuned(tiny).need, "what is known of the model alone is of use"
    less = tune(version(tiny), replace(wish, context_length=512), EngineSettings(), CORES, draft=draft)
    assert less.need.parts["draft model"] < found.need.parts["draft model"], "it has a cache of its own"
    assert less.need in [need for group in found.alternatives for _, need in group]


def test_guesses_are_checked_at_once_for_every_slot(tiny: Path) -> None:
    def guesses(slots: int) -> int:
        return tuned(tiny, Wish(slots=slots, tuning=Tuning(speculation="ngram"))).need.parts["guesses"]

    assert guesses(4) == 4 * guesses(1) == 4 * 48 * 128 * 4


@pytest.mark.parametrize(
    ("wish", "kind", "reason"),
    [
        (Wish(tuning=Tuning(speculation="draft", draft="d")), "llm", "needs one: name a registered model in 'draft'"),
        (Wish(tuning=Tuning(speculation="ngram")), "embedding", "speculation is for models that generate"),
        (Wish(cache_type="q8_0", tuning=Tuning(flash_attention="off")), "llm", "stored as q8_0 needs flash attention"),
    ],
)
def test_what_cannot_be_run_so_is_refused(tiny: Path, wish: Wish, kind: ModelType, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        tuned(tiny, wish, model_type=kind)


def test_a_draft_model_of_other_tokens_is_refused(tiny: Path, tmp_path: Path) -> None:
    wish = Wish(tuning=Tuning(speculation="draft", draft="d"))
    close = tiny_gguf(tmp_path / "close.gguf", llama__vocab_size=256)
    assert tune(version(tiny), wish, EngineSettings(), CORES, draft=close).spec.draft == close
    other = tiny_gguf(tmp_path / "other.gguf", llama__vocab_size=257)
    with pytest.raises(InvalidRequest, match="257 tokens and the model 128"):
        tune(version(tiny), wish, EngineSettings(), CORES, draft=other)


def test_a_bill_offers_no_cache_that_the_attention_cannot_read(tiny: Path) -> None:
    wish = Wish(slots=4, tuning=Tuning(flash_attention="off"))
    names = [name for group in tuned(tiny, wish).alternatives for name, _ in group]
    assert names
    assert not [name for name in names if "q8_0" in name]
