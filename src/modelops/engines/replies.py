"""From answers in the form that `calling` forces to calls and text again, as they come. Pure but for new ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from modelops.engines.base import CallPart, Piece

#: What comes before a name or a text: the end of what came before, and a key.
_OPENING = re.compile(r'[\s\[\]{},]*"(name|response)"\s*:\s*"')
_ARGUMENTS = re.compile(r'\s*,\s*"arguments"\s*:\s*(?=\S)')
_FENCE = "```json"  # which llama.cpp lets a model write around an answer that has to be JSON
_STRUCTURE = re.compile(r'["{}\[\]]')
_QUOTED = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_SCALAR_END = re.compile(r"[\s,}\]]")
_PART = re.compile(r'[^"\\]+|\\u([0-9a-fA-F]{4})|\\([^u])', re.DOTALL)
_LOW = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Reader:
    """Reads one answer, in whichever pieces it comes. `new_id` names the calls.

    A text ends before the first of `stop` in it, and then the answer is `stopped`: nothing that follows counts. In
    calls nobody looks for them. What has no such form, as of an engine that knows no schemas, is a text as it stands.
    """

    def __init__(self, stop: Sequence[str], new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._text = Stops(stop)
        self._rest = ""  # what came and was not read yet
        self._arguments = Value()
        self._calls = 0
        self._step: Callable[[], Piece | None] = self._begin

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence has ended the answer."""
        return self._text.stopped

    def read(self, piece: Piece) -> Piece:
        """What `piece` of the engine's answer says."""
        self._rest += piece.text
        texts, calls = [], [*piece.calls]
        while (found := self._step()) is not None:
            texts.append(found.text)
            calls += found.calls
        finish = piece.finish
        if finish:
            texts.append(self._text.rest())
        if finish == "stop" and self._calls:
            finish = "tool_calls"
        if self.stopped:
            finish = "stop"
        return replace(piece, text="".join(texts), calls=tuple(calls), finish=finish)

    # --- each step: what it read, None where it has to wait for more ---
    def _begin(self) -> Piece | None:
        self._rest = self._rest.lstrip()
        if _FENCE.startswith(self._rest):
            return None
        if self._rest.startswith(_FENCE):
            self._rest = self._rest[len(_FENCE) :]
            return Piece("")
        self._step = self._open if self._rest[0] in "{[" else self._bare
        return Piece("")

    def _open(self) -> Piece | None:
        found = _OPENING.match(self._rest)
        if not found:
            return None
        self._rest = self._rest[found.end() :]
        self._step = self._name if found[1] == "name" else self._talk
        return Piece("")

    def _name(self) -> Piece | None:
        name, used, closed = unescaped(self._rest)
        if not closed:
            return None
        self._rest, self._step = self._rest[used:], self._key
        self._calls += 1
        return Piece("", calls=(CallPart(self._calls - 1, self._new_id(), name),))

    def _key(self) -> Piece | None:
        found = _ARGUMENTS.match(self._rest)
        if not found:
            return None
        self._rest, self._step, self._arguments = self._rest[found.end() :], self._value, Value()
        return Piece("")

    def _value(self) -> Piece | None:
        used, ended = self._arguments.take(self._rest)
        part, self._rest = self._rest[:used], self._rest[used:]
        if ended:
            self._step = self._open
        elif not part:
            return None
        return Piece("", calls=(CallPart(self._calls - 1, arguments=part),) if part else ())

    def _talk(self) -> Piece | None:
        text, used, closed = unescaped(self._rest)
        if not used:
            return None
        self._rest = self._rest[used:]
        text = self._text.before(text)
        if closed or self.stopped:
            text += self._text.rest()
            self._step = self._over
        return Piece(text)

    def _bare(self) -> Piece | None:
        if not self._rest:
            return None
        text, self._rest = self._text.before(self._rest), ""
        return Piece(text)

    def _over(self) -> Piece | None:
        self._rest = ""
        return None


class Stops:
    """Ends a text before the first of `stop` that is complete in it; holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def before(self, text: str) -> str:
        """What is certain to come before the end, of all that there is."""
        if self.stopped:
            return ""
        if not self._stop:
            return text
        held = self._held + text
        places = [(at + len(stop), at) for stop in self._stop if (at := held.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return held[: min(places)[1]]
        longest = max(map(len, self._stop)) - 1
        keep = next(
            (size for size in range(min(longest, len(held)), 0, -1) if any(map(_begins(held[-size:]), self._stop))), 0
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, when the text has ended."""
        held, self._held = self._held, ""
        return held


def _begins(text: str) -> Callable[[str], bool]:
    return lambda stop: stop.startswith(text)


def unescaped(text: str) -> tuple[str, int, bool]:
    """What a JSON string says of which `text` is the rest, as far as that is certain; how many characters that took;
    and whether its end was among them. Half a surrogate pair becomes U+FFFD.
    """
    said: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == '"':
            return "".join(said), at + 1, True
        found = _PART.match(text, at)
        if not found:
            break
        end = found.end()
        if found[1]:
            code = int(found[1], 16)
            if 0xD800 <= code < 0xDC00:
                if low := _LOW.match(text, end):
                    code, end = 0x10000 + ((code & 0x3FF) << 10) + (int(low[1], 16) & 0x3FF), low.end()
                elif len(text) - end < 6 and r"\u".startswith(text[end : end + 2]):
                    break
            said.append("\ufffd" if 0xD800 <= code < 0xE000 else chr(code))
        elif found[2]:
            said.append(_ESCAPES.get(found[2], found[2]))
        else:
            said.append(found[0])
        at = end
    return "".join(said), at, False


class Value:
    """Finds the end of one JSON value, in whichever pieces it comes."""

    def __init__(self) -> None:
        self._depth = 0  # of brackets
        self._quoted = False
        self._scalar = False

    def take(self, text: str) -> tuple[int, bool]:
        """How many characters of `text` go on with the value, and whether it ends there. Half an escape is left."""
        at = 0
        while at < len(text):
            if self._quoted:
                found = _QUOTED.match(text, at)
                at = found.end() if found else at
                if text[at : at + 1] != '"':
                    break
                self._quoted = False
            elif self._scalar or (not self._depth and text[at] not in '"{['):
                self._scalar = True
                found = _SCALAR_END.search(text, at)
                return (found.start(), True) if found else (len(text), False)
            else:
                found = _STRUCTURE.search(text, at)
                if not found:
                    return len(text), False
                at = found.start()
                self._quoted = text[at] == '"'
                self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(text[at], 0)
            at += 1
            if not self._depth and not self._quoted:
                return at, True
        return at, False
