"""A thousand streams at once, half of which hang up: what becomes of the others, and how soon all is free again.

In each round so many streams are opened on OpenAI's surface at the same time; what an engine has no slot for waits. A
seeded choice of half of them is dropped, closed or reset: some after their first chunks, some after a while, most of
these while they still wait. The others are read to their end. Then the same number is opened once more, for long
answers, and all hang up at once. Looked at from outside: how long from the last end, or the last drop, until no slot is
taken and nobody waits, by /metrics and by the engine itself; and what memory and files the coordinator holds.

First before an engine that only waits, with many slots, then before the real model with as many as it has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import resource
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import httptools
import httpx
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import cpu_seconds, machine, put_model

from chaos.callers import engine
from modelops.transports.openai_answers import ERRORS
from modelops.transports.problems import STATUS
from support import Served, serving, tiny_gguf

PATIENCE_S = 600.0
#: Tokens of answers that nobody will wait for.
LONG = 2000
#: Their code → the status that goes with it.
_REFUSALS = {theirs or ours: STATUS[ours] for ours, (_, theirs) in ERRORS.items()}
_GAUGE = re.compile(r'^moc_bulkhead_(active|queued)_requests\{model="m"\} (\S+)$', re.MULTILINE)


@dataclass
class Stream(asyncio.Protocol):
    """One stream. It hangs up after `most` chunks, where that is not 0, or when it is told to."""

    request: bytes
    most: int
    reset: bool
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    chunks: int = 0
    complete: bool = False
    left: bool = False

    def __post_init__(self) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def leave(self) -> None:
        """Hang up, if it has not ended: with a reset, where it was chosen so."""
        if self._transport and not self.ended.done() and not self.complete:
            self.left = True
            if self.reset:
                file = self._transport.get_extra_info("socket")
                file.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    # --- what asyncio calls ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, and another base
        self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Some of the answer."""
        if not self.left:
            self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        """The end, whoever made it."""
        self.ended.set_result(time.monotonic())

    # --- what httptools calls ---
    def on_headers_complete(self) -> None:
        """The status is known."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Some events, each of them whole."""
        self.body += body
        self.chunks += body.count(b"data: ")
        if self.most and self.chunks >= self.most:
            self.leave()

    def on_message_complete(self) -> None:
        """All of it."""
        self.complete = True
        assert self._transport
        self._transport.close()


def fault(stream: Stream, whole: str | None) -> str:
    """What became of one that was kept: empty where it was answered whole; else why it was not.

    `whole` is the answer, where it is known. A documented refusal is its code; all else begins with "!".
    """
    text = stream.body.decode()
    if not stream.complete:
        return f"! it ended early, with status {stream.status}, after {stream.chunks} events: {text[-200:]}"
    if stream.status != 200:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            code = str(json.loads(text)["error"]["code"])
            if _REFUSALS.get(code) == stream.status:
                return code
        return f"! status {stream.status}: {text[:200]}"
    *events, last = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    if last != "[DONE]":
        return f"! it was cut short: {last[:200]}"
    choices = [json.loads(event)["choices"][0] for event in events]
    said = "".join(choice["delta"].get("content", "") for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices]
    if reasons.pop() not in ("stop", "length") or any(reasons) or (said != whole if whole is not None else not said):
        return f"! it is not whole: {text[:500]}"
    return ""


def _itself(stream: Stream) -> Stream:
    return stream


@dataclass
class Held:
    """What the coordinator holds, and held most."""

    process: psutil.Process
    most_bytes: int = 0
    most_files: int = 0

    def look(self) -> tuple[int, int]:
        """Resident bytes and open files now."""
        now = self.process.memory_info().rss, self.process.num_fds()
        self.most_bytes, self.most_files = max(self.most_bytes, now[0]), max(self.most_files, now[1])
        return now

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looked at ten times a second."""

        async def look() -> None:
            while True:
                self.look()
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(look(), name="watch")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])


@dataclass(frozen=True)
class Case:
    """What is asked of which engine. `whole`: what it always answers, where that is known."""

    streams: int
    slots: int
    tokens: int
    rounds: int
    queue: int
    whole: str | None = None


class Rounds:
    """All rounds before one coordinator."""

    def __init__(self, served: Served, case: Case, http: httpx.AsyncClient, asked: httpx.Client) -> None:
        self._case = case
        self._http = http
        self._engine = asked
        self._random = random.Random(7)
        host, _, port = served.rest.removeprefix("http://").rpartition(":")
        self._where = host, int(port)
        self.held = Held(psutil.Process(served.process.pid))
        self.faults: list[str] = []

    def open(self, most: int = 0, tokens: int = 0) -> Stream:
        """A stream, not connected yet; its answer has as many tokens as the case says, where none are said."""
        asked = {
            "model": "m",
            "messages": [{"role": "user", "content": "Tell me a story."}],  # always the same, which engines have cached
            "max_tokens": tokens or self._case.tokens,
            "temperature": 0,
            "stream": True,
        }
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._where[0]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return Stream(head.encode() + body, most, self._random.random() < 0.5)

    async def connect(self, streams: Sequence[Stream]) -> None:
        """Open them all, at once."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(loop.create_connection(partial(_itself, one), *self._where) for one in streams))

    async def half(self) -> tuple[Counter[str], float]:
        """Half of them are dropped: what became of all, and seconds from the last end until all is free."""
        case, chance, loop = self._case, self._random, asyncio.get_running_loop()
        dropped = case.streams // 2
        streams = [self.open() for _ in range(case.streams - dropped)]
        soon = [self.open(most=chance.randint(1, 3)) for _ in range(dropped // 2)]
        later = [self.open() for _ in range(dropped - len(soon))]
        kept = list(streams)
        streams += [*soon, *later]
        chance.shuffle(streams)
        await self.connect(streams)
        for stream in later:
            loop.call_later(chance.uniform(0, 0.003 * case.streams), stream.leave)
        async with asyncio.timeout(PATIENCE_S):
            last = max(await asyncio.gather(*(stream.ended for stream in streams)))
        free_s = await self._free(last)
        found: Counter[str] = Counter()
        for stream in (*soon, *later):
            found["waiting" if stream.left and not stream.chunks else "speaking" if stream.left else "over"] += 1
        for stream in kept:
            said = fault(stream, case.whole)
            found["broken" if said[:1] == "!" else "refused" if said else "whole"] += 1
            if said:
                self.faults.append(said)
        return found, free_s

    async def all(self) -> tuple[float, float]:
        """All of them are dropped at once, when each has a slot or waits for one: seconds until all is free, and how
        many of them the coordinator computed."""
        case = self._case
        streams = [self.open(tokens=LONG) for _ in range(case.streams)]
        await self.connect(streams)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                active, queued = await self._bulkhead()
                over = sum(stream.ended.done() for stream in streams)  # refused, where the queue is too short
                if active + queued + over == case.streams:
                    break
                await asyncio.sleep(0.01)
        used = cpu_seconds(self.held.process.pid)
        for stream in streams:
            stream.leave()
        last = time.monotonic()
        await asyncio.gather(*(stream.ended for stream in streams))
        return await self._free(last), cpu_seconds(self.held.process.pid) - used

    async def _free(self, since: float) -> float:
        """Seconds from then until no slot is taken, and nobody waits, by the coordinator and by the engine itself."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if (await self._bulkhead()) == (0, 0) and not self._engine_busy():
                    return time.monotonic() - since
                await asyncio.sleep(0.005)

    async def _bulkhead(self) -> tuple[int, int]:
        """Requests that hold a slot, and that wait, by /metrics."""
        found = dict(_GAUGE.findall((await self._http.get("/metrics")).text))
        return int(float(found["active"])), int(float(found["queued"]))

    def _engine_busy(self) -> bool:
        return any(slot["is_processing"] for slot in self._engine.get("/slots").json())


async def measure(served: Served, case: Case) -> bool:
    """All rounds, and their table; whether each that was kept was answered whole, or refused as documented."""
    with engine(served) as asked:
        async with httpx.AsyncClient(base_url=served.rest, timeout=30) as http:
            return await _measure(Rounds(served, case, http, asked), case)


async def _measure(rounds: Rounds, case: Case) -> bool:
    held = rounds.held
    await rounds.connect([first := rounds.open()])
    await first.ended
    before = held.look()
    print(
        "| round | s | kept: whole | refused | broken | dropped: waiting | speaking | over before | free after s "
        "| all dropped: free after s | CPU s | MB | most MB | files | most |\n| --- |" + " ---: |" * 14
    )
    print(f"| before |{' |' * 10} {before[0] / 2**20:.1f} | | {before[1]} | |", flush=True)
    after: list[int] = []
    slowest = 0.0
    for number in range(1, case.rounds + 1):
        held.most_bytes = held.most_files = 0
        began = time.monotonic()
        async with held.watched():
            found, free_s = await rounds.half()
            took_s = time.monotonic() - began
            all_s, cpu_s = await rounds.all()
        bytes_, files = held.look()
        after.append(bytes_)
        slowest = max(slowest, free_s, all_s)
        print(
            f"| {number} | {took_s:.1f} | {found['whole']} | {found['refused']} | {found['broken']} "
            f"| {found['waiting']} | {found['speaking']} | {found['over']} | {free_s:.2f} | {all_s:.2f} | {cpu_s:.2f} "
            f"| {bytes_ / 2**20:.1f} | {held.most_bytes / 2**20:.1f} | {files} | {held.most_files} |",
            flush=True,
        )
    if len(after) > 2:
        print(f"\nmemory, from the second round to the last: {after[-1] / after[1] - 1:+.1%}", end="")
    print(
        f"\nfree again at the latest after {slowest:.2f} s; every stream that was kept is whole: {not rounds.faults}\n"
    )
    for said, count in Counter(rounds.faults).most_common(10):
        print(f"{count} times: {said}")
    return not any(said.startswith("!") for said in rounds.faults)


def settings(case: Case) -> dict[str, str]:
    """What a coordinator needs to be told so that all of them find room."""
    return {
        "MODELOPS_ENGINE__SLOTS": str(case.slots),
        "MODELOPS_MODELS__MAX_QUEUE": str(case.queue),
        "MODELOPS_SERVER__MAX_CONNECTIONS": str(2 * case.streams + 16),
    }


def main() -> None:
    """Measure, and print; status 1 where a kept stream was neither answered whole nor refused as documented."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=["fake", "real"], help="before one of the engines only")
    parser.add_argument("--streams", type=int, default=1000, help="at once (1000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--queue", type=int, help="streams that may wait (all)")
    parser.add_argument("--slots", type=int, default=64, help="of the engine that waits (64)")
    parser.add_argument("--tokens", type=int, default=16, help="length of its answers (16)")
    parser.add_argument("--token-s", type=float, default=0.05, help="how long it waits for each token (0.05)")
    parser.add_argument("--real-slots", type=int, default=4, help="of the real model's engine (4)")
    parser.add_argument("--real-tokens", type=int, default=4, help="length of the real model's answers (4)")
    parser.add_argument("--file", type=Path, help="the GGUF of the default model; else the user's own, or fetched")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16_384) if most > 0 else 16_384, most))
    told = machine(0)
    print(
        f"{told['cpu']}, {told['cores']} cores, engine threads: {told['engine_threads']}, "
        f"Python {told['python']}, load average before: {told['load_average_before']}.\n"
    )
    well, queue = True, options.streams if options.queue is None else options.queue
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        if options.only != "real":
            whole = "".join(f"w{number} " for number in range(options.tokens))
            case = Case(options.streams, options.slots, options.tokens, options.rounds, queue, whole)
            fake: dict[str, Any] = {"token_s": options.token_s}
            links = [("m", tiny_gguf(folder / "tiny.gguf"))]
            print(f"An engine that waits {options.token_s:g} s for each token, {case.slots} slots:\n")
            with serving(folder / "fake", links=links, load=["m"], fake=fake, env=settings(case)) as served:
                well = uvloop.run(measure(served, case)) and well
        if options.only != "fake":
            put_model(options.file, folder / "file" / "model.gguf")
            case = Case(options.streams, options.real_slots, options.real_tokens, options.rounds, queue)
            links = [("m", folder / "file" / "model.gguf")]
            print(f"The real model, {case.slots} slots, answers of {case.tokens} tokens:\n")
            env = settings(case) | {"MODELOPS_ENGINE__THREADS": "0"}
            with serving(folder / "real", links=links, load=["m"], env=env) as served:
                well = uvloop.run(measure(served, case)) and well
    print(f"Load average after: {os.getloadavg()[0]:.2f} (the benchmark's own part is in it).")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
