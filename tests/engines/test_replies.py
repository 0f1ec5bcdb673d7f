"""From the forced form to calls and text: the same in whichever pieces it comes."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from modelops.engines.base import CallPart, Piece
from modelops.engines.replies import Reader, Value, unescaped

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS, JSON, max_size=3)), min_size=1, max_size=3)
CUTS = st.lists(st.integers(0, 400), max_size=12)
INDENTS = st.sampled_from([None, 0, 2])


def read(text: str, cuts: list[int], stop: tuple[str, ...] = (), finish: str = "stop") -> list[Piece]:
    ids = (f"id{number}" for number in itertools.count())
    reader = Reader(stop, lambda: next(ids))
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [reader.read(Piece(text[one:two])) for one, two in itertools.pairwise(places)]
    return [*pieces, reader.read(Piece("", finish=finish))]


def said(pieces: list[Piece]) -> tuple[str, list[tuple[str, str, str]], str]:
    """The text, the calls, each whole, and why it ended."""
    calls: dict[int, CallPart] = {}
    for part in (part for piece in pieces for part in piece.calls):
        if part.name or part.id:
            assert part.index == len(calls), "an id and a name begin each call, once"
            calls[part.index] = part
        else:
            known = calls[part.index]
            calls[part.index] = CallPart(known.index, known.id, known.name, known.arguments + part.arguments)
    whole = [(call.id, call.name, call.arguments) for call in calls.values()]
    return "".join(piece.text for piece in pieces), whole, pieces[-1].finish


@given(CALLS, CUTS, INDENTS, st.booleans())
def test_calls(calls: list[tuple[str, Any]], cuts: list[int], indent: int | None, ascii_only: bool) -> None:
    forms = [{"name": name, "arguments": arguments} for name, arguments in calls]
    for told in (forms, forms[0]):
        written = json.dumps(told, indent=indent, ensure_ascii=ascii_only)
        text, found, finish = said(read(written, cuts))
        assert said(read(f"```json\n{written}\n```", cuts)) == (text, found, finish)
        expected = calls if told is forms else calls[:1]
        assert (text, finish) == ("", "tool_calls")
        assert [(name, json.loads(arguments)) for _, name, arguments in found] == expected
        assert [one for one, _, _ in found] == [f"id{number}" for number in range(len(expected))]


@given(JSON, CUTS)
@example(12, [1, 2])
@example("a\\", [1])
def test_whatever_arguments_are_their_end_is_found(value: Any, cuts: list[int]) -> None:
    written = json.dumps(value)
    ((_, name, arguments),) = said(read(f'{{"name": "f", "arguments": {written}\n}}', [cut + 26 for cut in cuts]))[1]
    assert (name, arguments) == ("f", written)


@given(TEXTS, CUTS, INDENTS, st.booleans())
@example('"\\/\b\f\n\r\t🥊', [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32], None, True)
def test_a_text(text: str, cuts: list[int], indent: int | None, ascii_only: bool) -> None:
    told = json.dumps({"response": text}, indent=indent, ensure_ascii=ascii_only)
    for whole in (told, f"\n```json\n{told}\n```"):
        assert said(read(whole, cuts)) == (text, [], "stop")
        assert said(read(whole, cuts, finish="length")) == (text, [], "length")


@given(TEXTS)
def test_a_text_comes_as_it_is_made(text: str) -> None:
    told = json.dumps({"response": text}, ensure_ascii=False)
    pieces = read(told, list(range(len(told))))
    assert [piece.text for piece in pieces if piece.text] == list(text)


@given(st.text("aAbc\ud83d\ude00\udfff", max_size=8), CUTS)
def test_half_a_pair_is_no_character_and_never_waited_for(text: str, cuts: list[int]) -> None:
    told = "".join(f"\\u{ord(char):04x}" for char in text)
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    found = said(read(f'{{"response": "{told}"}}', cuts))[0]
    assert found == "".join("\ufffd" if 0xD800 <= ord(char) < 0xE000 else char for char in _paired(text))
    assert found.replace("\ufffd", "") == expected.replace("\ufffd", "")


def _paired(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3), CUTS)
def test_it_ends_before_the_first_stop_sequence(text: str, stop: list[str], cuts: list[int]) -> None:
    ends = [(at + len(one), at) for one in stop if (at := text.find(one)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    for told in (json.dumps({"response": text}), text.lstrip() + "."):
        if told.startswith("{"):
            assert said(read(told, cuts, tuple(stop), "length" if not ends else "stop"))[0] == expected


def test_no_stop_sequence_is_looked_for_in_calls() -> None:
    call = '{"name": "add", "arguments": {"a": "stop"}}'
    assert said(read(call, [], ("name", "stop"))) == ("", [("id0", "add", '{"a": "stop"}')], "tool_calls")


def test_once_it_has_stopped_nothing_counts() -> None:
    reader = Reader(("b",), str)
    assert reader.read(Piece('{"response": "aabc')) == Piece("aa", finish="stop")
    assert reader.stopped
    assert reader.read(Piece('d"}')).text == ""


@given(st.dictionaries(TEXTS, JSON, max_size=3), st.integers(0, 400))
def test_one_that_is_cut_short_has_what_there_was(arguments: Any, length: int) -> None:
    told = json.dumps({"name": "add", "arguments": arguments}, ensure_ascii=False)[:length]
    text, calls, finish = said(read(told, [], finish="length"))
    assert (text, finish) == ("", "length")
    for _, name, found in calls:
        assert name == "add"
        assert told.endswith((found, found + "}", found + "\\"))


@given(TEXTS, CUTS)
def test_what_has_no_such_form_is_a_text(text: str, cuts: list[int]) -> None:
    told = f"So: {text}"
    assert said(read(told, cuts)) == (told, [], "stop")


@given(st.text('{}[]":,\\u \nabd0name response', max_size=60), CUTS)
def test_nothing_breaks_it_and_no_cut_matters(text: str, cuts: list[int]) -> None:
    for head in ("", '{"response": "', '{"name": "a", "arguments": '):
        assert said(read(head + text, cuts)) == said(read(head + text, []))


def test_reasoning_passes() -> None:
    piece = Piece("", reasoning="Hm.")
    assert Reader((), str).read(piece) == piece


def test_an_escape_that_is_not_whole_is_left() -> None:
    for text in ("a\\", "a\\u", "a\\u00e", "a\\ud83d", "a\\ud83d\\", "a\\ud83d\\ude0"):
        assert unescaped(text) == ("a", 1, False)
    assert Value().take('{"a\\') == (3, False)
