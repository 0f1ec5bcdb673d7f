"""A llama-server made of the xllamacpp package: `python -m modelops.engines.llama_server FLAGS`.

Takes the few llama-server flags that the driver uses, so that one driver runs both. The API key comes in the variable
LLAMA_API_KEY, never in the arguments, which any user of the machine can read.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

_MOST_DEVICES = 128  # the length of llama.cpp's table of shares
_FLASH_ATTENTION = {"auto": "AUTO", "off": "DISABLED", "on": "ENABLED"}
#: How llama-server names what guesses tokens ahead, and how the package does.
_GUESSERS = {"ngram-simple": "NGRAM_SIMPLE", "draft-simple": "DRAFT_SIMPLE"}


def parser() -> argparse.ArgumentParser:
    """The flags, named as llama-server names them."""
    flags = argparse.ArgumentParser(prog="llama_server", allow_abbrev=False)
    flags.add_argument("--model", required=True)
    flags.add_argument("--alias", default="")
    flags.add_argument("--host", required=True)
    for name in (
        "ctx-size",
        "parallel",
        "threads",
        "threads-batch",
        "batch-size",
        "ubatch-size",
        "cache-ram",
    ):
        flags.add_argument(f"--{name}", type=int, required=True)
    flags.add_argument("--ctx-checkpoints", type=int, default=0)
    flags.add_argument("--n-gpu-layers", type=int, default=-1)
    flags.add_argument("--tensor-split", type=_shares, default=[])
    flags.add_argument("--fit", choices=("on", "off"))
    flags.add_argument("--verbosity", type=int)
    for name in ("cache-type-k", "cache-type-v"):
        flags.add_argument(f"--{name}", choices=("f16", "q8_0", "q4_0"), default="f16")
    flags.add_argument("--pooling", choices=("mean",))
    flags.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto")
    flags.add_argument("--spec-type", choices=tuple(_GUESSERS))
    flags.add_argument("--model-draft", default="")
    flags.add_argument("--n-gpu-layers-draft", type=int, default=-1)
    flags.add_argument("--lora-scaled", action="append", type=_scaled, default=[], metavar="FILE:SCALE")
    for name in ("jinja", "slots", "no-webui", "embeddings", "reranking", "kv-unified"):
        flags.add_argument(f"--{name}", action="store_true")
    return flags


def _shares(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _scaled(text: str) -> tuple[str, float]:
    file, _, scale = text.rpartition(":")
    return file, float(scale)


def parameters(flags: argparse.Namespace, api_key: str) -> Any:
    """The flags as xllamacpp's CommonParams."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = flags.model
    params.model_alias = {flags.alias} if flags.alias else set()
    params.hostnames = [flags.host]
    params.port = 1  # unused on a unix socket, but 0 would mean "no server"
    params.api_keys = [api_key]
    params.n_ctx = flags.ctx_size
    params.n_parallel = flags.parallel
    params.cpuparams.n_threads = flags.threads
    params.cpuparams_batch.n_threads = flags.threads_batch
    params.n_batch = flags.batch_size
    params.n_ubatch = flags.ubatch_size
    params.cache_ram_mib = flags.cache_ram
    params.n_ctx_checkpoints = flags.ctx_checkpoints
    params.cache_type_k = xllamacpp.ggml_type[f"GGML_TYPE_{flags.cache_type_k.upper()}"]
    params.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{flags.cache_type_v.upper()}"]
    flash = f"LLAMA_FLASH_ATTN_TYPE_{_FLASH_ATTENTION[flags.flash_attn]}"
    params.flash_attn_type = xllamacpp.llama_flash_attn_type[flash]
    if flags.spec_type:
        guesser = f"COMMON_SPECULATIVE_TYPE_{_GUESSERS[flags.spec_type]}"
        params.speculative.types = [xllamacpp.common_speculative_type[guesser]]
    if flags.model_draft:
        params.speculative.draft.mparams.path = flags.model_draft
        params.speculative.draft.n_gpu_layers = flags.n_gpu_layers_draft
        params.speculative.draft.cpuparams.n_threads = flags.threads
        params.speculative.draft.cpuparams_batch.n_threads = flags.threads_batch
    params.embedding = flags.embeddings or flags.reranking
    params.kv_unified = flags.kv_unified
    if flags.pooling:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if flags.reranking:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    params.n_gpu_layers = flags.n_gpu_layers
    if flags.tensor_split:
        params.tensor_split = [*flags.tensor_split, *[0.0] * (_MOST_DEVICES - len(flags.tensor_split))]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(*adapter) for adapter in flags.lora_scaled]
    params.use_jinja = flags.jinja
    params.endpoint_slots = flags.slots
    params.ui = not flags.no_webui
    # "Automatic" layers: as many as fit on the GPU, which the engine finds out by itself.
    params.fit_params = flags.n_gpu_layers < 0 if flags.fit is None else flags.fit == "on"
    if flags.verbosity is not None:
        params.verbosity = flags.verbosity
    return params


def main() -> None:
    """Serve until SIGTERM."""
    flags = parser().parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(flags, os.environ.pop("LLAMA_API_KEY", "")))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    # No orderly teardown: requests were drained before the signal, and the memory goes with the process.
    os._exit(0 if server else 1)


if __name__ == "__main__":
    main()
