"""The commands that ask a model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from modelops.cli.common import FAILED, client_command
from modelops.cli.terminal import print_json

if TYPE_CHECKING:
    from modelops.client import Client


@client_command("infer")
@click.argument("model")
@click.argument("text")
@click.option("--max-tokens", type=int, help="Longest answer.  [default: 50]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0.7]")
@click.option("--top-p", type=float, help="[default: 0.9]")
@click.option("--stop", "stop_sequences", multiple=True, help="End before this text; may be repeated.")
@click.option("--system", help="The system turn.")
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--keep-alive", help='How long the model stays after this answer: "5m", seconds, 0, or -1 for ever.')
@click.option("--raw", is_flag=True, default=None, help="Complete the text as it stands.")
def infer(client: Client, model: str, text: str, as_json: bool, **options: Any) -> None:
    """Ask MODEL; the answer is written as it is made. TEXT - reads standard input."""
    options["stop_sequences"] = list(options["stop_sequences"]) or None
    text = sys.stdin.read() if text == "-" else text
    if as_json:
        print_json(client.infer(model, text, **options))
        return
    for chunk in client.stream(model, text, **options):
        click.echo(chunk.text, nl=chunk.done)
        if chunk.final and not chunk.final.success:
            click.echo(f"modelops: the answer was cut short: {chunk.final.error_message}", err=True)
            raise SystemExit(FAILED)


@client_command("embed")
@click.argument("model")
@click.argument("texts", nargs=-1, required=True)
def embed(client: Client, model: str, texts: tuple[str, ...], as_json: bool) -> None:
    """Turn TEXTS into vectors with MODEL.

    MODEL is one that was loaded with --type embedding. Each text gives a line.
    """
    answer = client.embed(model, list(texts))
    if as_json:
        print_json(answer)
        return
    for embedding in answer.embeddings:
        click.echo(" ".join(f"{value:.6g}" for value in embedding.values))


@client_command("rerank")
@click.argument("model")
@click.argument("query")
@click.argument("documents", nargs=-1, required=True)
@click.option("--top", "top_n", type=int, default=0, help="Only the best.  [default: all]")
def rerank(client: Client, model: str, query: str, documents: tuple[str, ...], top_n: int, as_json: bool) -> None:
    """Order DOCUMENTS by how well they answer QUERY.

    Best first. MODEL is one that was loaded with --type reranker.
    """
    answer = client.rerank(model, query, list(documents), top_n=top_n)
    if as_json:
        print_json(answer)
        return
    for found in answer.results:
        click.echo(f"{found.score:9.4f}  {documents[found.index]}")
