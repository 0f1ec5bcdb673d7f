"""The packaged server: it takes the driver's flags, and fails in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from modelops.api.errors import EngineFailed
from modelops.engines import llama_server
from modelops.engines.base import CacheType, EngineSpec, FlashAttention, Speculation, Task
from modelops.engines.llama_cpp import Engine
from support import tiny_gguf

SPEC = EngineSpec(
    model_name="m",
    file=Path("/srv/models/m.gguf"),
    executable="",
    slots=3,
    context_length=512,
    threads=2,
    batch_size=1024,
    cache_ram_mb=7,
    gpu_layers=5,
    load_timeout_s=20.0,
    stop_timeout_s=2.0,
)


async def test_every_flag_of_the_driver_reaches_the_engine(tmp_path: Path) -> None:
    argv = Engine(SPEC, tmp_path / "e.sock").argv()
    params = llama_server.parameters(llama_server.parser().parse_args(argv[3:]), "a key")
    assert params.model.path == "/srv/models/m.gguf"
    assert params.model_alias == {"m"}
    assert params.hostnames == [str(tmp_path / "e.sock")]
    assert params.api_keys == ["a key"]
    assert (params.n_ctx, params.n_parallel) == (3 * 512, 3)
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (2, 2)
    assert (params.n_batch, params.n_ubatch) == (1024, 512)
    assert (params.cache_ram_mib, params.n_gpu_layers) == (7, 5)
    assert (params.embedding, params.kv_unified, params.pooling_type.name) == (
        False,
        False,
        "LLAMA_POOLING_TYPE_UNSPECIFIED",
    )
    assert params.cache_type_k.name == params.cache_type_v.name == "GGML_TYPE_F16"
    assert params.use_jinja
    assert params.endpoint_slots
    assert not params.ui


def as_params(spec: EngineSpec, folder: Path) -> Any:
    """The engine's own parameters for `spec`."""
    argv = Engine(spec, folder / "e.sock").argv()
    return llama_server.parameters(llama_server.parser().parse_args(argv[3:]), "a key")


@pytest.mark.parametrize(
    ("task", "pooling", "expected"),
    [
        ("embed", "", "LLAMA_POOLING_TYPE_UNSPECIFIED"),
        ("embed", "mean", "LLAMA_POOLING_TYPE_MEAN"),
        ("rerank", "", "LLAMA_POOLING_TYPE_RANK"),
    ],
)
async def test_a_text_to_embed_or_to_score_is_computed_in_one_step(
    tmp_path: Path, task: Task, pooling: Literal["", "mean"], expected: str
) -> None:
    params = as_params(replace(SPEC, task=task, pooling=pooling), tmp_path)
    assert (params.embedding, params.pooling_type.name) == (True, expected)
    assert params.kv_unified  # or texts that come together are computed in parts
    assert (params.n_batch, params.n_ubatch) == (1024, 1024)


@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
async def test_the_cache_is_stored_as_wished(tmp_path: Path, cache_type: CacheType) -> None:
    params = as_params(replace(SPEC, cache_type=cache_type), tmp_path)
    assert params.cache_type_k.name == params.cache_type_v.name == f"GGML_TYPE_{cache_type.upper()}"


@pytest.mark.parametrize(("wished", "kind"), [("", "AUTO"), ("on", "ENABLED"), ("off", "DISABLED")])
async def test_attention_is_computed_as_wished(tmp_path: Path, wished: FlashAttention, kind: str) -> None:
    params = as_params(replace(SPEC, flash_attention=wished), tmp_path)
    assert params.flash_attn_type.name == f"LLAMA_FLASH_ATTN_TYPE_{kind}"


@pytest.mark.parametrize(
    ("wished", "draft", "kind", "file"),
    [
        ("", None, "NONE", ""),
        ("ngram", None, "NGRAM_SIMPLE", ""),
        ("draft", Path("/srv/models/d.gguf"), "DRAFT_SIMPLE", "/srv/models/d.gguf"),
    ],
)
async def test_tokens_are_guessed_as_wished(
    tmp_path: Path, wished: Speculation, draft: Path | None, kind: str, file: str
) -> None:
    speculative = as_params(replace(SPEC, speculation=wished, draft=draft), tmp_path).speculative
    assert [found.name for found in speculative.types] == [f"COMMON_SPECULATIVE_TYPE_{kind}"]
    assert speculative.draft.mparams.path == file
    if draft:  # its memory is reserved in RAM, and its threads are ours
        assert (speculative.draft.n_gpu_layers, speculative.draft.cpuparams.n_threads) == (0, 2)


async def test_a_draft_model_that_is_not_named_is_no_silence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a draft model is to guess"):
        Engine(replace(SPEC, speculation="draft"), tmp_path / "e.sock").argv()


@pytest.mark.parametrize("kind", ["ngram-mod", "draft-mtp", "nonsense"])
def test_what_the_package_cannot_do_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "m", "--host", "h", "--ctx-size", "1", "--parallel", "1", "--threads", "1"]
    flags += ["--threads-batch", "1", "--batch-size", "1", "--ubatch-size", "1", "--cache-ram", "0"]
    with pytest.raises(SystemExit):
        llama_server.parser().parse_args([*flags, "--spec-type", kind])
    assert "invalid choice" in capsys.readouterr().err


async def test_each_gpu_gets_its_share(tmp_path: Path) -> None:
    params = as_params(replace(SPEC, gpu_layers=5, tensor_split=(2, 3)), tmp_path)
    assert params.n_gpu_layers == 5
    assert list(params.tensor_split)[:3] == [2.0, 3.0, 0.0]
    assert not params.fit_params  # we have decided


async def test_layers_are_the_engines_own_choice_unless_given(tmp_path: Path) -> None:
    argv = Engine(replace(SPEC, gpu_layers=-1), tmp_path / "e.sock").argv()
    assert "--n-gpu-layers" not in argv
    assert llama_server.parameters(llama_server.parser().parse_args(argv[3:]), "").n_gpu_layers == -1


@pytest.mark.parametrize("kind", ["tiny", "text", "missing"])
async def test_a_file_that_cannot_be_served_is_told_without_its_folder(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "secret folder" / "m.gguf"
    file.parent.mkdir()
    if kind == "tiny":
        tiny_gguf(file)
    elif kind == "text":
        file.write_text("this is no model\n")
    engine = Engine(replace(SPEC, file=file), tmp_path / "e.sock")
    with pytest.raises(EngineFailed, match=r"the engine ended with status 1: \w+") as caught:
        await engine.start()
    assert "secret" not in caught.value.message
    assert str(tmp_path) not in caught.value.message
