"""What jobs have made becomes versions: of adapters, and of whole models."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from adapters import make_adapter
from damages import DAMAGES, Damage, spoiled
from modelops.api.errors import Conflict, DiskFull, InvalidRequest, NotFound
from modelops.serving.catalog import Version
from modelops.serving.wishes import Wish
from modelops.settings import ModelEntry
from serving.house import catalog
from support import tiny_gguf

LINEAGE = {"rows": 3, "scores": {"exact": 0.5}, "seed": 7}


@pytest.fixture
def base(root: Path) -> Path:
    return tiny_gguf(root / "m.gguf")


@pytest.fixture
def made(tmp_path: Path, base: Path) -> list[Path]:
    """Adapters that jobs have made, in a folder of their own."""
    return [make_adapter(tmp_path / "jobs" / str(seed) / "adapter.gguf", base, seed=seed) for seed in range(3)]


def facts(version: Version) -> tuple[object, ...]:
    return version.model_name, version.label, version.base, dict(version.lineage), version.digest, version.shown_path


async def test_an_adapter_is_a_model_with_versions(root: Path, made: list[Path]) -> None:
    async with catalog(root) as models:
        base = models.active("m")
        first = await models.publish_adapter("m:x", base, made[0], LINEAGE)
        base = models.active("m")
        assert base.digest
        name = f"published/m-x-{first.digest.removeprefix('sha256:')[:16]}.gguf"
        assert facts(first) == ("m:x", "v1", base.digest, LINEAGE, first.digest, name)
        assert (first.engine_name, first.model_type, base.engine_name) == ("m", "llm", "m")
        assert first.size == first.file.stat().st_size == made[0].stat().st_size
        second = await models.publish_adapter("m:x", base, made[1])
        assert (second.label, models.active("m:x"), models.chosen("m:x")) == ("v2", first, (1, 0))
        await models.activate(second)
        assert models.is_adapter("m:x")
        assert not models.is_adapter("m")
        assert not models.is_adapter("nobody")
    for file in made:
        file.unlink()  # a job's own files may go
    async with catalog(root) as models:
        assert models.names() == ["m", "m:x"]  # what is published is not looked into for models
        assert [facts(version) for version in models.versions("m:x")] == [facts(first), facts(second)]
        assert models.chosen("m:x") == (2, 1)
        assert models.previous("m:x").label == "v1"
        assert (await models.find("m:x")).label == "v2"


async def test_a_whole_model_is_the_next_version_of_its_name(root: Path, base: Path, tmp_path: Path) -> None:
    tuned = tiny_gguf(tmp_path / "jobs" / "merged.gguf", general__name="tuned")
    async with catalog(root) as models:
        version = await models.publish("m", tuned, "llm", LINEAGE)
        assert (version.label, version.base, dict(version.lineage)) == ("v2", "", LINEAGE)
        assert models.active("m").label == "v1"
        new = await models.publish("new", tuned, "llm")
        assert (new.label, models.active("new")) == ("v1", new)
        assert await models.publish("m", tuned, "llm", {}) == version
        assert (await models.publish("m", tuned, "embedding")).label == "v3"  # served otherwise
    async with catalog(root) as models:
        assert models.version("m", "v2").lineage == LINEAGE
        assert await models.remove([models.version("m", "v2")]) == 0  # v3 has the same file
        assert version.file.exists()


async def test_what_is_published_again_is_the_same_version(root: Path, made: list[Path]) -> None:
    """As where a job is killed when it has published, and before that was noted."""
    async with catalog(root) as models:
        base = models.active("m")
        first = await models.publish_adapter("m:x", base, made[0], LINEAGE)
        for _ in range(2):
            make_adapter(made[0], base.file, seed=0)  # it is made anew
            assert await models.publish_adapter("m:x", base, made[0], {"other": 1}) == first
        assert (await models.publish_adapter("m:y", base, made[0])).label == "v1"
        first.file.unlink()  # by somebody else
        again = await models.publish_adapter("m:x", base, made[0])
        assert (again.label, again.unchanged(), again.lineage) == ("v1", True, LINEAGE)
    async with catalog(root) as models:
        assert models.versions("m:x") == [again]
        assert again.unchanged()
        assert (await models.publish_adapter("m:x", models.active("m"), made[0])) == again


async def test_a_file_that_is_in_its_place_already_stays_there(root: Path, made: list[Path]) -> None:
    place = root / "published" / "mine.gguf"
    place.parent.mkdir()
    made[0].rename(place)
    async with catalog(root) as models:
        version = await models.publish_adapter("m:x", models.active("m"), place)
        assert version.file == place
        make_adapter(place, models.active("m").file, seed=0)  # made anew
        assert await models.publish_adapter("m:x", models.active("m"), place) == models.active("m:x")
        assert (models.active("m:x").label, models.active("m:x").unchanged()) == ("v1", True)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_stands_where_a_model_was_published_is_damage_and_no_version(
    root: Path, base: Path, tmp_path: Path, damage: Damage
) -> None:
    async with catalog(root) as models:
        version = await models.publish("m", tiny_gguf(tmp_path / "tuned.gguf", general__name="tuned"), "llm")
        await models.activate(version)
        damage(version.file)
        assert await models.find("m") == version
        await models.refresh()
        assert [found.label for found in models.versions("m")] == ["v1", "v2"]
        with pytest.raises(
            (Conflict, NotFound), match=f"the file of 'm' v2 (was damaged|is gone): '{version.shown_path}'"
        ):
            models.version("m", "v2")
    async with catalog(root) as models:
        assert (models.active("m"), len(models.versions("m"))) == (version, 2)
        assert not version.unchanged()


async def test_what_was_published_is_the_same_in_a_copy_of_the_data_folder(
    root: Path, base: Path, made: list[Path], tmp_path: Path
) -> None:
    async with catalog(root) as models:
        whole = await models.publish("m", tiny_gguf(tmp_path / "tuned.gguf", general__name="tuned"), "llm")
        await models.activate(whole)
        adapter = await models.publish_adapter("m:x", models.active("m"), made[0])
    for version in (whole, adapter):
        os.utime(version.file)
    async with catalog(root) as models:
        assert (models.active("m").label, len(models.versions("m"))) == ("v2", 2)
        assert all(models.active(name).unchanged() for name in ("m", "m:x"))
        noted = models.active("m")
    spoiled(whole.file)  # of the same size
    async with catalog(root) as models:
        assert models.active("m") == noted
        assert not noted.unchanged()


@pytest.mark.parametrize("name", ["m", "m:", ":x", "x", "n:x", "m:x:y", "m:x y", "m:" + "x" * 200])
async def test_an_adapter_is_called_after_its_model(root: Path, made: list[Path], name: str) -> None:
    async with catalog(root) as models:
        with pytest.raises(InvalidRequest, match="an adapter of 'm' is called 'm:' and a name"):
            await models.publish_adapter(name, models.active("m"), made[0])
        assert models.names() == ["m"]


async def test_adapters_and_models_do_not_share_a_name(root: Path, made: list[Path]) -> None:
    plain = tiny_gguf(root / "sub" / "plain.gguf", general__name="plain")
    async with catalog(root) as models:
        await models.register("m:plain", "sub/plain.gguf", "llm")  # a colon makes no adapter
        assert not models.is_adapter("m:plain")
        with pytest.raises(Conflict, match="'m:plain' is a model already; publish this under another name"):
            await models.publish_adapter("m:plain", models.active("m"), made[0])
        version = await models.publish_adapter("m:x", models.active("m"), made[0])
        with pytest.raises(Conflict, match="'m:x' is an adapter already; publish this under another name"):
            await models.publish("m:x", plain, "llm")
        for act in (models.register, models.peek):
            with pytest.raises(Conflict, match="'m:x' is an adapter of 'm': its versions are what learning jobs make"):
                await act("m:x", "sub/plain.gguf", "llm")
        for again in (models.retyped, models.peek_retyped):
            with pytest.raises(Conflict):
                await again(version, "embedding")
        tiny_gguf(root / "m:x.gguf")  # a file of that name changes nothing
        await models.refresh()
        assert models.active("m:x") == version
        with pytest.raises(InvalidRequest, match="is an adapter, which is no model by itself"):
            await models.register("other", version.shown_path, "llm")
        with pytest.raises(InvalidRequest, match="is an adapter, which is no model by itself"):
            await models.publish("other", version.file, "llm")
        with pytest.raises(InvalidRequest, match="generates nothing that an adapter could change"):
            await models.publish_adapter("m:x:y", version, made[1])
        vectors = await models.retyped(models.active("m"), "embedding")
        with pytest.raises(InvalidRequest, match="generates nothing that an adapter could change"):
            await models.publish_adapter("m:y", vectors, made[1])


async def test_an_adapter_of_another_model_is_refused(root: Path, made: list[Path], tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "other.gguf", general__architecture="qwen3")
    file = make_adapter(tmp_path / "other-adapter.gguf", other, architecture="qwen3")
    async with catalog(root) as models:
        with pytest.raises(InvalidRequest, match="for the architecture 'qwen3', not 'llama'"):
            await models.publish_adapter("m:x", models.active("m"), file)
        assert not (root / "published").exists()


async def test_a_full_disk_leaves_nothing(root: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with catalog(root) as models:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(DiskFull, match="no room on the disk of the models for 'm:x'"):
                await models.publish_adapter("m:x", models.active("m"), made[0])
        assert list((root / "published").iterdir()) == []
        assert models.names() == ["m"]
        assert (await models.publish_adapter("m:x", models.active("m"), made[0])).label == "v1"


async def test_an_adapter_is_run_as_the_catalogue_says_of_its_model(root: Path, made: list[Path]) -> None:
    async with catalog(root, m=ModelEntry(slots=3)) as models:
        await models.publish_adapter("m:x", models.active("m"), made[0])
        assert models.wish("m:x") == Wish(slots=3)


async def test_who_starts_engines_is_told_when_other_adapters_answer(root: Path, made: list[Path]) -> None:
    told: list[str] = []
    async with catalog(root) as models:
        models.adapters_changed = told.append
        versions = [await models.publish_adapter("m:x", models.active("m"), file) for file in made[:2]]
        assert told == ["m", "m"]
        await models.activate(versions[1])
        await models.activate(versions[1])  # it is so already
        assert told == ["m"] * 3
        await models.remove(versions)
        assert told == ["m"] * 4
        assert not any(version.file.exists() for version in versions)
