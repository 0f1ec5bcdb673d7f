"""Engines of a job's own: run as models are served here, or in any other way that is to be measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelops.api.errors import InvalidRequest
from modelops.learning.engines import OwnEngines
from modelops.serving.devices import ThisMachine
from modelops.serving.wishes import Tuning, Wish
from modelops.settings import Settings
from support import FAKE_ENGINE, tiny_gguf


@pytest.fixture
def engines(tmp_path: Path) -> OwnEngines:
    engine = {"executable": str(FAKE_ENGINE), "slots": 3, "threads": 1, "cache_type": "q8_0"}
    return OwnEngines(Settings.model_validate({"data_dir": tmp_path, "engine": engine}), ThisMachine(), tmp_path)


async def test_it_is_run_as_models_are_served_here(engines: OwnEngines, tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "m.gguf")
    spec = (await engines.plan("m", file)).spec
    assert (spec.file, spec.slots, spec.threads, spec.cache_type, spec.gpus) == (file, 3, 1, "q8_0", ())
    exact = (await engines.plan("m", file, context_length=512, exact=True)).spec
    assert (exact.cache_type, exact.context_length) == ("f16", 512)


async def test_it_is_run_in_any_way_that_is_wished(engines: OwnEngines, tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "m.gguf")
    tuning = Tuning(batch_size=128, threads=2, flash_attention="off", speculation="ngram")
    wish = Wish(slots=2, context_length=1024, cache_type="f16", tuning=tuning, gpu_layers=9)
    spec = (await engines.plan("m", file, wish=wish)).spec
    assert (spec.slots, spec.context_length, spec.cache_type, spec.gpu_layers) == (2, 1024, "f16", 0)
    assert (spec.batch_size, spec.threads, spec.flash_attention, spec.speculation) == (128, 2, "off", "ngram")


async def test_a_draft_model_beside_it_takes_memory_too(engines: OwnEngines, tmp_path: Path) -> None:
    file, draft = tiny_gguf(tmp_path / "m.gguf"), tiny_gguf(tmp_path / "d.gguf", general__name="draft")
    wish = Wish(tuning=Tuning(speculation="draft", draft="d"))
    planned = await engines.plan("m", file, wish=wish, draft=draft)
    assert planned.spec.draft == draft
    assert planned.size > (await engines.plan("m", file)).size
    with pytest.raises(InvalidRequest, match="draft"):
        await engines.plan("m", file, wish=wish)
