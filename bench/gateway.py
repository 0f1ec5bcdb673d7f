"""What the coordinator adds over the same engine called directly, transport by transport, in one run.

A coordinator is started in a process of its own; its engine is then asked directly, over the engine's own unix socket
and with the very body that the coordinator sends, and through each transport. Every round asks all of them the same
prompts, greedily, in rotating order, and each figure is compared with the engine's in the same round, so that what
the machine does meanwhile is in both. One client goes round the arms request by request, several clients arm by arm.
The tables give medians over the rounds.

The load generator is this process. It shares the machine with what it measures, so it does as little as it can:
keep-alive connections and just enough HTTP/1.1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, Protocol

import grpc
import psutil
import uvloop
import zmq
import zmq.asyncio

import model_ops_pb2 as pb
import model_ops_pb2_grpc as rpc
from modelops import settings
from modelops.engines.base import Prompt
from modelops.engines.llama_cpp import _request as engine_request
from modelops.serving import sources

MODEL = "smollm2"
DIRECT = "engine"
ARMS = (DIRECT, "rest", "rest-stream", "grpc", "grpc-stream", "zmq")
PROMPTS = [
    f"Tell me a long story about {what}."
    for what in ("a dragon", "the sea", "two brothers", "a clock", "the moon", "a thief", "an old house", "the desert")
]

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Caller(Protocol):
    """One client of one arm, which has one request at a time."""

    async def ask(self, prompt: str, max_tokens: int) -> int:
        """Wait for the whole answer; the number of tokens in it."""

    async def close(self) -> None:
        """Close the connection."""


# --- the arms ---
class HttpCaller:
    """The least of HTTP/1.1 that a load generator needs, the same for the engine and for REST."""

    def __init__(self, connect: Connect, head: str, body: Callable[[str, int], Any], count: bytes, keep: bool) -> None:
        self._connect = connect
        self._head = head
        self._body = body
        self._count = re.compile(rb'"%b": ?(\d+)' % count)
        self._keep = keep
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, prompt: str, max_tokens: int) -> int:
        """As Caller.ask."""
        if not self._open:
            self._open = await self._connect()
        reader, writer = self._open
        body = json.dumps(self._body(prompt, max_tokens)).encode()
        writer.write(self._head.format(length=len(body)).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head[:20]:
            raise RuntimeError(f"refused: {head.decode()} {(await reader.read(2000)).decode()}")
        if length := re.search(rb"content-length: (\d+)", head):
            answer = await reader.readexactly(int(length[1]))
        else:
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                block = await reader.read(65536)
                if not block:
                    raise RuntimeError("the answer ended early")
                answer += block
        if not self._keep:
            await self.close()
        return int(self._count.findall(answer)[-1])

    async def close(self) -> None:
        """As Caller.close."""
        if self._open:
            self._open[1].close()
            self._open = None


class GrpcCaller:
    """A stub on the channel that all clients share, as gRPC's own documentation advises."""

    def __init__(self, stub: Any, stream: bool) -> None:
        self._stub = stub
        self._stream = stream

    async def ask(self, prompt: str, max_tokens: int) -> int:
        """As Caller.ask."""
        request = pb.InferenceRequest(
            model_name=MODEL, input_text=prompt, max_tokens=max_tokens, temperature=0, top_p=1.0
        )
        if not self._stream:
            return int((await self._stub.Infer(request)).tokens_generated)
        async for chunk in self._stub.InferStream(request):
            last = chunk
        return int(last.final.tokens_generated)

    async def close(self) -> None:
        """The channel is not ours."""


class ZmqCaller:
    """A DEALER socket."""

    def __init__(self, context: zmq.asyncio.Context, address: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.connect(address)

    async def ask(self, prompt: str, max_tokens: int) -> int:
        """As Caller.ask."""
        message = {"action": "infer", "payload": rest_body(prompt, max_tokens), "request_id": "1"}
        await self._socket.send_multipart([b"", json.dumps(message).encode()])
        answer = json.loads((await self._socket.recv_multipart())[-1])
        if not answer["success"]:
            raise RuntimeError(f"refused: {answer['error']}")
        return int(answer["result"]["tokens_generated"])

    async def close(self) -> None:
        """As Caller.close."""
        self._socket.close(0)


def rest_body(prompt: str, max_tokens: int, stream: bool = False) -> dict[str, Any]:
    """The request, for REST and for ZMQ."""
    body = {"model_name": MODEL, "input_text": prompt, "max_tokens": max_tokens, "temperature": 0.0, "top_p": 1.0}
    return body | ({"stream": True} if stream else {})


def direct_body(prompt: str, max_tokens: int) -> dict[str, Any]:
    """What the coordinator makes of the same request for its engine."""
    path, body = engine_request(
        Prompt(text=prompt, system="", raw=False, max_tokens=max_tokens, temperature=0.0, top_p=1.0, stop=(), seed=None)
    )
    assert path == "/v1/chat/completions"
    return body


# --- what is measured ---
@dataclass(frozen=True)
class Served:
    """A running coordinator, and the way to its engine."""

    process: psutil.Process
    rest: str
    grpc: str
    zmq: str
    engine_socket: str
    engine_key: str


@contextlib.contextmanager
def serving(file: Path | None, threads: int, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Served]:
    """A coordinator with a data folder of its own and MODEL loaded; `threads` 0 leaves its engine's to it. Its log goes
    into a file."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        put_model(file, Path(folder) / "models" / f"{MODEL}.gguf")
        env = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
        env |= {"MODELOPS_DATA_DIR": folder, "MODELOPS_ENGINE__THREADS": str(threads)}
        env |= {f"MODELOPS_SERVER__{name}_PORT": "0" for name in ("REST", "GRPC", "ZMQ")}
        env |= settings
        argv = [sys.executable, "-m", "modelops.cli", "serve", "--json", "--load", MODEL]
        log = Path(folder) / "log"
        with (
            log.open("w") as written,
            subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=written, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    sys.exit(f"the coordinator did not start:\n{log.read_text()}")
                addresses = json.loads(line)
                coordinator = psutil.Process(process.pid)
                engine = next(child for child in coordinator.children(recursive=True) if "--host" in child.cmdline())
                argv = engine.cmdline()
                yield Served(
                    process=coordinator,
                    **addresses,
                    engine_socket=argv[argv.index("--host") + 1],
                    engine_key=engine.environ()["LLAMA_API_KEY"],
                )
            finally:
                process.send_signal(signal.SIGTERM)


def put_model(file: Path | None, target: Path) -> None:
    """The default model as `target`: `file`, or the user's own, or fetched."""
    target.parent.mkdir(parents=True)
    source = sources.parse(sources.KNOWN[MODEL])
    file = file or settings.load(environ={}).models_dir / f"{MODEL}.gguf"
    if not sources.has_digest(file, source.sha256):
        asyncio.run(sources.fetch(source, target, lambda _done, _total: None))
        return
    try:
        target.hardlink_to(file)
    except OSError:  # another file system
        shutil.copyfile(file, target)


class Arms:
    """Makes the callers of each arm."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._channel = grpc.aio.insecure_channel(served.grpc)
        self._stub = rpc.ModelOpsStub(self._channel)  # type: ignore[no-untyped-call]
        self._zmq = zmq.asyncio.Context()

    def caller(self, arm: str) -> Caller:
        """A new client of `arm`."""
        served = self._served
        if arm == DIRECT:
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
                f"Authorization: Bearer {served.engine_key}\r\n"
                "Content-Length: {length}\r\n\r\n"
            )
            return HttpCaller(
                lambda: asyncio.open_unix_connection(served.engine_socket),
                head,
                direct_body,
                b"completion_tokens",
                keep=False,  # the engine closes the connection after a streamed answer, whatever it is asked
            )
        if arm.startswith("rest"):
            host, _, port = served.rest.removeprefix("http://").rpartition(":")
            head = (
                f"POST /inference HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                "Content-Length: {length}\r\n\r\n"
            )
            return HttpCaller(
                lambda: asyncio.open_connection(host, int(port)),
                head,
                lambda prompt, max_tokens: rest_body(prompt, max_tokens, stream=arm == "rest-stream"),
                b"tokens_generated",
                keep=True,
            )
        if arm.startswith("grpc"):
            return GrpcCaller(self._stub, stream=arm == "grpc-stream")
        return ZmqCaller(self._zmq, served.zmq)

    async def close(self) -> None:
        """Close what the callers share."""
        await self._channel.close()
        self._zmq.term()


# --- measuring ---
@dataclass(frozen=True)
class Load:
    """What one arm is asked in one round: `requests` in all, by `clients` at once."""

    clients: int
    requests: int
    max_tokens: int
    rounds: int


@dataclass(frozen=True)
class Sample:
    """One arm in one round. Latencies in ms; `cpu_ms` is what the coordinator itself computed for one request."""

    p50: float
    p99: float
    tokens_per_second: float
    cpu_ms: float


@dataclass
class Result:
    """One load on every arm: `samples[arm][round]`."""

    load: Load
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def added(self, arm: str, quantile: str) -> float:
        """Latency over the engine's own, in ms, median over the rounds."""
        pairs = zip(self.samples[arm], self.samples[DIRECT], strict=True)
        return float(median(getattr(mine, quantile) - getattr(direct, quantile) for mine, direct in pairs))

    def ratio(self, arm: str) -> float:
        """Tokens per second as a part of the engine's own, median over the rounds."""
        pairs = zip(self.samples[arm], self.samples[DIRECT], strict=True)
        return median(mine.tokens_per_second / direct.tokens_per_second for mine, direct in pairs)

    def of(self, arm: str, name: str) -> float:
        """The arm's own figure, median over the rounds."""
        return float(median(getattr(sample, name) for sample in self.samples[arm]))


async def one_client(arms: Arms, names: Sequence[str], load: Load, coordinator: psutil.Process) -> dict[str, Sample]:
    """One round of one client, which asks every arm in turn: what the machine does meanwhile meets all alike."""
    callers = {name: arms.caller(name) for name in names}
    latencies: dict[str, list[float]] = {name: [] for name in names}
    tokens, used = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    for number in range(load.requests):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            computed, began = cpu_seconds(coordinator.pid), time.perf_counter()
            # Always the same prompt, which the engine has in its cache: so it has the least to do itself.
            tokens[name] += await callers[name].ask(PROMPTS[0], load.max_tokens)
            latencies[name].append((time.perf_counter() - began) * 1000)
            used[name] += cpu_seconds(coordinator.pid) - computed
    for caller in callers.values():
        await caller.close()
    return {name: sampled(latencies[name], tokens[name], sum(latencies[name]) / 1000, used[name]) for name in names}


def sampled(latencies: list[float], tokens: int, seconds: float, cpu_seconds: float) -> Sample:
    """The figures of one arm in one round."""
    return Sample(
        p50=quantile(latencies, 0.50),
        p99=quantile(latencies, 0.99),
        tokens_per_second=tokens / seconds,
        cpu_ms=cpu_seconds * 1000 / len(latencies),
    )


async def sample(arms: Arms, arm: str, load: Load, coordinator: psutil.Process) -> Sample:
    """Put `load` on one arm."""
    callers = [arms.caller(arm) for _ in range(load.clients)]
    prompts = iter([PROMPTS[number % len(PROMPTS)] for number in range(load.requests)])
    latencies: list[float] = []
    tokens = 0

    async def client(caller: Caller) -> None:
        nonlocal tokens
        for prompt in prompts:
            began = time.perf_counter()
            count = await caller.ask(prompt, load.max_tokens)
            tokens += count
            latencies.append((time.perf_counter() - began) * 1000)

    used = cpu_seconds(coordinator.pid)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(client(caller))
    seconds = time.perf_counter() - began
    used = cpu_seconds(coordinator.pid) - used
    for caller in callers:
        await caller.close()
    return sampled(latencies, tokens, seconds, used)


def cpu_seconds(pid: int) -> float:
    """What the process has computed so far, to the nanosecond: the usual counters only know hundredths of a second."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest of the values, in any order, that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def measure(
    served: Served, names: Sequence[str], loads: Sequence[Load], tell: Callable[[Result], None]
) -> list[Result]:
    """Every load on every arm; `tell` is given each result as soon as it is there."""
    arms = Arms(served)
    results = []
    for load in loads:
        result = Result(load, {name: [] for name in names})
        warm_up = Load(load.clients, load.clients, load.max_tokens, 1)
        for name in names:
            await sample(arms, name, warm_up, served.process)
        for number in range(load.rounds):
            first = number % len(names)
            if load.clients == 1:
                for name, figures in (await one_client(arms, names, load, served.process)).items():
                    result.samples[name].append(figures)
            else:
                for name in (*names[first:], *names[:first]):
                    result.samples[name].append(await sample(arms, name, load, served.process))
            print(f"{load.clients} clients: round {number + 1} of {load.rounds}", file=sys.stderr)
        results.append(result)
        tell(result)
    await arms.close()
    return results


# --- telling ---
def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "engine_threads": threads or cores,
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    """As the kernel calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def table(result: Result) -> str:
    """The result in Markdown."""
    load = result.load
    what = "answers of 1 token" if load.max_tokens == 1 else f"answers of {load.max_tokens} tokens"
    lines = [
        f"Clients: {load.clients}; {what}; {load.requests} requests of each in a round; {load.rounds} rounds.",
        "",
        "| | p50 ms | p99 ms | added at p50 | added at p99 | tokens/s | of the engine's | coordinator CPU ms/request |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in result.samples:
        row = f"| {arm} | {result.of(arm, 'p50'):.2f} | {result.of(arm, 'p99'):.2f} |"
        if arm == DIRECT:
            row += f" | | {result.of(arm, 'tokens_per_second'):.1f} | | |"
        else:
            row += (
                f" {result.added(arm, 'p50'):+.2f} ms | {result.added(arm, 'p99'):+.2f} ms "
                f"| {result.of(arm, 'tokens_per_second'):.1f} | {result.ratio(arm):.3f} "
                f"| {result.of(arm, 'cpu_ms'):.2f} |"
            )
        lines.append(row)
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="clients at once (1 8 32)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds for each number of clients (7)")
    parser.add_argument(
        "--requests",
        type=int,
        default=0,
        help="per round (100 short; 3 long for each client)",
    )
    parser.add_argument("--max-tokens", type=int, default=48, help="length of the long answers (48)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="what to compare (all)")
    parser.add_argument("--threads", type=int, default=0, help="the engine's threads; 0: as the coordinator decides")
    parser.add_argument("--file", type=Path, help=f"the GGUF of {MODEL}; else the user's own, or fetched")
    parser.add_argument("--quick", action="store_true", help="one small round of each: does it run at all?")
    parser.add_argument("--json", action="store_true", help="every round as JSON instead of the tables")
    asked = parser.parse_args()
    names = tuple(dict.fromkeys((DIRECT, *asked.arms)))
    loads = []
    for clients in asked.clients:
        if asked.quick:
            loads.append(Load(clients, 2 * clients, 4, 1))
        else:
            # Of one client the question is what is added to a request, so the engine's own part is kept small.
            if clients == 1:
                loads.append(Load(1, asked.requests or 100, 1, asked.rounds))
            loads.append(Load(clients, asked.requests or max(8, 3 * clients), asked.max_tokens, asked.rounds))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the coordinator is stopped then, too
    told = machine(asked.threads)
    if not asked.json:
        print(
            f"{told['cpu']}, {told['cores']} cores, engine threads: {told['engine_threads']}, "
            f"Python {told['python']}, load average before: {told['load_average_before']}.\n"
        )

    def tell(result: Result) -> None:
        if not asked.json:
            print(table(result), flush=True)

    with serving(asked.file, asked.threads) as served:
        results = uvloop.run(measure(served, names, list(dict.fromkeys(loads)), tell))
    told["load_average_after"] = round(os.getloadavg()[0], 2)
    if asked.json:
        print(json.dumps({"machine": told, "results": [asdict(result) for result in results]}, indent=1))
    else:
        print(f"Load average after: {told['load_average_after']} (the benchmark's own part is in it).")


if __name__ == "__main__":
    main()
