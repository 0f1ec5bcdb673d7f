"""Ten times more requests than a model can answer, for a minute; and a greedy key beside modest ones.

First as many callers as keep the engine busy ask in a loop: what is answered then is its capacity. Then requests arrive
at random, at a multiple of that rate, whatever becomes of those before them, and nobody tries again. Capacity is taken
before and after, so that the machine's drift is in both. A request that is neither answered nor refused as documented,
or hangs, ends the benchmark.

In the second part each of several keys has callers that ask in a loop; one key has many more of them than the others.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import zmq
import zmq.asyncio

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import machine, put_model, quantile

import model_ops_pb2 as pb
import model_ops_pb2_grpc as rpc
from contract.wires import refusal
from support import Served, make_key, serving, tiny_gguf

PATIENCE_S = 120.0
THINGS = ["the sea", "a dragon", "two brothers", "a clock", "the moon", "a thief", "an old house", "the desert"]


@dataclass(frozen=True)
class Outcome:
    """What became of one request: `code` is empty where it was answered."""

    transport: str
    code: str
    began: float
    took_s: float
    tokens: int = 0
    retry_after_s: float = 0.0


class Clients:
    """One connection, or pool of them, for each transport, shared by all callers."""

    def __init__(self, served: Served, max_tokens: int) -> None:
        self._served = served
        self._max_tokens = max_tokens
        self._random = random.Random(7)
        self._http = httpx.AsyncClient(
            base_url=served.rest, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None)
        )
        self._channel = grpc.aio.insecure_channel(served.grpc)
        stub: Any = rpc.ModelOpsStub
        self._stub = stub(self._channel)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(served.zmq)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read(), name="zmq answers")
        self.ways: dict[str, Callable[[str, str], Awaitable[tuple[str, int, float]]]] = {
            "rest": self._rest,
            "grpc": self._grpc,
            "zmq": self._zmq,
        }

    async def ask(self, transport: str, key: str = "") -> Outcome:
        """One request, to its end."""
        prompt = f"Tell me a story about {' and '.join(self._random.choices(THINGS, k=3))}."
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            code, tokens, retry = await self.ways[transport](prompt, key)
        return Outcome(transport, code, began, time.monotonic() - began, tokens, retry)

    async def close(self) -> None:
        """Close the connections."""
        self._reading.cancel()
        await self._http.aclose()
        await self._channel.close()
        self._context.destroy(linger=0)

    def _fields(self, prompt: str) -> dict[str, Any]:
        return {
            "model_name": "m",
            "input_text": prompt,
            "max_tokens": self._max_tokens,
            "temperature": 0.0,
        }

    async def _rest(self, prompt: str, key: str) -> tuple[str, int, float]:
        headers = {"X-API-Key": key} if key else {}
        told = (await self._http.post("/inference", json=self._fields(prompt), headers=headers)).json()
        return told.get("code", ""), told.get("tokens_generated", 0), told.get("retry_after_s", 0.0)

    async def _grpc(self, prompt: str, key: str) -> tuple[str, int, float]:
        metadata = (("x-api-key", key),) if key else None
        try:
            answer = await self._stub.Infer(pb.InferenceRequest(**self._fields(prompt)), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            told = refusal(error)
            return told.code or told.status, 0, told.retry_after_s or 0.0
        return "", answer.tokens_generated, 0.0

    async def _zmq(self, prompt: str, key: str) -> tuple[str, int, float]:
        number = uuid.uuid4().hex
        message = {"action": "infer", "payload": self._fields(prompt), "request_id": number}
        message |= {"api_key": key} if key else {}
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_multipart([b"", json.dumps(message).encode()])
        told = await answer
        return told.get("code", ""), (told["result"] or {}).get("tokens_generated", 0), told.get("retry_after_s", 0.0)

    async def _read(self) -> None:
        while True:
            *_, body = await self._socket.recv_multipart()
            told = json.loads(body)
            self._waiting.pop(told["request_id"]).set_result(told)


async def closed_loop(
    clients: Clients, callers: Sequence[str], seconds: float, keys: Sequence[str] = ()
) -> list[Outcome]:
    """Each of the callers, named by transports, asks again when it was answered; one that is refused waits as told."""
    until = time.monotonic() + seconds
    found: list[Outcome] = []

    async def one(transport: str, key: str) -> None:
        while time.monotonic() < until:
            outcome = await clients.ask(transport, key)
            found.append(outcome)
            if outcome.code:
                await asyncio.sleep(max(0.02, outcome.retry_after_s))

    await asyncio.gather(*(one(name, key) for name, key in itertools.zip_longest(callers, keys, fillvalue="")))
    return found


async def open_loop(clients: Clients, per_second: float, seconds: float) -> tuple[list[Outcome], float]:
    """Requests arrive at random (exponential pauses), over the transports in turn; and how many a second really did."""
    chance = random.Random(11)
    began = due = time.monotonic()
    asked: list[asyncio.Task[Outcome]] = []
    for transport in itertools.cycle(clients.ways):
        due += chance.expovariate(per_second)
        if due > began + seconds:
            break
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asked.append(asyncio.create_task(clients.ask(transport), name="arrival"))
    rate = len(asked) / (time.monotonic() - began)
    return list(await asyncio.gather(*asked)), rate


def goodput(found: Sequence[Outcome], since: float, until: float) -> float:
    """Answers a second that ended between the two times."""
    ended = [outcome for outcome in found if not outcome.code and since <= outcome.began + outcome.took_s < until]
    return len(ended) / (until - since)


async def overload(served: Served, asked: argparse.Namespace) -> None:
    """The first part."""
    clients = Clients(served, asked.max_tokens)
    coordinator = psutil.Process(served.process.pid)
    transports = list(itertools.islice(itertools.cycle(clients.ways), asked.slots * 3))

    async def capacity() -> float:
        began = time.monotonic()
        found = await closed_loop(clients, transports, asked.capacity_seconds)
        return goodput(found, began + 2, began + asked.capacity_seconds)

    try:
        await capacity()  # everything has been used once
        before, rss = await capacity(), coordinator.memory_info().rss
        began = time.monotonic()
        found, rate = await open_loop(clients, before * asked.times, asked.seconds)
        good = goodput(found, began + 5, began + asked.seconds)
        grown = coordinator.memory_info().rss / rss - 1
        after = await capacity()
    finally:
        await clients.close()
    both = (before + after) / 2
    admitted = [outcome.took_s for outcome in found if not outcome.code]
    bound = (asked.queue + asked.slots) / both
    print(f"\ncapacity: {before:.2f} requests/s before, {after:.2f} after; {rate / both:.1f} times that was asked")
    print(f"goodput: {good:.2f} requests/s, {good / both:.3f} of the capacity")
    print(
        f"answered: {len(admitted)}, p50 {quantile(admitted, 0.5):.2f} s, p99 {quantile(admitted, 0.99):.2f} s; "
        f"the bound is {bound:.2f} s: {asked.queue} that wait and {asked.slots} that are answered, at that capacity"
    )
    print(
        "\n| | answered | refused | refused in, p50 ms | p99 ms | other |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for transport in clients.ways:
        mine = [outcome for outcome in found if outcome.transport == transport]
        refused = [outcome.took_s * 1000 for outcome in mine if outcome.code == "overloaded"]
        codes = Counter(outcome.code for outcome in mine)
        other = {code: count for code, count in codes.items() if code not in ("", "overloaded")}
        print(
            f"| {transport} | {codes['']} | {len(refused)} | {quantile(refused, 0.5):.1f} | "
            f"{quantile(refused, 0.99):.1f} | {other or 'none'} |"
        )
    told = sorted(outcome.retry_after_s for outcome in found if outcome.retry_after_s)
    print(f"\nRetry-After: from {told[0]:.2f} to {told[-1]:.2f} s, median {quantile(told, 0.5):.2f}")
    print(f"memory of the coordinator: {rss / 2**20:.0f} MB before, {grown:+.1%}")


async def fairness(served: Served, asked: argparse.Namespace, keys: Sequence[str]) -> None:
    """The second part: the first key is the greedy one."""
    clients = Clients(served, asked.max_tokens)
    greedy, *modest = keys
    shown = [greedy] * asked.greedy + [key for key in modest for _ in range(2)]
    transports = list(itertools.islice(itertools.cycle(clients.ways), len(shown)))
    until = time.monotonic() + asked.seconds / 2
    served_tokens: Counter[str] = Counter()
    try:

        async def one(transport: str, key: str) -> None:
            while time.monotonic() < until:
                outcome = await clients.ask(transport, key)
                if outcome.code:
                    await asyncio.sleep(max(0.05, outcome.retry_after_s))
                elif time.monotonic() < until:
                    served_tokens[key] += outcome.tokens

        await asyncio.gather(*(one(name, key) for name, key in zip(transports, shown, strict=True)))
    finally:
        await clients.close()
    shares = [served_tokens[key] for key in keys]
    print(f"\none key with {asked.greedy} callers, {len(modest)} keys with 2 each; tokens of answers: {shares}")
    print(f"Jain's index: {sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)):.4f}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (60)")
    parser.add_argument("--capacity-seconds", type=float, default=20.0, help="of each measurement of the capacity (20)")
    parser.add_argument("--times", type=float, default=10.0, help="of the capacity that are offered (10)")
    parser.add_argument("--max-tokens", type=int, default=16, help="length of an answer (16)")
    parser.add_argument("--slots", type=int, default=4, help="of the engine (4)")
    parser.add_argument("--queue", type=int, default=32, help="requests that may wait (32)")
    parser.add_argument("--greedy", type=int, default=60, help="callers of the greedy key (60)")
    parser.add_argument("--token-s", type=float, default=0.0, help="an engine that only waits so long for each token")
    parser.add_argument("--file", type=Path, help="the GGUF of the default model; else the user's own, or fetched")
    asked = parser.parse_args()
    machine(1)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        file = folder / "file" / "model.gguf"
        fake = {"token_s": asked.token_s} if asked.token_s else None
        if fake:
            tiny_gguf(file)
        else:
            put_model(asked.file, file)
        env = {"MODELOPS_ENGINE__SLOTS": str(asked.slots), "MODELOPS_MODELS__MAX_QUEUE": str(asked.queue)}
        with serving(folder / "open", links=[("m", file)], load=["m"], fake=fake, env=env) as served:
            asyncio.run(overload(served, asked))
        keys = [make_key(folder / "closed", name) for name in ("greedy", *(f"modest-{one}" for one in range(10)))]
        with serving(folder / "closed", links=[("m", file)], load=["m"], fake=fake, env=env) as served:
            asyncio.run(fairness(served, asked, keys))


if __name__ == "__main__":
    main()
