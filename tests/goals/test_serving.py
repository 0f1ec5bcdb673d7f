from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goals.tuned import PRESENT, Tuned, facts, gives, objective
from modelops.goals import serving
from modelops.goals.narrowing import MOST_AGAIN, UNSTEADY, most_measurements
from modelops.goals.space import MB, Way
from modelops.goals.targets import Probed, missed, score, workload_of
from modelops.goals.values import Act, End, Ending, ModelSeen, Wait

RATES: dict[str, dict[Any, float]] = {
    "batch_size": {256: 1.3},
    "slots": {2: 1.1},
    "speculation": {"ngram": 1.2},
    "weights": {"Q8_0": 1.5},
}


def rate(way: Way) -> float:
    """Some settings help, and multiply; all others hurt."""
    found = 1.0
    for name, value in way.changes(PRESENT).items():
        found *= RATES.get(name, {}).get(value, 0.8)
    return found


def pursue(folder: Path, goal: dict[str, Any] | None = None, **fields: Any) -> Tuned:
    seen = fields.pop("facts", {})
    return Tuned(objective(**(goal or {})), facts(folder, **seen), **{"rate": rate, **fields})


def test_the_fastest_way_is_found_applied_watched_and_told(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    end = tuned.run()
    assert end.status == "completed", end.why
    best = {"weights": "Q8_0", "batch_size": 256, "slots": 2, "speculation": "ngram"}
    assert end.result["applied"] == {"version": "v2", **best}
    assert end.result["gain"] == pytest.approx(1.5 * 1.3 * 1.1 * 1.2, rel=1e-3)
    assert (
        end.result["best"]["measured"]["requests_per_second"] > end.result["present"]["measured"]["requests_per_second"]
    )
    assert tuned.kinds()[-2:] == ["apply", "discard"]
    assert tuned.steps[-1].action.arguments["keep"] == "v2"
    assert tuned.elapsed >= tuned.steps[-2].ended_s + 30, "it was watched"  # type: ignore[operator]
    assert {row["way"] for row in end.result["tried"]} >= {"as it is", "weights Q8_0", "weights Q4_0"}
    assert all(row["ratio"] > 0 for row in end.result["tried"])


def test_how_far_it_is_is_told_step_by_step(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    tuned.run()
    kinds = [step.action.arguments.get("stage", step.action.kind) for step in tuned.steps]
    begun = dict(zip(kinds, tuned.progress[1:], strict=False))
    assert {kind: begun[kind] for kind in ("present", "rewrite", "final", "apply")} == {
        "present": 0.0,
        "rewrite": 0.05,
        "final": 0.85,
        "apply": 0.9,
    }
    assert tuned.progress[-1] == 0.99, "nearly watched"
    assert len({*tuned.progress}) < 30, "each that is new is written, and told as an event"


def test_a_search_that_begins_anew_is_no_less_far(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    for _ in range(9):
        decision = tuned.decide()
        assert isinstance(decision, Act)
        tuned.do(decision)
    tuned.facts = replace(tuned.facts, version="v5")
    for _ in range(5):
        decision = tuned.decide()
        assert isinstance(decision, Act)
        tuned.do(decision)
    assert len({*tuned.progress[-5:]}) == 1


def test_the_present_way_is_measured_in_every_round(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    tuned.run()
    measured = [step.action.arguments for step in tuned.steps if step.action.kind == "measure"]
    assert all(Way.from_json(given["ways"][0]) == PRESENT for given in measured)
    assert all(given["requests"] % 4 == 0 for given in measured), "whole waves"
    grow = [given["requests"] for given in measured if given["stage"] == "settings"]
    assert grow == sorted(grow) and grow[-1] > grow[0]


def test_a_round_in_which_the_present_way_was_unsteady_is_made_again(tmp_path: Path) -> None:
    def shaken() -> bool:
        """Whether the second round of formats is made for the first time."""
        made = [step.action.arguments for step in tuned.steps if step.action.arguments.get("stage") == "formats"]
        return [given["round"] for given in made] == [0]

    def beside(way: Way) -> float:
        return rate(way) * (0.3 if shaken() and way.weights == "Q8_0" else 1.0)

    tuned = pursue(tmp_path, rate=beside, sways=lambda act: 0.5 if shaken() else 1.0)
    end = tuned.run()
    assert end.result["applied"]["weights"] == "Q8_0"
    again = [step for step in tuned.steps if step.action.arguments.get("again")]
    assert len(again) == 1
    assert again[0].why.startswith("once more, as the present way itself was 100% faster once than the other time")
    before = tuned.steps[again[0].number - 2].action.arguments
    assert again[0].action.arguments == {**before, "again": True}


@pytest.mark.parametrize("sway", [0.8, 1.25, 0.0])
def test_where_nothing_is_ever_steady_the_search_still_ends(tmp_path: Path, sway: float) -> None:
    tuned = pursue(tmp_path, sways=lambda act: sway)
    assert tuned.run().status == "completed"
    again = [step.action.arguments for step in tuned.steps if step.action.arguments.get("again")]
    assert len(again) == MOST_AGAIN
    assert len({(given["stage"], given["round"]) for given in again}) == MOST_AGAIN, "each but once"


def test_a_little_noise_is_no_reason_to_measure_again(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, sways=lambda act: 1 / (UNSTEADY - 0.01))
    tuned.run()
    assert not [step for step in tuned.steps if step.action.arguments.get("again")]


def test_what_has_helped_is_what_was_better_than_what_it_varies_in_its_own_round(tmp_path: Path) -> None:
    helps: dict[tuple[str, Any], float] = {("batch_size", 256): 1.1, ("slots", 2): 1.04, ("weights", "Q8_0"): 1.5}
    helps |= {("batch_size", 128): 0.99, ("speculation", "ngram"): 0.99, ("flash_attention", "on"): 0.97}

    def drifting(way: Way) -> float:
        """In the first round of settings all but the present way is faster by a tenth than it is later."""
        found = 1.0
        for change in way.changes(PRESENT).items():
            found *= helps.get(change, 0.7)
        made = [step for step in tuned.steps if step.action.arguments.get("stage") == "settings"]
        return found * (1.0 if made or way == PRESENT else 1.1)

    tuned = pursue(tmp_path, {"formats": ["Q8_0"]}, rate=drifting)
    tuned.run()
    tried = [step.action.arguments for step in tuned.steps if step.action.arguments.get("stage") == "together"]
    ways = [Way.from_json(way).words(PRESENT) for way in tried[0]["ways"]]
    assert ways == ["as it is", "weights Q8_0, batch size 256", "weights Q8_0, slots 2, batch size 256"]


def test_nothing_is_applied_where_nothing_is_faster(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, rate=lambda way: 1.0 if way == PRESENT else 0.9)
    end = tuned.run()
    assert end.status == "completed"
    assert end.result["applied"] == {}
    assert "the present way is kept" in end.why
    assert "apply" not in tuned.kinds()
    assert tuned.kinds()[-1] == "discard", "the files that were made"


def test_what_is_a_little_faster_is_not_worth_a_change(tmp_path: Path) -> None:
    end = pursue(tmp_path, rate=lambda way: 1.0 if way == PRESENT else 1.02).run()
    assert (end.status, end.result["applied"]) == ("completed", {})
    assert end.result["gain"] == pytest.approx(1.02, rel=0.01)


def test_nothing_is_tried_where_the_present_way_meets_the_target(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"p95_latency_ms": 4000})
    end = tuned.run()
    assert (end.status, tuned.kinds()) == ("completed", ["measure"])
    assert "nothing is changed" in end.why


def test_the_first_stage_that_meets_the_target_is_the_last(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"min_tokens_per_second": 256 * 1.4})
    end = tuned.run()
    assert end.status == "completed", end.why
    assert end.result["applied"] == {"version": "v2", "weights": "Q8_0"}
    assert "2 ways are tried beside the present one: other formats of the weights" in tuned.said
    stages = {step.action.arguments.get("stage") for step in tuned.steps}
    assert stages == {None, "present", "formats", "final"}


def test_a_target_that_no_way_meets_fails_with_the_best(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"min_tokens_per_second": 10_000})
    end = tuned.run()
    assert end.status == "failed"
    assert "misses the target" in end.why and "of at least 10000" in end.why
    assert end.result["applied"] == {}
    assert end.result["best"]["way"]["weights"] == "Q8_0"
    assert tuned.kinds()[-1] == "discard"


def test_a_format_that_loses_too_much_is_not_measured(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"max_perplexity_increase": 0.01}, loses={"Q8_0": 0.011, "Q4_0": 0.2})
    end = tuned.run()
    assert end.result["applied"] == {"version": "v1", "batch_size": 256, "slots": 2, "speculation": "ngram"}
    measured = [Way.from_json(way) for step in tuned.steps for way in step.action.arguments.get("ways", ())]
    assert {way.weights for way in measured} == {""}
    assert [each["increase"] for each in end.result["perplexity"]] == [0.011, 0.2]


def test_one_way_is_one(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"formats": ["Q8_0"]})
    tuned.run()
    assert "1 way is tried beside the present one: other formats of the weights" in tuned.said


def test_a_format_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    def breaks(act: Act) -> str:
        return "the disk is full" if act.action.kind == "rewrite" else ""

    tuned = pursue(tmp_path, breaks=breaks)
    assert tuned.run().status == "completed"
    assert tuned.kinds().count("rewrite") == 2 * 3, "each is tried three times"


def test_a_format_that_could_not_be_made_once_is_made_a_little_later(tmp_path: Path) -> None:
    def breaks(act: Act) -> str:
        return "the disk is full" if act.action.kind == "rewrite" and "rewrite" not in tuned.kinds() else ""

    tuned = pursue(tmp_path, breaks=breaks)
    assert tuned.run().result["applied"]["weights"] == "Q8_0"
    failed, again = (step for step in tuned.steps if step.action.arguments.get("weights") == "Q8_0")
    assert (failed.error, again.error, again.action) == ("the disk is full", "", failed.action)
    assert again.began_s - (failed.ended_s or 0.0) >= 2


def test_an_engine_that_does_not_start_so_is_no_way(tmp_path: Path) -> None:
    def some(way: Way) -> float:
        return 0.0 if way.speculation == "ngram" else rate(way)

    end = pursue(tmp_path, rate=some).run()
    assert "speculation" not in end.result["applied"]
    assert end.result["applied"]["batch_size"] == 256
    assert any(row["measured"].get("error") for row in end.result["tried"])


def test_what_cannot_be_measured_ends_the_goal_after_a_few_tries(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, breaks=lambda act: "no quiet time" if act.action.kind == "measure" else "")
    end = tuned.run()
    assert (end.status, tuned.kinds()) == ("failed", ["measure"] * 3)
    assert "no quiet time" in end.why


def test_one_measurement_that_fails_is_made_again(tmp_path: Path) -> None:
    failed: list[Act] = []

    def breaks(act: Act) -> str:
        if act.action.arguments.get("stage") == "settings" and not failed:
            failed.append(act)
            return "no quiet time"
        return ""

    tuned = pursue(tmp_path, breaks=breaks)
    assert tuned.run().status == "completed"
    number = next(step.number for step in tuned.steps if step.error)
    assert tuned.steps[number].action == failed[0].action


def test_no_way_is_tried_that_would_not_fit(tmp_path: Path) -> None:
    seen = facts(tmp_path)
    limit = seen.bytes(PRESENT) // MB + 1
    tuned = pursue(tmp_path, {"max_memory_mb": limit}, facts={"sizes": {"Q8_0": 10_000 * MB}})
    tuned.run()
    ways = [Way.from_json(way) for step in tuned.steps for way in step.action.arguments.get("ways", ())]
    assert all(seen.bytes(way) <= limit * MB for way in ways if way != PRESENT)
    assert "rewrite" not in tuned.kinds()


def test_a_version_that_was_replaced_meanwhile_is_measured_anew(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"formats": []})
    for _ in range(2):
        decision = tuned.decide()
        assert isinstance(decision, Act)
        tuned.do(decision)
    tuned.facts = replace(tuned.facts, version="v5")
    decision = tuned.decide()
    assert isinstance(decision, Act)
    assert decision.action.arguments["stage"] == "present"
    assert decision.action.arguments["version"] == "v5"


def test_it_waits_where_there_is_no_room_now(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    found = serving.decide(tuned.goal, tuned.seen(refusal="it waits for memory"))
    assert isinstance(found, Wait) and found.why == "it waits for memory"
    asked = serving.decide(tuned.goal, tuned.seen(refusal="a job of another goal", turn=False, taken=True))
    assert isinstance(asked, Act) and asked.heavy, "it waits for its turn"
    assert isinstance(serving.decide(tuned.goal, tuned.seen(facts=None)), Wait)


def begun(tuned: Tuned, until: str) -> Act:
    """The first step of that kind or stage, not done yet."""
    while True:
        decision = tuned.decide()
        assert isinstance(decision, Act)
        if until in (decision.action.kind, decision.action.arguments.get("stage")):
            return decision
        tuned.do(decision)


def test_where_nothing_could_be_measured_now_it_does_not_end(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"formats": []})
    begun(tuned, "settings")
    tuned.facts = replace(tuned.facts, room_bytes=0)
    lent = tuned.seen(refusal="learning jobs are worked on")
    assert serving.decide(tuned.goal, lent) == Wait("learning jobs are worked on", seconds=5.0)
    others = serving.decide(tuned.goal, replace(lent, turn=False, taken=True))
    assert isinstance(others, Wait) and others.turn, "it looks again when it has its turn"
    assert isinstance(tuned.decide(), End), "where nobody has it that could give it back"
    tuned.objective = objective(p95_latency_ms=4000)
    met = serving.decide(tuned.goal, tuned.seen(refusal="learning jobs are worked on"))
    assert isinstance(met, End) and "the present way meets the target" in met.why


def test_a_format_that_does_not_fit_at_this_moment_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    for fits_again in (True, False):
        tuned = pursue(tmp_path, {"formats": ["Q8_0"]})
        begun(tuned, "rewrite")
        room = tuned.facts.room_bytes
        tuned.facts = replace(tuned.facts, room_bytes=tuned.facts.bytes(PRESENT))
        waited = tuned.decide()
        assert isinstance(waited, Wait) and "does not fit at this moment" in waited.why
        tuned.elapsed += 10 if fits_again else 61
        tuned.facts = replace(tuned.facts, room_bytes=room if fits_again else tuned.facts.room_bytes)
        decision = tuned.decide()
        assert isinstance(decision, Act)
        assert (decision.action.kind == "rewrite") is fits_again


def test_what_was_the_best_and_does_not_fit_at_this_moment_is_not_lost(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"formats": ["Q8_0"]})
    begun(tuned, "settings")
    room = tuned.facts.room_bytes
    tuned.facts = replace(tuned.facts, room_bytes=tuned.facts.bytes(PRESENT))
    assert isinstance(tuned.decide(), Wait)
    tuned.facts = replace(tuned.facts, room_bytes=room)
    assert tuned.run().result["applied"]["weights"] == "Q8_0"


def test_what_was_the_best_is_waited_for_only_when_that_was_found(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"formats": ["Q8_0"]})
    begun(tuned, "settings")
    tuned.facts = replace(tuned.facts, room_bytes=tuned.facts.bytes(PRESENT))
    assert isinstance(tuned.decide(), Wait)
    tuned.elapsed += 61
    begun(tuned, "apply")


# --- after it was applied ---
def applied(folder: Path) -> Tuned:
    tuned = pursue(folder)
    while "apply" not in tuned.kinds():
        decision = tuned.decide()
        assert isinstance(decision, Act)
        tuned.do(decision)
    return tuned


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (ModelSeen("m", version="v2", status="failed", message="its engine ended"), "its engine ended"),
        (ModelSeen("m", version="v2", status="loaded", failures=3), "again and again"),
    ],
)
def test_what_fails_while_it_is_watched_is_undone(tmp_path: Path, model: ModelSeen, said: str) -> None:
    tuned = applied(tmp_path)
    tuned.model = model
    end = tuned.run()
    assert end.status == "failed" and said in end.why
    assert tuned.kinds()[-3:] == ["apply", "restore", "discard"]
    restored = tuned.steps[-2].action.arguments
    assert (restored["version"], restored["wish"], restored["tuned"]) == ("v1", "{}", "")
    assert end.result["applied"] == {}
    assert tuned.steps[-1].action.arguments["keep"] == ""


def test_what_fails_after_the_coordinator_has_started_again_counts_from_nothing(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    tuned.model = replace(tuned.model, failures=7)
    while "apply" not in tuned.kinds():
        decision = tuned.decide()
        assert isinstance(decision, Act)
        tuned.do(decision)
    for failures, status in ((9, "completed"), (2, "completed"), (3, "failed"), (10, "failed")):
        again = replace(tuned, steps=[*tuned.steps], progress=[0.0], model=replace(tuned.model, failures=failures))
        assert again.run().status == status


def test_a_model_that_hangs_in_the_watch_is_undone(tmp_path: Path) -> None:
    tuned = applied(tmp_path)
    found = serving.decide(tuned.goal, tuned.seen(facts=Probed(unanswered=3)))
    assert isinstance(found, Act) and found.action.kind == "restore"
    assert "did not answer 3 probes" in found.why
    tuned.elapsed += 31
    for probed in (Probed(asking=True), Probed(unanswered=2)):
        assert isinstance(serving.decide(tuned.goal, tuned.seen(facts=probed)), Wait), "it may hang"
    over = serving.decide(tuned.goal, tuned.seen(facts=Probed()))
    assert isinstance(over, Act) and over.action.kind == "discard"
    tuned.elapsed += 60
    assert serving.decide(tuned.goal, tuned.seen(facts=Probed(asking=True))) == over, "it is not waited for for ever"


def test_it_is_watched_and_undone_where_no_facts_can_be_had(tmp_path: Path) -> None:
    tuned = applied(tmp_path)
    assert isinstance(serving.decide(tuned.goal, tuned.seen(facts=None)), Wait)
    tuned.model = replace(tuned.model, status="failed")
    found = serving.decide(tuned.goal, tuned.seen(facts=None))
    assert isinstance(found, Act) and found.action.kind == "restore"


def test_the_same_is_told_as_long_as_it_is_watched(tmp_path: Path) -> None:
    tuned = applied(tmp_path)
    said = set()
    for _ in range(3):
        found = tuned.decide()
        assert isinstance(found, Wait)
        said.add((found.why, *found.metrics.items()))
        tuned.elapsed += 1
    assert len(said) == 1, "each that is new is written, and told as an event"


def test_what_was_loaded_and_has_failed_is_loaded_again(tmp_path: Path) -> None:
    for before, now, load in (
        ("loaded", "failed", True),
        ("available", "failed", False),
        ("loaded", "available", False),  # somebody has unloaded it
    ):
        tuned = pursue(tmp_path, model=ModelSeen("m", version="v1", status=before))
        while "apply" not in tuned.kinds():
            decision = tuned.decide()
            assert isinstance(decision, Act)
            tuned.do(decision)
        tuned.model = replace(tuned.model, status=now)
        for status in (now, "available"):  # of the second try it is known that it had failed
            tuned.model = replace(tuned.model, status=status)
            found = serving.give_up(tuned.goal, tuned.seen(), Ending("cancelled", "no"))
            assert isinstance(found, Act) and found.action.kind == "restore"
            assert found.action.arguments["load"] is load
            tuned.breaks = lambda act: "no room"
            tuned.do(found)
            assert isinstance(serving.give_up(tuned.goal, tuned.seen(), Ending("cancelled", "no")), Wait)
            tuned.elapsed += 10


def test_an_undoing_that_has_failed_halfway_is_tried_again(tmp_path: Path) -> None:
    tuned, ending = applied(tmp_path), Ending("cancelled", "no")
    tuned.breaks = lambda act: "the time ran out" if act.action.kind == "restore" else ""
    for _ in range(3):
        found = serving.give_up(tuned.goal, tuned.seen(), ending)
        assert isinstance(found, Act) and found.action.kind == "restore"
        tuned.do(found)
        tuned.elapsed += 10
        tuned.model = replace(tuned.model, version="v1")  # it has come so far
    tuned.breaks = lambda act: ""
    found = serving.give_up(tuned.goal, tuned.seen(), ending)
    assert isinstance(found, Act) and found.action.kind == "discard"
    tuned.do(found)
    end = serving.give_up(tuned.goal, tuned.seen(), ending)
    assert isinstance(end, End) and "could not be undone: the time ran out" in end.why


def test_the_files_of_all_versions_that_were_measured_are_cleared_away(tmp_path: Path) -> None:
    present = replace(PRESENT, weights="Q8_0")  # as it is served, quantised
    tuned = pursue(tmp_path, {"formats": []}, facts={"present": present})
    for version in ("v1", "v5"):
        tuned.facts = replace(tuned.facts, version=version)
        decision = tuned.decide()
        assert isinstance(decision, Act)
        tuned.do(decision)
    found = serving.give_up(tuned.goal, tuned.seen(), Ending("cancelled", "no"))
    assert isinstance(found, Act)
    assert found.action.arguments == {"weights": ["Q8_0"], "versions": ["v1", "v5"], "keep": ""}


def test_answers_are_guessed_only_where_real_requests_are_measured(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, {"draft_model_name": "d"}, facts={"real": False})
    assert tuned.run().status == "completed"
    ways = [Way.from_json(way) for step in tuned.steps for way in step.action.arguments.get("ways", ())]
    assert {way.speculation for way in ways} == {""}


def test_a_version_that_somebody_activates_meanwhile_stays(tmp_path: Path) -> None:
    tuned = applied(tmp_path)
    tuned.model = ModelSeen("m", version="v9", status="loaded")
    end = tuned.run()
    assert end.status == "failed" and "another version (v9)" in end.why
    assert tuned.kinds()[-2:] == ["apply", "discard"]
    assert end.result["applied"] == {}
    assert tuned.steps[-1].action.arguments["keep"] == "", "what was applied does not answer any more"


@pytest.mark.parametrize("ending", [None, Ending("cancelled", "not wanted")])
def test_what_somebody_has_asked_to_forget_is_not_undone(tmp_path: Path, ending: Ending | None) -> None:
    tuned = applied(tmp_path)
    seen = tuned.seen(facts=Probed(forgotten=True))
    for kind in ("discard", None):
        found = serving.give_up(tuned.goal, seen, ending) if ending else serving.decide(tuned.goal, seen)
        if kind:
            assert isinstance(found, Act) and found.action.kind == kind
            tuned.do(found)
    assert isinstance(found, End)
    said = "a load asked for it untuned while the applied way was watched, and it is left so"
    assert (found.status, found.why) == (("cancelled", "not wanted") if ending else ("failed", said))
    assert found.result["applied"] == {}


def test_what_could_not_be_applied_three_times_is_undone(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, breaks=lambda act: "it does not start" if act.action.kind == "apply" else "")
    end = tuned.run()
    assert end.status == "failed" and "could not be applied: it does not start" in end.why
    assert tuned.kinds()[-5:] == ["apply"] * 3 + ["restore", "discard"]
    assert end.result["applied"] == {}


def test_what_could_not_be_applied_once_is_applied_a_little_later(tmp_path: Path) -> None:
    def breaks(act: Act) -> str:
        return "memory is short" if act.action.kind == "apply" and "apply" not in tuned.kinds() else ""

    tuned = pursue(tmp_path, breaks=breaks)
    end = tuned.run()
    assert end.status == "completed" and end.result["applied"]["version"] == "v2"
    failed, again = (step for step in tuned.steps if step.action.kind == "apply")
    assert again.action == failed.action
    assert again.began_s - (failed.ended_s or 0.0) >= 2
    assert tuned.elapsed >= (again.ended_s or 0.0) + 30, "it is watched from then on"


def test_what_could_not_be_applied_is_not_applied_over_what_somebody_has_activated(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    tuned.breaks = lambda act: "no" if act.action.kind == "apply" else ""
    tuned.do(begun(tuned, "apply"))
    tuned.elapsed += 60
    tuned.model = replace(tuned.model, version="v9")
    assert tuned.run().status == "failed"
    assert tuned.kinds().count("apply") == 1


def test_what_cannot_be_undone_is_told(tmp_path: Path) -> None:
    tuned = applied(tmp_path)
    tuned.breaks = lambda act: "no room" if act.action.kind == "restore" else ""
    tuned.model = replace(tuned.model, status="failed")
    end = tuned.run()
    assert tuned.kinds().count("restore") == 3
    assert "could not be undone: no room" in end.why


def test_what_was_decided_on_when_it_begins_to_clear_away_is_how_it_ends(tmp_path: Path) -> None:
    tuned = applied(tmp_path)
    tuned.elapsed += 31
    done = tuned.decide()
    assert isinstance(done, Act) and done.action.kind == "discard"
    assert done.ending and done.ending.status == "completed"
    tuned.do(done)
    tuned.model = replace(tuned.model, status="failed")
    end = tuned.run()
    assert (end.status, end.why, end.result["applied"]["version"]) == ("completed", done.ending.why, "v2")
    tuned = applied(tmp_path)
    tuned.model = replace(tuned.model, status="failed", message="its engine ended")
    undone = tuned.decide()
    assert isinstance(undone, Act) and undone.action.kind == "restore"
    assert undone.ending == Ending("failed", "the model failed in the applied way: its engine ended")


def test_what_cannot_be_discarded_is_told(tmp_path: Path) -> None:
    tuned = pursue(tmp_path, breaks=lambda act: "v2 runs still" if act.action.kind == "discard" else "")
    end = tuned.run()
    assert tuned.kinds()[-4:] == ["apply", *["discard"] * 3]
    assert end.status == "completed" and end.why.endswith("; what was made is left: v2 runs still")


def test_a_cancelled_goal_undoes_what_is_watched_and_clears_away(tmp_path: Path) -> None:
    tuned, ending = applied(tmp_path), Ending("cancelled", "not wanted")
    for kind in ("restore", "discard"):
        decision = serving.give_up(tuned.goal, tuned.seen(), ending)
        assert isinstance(decision, Act) and decision.action.kind == kind
        tuned.do(decision)
    end = serving.give_up(tuned.goal, tuned.seen(), ending)
    assert isinstance(end, End)
    assert (end.status, end.why, end.result["applied"]) == ("cancelled", "not wanted", {})
    assert end.result["best"]["way"]["weights"] == "Q8_0", "the best that was measured is told"


def test_a_goal_that_is_cancelled_in_a_round_tells_the_best_so_far(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    while not any(step.action.arguments.get("stage") == "settings" for step in tuned.steps):
        decision = tuned.decide()
        assert isinstance(decision, Act)
        tuned.do(decision)
    decision = serving.give_up(tuned.goal, tuned.seen(), Ending("failed", "limits.max_seconds"))
    assert isinstance(decision, Act)
    tuned.do(decision)
    end = serving.give_up(tuned.goal, tuned.seen(), Ending("failed", "limits.max_seconds"))
    assert isinstance(end, End)
    assert end.result["best"]["way"] == {**PRESENT.to_json(), "weights": "Q8_0", "batch_size": 256}
    assert end.result["gain"] == pytest.approx(1.5 * 1.3, rel=1e-3)
    assert end.result["applied"] == {}


def test_a_goal_that_has_measured_nothing_ends_at_once(tmp_path: Path) -> None:
    tuned = pursue(tmp_path)
    end = serving.give_up(tuned.goal, tuned.seen(), Ending("cancelled", "no"))
    assert end == End("cancelled", "no", {"applied": {}, "tried": []})


# --- the target ---
@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ({}, 0),
        ({"p95_latency_ms": 2000}, 0),
        ({"p95_latency_ms": 1999}, 1),
        ({"min_tokens_per_second": 512}, 0),
        ({"min_tokens_per_second": 513, "max_memory_mb": 99}, 2),
        ({"max_memory_mb": 100}, 0),
    ],
)
def test_targets_are_met_or_missed(target: dict[str, Any], wrong: int) -> None:
    assert len(missed(objective(**target), gives(2.0))) == wrong


def test_the_score_is_how_near_the_farthest_target_is() -> None:
    assert score(objective(), gives(2.0)) == 2.0
    assert score(objective(p95_latency_ms=1000), gives(2.0)) == pytest.approx(0.5)
    assert score(objective(p95_latency_ms=1000, min_tokens_per_second=5120), gives(2.0)) == pytest.approx(0.1)
    assert score(objective(), replace(gives(2.0), requests_per_second=float("nan"))) == 0.0


def test_the_lengths_of_real_requests_are_guessed() -> None:
    requests = [{"input_text": "x" * 400, "max_tokens": 10}, {"input_text": "x" * 800}]
    found = workload_of(objective(workload={"requests": requests, "answer_tokens": 30}))
    assert (found.prompt_tokens, found.answer_tokens) == (150, 20)


# --- whatever the ways give ---
@settings(max_examples=60)
@given(
    rates=st.dictionaries(st.integers(0, 60), st.sampled_from([0.0, 0.3, 0.9, 1.0, 1.01, 1.04, 1.2, 2.0, 5.0])),
    target=st.sampled_from(
        [{}, {"p95_latency_ms": 3500}, {"min_tokens_per_second": 300}, {"max_memory_mb": 40}, {"p95_latency_ms": 1}]
    ),
    workload=st.builds(
        lambda prompt, answer, many: {"prompt_tokens": prompt, "answer_tokens": answer, "concurrency": many},
        st.sampled_from([16, 800, 1800]),
        st.sampled_from([1, 16, 256]),
        st.integers(1, 32),
    ),
    formats=st.lists(st.sampled_from(["Q8_0", "Q4_0", "Q5_0"]), max_size=5),
    sways=st.lists(st.sampled_from([1.0, 1.0, 0.5, 3.0]), min_size=1, max_size=7),
)
def test_a_goal_ends_within_its_measurements_and_applies_only_what_is_better(
    tmp_path_factory: pytest.TempPathFactory,
    rates: dict[int, float],
    target: dict[str, Any],
    workload: dict[str, int],
    formats: list[str],
    sways: list[float],
) -> None:
    def found(way: Way) -> float:
        number = sum(map(ord, way.words(PRESENT))) % 61
        return 1.0 if way == PRESENT else rates.get(number, 1.0)

    tuned: Tuned = pursue(
        tmp_path_factory.getbasetemp(),
        {**target, "workload": workload, "formats": formats, "draft_model_name": "d", "watch_seconds": 1},
        rate=found,
        sways=lambda act: sways[len(tuned.steps) % len(sways)],
    )
    end = tuned.run()
    assert tuned.measurements <= most_measurements(len(formats))
    assert end.status in ("completed", "failed")
    if end.result["applied"]:
        assert end.status == "completed"
        assert end.result["gain"] >= 1.03 or target
        best = serving.ServingFacts.bytes(tuned.facts, Way.from_json(end.result["best"]["way"]))
        assert best <= target.get("max_memory_mb", 4096) * MB
    assert (tuned.kinds()[-1] == "discard") == ("rewrite" in [*_made(tuned)])


def _made(tuned: Tuned) -> list[str]:
    return [step.action.kind for step in tuned.steps if step.action.arguments.get("weights")]
