"""The model that is trained: read by Transformers from the very file that is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelops.api.errors import InvalidRequest
from modelops.learning.trainer.report import Failed
from modelops.serving import gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: What a model that was read from a GGUF carries of it, and `Trainer` takes for a model of packed weights, which cannot
#: be trained. They are unpacked: no trace of them is left.
_MARKERS = ("hf_quantizer", "quantization_method")


def model(file: Path, device: str) -> PreTrainedModel:
    """The model in `file`, in single precision, on `device`.

    Raises Failed: `unsupported` where Transformers does not know such a model, `invalid_request` where the file is not
    whole.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    _check(file)
    found, loaded = _read(
        AutoModelForCausalLM,
        file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    if missing := [*loaded["missing_keys"], *loaded["mismatched_keys"]]:
        raise Failed("unsupported", f"the model cannot be trained: Transformers finds no '{missing[0]}' in its file")
    _unmark(found)
    return found.to(device)


def tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `file`, with its chat template. Raises Failed as `model` does."""
    from transformers import AutoTokenizer

    _check(file)
    return _read(AutoTokenizer, file)


def _check(file: Path) -> None:
    """What Transformers says of a file that is cut short nobody understands."""
    try:
        gguf.read_header(file)
    except InvalidRequest as error:
        raise Failed("invalid_request", error.message) from None


def _read(reader: Any, file: Path, **options: Any) -> Any:
    try:
        return reader.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True, **options)
    except (ValueError, KeyError, NotImplementedError) as error:
        architecture = gguf.read_header(file).architecture
        raise Failed(
            "unsupported",
            f"the model cannot be trained: Transformers reads no such file of the architecture '{architecture}' "
            f"({type(error).__name__}); choose another model, or one that is quantised otherwise",
        ) from error


def _unmark(found: PreTrainedModel) -> None:
    for name in _MARKERS:
        if name in vars(found):
            delattr(found, name)
    if getattr(found, "is_quantized", False):
        found.is_quantized = False
    if hasattr(found.config, "quantization_config"):
        del found.config.quantization_config
