"""What a GGUF file says of the model in it: shapes, context, chat template, layers, and whether the file is whole.

Owns the meaning of a header; the container is `gguf_reader`'s, what each architecture makes of its numbers `layers`'.
No weight is read.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelops.api.errors import InvalidRequest
from modelops.serving.gguf_reader import BadGguf, Table, Tensor, entry, read_table, start
from modelops.serving.layers import Layer, layers

_MOST_LAYERS = 1024
_UNQUANTISED = {0, 1, 28, 30}
#: What the engine copies into an order that suits the processor (AVX2): Q4_0, Q4_K, IQ4_NL, MXFP4
#: (`ggml/src/ggml-cpu/repack.cpp`).
_REORDERED = {2, 12, 20, 39}
#: What stays in RAM, and what follows the last layer onto a GPU (`src/llama-arch.cpp`: input and output tensors).
_INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_OUTPUT = ("output", "token_embd_norm.")
_LAYER = re.compile(r"blk\.(\d{1,4})\.")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class Header:
    """What matters of a model's file, or of all parts of one. Sizes are bytes of weights unless they say otherwise.

    `blocks` are the repeating layers. `input_bytes` are the embeddings, which stay in RAM; `output_bytes` the output
    head, without one where it is the embeddings once more (`tied`), and the last norm; `other_bytes` belong to no
    layer. `copied_input` says that the engine keeps a tied head's weights twice, `reordered_bytes` are those of which
    it reads only a copy. `vocabulary` counts tokens, `merges` the rules that join them. `query_length` is the width of
    all heads, `state_length` that of a recurrent layer. `experts` is (all, used for each token). `pooling` is -1 where
    none is named. `adapter` marks a LoRA adapter, which is no model. `chat_template` is its source, "" for none.
    `file_bytes` counts all parts. `digest` is the SHA-256 of the header alone: what a model needs of memory depends on
    nothing else.
    """

    architecture: str
    name: str
    context_length: int
    embedding_length: int
    feed_forward: int
    query_length: int
    state_length: int
    vocabulary: int
    merges: int
    blocks: tuple[Layer, ...]
    input_bytes: int
    output_bytes: int
    other_bytes: int
    tied: bool
    copied_input: bool
    reordered_bytes: int
    experts: tuple[int, int]
    pooling: int
    adapter: bool
    quantised: bool
    chat_template: str
    file_bytes: int
    digest: str

    @property
    def layers(self) -> int:
        """How many layers repeat."""
        return len(self.blocks)

    @property
    def weight_bytes(self) -> int:
        """All tensors together."""
        return sum(layer.weights for layer in self.blocks) + self.input_bytes + self.output_bytes + self.other_bytes


def read_header(file: Path) -> Header:
    """The header of `file` and of the parts that follow it. Raises InvalidRequest, without naming a path, where it is
    no whole GGUF.
    """
    try:
        stats = [(part, part.stat()) for part in parts(file)]
        return _read_once(tuple((part, stat.st_size, stat.st_mtime_ns) for part, stat in stats))
    except BadGguf as error:
        raise InvalidRequest(f"'{file.name}' is no usable GGUF file: {error}") from None
    except OSError as error:
        name = Path(error.filename).name if error.filename else file.name
        raise InvalidRequest(f"'{name}' cannot be read: {error.strerror}") from None


def model_name(file: Path) -> str | None:
    """What the model in `file` is called after it; None for a later part of a set, which is no model by itself."""
    found = _PART.search(file.name)
    if not found:
        return file.name.removesuffix(".gguf")
    return file.name[: found.start()] if int(found[1]) == 1 else None


def parts(file: Path) -> list[Path]:
    """`file`, or all parts of the model that it begins, by its name. Raises InvalidRequest where it is a later part."""
    found = _PART.fullmatch(file.name)
    if not found:
        return [file]
    first = f"{found['stem']}-00001-of-{found['count']}.gguf"
    if int(found["number"]) != 1:
        raise InvalidRequest(f"'{file.name}' is a later part of a model; name its first part, '{first}'")
    count = max(1, min(int(found["count"]), 1000))
    return [file.with_name(f"{found['stem']}-{number:05d}-of-{found['count']}.gguf") for number in range(1, count + 1)]


def write_skeleton(file: Path, folder: Path) -> Path:
    """Copies the headers of `file` and its parts into `folder`, without the vocabulary and with a hole for weights.

    An engine that reads no weights sees the same model, and sees it sooner: most of a header is vocabulary. Returns
    the copy of `file`. Raises InvalidRequest as `read_header` does, OSError where nothing can be written.
    """
    header = read_header(file)
    for index, part in enumerate(parts(file)):
        with part.open("rb") as source, (folder / part.name).open("wb") as target:
            size = part.stat().st_size
            try:
                table = read_table(source, size)
            except BadGguf as error:
                raise InvalidRequest(f"'{part.name}' is no usable GGUF file: {error}") from None
            kept = [each for each in table.entries if not each.key.startswith("tokenizer.")]
            own: dict[str, str | int] = {}
            if index == 0:
                own = {"tokenizer.ggml.model": "no_vocab", f"{header.architecture}.vocab_size": header.vocabulary}
                kept = [each for each in kept if each.key not in own]
            target.write(start(table.version, len(table.tensors), len(own) + len(kept)))
            target.writelines(entry(key, value) for key, value in own.items())
            for record in [*(each.record for each in kept), table.record]:
                source.seek(record.start)
                target.write(source.read(len(record)))
            weights = math.ceil(target.tell() / table.alignment) * table.alignment
            target.truncate(weights + max(size - table.start, 0))
    return folder / file.name


@functools.lru_cache(maxsize=256)  # a vocabulary takes tens of ms; many requests may meet a model that is not loaded
def _read_once(files: Sequence[tuple[Path, int, int]]) -> Header:
    tables: list[Table] = []
    for file, size, _mtime_ns in files:
        with file.open("rb") as stream:
            tables.append(read_table(stream, size))
    values = {key: value for table in reversed(tables) for key, value in table.values.items()}
    if values.get("split.count", 1) not in (0, 1, len(files)):
        raise BadGguf(f"it is one of {values['split.count']} parts, and its name does not say so")
    tensors = [tensor for table in tables for tensor in table.tensors]
    digest = hashlib.sha256(b"".join(table.digest for table in tables)).hexdigest()
    return _header(values, tensors, sum(size for _, size, _ in files), digest)


def _header(values: Mapping[str, Any], tensors: Sequence[Tensor], file_bytes: int, digest: str) -> Header:
    if not tensors:
        raise BadGguf("it holds no weights")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise BadGguf("it names no architecture")

    def one(key: str, found: Any) -> int:
        if not isinstance(found, int) or not -1 <= found < 2**31:
            raise BadGguf(f"{architecture}.{key} is absurd")
        return int(found)

    def number(key: str, default: int) -> int:
        """A number, or the most of a list."""
        found = values.get(f"{architecture}.{key}", default)
        return max((one(key, each) for each in found), default=default) if isinstance(found, list) else one(key, found)

    count = number("block_count", 0)
    if count > _MOST_LAYERS:
        raise BadGguf(f"{architecture}.block_count is absurd")

    def numbers(key: str, default: int) -> list[int]:
        """A number for each layer."""
        found = values.get(f"{architecture}.{key}", default)
        each = [one(key, value) for value in found] if isinstance(found, list) else [one(key, found)] * count
        return (each + [default] * count)[:count]

    weights, sizes = _sizes(tensors, count)
    blocks = layers(architecture, weights, number, numbers)
    width, heads = number("embedding_length", 0), number("attention.head_count", 0)
    tokens, merges = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.merges")
    adapter = values.get("general.type") == "adapter"
    tied = not adapter and not any(tensor.name == "output.weight" for tensor in tensors)
    embeddings = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    return Header(
        architecture=architecture,
        name=str(values.get("general.name", "")),
        context_length=number("context_length", 0),
        embedding_length=width,
        feed_forward=number("expert_feed_forward_length", 0) or number("feed_forward_length", 0),
        query_length=heads * number("attention.key_length", width // heads if heads else 0),
        state_length=number("ssm.inner_size", width if any(layer.state for layer in blocks) else 0),
        vocabulary=tokens
        if isinstance(tokens, int)
        else number("vocab_size", embeddings.shape[-1] if embeddings else 0),
        merges=merges if isinstance(merges, int) else 0,
        blocks=blocks,
        input_bytes=sizes["input"],
        output_bytes=sizes["output"],
        other_bytes=sizes["other"],
        tied=tied,
        copied_input=tied and embeddings is not None and _reordered(embeddings),
        reordered_bytes=sum(
            tensor.nbytes for tensor in tensors if _reordered(tensor) and not tensor.name.startswith(_INPUT)
        ),
        experts=(number("expert_count", 0), number("expert_used_count", 0)),
        pooling=number("pooling_type", -1),
        adapter=adapter,
        quantised=any(tensor.kind not in _UNQUANTISED for tensor in tensors),
        chat_template=str(values.get("tokenizer.chat_template") or ""),
        file_bytes=file_bytes,
        digest=digest,
    )


def _reordered(tensor: Tensor) -> bool:
    return tensor.kind in _REORDERED and len(tensor.shape) > 1 and tensor.shape[1] % 8 == 0


def _sizes(tensors: Sequence[Tensor], count: int) -> tuple[list[int], dict[str, int]]:
    """Bytes of each layer's weights, and of those that are in none."""
    weights = [0] * count
    sizes = {"input": 0, "output": 0, "other": 0}
    for tensor in tensors:
        found = _LAYER.match(tensor.name)
        if found and int(found[1]) < count:
            weights[int(found[1])] += tensor.nbytes
        elif tensor.name.startswith(_INPUT):
            sizes["input"] += tensor.nbytes
        else:
            sizes["output" if tensor.name.startswith(_OUTPUT) else "other"] += tensor.nbytes
    return weights, sizes
