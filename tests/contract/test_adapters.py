"""Adapters of the real model on all transports: nobody is answered by another, while they come and go under load."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from adapters import make_adapter
from contract import wires
from contract.wires import TRANSPORTS, Wire
from modelops.app import Running, running
from modelops.serving.catalog import Version
from modelops.settings import Settings
from support import Served, put

BASE = "smollm2"
#: What the adapters change: also what keys and values are made of, so that a prompt kept for another one would be seen.
CHANGED = [f"blk.{layer}.{what}.weight" for layer in (0, 5, 10, 15, 20, 25) for what in ("attn_v", "ffn_down")]
PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "Water boils at",
    "My favourite colour is",
    "Dear Sir or Madam,",
    "The best way to learn is",
    "In the morning the sun",
    "She opened the door and",
]
SLOTS = 4
REQUESTS = 600

T = TypeVar("T")


class House:
    """A coordinator in this process, on a thread of its own, so that a test can publish what jobs would."""

    def __init__(self, folder: Path, smollm2: Path) -> None:
        self.folder, self.file = folder, put(smollm2, folder / "models" / f"{BASE}.gguf")
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._ready: Future[Running] = Future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()])

    def __enter__(self) -> House:
        self._thread.start()
        self.parts = self._ready.result(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(60)
        self._loop.close()

    async def _run(self) -> None:
        sections = {
            "data_dir": self.folder,
            "server": {"rest_port": 0, "grpc_port": 0, "zmq_port": 0, "drain_s": 5},
            "engine": {"threads": 1, "slots": SLOTS, "context_length": 512},
        }
        try:
            async with running(Settings.model_validate(sections)) as parts:
                self._ready.set_result(parts)
                await self._ended.wait()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """What a part of it does, done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def publish(self, name: str, seed: int) -> Version:
        """An adapter that makes the model say something else for each seed."""
        catalog = self.parts.coordinator._parts.catalog
        made = make_adapter(self.folder / "made" / f"{seed}.gguf", self.file, seed=seed, names=CHANGED, scale=400.0)
        return self.do(catalog.publish_adapter(f"{BASE}:{name}", catalog.active(BASE), made, {"seed": seed}))

    @property
    def addresses(self) -> Served:
        found = {name: getattr(self.parts, name).address for name in TRANSPORTS}
        return cast(Served, SimpleNamespace(**found))


@pytest.fixture(scope="module")
def house(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("adapters"), smollm2) as entered:
        yield entered


@pytest.fixture(scope="module")
def clients(house: House) -> Iterator[dict[str, Wire]]:
    with wires.connected(house.addresses) as found:
        yield found


@pytest.fixture(scope="module")
def told(house: House, clients: dict[str, Wire]) -> dict[str, dict[str, str]]:
    """What each adapter, and the model without any, answers when it is asked alone: by its name and the prompt.

    Computed together, numbers differ in their last digits: where that decides, no answer is right, and the prompt is
    left out.
    """
    names = [BASE, *(house.publish(name, seed).model_name for seed, name in enumerate("xyz"))]
    alone = {name: {prompt: ask(clients["rest"], name, prompt)[1] for prompt in PROMPTS} for name in names}
    unsure = set()
    with ThreadPoolExecutor(SLOTS) as threads:
        for name in names:  # with no other beside it, so that these are its own answers
            found = threads.map(lambda prompt, name=name: ask(clients["zmq"], name, prompt)[1], PROMPTS)
            unsure |= {prompt for prompt, text in zip(PROMPTS, found, strict=True) if text != alone[name][prompt]}
    sure = [prompt for prompt in PROMPTS if prompt not in unsure]
    assert len(sure) >= 4, unsure
    for prompt in sure:
        assert len({alone[name][prompt] for name in names}) == len(names), prompt
    return {name: {prompt: alone[name][prompt] for prompt in sure} for name in names}


def ask(wire: Wire, name: str, prompt: str, *, stream: bool = False) -> tuple[str, str]:
    """The version, and the text; or the code of the refusal, and what was said."""
    asked = {"model_name": name, "input_text": prompt, "raw": True, "max_tokens": 5, "temperature": 0.0}
    if stream:
        try:
            *_, last = wire.stream(asked)
        except wires.Refused as refused:
            return refused.answer.code, refused.answer.message
        assert last.final.success, last.final.error_message
        return last.final.model_version, last.final.output_text
    answer = wire.call("infer", asked)
    return (answer.code, answer.message) if answer.code else (answer.result.model_version, answer.result.output_text)


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_nobody_is_answered_by_another_adapter(
    house: House, clients: dict[str, Wire], told: dict[str, dict[str, str]]
) -> None:
    """Of three, two are there at first; the third comes and the first goes while all are asked."""
    base, first, second, third = told
    catalog, pool = house.parts.coordinator._parts.catalog, house.parts.pool
    house.do(catalog.remove(catalog.versions(third), pool.unused))
    came, going = threading.Event(), threading.Event()
    numbers, right, gone = itertools.count(), Counter[str](), Counter[str]()
    wrong: list[Sequence[str]] = []

    def asking(number: int) -> None:
        for turn in numbers:
            if turn >= REQUESTS:
                return
            names = [base, first, second, *([third] if came.is_set() else [])]
            name = names[turn % len(names)]
            prompt = list(told[name])[turn // 7 % len(told[name])]  # the same ones for all
            removed = going.is_set()
            code, text = ask(clients[TRANSPORTS[number % 3]], name, prompt, stream=number >= 3)
            if code == "not_found" and name == first and going.is_set():
                gone[name] += 1
            elif code.startswith("v") and text == told[name][prompt] and not (removed and name == first):
                right[name] += 1
            else:
                wrong.append((name, prompt, code, text))

    def wait(turn: int, threads: Sequence[Future[None]]) -> None:
        while sum(right.values()) + sum(gone.values()) < turn and not wrong and not all(one.done() for one in threads):
            threading.Event().wait(0.02)

    before = house.do(loaded(house))
    with ThreadPoolExecutor(2 * SLOTS) as threads:
        askers = [threads.submit(asking, number) for number in range(6)]
        wait(REQUESTS // 4, askers)
        assert house.publish("z", 2).label == "v2"
        came.set()
        wait(REQUESTS // 2, askers)
        going.set()
        removal = clients["grpc"].call("remove_version", {"model_name": first, "model_version": "all"})
        assert removal.code == "", removal.seen
        for asker in askers:
            asker.result()
    assert not wrong
    assert sum(right.values()) + sum(gone.values()) == REQUESTS
    assert min(right[name] for name in told) > REQUESTS // 12, right
    assert gone[first] > 20
    assert clients["rest"].info(BASE).model_version == "v1"
    assert house.do(loaded(house)) != before
    assert {model.model_name for model in clients["zmq"].ok("list_models").models} == {base, second, third}


async def loaded(house: House) -> int:
    """The process of the engine."""
    return house.parts.pool.view(BASE).engine_pid


@pytest.mark.engine
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_adapter_is_a_model_on_each_transport(
    transport: str, house: House, clients: dict[str, Wire], told: dict[str, dict[str, str]]
) -> None:
    wire, (_, _, name, _) = clients[transport], told
    prompt = next(iter(told[name]))
    assert ask(wire, name, prompt) == ask(wire, name, prompt, stream=True) == ("v1", told[name][prompt])
    assert wire.info(name).status == "loaded"
    (version,) = wire.ok("list_versions", model_name=name).versions
    assert (version.active, version.digest) == (True, wire.info(name).digest)
    assert version.base == wire.info(BASE).digest
    turns = [{"role": "user", "content": "Hello"}]
    asked = {"messages": turns, "max_tokens": 8, "temperature": 0.0}
    answers = [wire.ok("chat", model_name=model, **asked).message.content for model in (name, BASE)]
    assert answers[0] != answers[1]
    assert wire.call("unload_model", {"model_name": name}).code == "conflict"


@pytest.mark.engine
def test_what_an_adapter_thinks_of_a_text_is_its_own(house: House, told: dict[str, dict[str, str]]) -> None:
    async def probabilities(name: str) -> list[float]:
        async with house.parts.pool.lease(name, asyncio.get_running_loop().time() + 30) as lease:
            return [score.logprob for score in await lease.score([1, 338, 5044], [282, 4649, 314])]

    found = {name: house.do(probabilities(name)) for name in (BASE, list(told)[2])}
    first, second = found.values()
    assert max(abs(one - other) for one, other in zip(first, second, strict=True)) > 1.0
    assert house.do(probabilities(BASE)) == pytest.approx(first, abs=0.01)
