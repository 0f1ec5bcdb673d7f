"""Answers of the real model that are forced into a schema of twenty fields: is every one of them of that schema?

Questions, seeds and the way that each is asked are drawn once and for all: most go through OpenAI's surface, whole and
streamed in turn, the others over gRPC and ZMQ. As many are asked at once as the engine has slots. After every third
block of questions the same ones are asked again without the schema, for answers of the same length: so what else the
machine does meanwhile is in both, and what the grammar costs is seen. Answers are judged by the package `jsonschema`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import grpc
import httpx
import jsonschema
import uvloop
import zmq
import zmq.asyncio

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import machine, put_model, quantile

import model_ops_pb2 as pb
import model_ops_pb2_grpc as rpc
from support import Served, serving

MODEL = "smollm2"
PATIENCE_S = 300.0
#: Every kind of field that is wanted of forms, each bounded, so that there is a longest answer. The engine makes of a
#: schema what it can, and says nothing of the rest: bounds of numbers that are no integers, a length beside a pattern,
#: and classes like \d in one are among what it does not see to; of the format `date` it knows the digits, and no
#: calendar (2201-02-29). So they are not here.
FIELDS: dict[str, Any] = {
    "kind": {"const": "order"},
    "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "customer": {"type": "string", "minLength": 1, "maxLength": 24},
    "pieces": {"type": "integer", "minimum": 1, "maximum": 99},
    "insured": {"type": "boolean"},
    "tags": {"type": "array", "items": {"enum": ["cold", "fragile", "heavy"]}, "minItems": 1, "maxItems": 3},
    "discount": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 50}, {"type": "null"}]},
    "price": {"$ref": "#/$defs/money"},
    "email": {"type": "string", "pattern": "^[a-z]{2,10}@[a-z]{2,10}\\.(com|org)$"},
    "date": {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$"},
    "status": {"type": "string", "enum": ["new", "paid", "sent", "returned"]},
    "from": {"$ref": "#/$defs/country"},
    "to": {"$ref": "#/$defs/country"},
    "floor": {"type": "integer", "minimum": -3, "maximum": 120},
    "weight": {"type": "number"},
    "rating": {"type": "number"},
    "gift": {"type": "boolean"},
    "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 50}, "minItems": 2, "maxItems": 4},
    "address": {
        "type": "object",
        "properties": {
            "street": {"type": "string", "maxLength": 24},
            "number": {"type": "integer", "minimum": 1, "maximum": 999},
            "geo": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        },
        "required": ["street", "number", "geo"],
        "additionalProperties": False,
    },
    "note": {"anyOf": [{"type": "string", "maxLength": 40}, {"type": "null"}]},
}
#: What need not be there.
OPTIONAL = {"note"}
DEFINED: dict[str, Any] = {
    "country": {"type": "string", "pattern": "^[A-Z]{2}$"},
    "money": {
        "type": "object",
        "properties": {
            "amount": {"type": "integer", "minimum": 0, "maximum": 100000},
            "currency": {"enum": ["EUR", "JPY", "USD"]},
        },
        "required": ["amount", "currency"],
        "additionalProperties": False,
    },
}
WHO = ["a baker", "two brothers", "the museum", "a diver", "Mrs. Ito", "the school", "a painter", "Zoë", "a farm", "me"]
WHAT = ["flour", "a clock", "ice", "an old globe", "oxygen", "chairs", "blue paint", "seeds", "a piano", "shoes", "tea"]
#: Over which transports, in turn: of each forty two over gRPC and two over ZMQ, and half of all streamed.
WAYS = ("rest-stream", "grpc", "zmq-stream", "rest", "grpc-stream", "zmq", *(("rest", "rest-stream") * 17))


@dataclass(frozen=True)
class Question:
    """One request, but for the schema."""

    way: str
    text: str
    seed: int


@dataclass(frozen=True)
class Told:
    """An answer; `finish` is why it ended."""

    text: str
    finish: str
    tokens: int
    took_s: float = 0.0


class Clients:
    """One connection, or pool of them, for each transport."""

    def __init__(self, served: Served, schema: dict[str, Any]) -> None:
        self._served = served
        self._schema = json.dumps(schema)
        self._http = httpx.AsyncClient(base_url=served.rest, timeout=PATIENCE_S)
        self._channel = grpc.aio.insecure_channel(served.grpc)
        stub: Any = rpc.ModelOpsStub
        self._stub = stub(self._channel)
        self._context = zmq.asyncio.Context()
        self._ways: dict[str, Callable[[Question, str, int, bool], Awaitable[Told]]] = {
            "rest": self._rest,
            "grpc": self._grpc,
            "zmq": self._zmq,
        }

    async def ask(self, question: Question, max_tokens: int, *, forced: bool) -> Told:
        """One request, to its end, with or without the schema. Raises RuntimeError where it is refused."""
        way, _, stream = question.way.partition("-")
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            told = await self._ways[way](question, self._schema if forced else "", max_tokens, bool(stream))
        return Told(told.text, told.finish, told.tokens, time.monotonic() - began)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._channel.close()
        self._context.destroy(linger=0)

    async def _rest(self, question: Question, schema: str, max_tokens: int, stream: bool) -> Told:
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": max_tokens,
            "temperature": 1,
            "seed": question.seed,
        }
        if schema:
            form = {"name": "order", "strict": True, "schema": json.loads(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if not stream:
            told = (await self._http.post("/v1/chat/completions", json=body)).json()
            if "error" in told:
                _fail(question, told["error"]["message"])
            choice = told["choices"][0]
            return Told(choice["message"]["content"], choice["finish_reason"], told["usage"]["completion_tokens"])
        text, finish, used = "", "", 0
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async for event in self._events(question, body):
            for choice in event["choices"]:
                text += choice["delta"].get("content", "")
                finish = choice["finish_reason"] or finish
            if event["usage"]:
                used = event["usage"]["completion_tokens"]
        return Told(text, finish, used)

    async def _events(self, question: Question, body: dict[str, Any]) -> AsyncIterator[Any]:
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                _fail(question, (await response.aread()).decode())
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line:
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        _fail(question, event["error"]["message"])
                    yield event
        _fail(question, "the stream ended without [DONE]")

    async def _grpc(self, question: Question, schema: str, max_tokens: int, stream: bool) -> Told:
        request = pb.ChatRequest(**_fields(question, schema, max_tokens))
        if not stream:
            final = await self._stub.Chat(request)
            return Told(final.message.content, final.finish_reason, final.tokens_generated)
        text = ""
        async for chunk in self._stub.ChatStream(request):
            text += chunk.text
        if not chunk.done or not chunk.final.success:
            _fail(question, chunk.final.error_message)
        return Told(text, chunk.final.finish_reason, chunk.final.tokens_generated)

    async def _zmq(self, question: Question, schema: str, max_tokens: int, stream: bool) -> Told:
        message: dict[str, Any] = {
            "action": "chat",
            "payload": _fields(question, schema, max_tokens),
            "request_id": "1",
        }
        message |= {"stream": stream}
        socket = self._context.socket(zmq.DEALER)
        with contextlib.closing(socket):
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._served.zmq)
            await socket.send_multipart([b"", json.dumps(message).encode()])
            text = ""
            while True:
                told = json.loads((await socket.recv_multipart())[-1])
                if not told["success"]:
                    _fail(question, told["error"])
                result = told["result"]
                if not stream:
                    return Told(result["message"]["content"], result["finish_reason"], result["tokens_generated"])
                text += result.get("text", "")
                if told["done"]:
                    final = result["final"]
                    return Told(text, final["finish_reason"], final["tokens_generated"])


def schema_of(count: int) -> dict[str, Any]:
    """The schema of the first so many fields."""
    fields = dict(itertools.islice(FIELDS.items(), count))
    return {
        "$defs": DEFINED,
        "type": "object",
        "properties": fields,
        "required": [name for name in fields if name not in OPTIONAL],
        "additionalProperties": False,
    }


def _fields(question: Question, schema: str, max_tokens: int) -> dict[str, Any]:
    """The request in our own words."""
    return {
        "model_name": MODEL,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": max_tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": question.seed,
        "json_schema": schema,
    }


def _fail(question: Question, why: str) -> NoReturn:
    raise RuntimeError(f"{question}: {why}")


def questions(count: int) -> Iterator[Question]:
    """Each another, and the same ones in each run."""
    for number in range(count):
        who, what = WHO[number % len(WHO)], WHAT[number % len(WHAT)]
        text = f"Write down, as JSON, what {who} ordered: {what}, {number + 1} of them. Make up what is not said."
        yield Question(WAYS[number % len(WAYS)], text, seed=number)


def fault(told: Told, judge: jsonschema.Draft202012Validator) -> str:
    """What is wrong with the answer; empty where it is of the schema."""
    if told.finish == "length":
        return "cut by length"
    try:
        found = json.loads(told.text, parse_constant=_no_number)
    except ValueError as error:
        return f"no JSON: {error}"
    return "; ".join(f"{error.json_path}: {error.message}" for error in judge.iter_errors(found))[:300]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


async def asked(
    clients: Clients, block: Sequence[Question], bounds: Sequence[int], at_once: int, *, forced: bool
) -> tuple[list[Told], float]:
    """The answers of a block, each at most as long as its bound, and the seconds that all of them took together."""
    found: dict[int, Told] = {}
    todo = iter(range(len(block)))

    async def one() -> None:
        for number in todo:
            found[number] = await clients.ask(block[number], bounds[number], forced=forced)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one())
    return [found[number] for number in range(len(block))], time.monotonic() - began


async def measure(served: Served, options: argparse.Namespace) -> int:
    """Ask all, judge, print; how many answers were not of the schema."""
    schema = schema_of(options.fields)
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    clients = Clients(served, schema)
    every = list(questions(options.answers))
    found: list[Told] = []
    rates: list[tuple[float, float]] = []  # tokens per second of a block, with the schema and without
    began = time.monotonic()
    try:
        for way in ("rest", "grpc", "zmq"):  # everything has been used once
            await clients.ask(Question(way, "Hello", 0), 1, forced=True)
        for first in range(0, len(every), options.block):
            block = every[first : first + options.block]
            with_, took_s = await asked(clients, block, [options.max_tokens] * len(block), options.slots, forced=True)
            found += with_
            if options.seldom and first // options.block % options.seldom == 0:
                bounds = [max(1, told.tokens) for told in with_]
                without, plain_s = await asked(clients, block, bounds, options.slots, forced=False)
                rates.append((sum(one.tokens for one in with_) / took_s, sum(one.tokens for one in without) / plain_s))
            print(f"{len(found)} of {len(every)}", file=sys.stderr)
    finally:
        await clients.close()
    total_s = time.monotonic() - began
    faults = {number: said for number, told in enumerate(found) if (said := fault(told, judge))}
    ways, wrong = Counter(one.way for one in every), Counter(every[number].way for number in faults)
    print(f"valid: {len(found) - len(faults)} of {len(found)}; cut by length: {_cut(faults)}\n")
    print("| over | answers | valid |\n| --- | ---: | ---: |")
    for way, count in sorted(ways.items()):
        print(f"| {way} | {count} | {count - wrong[way]} |")
    lengths = sorted(told.tokens for told in found)
    took = sorted(told.took_s for told in found)
    print(f"\ntokens of an answer: {lengths[0]} to {lengths[-1]}, median {quantile(lengths, 0.5):.0f}; ", end="")
    print(f"seconds: p50 {quantile(took, 0.5):.2f}, longest {took[-1]:.2f}")
    if rates:
        forced, free = (median(pair[side] for pair in rates) for side in (0, 1))
        ratios = [one / other for one, other in rates]
        print(f"tokens/s with the schema: {forced:.1f}; without: {free:.1f}; ", end="")
        print(f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), medians of {len(ratios)} blocks")
    print(f"distinct answers: {len({told.text for told in found})}; in all {total_s:.0f} s")
    for number, said in faults.items():
        print(f"\n{every[number]}\n{said}\n{found[number].text[-2000:]!r}")
    return len(faults)


def _cut(faults: dict[int, str]) -> int:
    return sum(said == "cut by length" for said in faults.values())


def main() -> None:
    """Measure, and print; status 1 where an answer was not of the schema."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--answers", type=int, default=200, help="answers with the schema (200)")
    parser.add_argument("--fields", type=int, default=len(FIELDS), help=f"of the schema, the first ({len(FIELDS)})")
    parser.add_argument("--block", type=int, default=20, help="questions of a block (20)")
    parser.add_argument(
        "--seldom", type=int, default=3, help="of so many blocks one is asked without, too; 0: none (3)"
    )
    parser.add_argument("--max-tokens", type=int, default=1500, help="most tokens of an answer (1500)")
    parser.add_argument("--slots", type=int, default=4, help="of the engine, and questions at once (4)")
    parser.add_argument("--threads", type=int, default=0, help="the engine's threads; 0: as the coordinator decides")
    parser.add_argument("--file", type=Path, help=f"the GGUF of {MODEL}; else the user's own, or fetched")
    options = parser.parse_args()
    told = machine(options.threads)
    print(
        f"{told['cpu']}, {told['cores']} cores, engine threads: {told['engine_threads']}, "
        f"Python {told['python']}, load average before: {told['load_average_before']}.\n"
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "file" / "model.gguf"
        put_model(options.file, file)
        env = {
            "MODELOPS_ENGINE__SLOTS": str(options.slots),
            "MODELOPS_ENGINE__THREADS": str(options.threads),
        }
        with serving(Path(folder) / "data", links=[(MODEL, file)], load=[MODEL], env=env) as served:
            wrong = uvloop.run(measure(served, options))
    print(f"Load average after: {os.getloadavg()[0]:.2f} (the benchmark's own part is in it).")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
