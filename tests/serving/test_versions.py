"""Which version of a model answers, and what is left of those that are removed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modelops.api.errors import Conflict, NotFound
from modelops.serving.catalog import Catalog
from serving.house import catalog
from support import tiny_gguf


# --- which one answers ---
async def two_versions(models: Catalog, root: Path) -> None:
    """The model `m` with v1, which is active, and v2."""
    for name in ("one", "two"):
        tiny_gguf(root / "sub" / f"{name}.gguf", general__name=name)
        await models.register("m", f"sub/{name}.gguf", "llm")


async def test_the_first_version_answers_until_another_is_activated(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        assert models.active("m").label == "v1"
        assert models.chosen("m") == (1, 0)
        with pytest.raises(Conflict, match="no other version active before"):
            models.previous("m")
    async with catalog(root) as models:  # a restart changes nothing
        assert models.chosen("m") == (1, 0)
        await models.activate(models.version("m", "v2"))
        assert models.chosen("m") == (2, 1)
    async with catalog(root) as models:
        assert models.active("m").label == "v2"
        assert models.previous("m").label == "v1"
        await models.activate(models.previous("m"))
        assert models.chosen("m") == (1, 2)
        await models.activate(models.active("m"))  # it is so already
        assert models.chosen("m") == (1, 2)


async def test_a_version_is_found_by_its_label_while_its_file_is_as_it_was(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        assert models.version("m", "v2").file.name == "two.gguf"
        with pytest.raises(NotFound, match="'m' has no version 'v3'; it has v1, v2"):
            models.version("m", "v3")
        with pytest.raises(NotFound, match="there is no model 'n'"):
            models.version("n", "v1")
        tiny_gguf(root / "sub" / "two.gguf", general__name="another")
        with pytest.raises(Conflict, match=r"the file of 'm' v2 was replaced: 'sub/two\.gguf'"):
            models.version("m", "v2")
        (root / "sub" / "two.gguf").unlink()
        with pytest.raises(NotFound, match=r"the file of 'm' v2 is gone: 'sub/two\.gguf'"):
            models.version("m", "v2")


async def test_versions_are_told_in_order_with_what_is_known_of_them(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        first, second = models.versions("m")
        assert (first.label, second.label) == ("v1", "v2")
        assert first.size == first.file.stat().st_size
        assert first.mtime_ns == first.file.stat().st_mtime_ns
        assert 0 < first.registered_at <= second.registered_at
        assert models.known(second) == second
        known = await models.digest(second)
        assert models.known(second) == known != second


async def test_one_file_served_as_another_type_is_another_version(root: Path) -> None:
    tiny_gguf(root / "m.gguf")
    async with catalog(root) as models:
        vectors = await models.retyped(models.active("m"), "embedding")
        assert (vectors.label, vectors.model_type, vectors.file.name) == ("v2", "embedding", "m.gguf")
        assert await models.retyped(vectors, "embedding") == vectors
        assert (await models.register("m", "m.gguf", "llm")).label == "v1"
        assert models.active("m").model_type == "llm"
        await models.activate(vectors)
        assert (await models.find("m")).model_type == "embedding"  # what is asked for by name stays what it is


# --- removing ---
async def test_a_removed_version_is_forgotten_and_its_number_is_never_given_again(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        second = models.version("m", "v2")
        freed = await models.remove([second])
        assert freed == second.size
        assert not second.file.exists()
        assert [version.label for version in models.versions("m")] == ["v1"]
        tiny_gguf(second.file, general__name="two")
        assert (await models.register("m", "sub/two.gguf", "llm")).label == "v3"
    async with catalog(root) as models:
        assert [version.label for version in models.versions("m")] == ["v1", "v3"]
        await models.remove(models.versions("m"))
        assert models.names() == []
        assert list(root.rglob("*.gguf")) == []
    async with catalog(root) as models:
        assert models.names() == []
        tiny_gguf(root / "m.gguf")
        assert (await models.find("m")).label == "v4"
        assert models.chosen("m") == (4, 0)


async def test_only_the_coordinators_own_files_are_deleted(root: Path) -> None:
    second = root.parent / "second"
    theirs = tiny_gguf(second / "theirs.gguf")
    async with catalog(root, second) as models:
        assert await models.remove(models.versions("theirs")) == 0
        assert theirs.exists()
        assert models.names() == []
        with pytest.raises(NotFound):  # it was forgotten, though its file is there
            await models.find("theirs")
        assert (await models.register("theirs", "theirs.gguf", "llm")).label == "v2"


async def test_a_file_that_another_version_needs_stays(root: Path) -> None:
    file = tiny_gguf(root / "m.gguf")
    async with catalog(root) as models:
        other = await models.register("other", "m.gguf", "llm")
        vectors = await models.retyped(models.active("m"), "embedding")
        assert await models.remove([vectors]) == 0
        assert await models.remove([other]) == 0
        assert file.exists()
        size = file.stat().st_size
        assert await models.remove(models.versions("m")) == size
        assert not file.exists()


async def test_all_parts_of_a_split_model_are_deleted(root: Path) -> None:
    files = [tiny_gguf(root / "sub" / f"big-0000{number}-of-00002.gguf") for number in (1, 2)]
    async with catalog(root) as models:
        version = await models.register("big", f"sub/{files[0].name}", "llm")
        size = sum(file.stat().st_size for file in files)
        assert await models.remove([version]) == size
        assert not any(file.exists() for file in files)


async def test_whoever_looks_while_all_versions_are_removed_finds_the_active_one_or_none(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        removing = asyncio.gather(models.remove(models.versions("m")))
        while not removing.done():
            if models.names():
                assert models.active("m").label == "v1"
            await asyncio.sleep(0)
        await removing
        assert models.names() == []


async def test_what_is_registered_while_all_is_removed_is_what_answers(root: Path) -> None:
    async with catalog(root) as models:
        for number in range(1, 22):  # to remove many takes a while
            tiny_gguf(root / "sub" / f"{number}.gguf", general__name=str(number))
            if number < 21:
                await models.register("m", f"sub/{number}.gguf", "llm")
        removing = asyncio.gather(models.remove(models.versions("m")))
        await asyncio.sleep(0)
        added = await models.register("m", "sub/21.gguf", "llm")
        await removing
        assert (added.label, models.active("m"), models.versions("m")) == ("v21", added, [added])
    async with catalog(root) as models:
        assert [version.label for version in models.versions("m")] == [models.active("m").label] == ["v21"]


async def test_what_is_activated_while_it_is_pruned_stays(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        second = models.version("m", "v2")
        second.file.unlink()
        pruning = asyncio.gather(models.prune())
        await asyncio.sleep(0)
        await models.activate(second)
        await pruning
        assert models.active("m").label == "v2"


async def test_removing_twice_at_once_removes_once(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        size = models.active("m").size
        freed = await asyncio.gather(*(models.remove(models.versions("m")) for _ in range(2)))
        assert (sorted(freed), models.names()) == ([0, 2 * size], [])


async def test_pruning_forgets_versions_whose_file_is_gone_and_keeps_the_active_one(root: Path) -> None:
    async with catalog(root) as models:
        await two_versions(models, root)
        assert await models.prune() == ([], 0)
        for name in ("one", "two"):
            (root / "sub" / f"{name}.gguf").unlink()
        assert await models.prune() == (["m v2"], 0)
        assert [version.label for version in models.versions("m")] == ["v1"]
