"""Both clients, and all that can be asked about models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from clients import Kind, call, chunks
from modelops import AsyncClient, Client
from modelops.api import types
from modelops.api.errors import Conflict, InvalidRequest, NotFound
from modelops.api.operations import OPERATIONS
from support import Served, serving, tiny_gguf

pytestmark = pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["blocking", "async"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with the models `m`, `v` (embedding) and `r` (reranker); `two.gguf` and `three.gguf` are files in a
    folder that is not its own."""
    folder = tmp_path_factory.mktemp("many")
    for name in ("two", "three"):
        tiny_gguf(folder / "theirs" / f"{name}.gguf", general__name=name)
    kinds: dict[str, dict[str, int]] = {"m": {}, "v": {"llama__pooling_type": 1}, "r": {"llama__pooling_type": 4}}
    links = [(name, tiny_gguf(folder / name, **entries)) for name, entries in kinds.items()]
    env = {"MODELOPS_MODELS__ROOTS": str(folder / "theirs")}
    with serving(folder / "data", links=links, fake={"token_s": 0.01}, env=env) as running:
        yield running


def test_there_is_a_method_for_every_operation(kind: Kind) -> None:
    called = {"load_model": "load", "unload_model": "unload", "list_models": "models", "get_model": "model"}
    called |= {"watch_model": "watch", "explain_model": "explain", "list_versions": "versions"}
    called |= {"register_version": "register", "activate_version": "activate", "remove_version": "remove"}
    for operation in OPERATIONS:
        method = getattr(kind, called.get(operation.name, operation.name))
        assert method.__doc__


def test_both_clients_take_the_same(kind: Kind) -> None:
    other = AsyncClient if kind is Client else Client
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_"):
            assert list(inspect.signature(method).parameters) == list(
                inspect.signature(getattr(other, name)).parameters
            ), name


def test_texts_become_vectors_and_documents_scores(many: Served, kind: Kind) -> None:
    embedded = call(kind, many.rest, "embed", "v", ["one two", "three"], keep_alive="1h")
    assert [len(embedding.values) for embedding in embedded.embeddings] == [8, 8]
    assert (embedded.tokens, embedded.model_version) == (3, "v1")
    ranked = call(kind, many.rest, "rerank", "r", "a b", ["b", "a b", "x"], top_n=2)
    assert [(found.index, found.score) for found in ranked.results] == [(1, 2.0), (0, 1.0)]
    assert call(kind, many.rest, "model", "v").expires_at
    with pytest.raises(InvalidRequest, match="'v' is a model of type 'embedding'"):
        call(kind, many.rest, "infer", "v", "hi")


def test_a_model_is_loaded_as_it_is_wished(many: Served, kind: Kind) -> None:
    wish: dict[str, Any] = {"context_length": 512, "slots": 2, "cache_type": "q8_0", "keep_alive": "5m", "pin": True}
    planned = call(kind, many.rest, "load", "m", dry_run=True, **wish)
    assert planned.plan
    assert (planned.plan.context_length, planned.plan.slots, planned.plan.cache_type) == (512, 2, "q8_0")
    assert call(kind, many.rest, "model", "m").status == "available"
    assert call(kind, many.rest, "load", "m", **wish).memory_usage_mb == planned.memory_usage_mb
    found = call(kind, many.rest, "model", "m")
    assert (found.context_length, found.slots, found.cache_type, found.pinned) == (512, 2, "q8_0", True)
    explained = call(kind, many.rest, "explain", "m")
    assert explained.plan
    assert explained.plan.devices[0].memory_mb == found.memory_usage_mb
    assert sum(line.mb for line in explained.computed) == pytest.approx(explained.computed_mb, abs=0.1)
    call(kind, many.rest, "unload", "m", force=True)


def test_a_model_is_watched_until_it_rests(many: Served, kind: Kind) -> None:
    call(kind, many.rest, "load", "m", wait=False)
    *_, last = chunks(kind, many.rest, "m", method="watch")
    assert (last.model.status, last.done) == ("loaded", True)
    assert chunks(kind, many.rest, "m", method="watch", first=1) == [last] or last.model.digest == ""
    call(kind, many.rest, "unload", "m")
    (only,) = chunks(kind, many.rest, "m", method="watch")
    assert (only.model.status, only.done) == ("available", True)
    with pytest.raises(NotFound, match="'nobody'"):
        chunks(kind, many.rest, "nobody", method="watch")


def test_versions_are_registered_activated_rolled_back_and_removed(many: Served, kind: Kind) -> None:
    name = f"versions-{kind.__name__}"

    def labels() -> list[tuple[str, bool, bool]]:
        found = call(kind, many.rest, "versions", name)
        return [(version.model_version, version.active, version.previous) for version in found]

    assert call(kind, many.rest, "register", name, "two.gguf").active
    assert call(kind, many.rest, "register", name, "three.gguf", model_type="llm").model_version == "v2"
    assert call(kind, many.rest, "infer", name, "hi", max_tokens=1).model_version == "v1"
    assert call(kind, many.rest, "activate", name, "v2").model_version == "v2"
    assert labels() == [("v1", False, True), ("v2", True, False)]
    assert call(kind, many.rest, "roll_back", name, drain_first=True).model_version == "v1"
    assert call(kind, many.rest, "activate", name, "v2", drain_first=True).status == "loaded"
    with pytest.raises(Conflict, match="unload it first"):
        call(kind, many.rest, "remove", name)
    assert call(kind, many.rest, "remove", name, "v1").removed == [f"{name} v1"]
    call(kind, many.rest, "unload", name)
    assert call(kind, many.rest, "remove", name) == types.Removal(removed=[f"{name} v2"], freed_mb=0)
    with pytest.raises(NotFound):
        call(kind, many.rest, "versions", name)


def test_what_nothing_needs_is_removed(many: Served, kind: Kind) -> None:
    copy = many.data_dir / "quantised" / f"{'0' * 64}-Q8_0.gguf"
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(b"x" * 2**20)
    found = call(kind, many.rest, "prune")
    assert (len(found.removed), found.freed_mb) == (1, 1)
    assert call(kind, many.rest, "prune") == types.Removal()
