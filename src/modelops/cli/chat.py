"""The command that talks with a model."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from modelops.cli.common import FAILED, client_command

if TYPE_CHECKING:
    from modelops.cli.talk import Talk
    from modelops.client import Client


@client_command("chat")
@click.argument("model")
@click.option("--system", default="", help="The system turn.  [default: the model's own]")
@click.option("--max-tokens", type=int, help="Longest answer.  [default: as the context has room for]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0.7]")
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--verbose", is_flag=True, help="Tell how fast each answer came.")
@click.option("--no-history", is_flag=True, help="Keep nothing of what is typed for the next time.")
def chat(
    client: Client, model: str, system: str, verbose: bool, no_history: bool, as_json: bool, **options: Any
) -> None:
    """Talk with MODEL; /help tells what else can be typed.

    Where standard input is no terminal each of its lines is a turn.
    """
    from modelops.cli.talk import Talk, echo, is_terminal

    watched = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    talk = Talk(client, model, system, options, as_json=as_json, verbose=verbose, commands=watched)
    talk.check()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if watched:  # nobody should have to type first to be told that nobody listens, or is there to talk with
        talk.meet(model)
    else:
        client.health()
    try:
        if watched:
            _typed(talk, model, remember=not no_history)
            return
        answered = [talk.say(text) for line in sys.stdin or () if (text := line.strip())]
    except BrokenPipeError:
        raise
    except OSError as error:  # of standard input or output: no other file's comes here
        echo(f"modelops: the conversation cannot go on: {error.strerror or error}", err=True)
        if sys.stdout:  # what it still holds would be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    if not all(answered):
        raise SystemExit(FAILED)


def _typed(talk: Talk, model: str, *, remember: bool) -> None:
    """Entry by entry, until somebody leaves. Ctrl-C ends what is under way: an answer, or what is being typed."""
    from modelops.cli.talk import Leave, echo
    from modelops.cli.typed import Dropped, Keyboard, entry, state_folder

    keyboard = Keyboard(state_folder() / "chat_history" if remember else None)
    echo(f"talking with {model}; /help tells what else can be typed, Ctrl-D leaves", err=True)
    while True:
        try:
            text, command = entry(keyboard.line)
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo("\nCtrl-D or /quit leaves", err=True)
            continue
        except Dropped:
            click.echo("\ndropped; Ctrl-D once more leaves", err=True)
            continue
        try:
            if command:
                talk.command(text)
            elif text := text.strip():
                talk.say(text)
        except Leave:
            return
        except KeyboardInterrupt:
            click.echo("cancelled", err=True)
