"""What makes a file a LoRA adapter that an engine takes for a model. Only headers are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modelops.api.errors import InvalidRequest
from modelops.serving import gguf
from modelops.serving.gguf_reader import BadGguf, Table, read_table

_A, _B = ".lora_a", ".lora_b"
_EMBEDDINGS = "token_embd.weight"


def check(file: Path, base: Path) -> None:
    """Raises InvalidRequest where `file` is no LoRA adapter for the model in `base`, as an engine would: with it, none
    would start (`llama_adapter_lora_init_impl` in `src/llama-adapter.cpp`)."""
    (table,) = _tables([file])
    values = table.values
    if values.get("general.type") != "adapter" or values.get("adapter.type") != "lora":
        raise InvalidRequest(f"'{file.name}' is no LoRA adapter")
    tables = _tables(gguf.parts(base))
    model = {tensor.name: tensor.shape[:2] for part in tables for tensor in part.tensors}
    made_for, architecture = values.get("general.architecture"), tables[0].values.get("general.architecture")
    if made_for != architecture:
        raise InvalidRequest(f"'{file.name}' is an adapter for the architecture '{made_for}', not '{architecture}'")
    for name, shape in _changed(file, table):
        if name not in model:
            raise InvalidRequest(f"'{file.name}' changes '{name}', which the model does not have")
        if model[name] != shape:
            here, there = (" by ".join(map(str, found)) for found in (model[name], shape))
            raise InvalidRequest(f"'{file.name}' was made for another model: there '{name}' is {there}, here {here}")


def _changed(file: Path, table: Table) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The weights that the adapter changes, and the shape that they have in the model that it was made for."""
    found = {tensor.name: tensor.shape[:2] for tensor in table.tensors}
    for name in found:
        of = name.removesuffix(_A).removesuffix(_B)
        if of == name:
            raise InvalidRequest(f"'{file.name}' holds '{name}', which is of no LoRA adapter")
        a, b = found.get(of + _A, ()), found.get(of + _B, ())
        if len(a) < 2 or len(b) < 2:
            raise InvalidRequest(f"'{file.name}' holds only half of what it changes '{of}' by")
        embeddings = of == _EMBEDDINGS  # which are looked up, not multiplied: there both lie the other way
        if (a[0] if embeddings else a[1]) != b[0]:
            raise InvalidRequest(f"the two halves of '{of}' in '{file.name}' do not fit together")
        yield of, (b[1], a[1]) if embeddings else (a[0], b[1])


def _tables(files: list[Path]) -> list[Table]:
    tables = []
    for file in files:
        try:
            with file.open("rb") as stream:
                tables.append(read_table(stream, file.stat().st_size))
        except BadGguf as error:
            raise InvalidRequest(f"'{file.name}' is no usable GGUF file: {error}") from None
        except OSError as error:
            raise InvalidRequest(f"'{file.name}' cannot be read: {error.strerror}") from None
    return tables
