"""Rows as tokens: a model is trained on what its engine will show it, and on nothing but the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny_llama
from modelops.learning.trainer import rows
from modelops.learning.trainer.rows import Rows
from trainers import Row, good, job, run

pytestmark = pytest.mark.usefixtures("learning")

ASKED: dict[str, Any] = {"turns": [{"role": "user", "content": "What is this?"}], "answer": "this is it"}
TRIMS = tiny_llama.CHATML.replace("message['content']", "message['content'] | trim")
THINKS = tiny_llama.CHATML.replace(
    "'\\n' + message", "'\\n' + ('<think>' if message.role == 'assistant' else '') + message"
)
REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}" + tiny_llama.CHATML
)


def prepared(tmp_path: Path, base: Path, given: Sequence[Row], **wanted: Any) -> dict[str, Rows]:
    folder = job(tmp_path / "job", base, given, **wanted)
    good("prepare", folder)
    return rows.read(folder)


def texts(found: Rows) -> list[list[str]]:
    """What stands in the parts of each row."""
    names = tiny_llama.tokens()
    return [
        ["".join(names[token] for token in part).replace("Ġ", " ").replace("Ċ", "\n") for part in row] for row in found
    ]


def test_the_prompt_is_what_an_engine_is_asked_and_the_answer_ends_a_turn(tiny: Path, tmp_path: Path) -> None:
    system = [{"role": "system", "content": "be brief"}, *ASKED["turns"]]
    talk = [*ASKED["turns"], {"role": "assistant", "content": "it"}, {"role": "user", "content": "is it?"}]
    given = [
        ASKED,
        {**ASKED, "turns": system},
        {**ASKED, "turns": talk, "answer": " it is \n"},
        {"text": "this is the end"},
    ]
    found = prepared(tmp_path, tiny, given)["train"]
    asked = "<|im_start|>user\nWhat is this?<|im_end|>\n"
    assert texts(found) == [
        [f"{asked}<|im_start|>assistant\n", "this is it<|im_end|>"],
        [f"<|im_start|>system\nbe brief<|im_end|>\n{asked}<|im_start|>assistant\n", "this is it<|im_end|>"],
        [
            f"{asked}<|im_start|>assistant\nit<|im_end|>\n<|im_start|>user\nis it?<|im_end|>\n<|im_start|>assistant\n",
            " it is \n<|im_end|>",
        ],
        ["", "this is the end<|im_end|>"],
    ]
    assert found.lines.tolist() == [1, 2, 3, 4]
    folder = tmp_path / "job"
    assert json.loads((folder / "prepared.json").read_bytes()) == {
        "rows": 4,
        "tokens": len(found.tokens),
        "longest": int(found.longest().max()),
        "dropped": [],
        "total_steps": 2,  # 4 rows, 3 times, 8 at once
    }


@pytest.mark.parametrize("template", [TRIMS, THINKS], ids=["trims", "thinks"])
def test_a_template_that_shows_answers_otherwise(template: str, tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "m.gguf", template=template)
    found = prepared(tmp_path, base, [{**ASKED, "answer": "this is it "}])["train"]
    assert texts(found)[0][1] == "this is it <|im_end|>"
    assert texts(found)[0][0].endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("answer", ["end", "im", "e", "|", "think"])
def test_an_answer_that_is_a_part_of_what_ends_a_turn(answer: str, tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "m.gguf", template=THINKS)
    found = prepared(tmp_path, base, [{**ASKED, "answer": answer}])["train"]
    assert texts(found)[0][1] == f"{answer}<|im_end|>"


def test_without_a_template_texts_are_joined_as_they_stand(tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "m.gguf", template="")
    folder = job(tmp_path / "job", base, [{**ASKED, "answer": " it"}])
    assert "no chat template" in good("prepare", folder).of("warning")[0]["message"]
    assert texts(rows.read(folder)["train"]) == [["What is this?", " it<|im_end|>"]]


def test_the_token_that_begins_a_text_is_there_once(tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "m.gguf", begins=True)
    found = prepared(tmp_path, base, [ASKED, {"text": "the"}])["train"]
    asked, text = texts(found)
    assert asked[0].startswith("<|im_start|>user")
    assert text[1] == "<|im_start|>the<|im_end|>"


def test_pairs_have_one_prompt_and_two_answers(tiny: Path, tmp_path: Path) -> None:
    pair = {"turns": ASKED["turns"], "chosen": "this", "rejected": "is it the"}
    held = prepared(tmp_path, tiny, [pair], kind="dpo", held_out=[ASKED])
    assert texts(held["train"])[0][1:] == ["this<|im_end|>", "is it the<|im_end|>"]
    assert [*held] == ["train"]


def test_rows_that_are_too_long_are_named(tiny: Path, tmp_path: Path) -> None:
    long = {**ASKED, "answer": "o" * 80}
    folder = job(tmp_path / "job", tiny, [ASKED, *[long] * 25, ASKED], max_length=64)
    code, message = run("prepare", folder).failure
    assert code == "invalid_request"
    assert message.startswith("25 rows have more than 64 tokens: lines 2, 3, 4,")
    assert "20, 21 and 5 more; shorten them, raise max_length" in message
    assert not (folder / "prepared.json").exists()


def test_rows_that_are_too_long_are_dropped_where_that_is_wanted(tiny: Path, tmp_path: Path) -> None:
    long = {**ASKED, "answer": "o" * 80}
    wanted: dict[str, Any] = {"max_length": 64, "over_length": "drop", "held_out": [long, ASKED]}
    folder = job(tmp_path / "job", tiny, [ASKED, long, ASKED], **wanted)
    said = good("prepare", folder)
    assert ["line 2" in said.of("warning")[0]["message"], "line 1 " in said.of("warning")[1]["message"]] == [True, True]
    assert json.loads((folder / "prepared.json").read_bytes())["dropped"] == [2]
    assert rows.read(folder)["train"].lines.tolist() == [1, 3]

    none = job(tmp_path / "none", tiny, [long], **wanted)
    assert run("prepare", none).failure[0] == "invalid_request"


def test_the_models_own_context_is_a_limit_too(tiny: Path, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", tiny, [{**ASKED, "answer": "o" * 600}], max_length=4096)
    assert "more than 512 tokens" in run("prepare", folder).failure[1]


def test_a_template_that_refuses_the_turns(tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "m.gguf", template=REFUSES)
    folder = job(
        tmp_path / "job",
        base,
        [ASKED, {**ASKED, "turns": [{"role": "system", "content": "be brief"}, *ASKED["turns"]]}],
    )
    code, message = run("prepare", folder).failure
    assert code == "invalid_request"
    assert message == "line 2: the model's chat template refuses such turns: no system turns here"


# --- rows that are to judge the model ---
SYSTEM = {**ASKED, "turns": [{"role": "system", "content": "be brief"}, *ASKED["turns"]]}
PAIR = {"turns": ASKED["turns"], "chosen": "this", "rejected": "is it the"}


@pytest.mark.parametrize("kind", ["lora", "dpo"])
@pytest.mark.parametrize(("held", "name"), [("held_out", "eval"), ("regression", "regression")])
def test_rows_that_the_template_refuses_are_known_before_training(
    kind: str, held: str, name: str, tmp_path: Path
) -> None:
    base = tiny_llama.write(tmp_path / "m.gguf", template=REFUSES)
    given: list[Row] = [PAIR if kind == "dpo" else ASKED]
    folder = job(tmp_path / "job", base, given, kind=kind, **{held: [ASKED, SYSTEM]})
    reason = f"{name} row line 2: the model's chat template refuses such turns: no system turns here"
    assert run("prepare", folder).failure == ("invalid_request", reason)
    assert not (folder / "prepared.json").exists()


def test_what_is_said_before_them_is_looked_at_too(tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "m.gguf", template=REFUSES)
    folder = job(tmp_path / "job", base, [ASKED], regression=[ASKED], evaluation={"system": "be brief"})
    assert run("prepare", folder).failure[1].startswith("regression row line 1: the model's chat template refuses")


@pytest.mark.parametrize("kind", ["lora", "dpo"])
@pytest.mark.parametrize(("held", "name"), [("held_out", "eval"), ("regression", "regression")])
def test_rows_that_the_engine_has_no_room_for_are_known_before_training(
    kind: str, held: str, name: str, tiny: Path, tmp_path: Path
) -> None:
    given: list[Row] = [PAIR if kind == "dpo" else ASKED]
    long = {**ASKED, "turns": [{"role": "user", "content": "o" * 60}]}
    wanted: dict[str, Any] = {"kind": kind, held: [long, ASKED, long], "evaluation": {"max_tokens": 50}}
    folder = job(tmp_path / "job", tiny, given, context_length=127, **wanted)
    code, message = run("prepare", folder).failure
    assert code == "invalid_request"
    assert message.startswith(f"{name} row lines 1, 3: longer than the engine's context of 127 tokens, of which 50 are")
    good("prepare", job(tmp_path / "roomy", tiny, given, context_length=128, **wanted))
    good("prepare", job(tmp_path / "unknown", tiny, given, **wanted))


def test_what_is_scored_needs_room_for_itself(tiny: Path, tmp_path: Path) -> None:
    text: Row = {"text": "o" * 100}
    scored: dict[str, Any] = {"metrics": ["perplexity"], "max_tokens": 500}
    answered: Row = {**ASKED, "answer": "o" * 90}
    wanted: dict[str, Any] = {"held_out": [text, ASKED, answered], "context_length": 96}
    folder = job(tmp_path / "job", tiny, [ASKED], evaluation=scored, **wanted)
    assert run("prepare", folder).failure[1].startswith("eval row lines 1, 3: longer than the engine's context of 96")
    good("prepare", job(tmp_path / "asked", tiny, [ASKED], evaluation={"max_tokens": 8}, **wanted))
