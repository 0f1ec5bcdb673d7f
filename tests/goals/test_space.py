from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.api.goals import Workload
from modelops.goals import space
from modelops.goals.space import Measured, Way

CENTRE = Way(slots=4, batch_size=64, threads=2)
ways = st.builds(
    Way,
    weights=st.sampled_from(["", "Q8_0", "Q4_0"]),
    slots=st.integers(1, 16),
    batch_size=st.sampled_from([32, 64, 512, 2048]),
    threads=st.integers(1, 64),
    flash_attention=st.sampled_from(["", "on", "off"]),
    cache_type=st.sampled_from(["f16", "q8_0"]),
    speculation=st.sampled_from(["", "ngram"]),
)
workloads = st.builds(
    Workload,
    prompt_tokens=st.integers(1, 4096),
    answer_tokens=st.integers(1, 4096),
    concurrency=st.integers(1, 256),
)


@given(ways, workloads, st.sets(st.sampled_from(["", "Q8_0", "Q4_0"])))
def test_no_way_that_is_tried_is_smaller_than_all_of_the_smallest(
    present: Way, workload: Workload, kinds: set[str]
) -> None:
    smallest = space.smallest(present, kinds, workload)
    for centre in (present, *space.formats(present, kinds)):
        for way in (centre, *space.settings(centre, workload, 4, cache=True, real=True, draft=True)):
            assert any(
                least.slots <= way.slots
                and least.batch_size <= way.batch_size
                and (least.weights, least.cache_type) == (way.weights, way.cache_type)
                for least in smallest
            )


@given(ways)
def test_a_way_is_what_it_was_when_it_was_written(way: Way) -> None:
    assert Way.from_json(json.loads(json.dumps(way.to_json()))) == way


def test_what_another_release_wrote_of_a_way_is_left_out() -> None:
    assert Way.from_json({**CENTRE.to_json(), "mirrors": 3}) == CENTRE


def test_figures_are_what_they_were_when_they_were_written() -> None:
    measured = Measured(1.5, 20.25, 3.0, 812.5, 101.0, 8, 5.3)
    assert Measured.from_json(json.loads(json.dumps(measured.to_json()))) == measured


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "as it is"),
        ({"weights": "Q8_0"}, "weights Q8_0"),
        ({"slots": 2, "batch_size": 512}, "slots 2, batch size 512"),
        ({"flash_attention": "off", "speculation": "ngram"}, "flash attention off, speculation ngram"),
    ],
)
def test_a_way_is_told_by_what_it_has_otherwise(changes: dict[str, object], words: str) -> None:
    way = replace(CENTRE, **changes)  # type: ignore[arg-type]
    assert way.words(CENTRE) == words
    assert way.changes(CENTRE) == changes


@given(ways, workloads, st.integers(1, 128), st.booleans(), st.booleans(), st.booleans())
def test_a_setting_is_tried_alone_and_once(
    centre: Way, workload: Workload, cores: int, cache: bool, real: bool, draft: bool
) -> None:
    found = space.settings(centre, workload, cores, cache=cache, real=real, draft=draft)
    assert real or all(way.speculation == centre.speculation for way in found)
    assert len(found) == len(set(found)) <= space.MOST_WAYS
    assert all(len(way.changes(centre)) == 1 for way in found)
    assert all(way.cache_type == "f16" or way.flash_attention != "off" for way in found if centre.cache_type == "f16")


@pytest.mark.parametrize(
    ("prompt", "answer", "concurrency", "wanted", "unwanted"),
    [
        (800, 16, 2, ["batch size 512", "slots 2", "batch size 2048"], ["speculation ngram"]),
        (64, 256, 4, ["speculation ngram", "batch size 256", "slots 2"], ["batch size 512", "slots 4"]),
        (64, 256, 8, ["slots 8"], ["speculation draft"]),
    ],
)
def test_what_is_tried_depends_on_what_is_asked(
    prompt: int, answer: int, concurrency: int, wanted: list[str], unwanted: list[str]
) -> None:
    workload = Workload(prompt_tokens=prompt, answer_tokens=answer, concurrency=concurrency)
    found = {way.words(CENTRE) for way in space.settings(CENTRE, workload, 2, real=True)}
    assert found.issuperset(wanted)
    assert not found & set(unwanted)


@pytest.mark.parametrize(("answer", "formats"), [(16, ("BF16",)), (80, ())])
def test_longer_formats_are_worth_a_look_where_prompts_are_what_takes_long(
    answer: int, formats: tuple[str, ...]
) -> None:
    assert space.longer_formats(Workload(prompt_tokens=800, answer_tokens=answer)) == formats


def test_formats_are_tried_once_and_not_the_present_one() -> None:
    assert [way.weights for way in space.formats(CENTRE, ["Q8_0", "Q4_0", "Q8_0"])] == ["Q8_0", "Q4_0"]
    assert space.formats(replace(CENTRE, weights="Q8_0"), ["Q8_0"]) == ()


def test_what_has_helped_is_tried_together_the_best_first() -> None:
    batch, slots, threads = (
        replace(CENTRE, batch_size=512),
        replace(CENTRE, slots=2),
        replace(CENTRE, threads=1),
    )
    better = replace(CENTRE, batch_size=2048)
    ratios = {CENTRE: 1.0, batch: 1.3, better: 1.5, slots: 1.1, threads: 0.7}
    assert space.together(CENTRE, ratios) == (replace(CENTRE, batch_size=2048, slots=2),)
    assert space.together(CENTRE, {CENTRE: 1.0, batch: 1.3}) == ()
    assert space.together(CENTRE, {CENTRE: 1.3, batch: 1.31, slots: 1.32}) == (), "no better than what they vary"


@given(st.lists(st.floats(0, 10), min_size=1, max_size=space.MOST_WAYS))
def test_the_better_half_survives_in_its_order(found: list[float]) -> None:
    every = [(replace(CENTRE, slots=number + 1), ratio) for number, ratio in enumerate(found)]
    left = space.halve(every)
    ratios = dict(every)
    assert len(left) <= -(-len(found) // 2)
    assert [way.slots for way in left] == sorted(way.slots for way in left)
    assert all(ratios[way] > 0 for way in left)
    others = [ratio for way, ratio in every if way not in left]
    assert not left or min(ratios[way] for way in left) >= max(others, default=0)


@given(st.integers(0, 40))
def test_halving_ends_within_its_bound(count: int) -> None:
    left, done, made = min(count, space.MOST_WAYS), 0, 0
    while not space.over(left, done):
        made, done = made + left + 3, done + 1
        left = -(-left // 2)
    assert made == space.measurements(count)
    assert made <= 2 * space.MOST_WAYS + 16
    assert 1 <= space.growth(done) <= 4
