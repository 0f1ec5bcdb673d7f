"""Which patterns an engine keeps to: it makes a grammar of some, and of all others that the text may be anything. Pure.

Where it makes one it writes the text between two quotes, as it stands: so a quote, a backslash or a control character
that a pattern lets in would make an answer that nobody can read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BACKWARDS = re.compile(r"(?<!\\)\{\s*+\+?([0-9]++)[^,{}]*+,\s*+\+?([0-9]++)")
_PART = re.compile(r"\\.|\[(?:\\.|[^]\\])*+(?:]|\Z)|\((?:\?(?:[:=!]|P?<[=!\w]*>?))?|.", re.DOTALL)
_AGAIN = re.compile(r"[*+?]|\{\s*+\+?([0-9]{0,9})[^,{}]*+(?:(,)\s*+\+?([0-9]{0,9})[^,{}]*+)?\}")
_ENDLESS = 4  # times that a repetition without end counts as
_QUANTIFIER = re.compile(r"[*+?]|\{([0-9]{1,9})(?:(,)([0-9]{1,9})?)?\}")
_HEX = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")
_ESCAPED = frozenset("^$.[]()|{}*+?-")
_ESCAPED_IN_CLASS = frozenset('[]-\\"')
_SPECIAL = frozenset("^$.[]()|{}*+?\\")
_FORBIDDEN = frozenset((*range(0x20), ord('"'), ord("\\"), 0x7F))
_CLASSES = {"d": "[0-9]", "w": "[0-9A-Za-z_]", "s": "[ ]"}  # what stands for those that have a name
_DEEPEST = 50
_MOST_REPEATED = 2000


class Unreadable(ValueError):
    """An engine would not keep to the pattern."""


def backwards(pattern: str) -> bool:
    """Whether there may be a repetition of which the least is more than the most: with it an engine has no end."""
    return any(int(least[:20]) > int(most[:20]) for least, most in _BACKWARDS.findall(pattern))


class _Part(NamedTuple):
    """A part of a pattern, by the rows in it of parts that may be empty: at its begin, at its end, and the longest."""

    empty: bool = True  # as a whole
    lead: int = 0
    trail: int = 0
    most: int = 0

    def then(self, other: _Part) -> _Part:
        lead = self.lead + (other.lead if self.empty else 0)
        trail = other.trail + (self.trail if other.empty else 0)
        most = max(self.most, other.most, self.trail + other.lead)
        return _Part(self.empty and other.empty, lead, trail, most)

    def beside(self, other: _Part) -> _Part:
        empty = self.empty or other.empty
        return _Part(empty, *(max(pair) for pair in zip(self[1:], other[1:], [int(empty)] * 3, strict=True)))

    def repeated(self, least: int, most: int | None) -> _Part:
        if self.empty:
            times = max(least, 1 if self.most == 1 else _ENDLESS) if most is None else most
            row = self.most * max(times, 1)
            return _Part(True, row, row, row)
        row = max(self.most, self.trail + self.lead if most is None or most > 1 else 0)
        return self._replace(most=row) if least else _Part(True, row + 1, row + 1, row + 1)


def emptiest(pattern: str) -> int:
    """How many parts that may be empty follow each other at most, as often as they may come.

    What an engine tries for one token grows with the power of that. Reads any text as a pattern, as an engine might.
    """
    groups: list[tuple[_Part, _Part | None]] = []  # that are open: what came before each, and its alternatives so far
    before, beside, at = _Part(), None, 0
    pattern += ")" * pattern.count("(")  # what is left open ends here
    while found := _PART.match(pattern, at):
        at = found.end()
        if found[0].startswith("("):
            groups.append((before, beside))
            before, beside = _Part(), None
            continue
        if found[0] == "|":
            before, beside = _Part(), before if beside is None else beside.beside(before)
            continue
        part = _Part(empty=False)
        if found[0] == ")" and groups:
            part = before if beside is None else beside.beside(before)
            before, beside = groups.pop()
        while again := _AGAIN.match(pattern, at):
            at = again.end()
            if again[1] is None:
                part = part.repeated(int(again[0] == "+"), 1 if again[0] == "?" else None)
            else:
                least = int(again[1] or 0)
                part = part.repeated(least, (int(again[3]) if again[3] else None) if again[2] else least)
        before = before.then(part)
    return max(before.most, beside.most if beside else 0)


def read(pattern: str) -> None:
    """Raise Unreadable unless every text that comes of the engine's grammar matches."""
    if len(pattern) < 2 or pattern[0] != "^" or pattern[-1] != "$":
        raise Unreadable("must begin with '^' and end with '$'")
    reader = _Reader(pattern[1:-1])
    reader.alternatives(0)
    if reader.at < len(reader.text):
        raise Unreadable("has a ')' too many")


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def alternatives(self, depth: int) -> bool:
        """Read as far as the group goes; whether it may be empty."""
        if depth > _DEEPEST:
            raise Unreadable(f"has more than {_DEEPEST} groups within each other")
        empty = self._sequence(depth)
        while self._next("|"):
            empty = self._sequence(depth) or empty
        return empty

    def _sequence(self, depth: int) -> bool:
        empty = True
        follows = False  # whether what is next belongs to a run of characters, for the engine
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            one = self.text[self.at]
            may_be_empty, run = False, False
            if self._next("("):
                if self._next("?") and not self._next(":"):
                    raise Unreadable("has a group that begins with '(?'")
                may_be_empty = self.alternatives(depth + 1)
                if not self._next(")"):
                    raise Unreadable("has a '(' too many")
            elif self._next("["):
                self._class()
            else:
                run = True
                self._character()
            repeated = self._repeated()
            if repeated is not None:
                if may_be_empty:
                    raise Unreadable("repeats what may be empty")
                # An engine repeats all of a run that ends with an escape, and of a longer character the last byte.
                if run and (ord(one) > 0x7F or (one == "\\" and follows)):
                    raise Unreadable("repeats a character that is escaped, or no ASCII: put it into brackets")
                run, may_be_empty = False, repeated
            follows = run
            empty = empty and may_be_empty
        return empty

    def _next(self, sign: str) -> bool:
        found = self.text.startswith(sign, self.at)
        self.at += found
        return found

    def _character(self) -> None:
        one = self.text[self.at]
        if one == "\\":
            _allowed(self._escape(_ESCAPED))
            return
        if one == ".":
            raise Unreadable("'.' lets quotes and backslashes in: write brackets with what may be there")
        if one in _SPECIAL:
            raise Unreadable(f"has a '{one}' that is neither escaped nor in its place")
        _allowed(ord(one))
        self.at += 1

    def _escape(self, known: frozenset[str]) -> int:
        if found := _HEX.match(self.text, self.at):
            self.at = found.end()
            return int(found[1] or found[2], 16)
        escaped = self.text[self.at + 1 : self.at + 2]
        if not escaped or escaped not in known:
            instead = f": write {_CLASSES[escaped]}" if escaped in _CLASSES else ""
            raise Unreadable(f"'\\{escaped}' is no escape that it takes{instead}")
        self.at += 2
        return ord(escaped)

    def _class(self) -> None:
        negated = self._next("^")
        ranges: list[tuple[int, int]] = []
        while not self._next("]"):
            low = self._member()
            high = low
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self._member()
            if low > high:
                raise Unreadable("has a range backwards")
            ranges.append((low, high))
        if not ranges:
            raise Unreadable("has empty brackets")
        inside = {code for code in _FORBIDDEN if any(low <= code <= high for low, high in ranges)}
        if (negated and len(inside) < len(_FORBIDDEN - {0x7F})) or (not negated and inside):
            raise Unreadable("has brackets that let quotes, backslashes or control characters in")

    def _member(self) -> int:
        if self.at >= len(self.text):
            raise Unreadable("has a '[' too many")
        one = self.text[self.at]
        if one == "\\":
            return self._escape(_ESCAPED_IN_CLASS)
        self.at += 1
        return ord(one)

    def _repeated(self) -> bool | None:
        """Whether what is read now may be empty by how often it comes; None: it comes once."""
        found = _QUANTIFIER.match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        least, several, most = found[1], found[2], found[3]
        if self.text[self.at : self.at + 1] in ("*", "+", "?", "{"):
            raise Unreadable("has two repetitions of the same")
        if least is None:
            return found[0] != "+"
        if int(least) > _MOST_REPEATED or (several and most and int(most) < int(least)):
            raise Unreadable(f"has a repetition of more than {_MOST_REPEATED}")
        return int(least) == 0


def _allowed(code: int) -> None:
    if code in _FORBIDDEN:
        raise Unreadable("has a quote, a backslash or a control character")
