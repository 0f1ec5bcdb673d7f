"""Rows: what is taken, what is refused and how that is told, and the one form in which they are kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelops.api.errors import DiskFull, InvalidRequest, NotFound
from modelops.learning import datasets
from modelops.learning.datasets import (
    Example,
    Overlap,
    Preference,
    duplicates,
    load,
    overlap,
    plain,
    read,
    resolve,
    write,
)

PAIR = {"prompt": "Capital of France?", "completion": "Paris"}
BETTER = {"prompt": "Capital of France?", "chosen": "Paris", "rejected": "Rome"}
ASKED = ({"role": "user", "content": "Capital of France?"},)
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SECRET = "s3cret-value"


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def refusal(source: bytes | list[Any], job_type: Any = "lora") -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(source, job_type, "dataset")
    return caught.value.message


# --- what is taken ---
@pytest.mark.parametrize("job_type", ["lora", "evaluate"])
def test_every_kind_of_row_may_stand_in_one_set(job_type: Any) -> None:
    conversation = {"messages": [SYSTEM, USER, ANSWER, USER, {"role": "assistant", "content": "Again"}]}
    dataset = read(jsonl(PAIR, PAIR | {"system": "Be brief."}, conversation, {"text": "Once"}), job_type, "dataset")
    assert dataset.rows == (
        Example(1, ASKED, "Paris"),
        Example(2, (SYSTEM, *ASKED), "Paris"),
        Example(3, (SYSTEM, USER, ANSWER, USER), "Again"),
        Example(4, text="Once"),
    )


def test_preferences_have_a_prompt_or_turns() -> None:
    turns = {"prompt": [SYSTEM, USER], "chosen": "Hello", "rejected": "Go away"}
    assert read(jsonl(BETTER, turns), "dpo", "dataset").rows == (
        Preference(1, ASKED, "Paris", "Rome"),
        Preference(2, (SYSTEM, USER), "Hello", "Go away"),
    )


def test_rows_of_a_request_are_taken_as_those_of_a_file() -> None:
    rows = [PAIR, {"text": "Once"}]
    assert read(rows, "lora", "dataset") == read(jsonl(*rows), "lora", "dataset")


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_change_no_row() -> None:
    line = json.dumps(PAIR).encode()
    dataset = read(b"\xef\xbb\xbf" + line + b"\r\n\r\n \t\n" + line, "lora", "dataset")
    assert [row.line for row in dataset.rows] == [1, 4]
    assert {row.answer for row in dataset.rows} == {"Paris"}


def test_texts_are_kept_as_they_stand() -> None:
    text = "  two\u2028lines,\nthree 🇫🇷  "
    for source in (jsonl({"text": text}), json.dumps({"text": text}, ensure_ascii=False).encode()):
        assert read(source, "lora", "dataset").rows == (Example(1, text=text),)


# --- what is refused ---
@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "caf\xe9"}', "is not valid UTF-8, at byte 14"),
        ("Ｔ".encode("utf-16"), "is not valid UTF-8, at byte 1"),
        (b'{"text": "a\\ud800"}', "is no JSON: unexpected end of hex escape at column 18"),
        (b'{"text": ', "is no JSON: EOF while parsing a value at column 9"),
        (b'{"text": "a"} {}', "is no JSON: trailing characters at column 15"),
        (b"[" * 5000, "is no JSON: recursion limit exceeded at column"),
        (b"[]", "is no JSON object"),
        (b"null", "is no JSON object"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_number(line: bytes, why: str) -> None:
    source = jsonl(PAIR) + line + b"\n" + jsonl(PAIR)
    assert refusal(source).startswith(f"dataset: line 2: {why}")


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {}, "has none of: messages; prompt and completion; text"),
    ("lora", {"prompt": SECRET}, "completion is missing"),
    ("lora", {"completion": SECRET}, "prompt is missing"),
    ("lora", PAIR | {"id": SECRET}, "unknown field 'id'; prompt and completion may stand here"),
    ("lora", BETTER, "unknown field 'chosen'; prompt and completion may stand here"),
    ("lora", {"text": "a", "prompt": "b"}, "unknown field 'prompt'; text may stand here"),
    ("lora", PAIR | {"prompt": 1}, "prompt must be a text"),
    ("lora", PAIR | {"prompt": None}, "prompt must be a text"),
    ("lora", PAIR | {"completion": [SECRET]}, "completion must be a text"),
    ("lora", PAIR | {"completion": ""}, "completion is empty"),
    ("lora", PAIR | {"system": " \n"}, "system is empty"),
    ("lora", {"text": "\t"}, "text is empty"),
    ("lora", {"text": f"{SECRET}\0"}, "text holds a NUL character"),
    ("lora", {"messages": SECRET}, "messages must be a list of messages"),
    ("lora", {"messages": []}, "messages is empty"),
    ("lora", {"messages": [SECRET]}, "messages[0] must be an object with role and content"),
    ("lora", {"messages": [{"role": "user"}]}, "messages[0]: content is missing"),
    ("lora", {"messages": [USER | {"name": SECRET}]}, "messages[0]: unknown field 'name'; role and content may"),
    ("lora", {"messages": [{"role": SECRET, "content": "a"}]}, "messages[0].role must be system, user or assistant"),
    ("lora", {"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role must be system, user or assistant"),
    ("lora", {"messages": [USER, {"role": "assistant", "content": ""}]}, "messages[1].content is empty"),
    ("lora", {"messages": [USER, ANSWER, USER]}, "messages must end with the assistant's turn, which is the answer"),
    ("lora", {"messages": [ANSWER]}, "messages must have a user's turn last before the answer"),
    ("lora", {"messages": [USER, SYSTEM, ANSWER]}, "messages[1]: the system's turn must be the first"),
    ("evaluate", {"messages": [SYSTEM, ANSWER]}, "messages must have a user's turn last before the answer"),
    ("dpo", PAIR, "unknown field 'completion'; prompt, chosen and rejected may stand here"),
    ("dpo", {"text": SECRET}, "unknown field 'text'; prompt, chosen and rejected may stand here"),
    ("dpo", {"prompt": SECRET, "chosen": SECRET}, "rejected is missing"),
    ("dpo", BETTER | {"prompt": {}}, "prompt must be a text, or a list of messages"),
    ("dpo", BETTER | {"prompt": [USER, ANSWER]}, "prompt must have a user's turn last"),
    ("dpo", BETTER | {"chosen": 1.5}, "chosen must be a text"),
    ("dpo", BETTER | {"rejected": "Paris"}, "chosen and rejected are the same"),
]


@pytest.mark.parametrize(("job_type", "row", "why"), FAULTS)
def test_a_row_that_is_wrong_is_told_with_its_number_and_without_its_values(
    job_type: str, row: dict[str, Any], why: str
) -> None:
    good = BETTER if job_type == "dpo" else PAIR
    for source, word in ((jsonl(good, row), "line"), ([good, row], "row")):
        said = refusal(source, job_type)
        assert said.startswith(f"dataset: {word} 2: {why}")
        assert SECRET not in said


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"prompt": "a", "completion": "b", "prompt": "c"}', "line 2: has 'prompt' twice"),
        (b'{"text": "a", "te\\u0078t": "a"}', "line 2: has 'text' twice"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "line 2: has 'content' twice"),
    ],
)
def test_what_would_be_lost_is_told(line: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        read(b'{"text": "\\"text\\": \\"text\\":"}\n' + line, "lora", "rows")


def test_rows_of_a_request_may_hold_what_json_cannot() -> None:
    assert refusal([{"text": "a\ud800"}]) == ("dataset: row 1: text is not valid Unicode: it holds a lone surrogate")
    assert refusal([{"a\ud800": 1, "text": "b"}]).encode()
    assert refusal(["text"]) == "dataset: row 1: is no JSON object"


def test_of_many_faults_some_are_told_and_the_others_counted() -> None:
    said = refusal(jsonl(*([{"text": ""}] * 3), PAIR, *([{"prompt": "a"}] * 9)))
    assert said.count("line") == 5
    assert "line 3: text is empty; line 5: completion is missing; " in said
    assert said.endswith("; and 7 more")


@pytest.mark.parametrize("source", [b"", b"\n \n", b"\xef\xbb\xbf", []])
def test_an_empty_set_is_refused(source: bytes | list[Any]) -> None:
    assert refusal(source) == "dataset has no rows; it takes one at least"


@given(st.binary(max_size=60))
@example(b"\xff\n{}")
@example(b'{"text":1e999}')
def test_whatever_a_file_holds_it_is_read_or_refused(source: bytes) -> None:
    for job_type in ("lora", "dpo"):
        try:
            assert read(source, job_type, "dataset").rows
        except InvalidRequest as error:
            assert error.message.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.sampled_from(["messages", "prompt", "completion", "system", "text", "chosen", "rejected"])


@given(st.lists(st.dictionaries(fields, json_values, max_size=4), max_size=3), st.sampled_from(["lora", "dpo"]))
def test_whatever_a_request_holds_it_is_read_or_refused(rows: list[dict[str, Any]], job_type: Any) -> None:
    try:
        assert read(rows, job_type, "dataset").rows
    except InvalidRequest as error:
        assert error.message.encode()


# --- the form that they are kept in ---
@pytest.mark.parametrize(
    ("job_type", "rows"),
    [("lora", [PAIR, {"messages": [SYSTEM, USER, ANSWER]}, {"text": "Señor 🇪🇸"}]), ("dpo", [BETTER])],
)
def test_what_is_written_is_what_is_read_back(tmp_path: Path, job_type: Any, rows: list[Any]) -> None:
    dataset = read(rows, job_type, "dataset")
    file = tmp_path / "train.jsonl"
    file.write_text("what was there before")
    write(dataset, file)
    assert load(file, job_type) == list(dataset.rows)
    kept = file.read_bytes()
    assert dataset.digest == f"sha256:{hashlib.sha256(kept).hexdigest()}"
    assert dataset.size == len(kept)


def test_a_set_that_is_kept_is_the_same_set(tmp_path: Path) -> None:
    dataset = read([PAIR, {"messages": [SYSTEM, USER, ANSWER]}, {"text": "Señor 🇪🇸"}], "lora", "dataset")
    write(dataset, tmp_path / "train.jsonl")
    assert datasets.kept(tmp_path / "train.jsonl") == dataset
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_the_form_is_one_object_a_line(tmp_path: Path) -> None:
    write(read(b"\n" + jsonl({"completion": "Paris", "prompt": "é?"}), "lora", "dataset"), tmp_path / "train.jsonl")
    expected = '{"line":2,"turns":[{"role":"user","content":"é?"}],"answer":"Paris"}\n'
    assert (tmp_path / "train.jsonl").read_text() == expected


def test_the_digest_is_that_of_the_rows_and_not_of_how_they_are_written() -> None:
    spaced = json.dumps({"completion": "Paris", "prompt": "Capital of France?"}, indent=None).encode() + b"   \r\n"
    assert read(spaced, "lora", "dataset").digest == read(jsonl(PAIR), "lora", "dataset").digest
    assert read(jsonl(PAIR | {"completion": "Rome"}), "lora", "dataset").digest != read(spaced, "lora", "d").digest


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "train.jsonl"
    file.write_text("before")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskFull, match="1 MB are needed"):
        write(read([PAIR], "lora", "dataset"), file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


# --- where files are ---
@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    for name in ("one", "two", "outside"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / f"{name}.jsonl").write_bytes(jsonl(PAIR))
    (tmp_path / "linked").symlink_to(tmp_path / "two")
    return [tmp_path / "one", tmp_path / "linked"]


def test_a_file_is_found_under_any_root(roots: list[Path]) -> None:
    two = roots[0].parent / "two" / "deep" / "two.jsonl"
    assert resolve("deep/one.jsonl", roots) == roots[0] / "deep" / "one.jsonl"
    assert resolve("deep/two.jsonl", roots) == two
    assert resolve(str(two), roots) == two
    assert resolve(str(roots[1] / "deep" / "two.jsonl"), roots) == two
    (roots[0] / "link.jsonl").symlink_to(two)  # from one root into the other
    assert resolve("link.jsonl", roots) == two


@pytest.mark.parametrize("path", ["../outside/deep/outside.jsonl", "/etc/passwd", "out.jsonl", "/", ".."])
def test_what_is_outside_the_roots_is_refused_without_a_word_of_where(roots: list[Path], path: str) -> None:
    (roots[0] / "out.jsonl").symlink_to(roots[0].parent / "outside" / "deep" / "outside.jsonl")
    with pytest.raises(InvalidRequest) as caught:
        resolve(path, roots[:1], "eval_dataset_path")
    assert caught.value.message == (
        "eval_dataset_path leads outside the dataset roots; put the file under one of them, or add its folder to "
        "learning.roots"
    )


@pytest.mark.parametrize("path", ["deep", "deep/nobody.jsonl", "pipe", ""])
def test_what_is_no_file_is_not_found(roots: list[Path], path: str) -> None:
    os.mkfifo(roots[0] / "pipe")
    with pytest.raises(NotFound) as caught:
        resolve(path, roots)
    assert caught.value.message == "dataset_path: there is no such file under the dataset roots"


def test_a_link_that_leads_outside_leads_nowhere(roots: list[Path]) -> None:
    (roots[0] / "out").symlink_to(roots[0].parent / "outside")
    with pytest.raises(NotFound):  # it might be under the other one
        resolve("out/deep/outside.jsonl", roots)


@pytest.mark.parametrize("path", ["loop", "a\0b", "a" * 5000])
def test_what_no_file_system_takes_is_no_path(roots: list[Path], path: str) -> None:
    (roots[0] / "loop").symlink_to(roots[0] / "loop")
    with pytest.raises((InvalidRequest, NotFound)):
        resolve(path, roots)


def test_without_roots_everything_is_outside() -> None:
    with pytest.raises(InvalidRequest, match="outside the dataset roots"):
        resolve("/etc/passwd", [])


# --- what rows have in common ---
def test_repeated_rows_are_found_whatever_their_case_and_spaces() -> None:
    rows = [PAIR, {"text": "Once"}, {"prompt": " CAPITAL of\nFrance? ", "completion": "paris"}, {"text": "once "}]
    rows += [PAIR | {"completion": "Rome"}, PAIR | {"system": "Be brief."}, PAIR]
    assert duplicates(read(rows, "lora", "dataset").rows) == [(1, 3), (2, 4), (1, 7)]
    worse = BETTER | {"rejected": "Oslo"}
    assert duplicates(read([BETTER, worse, BETTER], "dpo", "dataset").rows) == [(1, 3)]


def test_held_out_rows_that_are_trained_on_are_found() -> None:
    train = read([PAIR, {"text": "Once"}, {"prompt": "Of Italy?", "completion": "Rome"}], "lora", "dataset").rows
    held_out = [{"prompt": "capital of france?", "completion": "PARIS"}, {"prompt": "Of Italy?", "completion": "Milan"}]
    held_out += [{"prompt": "Of Spain?", "completion": "Paris"}, {"text": "ONCE"}]
    found = overlap(train, read(held_out, "evaluate", "dataset").rows)
    assert found == Overlap(rows=((1, 1), (2, 4)), prompts=((3, 2),))


def test_held_out_rows_are_compared_with_the_better_answers() -> None:
    train = read([BETTER], "dpo", "dataset").rows
    held_out = read([PAIR, PAIR | {"completion": "Rome"}], "evaluate", "dataset").rows
    assert overlap(train, held_out) == Overlap(rows=((1, 1),), prompts=((1, 2),))


def test_turns_without_a_template_follow_each_other() -> None:
    assert plain(ASKED) == "Capital of France?"
    assert plain([SYSTEM, USER]) == "Be brief.Hi"
