"""A conversation as somebody at a terminal has it: what has been said, the answers as they are made, the commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from modelops.cli.common import tell

if TYPE_CHECKING:
    from modelops.api.chat import ChatChunk, ChatResponse
    from modelops.api.errors import ModelOpsError
    from modelops.client import Client

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

HELP = """\
/system TEXT   the system turn from now on; without a text the model's own
/model NAME    talk with another model, which is told all that has been said
/clear         forget what has been said, but for the system turn
/save FILE     write the conversation as JSON
/help          this
/quit          leave; so does Ctrl-D
A line that ends in \\ goes on in the next; so does what stands between \"\"\" and \"\"\". Ctrl-C ends an answer.
After a space, or between \"\"\" and \"\"\", what begins with a slash is said."""


class Leave(Exception):
    """Nothing more is to be said."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody types or watches there; None is a stream that was closed before we began."""
    return stream is not None and stream.isatty()


def echo(text: str = "", *, err: bool = False, nl: bool = True, dim: bool = False) -> None:
    """Write it. Nothing that is written tells a terminal what to do, whoever has made it."""
    shown = _visible(text, sys.stderr if err else sys.stdout)
    click.echo(click.style(shown, dim=True) if dim else shown, err=err, nl=nl)


def _visible(text: str, stream: TextIO | None) -> str:
    """`text` as it is for a program; for a terminal with its control characters as escapes, `\\x1b`, but for the ends
    of lines and tabs."""
    if not is_terminal(stream) or not _CONTROLS.search(text):
        return text
    from modelops.logs import one_line

    return _CONTROLS.sub(lambda found: one_line(found[0]), text)


class _Answer:
    """An answer as it comes. It is written, unless `silent`, and `told` has its pieces. What is thought before is none
    of it, and is written dim, to standard error."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._thinking = False  # in a line that has not ended
        self.told: list[str] = []

    def add(self, chunk: ChatChunk) -> None:
        """The next piece."""
        if chunk.reasoning and not self._silent:
            echo(chunk.reasoning, err=True, nl=False, dim=True)
            self._thinking = True
        if chunk.text:
            self.told.append(chunk.text)
            self._end_thought()
            if not self._silent:
                echo(chunk.text, nl=False)

    def end(self, *, whole: bool = False) -> None:
        """End the line that has been begun; one that is `whole` has a line even if it says nothing."""
        self._end_thought()
        if not self._silent and (self.told or whole):
            echo()

    def _end_thought(self) -> None:
        if self._thinking:
            echo(err=True)
        self._thinking = False


class Talk:
    """One conversation with a model, and then perhaps with another.

    `turns` are what has been said: a turn that was not answered is none of them, and of an answer that was cut short or
    cancelled they have what there is.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        system: str,
        options: dict[str, Any],
        *,
        as_json: bool,
        verbose: bool,
        commands: bool,
    ) -> None:
        self._client, self._model, self._system, self._options = client, model, system, options
        self._as_json, self._verbose, self._commands = as_json, verbose, commands
        self._saved: set[Path] = set()
        self.turns: list[dict[str, str]] = []

    def messages(self) -> list[dict[str, str]]:
        """What the model is told."""
        return [{"role": "system", "content": self._system}] * bool(self._system) + self.turns

    def meet(self, model: str) -> None:
        """Raises ModelOpsError where `model` is none to talk with, as far as the caller's key lets us look."""
        from modelops.api.errors import InvalidRequest, ModelOpsError

        try:
            kind = self._client.model(model).model_type
        except ModelOpsError as error:
            if error.code == "permission_denied":  # a key may be one for asking, and not for looking
                return
            error.message = self._shown(error)
            raise
        if kind != "llm":
            raise InvalidRequest(f"'{model}' is a model of type '{kind}'; talking takes one of type 'llm'")

    # --- asking ---
    def check(self) -> None:
        """Raises InvalidRequest where no turn could be asked so, whatever it says."""
        from modelops.api.chat import ChatRequest

        given = {name: value for name, value in self._options.items() if value is not None}
        ChatRequest.parse({"model_name": self._model, "messages": [*self.messages(), {"role": "user"}], **given})

    def say(self, text: str) -> bool:
        """A turn, and its answer as it is made. False where there is none, or not all of one: why is told.

        Raises KeyboardInterrupt after Ctrl-C; the answer has been cancelled then.
        """
        from modelops.api.errors import ModelOpsError

        self.turns.append({"role": "user", "content": text})
        answer = _Answer(silent=self._as_json)
        began = time.monotonic()
        try:
            final = self._ask(answer)
        except ModelOpsError as error:
            answer.end()
            self._tell(error)
            if self._commands and len(self.turns) > 1 and _full(error):
                echo("/clear forgets what has been said, and makes room", err=True)
            return False
        except KeyboardInterrupt:
            answer.end()
            raise
        finally:
            if told := "".join(answer.told):
                self.turns.append({"role": "assistant", "content": told})
            else:
                self.turns.pop()
        answer.end(whole=True)
        self._tell_of(final, time.monotonic() - began)
        return final.success

    def _ask(self, answer: _Answer) -> ChatResponse:
        """All of the answer; its pieces are written as they come."""
        from modelops.api.errors import ModelOpsError

        with contextlib.closing(self._client.chat_stream(self._model, self.messages(), **self._options)) as chunks:
            for chunk in chunks:
                if chunk.final:
                    return chunk.final
                answer.add(chunk)
        raise ModelOpsError("the answer ended without an end")

    def _tell_of(self, final: ChatResponse, seconds: float) -> None:
        """What there is to say about an answer that has been written."""
        if self._as_json:
            echo(final.model_dump_json())
        elif final.finish_reason == "length":
            echo("the answer ends at its length", err=True, dim=True)
        if self._verbose:
            _pace(final, seconds)
        if not final.success and not self._as_json:
            echo(f"modelops: the answer was cut short: {final.error_message}", err=True)

    def _tell(self, error: ModelOpsError) -> None:
        error.message = self._shown(error)
        tell(error, as_json=self._as_json)

    def _shown(self, error: ModelOpsError) -> str:
        return _visible(error.message, sys.stdout if self._as_json else sys.stderr)

    # --- commands ---
    def command(self, line: str) -> None:
        """A slash, a word, and what it is about. Raises Leave."""
        name, *rest = line[1:].split(maxsplit=1)
        commands: dict[str, Callable[[str], None]] = {
            "system": self._be,
            "model": self._turn_to,
            "clear": self._forget,
            "save": self._save,
            "help": lambda _: click.echo(HELP, err=True),
            "quit": _leave,
        }
        if name not in commands:
            echo(f"there is no command '/{name}'; /help tells those that there are", err=True)
            echo('to say it, begin with a space, or put it between """ and """', err=True)
            return
        commands[name](rest[0].strip() if rest else "")

    def _be(self, text: str) -> None:
        self._system = text
        click.echo("that is the system turn now" if text else "the model's own system turn holds now", err=True)

    def _turn_to(self, model: str) -> None:
        from modelops.api.errors import ModelOpsError

        if model:
            try:
                self.meet(model)
            except ModelOpsError as error:
                self._tell(error)
                return
            self._model = model
        echo(f"talking with {self._model}", err=True)

    def _forget(self, _: str) -> None:
        self.turns.clear()
        click.echo("forgotten", err=True)

    def _save(self, name: str) -> None:
        """Over a file that was there before nothing is written. Only its user can read it."""
        if not name:
            click.echo("where to? /save FILE", err=True)
            return
        file = Path(os.path.expanduser(name))  # noqa: PTH111 - Path's own fails where there is no such user
        written = json.dumps({"model_name": self._model, "messages": self.messages()}, ensure_ascii=False, indent=2)
        how = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if file in self._saved else os.O_EXCL)
        try:
            with os.fdopen(os.open(file, how, 0o600), "w", encoding="utf-8") as opened:
                opened.write(f"{written}\n")
        except OSError as error:
            echo(f"'{file}' cannot be written: {error.strerror}", err=True)
            return
        self._saved.add(file)
        echo(f"written to {file}", err=True)


def _leave(_: str) -> None:
    raise Leave


def _pace(final: ChatResponse, seconds: float) -> None:
    tokens = final.tokens_generated
    told = f"{final.prompt_tokens} tokens read, {tokens} answered in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s"
    click.echo(told, err=True)


def _full(error: ModelOpsError) -> bool:
    """Whether too much has been said: too many tokens, bytes, or turns."""
    too_long = error.details.get("limit") == "context_length" or error.code == "too_large"
    return too_long or error.message.startswith("messages: ")
