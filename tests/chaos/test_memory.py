"""A thousand random loads, unloads and calls where memory is short: the sums are right, and nobody loses what they use.

What decides is another thing in each setting:

* `budget`: `memory.budget_mb`. Exact: nothing that the machine does otherwise matters.
* `machine`: the RAM that the machine has free. `memory.reserve_mb` is so large that only a small part is left, and
  another process takes of that and gives it back. The engines hold for real what is reserved for them, half of it from
  their first request on, as real ones touch what they allocated. So it shows that what the ledger adds up is what the
  machine loses, that memory which is reserved and not yet taken is not promised twice, and that the reserve is left
  alone: were there no more memory than that, nobody would have been killed.
* `gpus`: the devices are simulated. This shows the sums of several devices, not what a real GPU does.
* `real`: as `machine`, with the real model in real engines.

Between quiet moments one thing is asked at a time, while calls that were begun before go on, and an oracle (`books.py`)
judges the answer. Bursts ask several things at once; of them only is known what must hold of any of them. The history
of a run that failed is printed with its seed: CHAOS_SEED=… CHAOS_OPERATIONS=… repeats it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from chaos.balloon import Balloon, balloon
from chaos.books import Books, Room
from chaos.callers import Reader, client, model_of, programs, taken_mb
from modelops.api.errors import Conflict, InsufficientMemory, ModelOpsError
from modelops.api.types import ModelInfo
from modelops.client import Client
from modelops.serving.devices import host
from support import Served, serving, tiny_gguf, wait_until

MB = 2**20
#: Of each setting.
OPERATIONS = int(os.environ.get("CHAOS_OPERATIONS", "60"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))

#: A token of these files takes so much of a cache: 32 layers, keys and values of 8 heads of 64 numbers of 16 bits.
TOKEN_BYTES = 32 * 2 * 8 * 64 * 2
LAYERS = {"llama__block_count": 32, "llama__attention__head_count": 8, "llama__attention__head_count_kv": 8}
LAYERS |= {"llama__attention__key_length": 64, "llama__attention__value_length": 64}
#: The files' own contexts, the most that they are served with: needs of 80 to 310 MB where nobody says otherwise.
CONTEXTS = {"a": 256, "b": 512, "c": 512, "d": 1024, "e": 1024, "f": 2048}


@dataclass(frozen=True)
class Setting:
    """What binds. `room_mb` is what models, and the other process, may take; `contexts` what loads may ask for."""

    room_mb: int
    env: Mapping[str, str]
    devices: Mapping[str, int]
    ram: bool = False
    real: bool = False
    contexts: tuple[int, ...] = (0, 0, 256, 512, 1024, 2048, 4096)


SETTINGS = {
    "budget": Setting(500, {"MODELOPS_MEMORY__BUDGET_MB": "500"}, {"cpu": 500}),
    "machine": Setting(700, {}, {"cpu": 700}, ram=True),
    "gpus": Setting(
        0,
        {
            "MODELOPS_MEMORY__SIMULATED_DEVICES": "cpu=1000,gpu0=1550/50,gpu1=850",
            "MODELOPS_MEMORY__GPU_RESERVE_MB": "0",
            "MODELOPS_MEMORY__RESERVE_MB": "0",
        },
        {"cpu": 1000, "gpu0": 1500, "gpu1": 850},
    ),
    "real": Setting(1000, {}, {"cpu": 1000}, ram=True, real=True, contexts=(0, 1024, 2048, 4096, 8192)),
}


class Free(threading.Thread):
    """What RAM is free, looked at all the time: others use the machine too."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seen: deque[tuple[float, float]] = deque(maxlen=20_000)
        self._end = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.005):
            self._seen.append((time.monotonic(), host().free / MB))

    def since(self, when: float) -> tuple[float, float]:
        """The least and the most since then."""
        sizes = [size for at, size in list(self._seen) if at >= when - 0.02] + [host().free / MB]
        return min(sizes), max(sizes)

    def stop(self) -> None:
        self._end.set()
        self.join()


class Chaos:
    """One run."""

    def __init__(self, served: Served, asked: Client, setting: Setting, reserve_mb: float, other: Balloon) -> None:
        self.served = served
        self.asked = asked
        self.setting = setting
        self.reserve_mb = reserve_mb
        self.other = other
        self.pick = random.Random(SEED)
        self.names = [model.model_name for model in asked.models(all=True)]
        self.books = Books()
        self.readers: list[tuple[str, Reader]] = []
        self.free = Free()
        self.history: list[str] = []
        self.counts: dict[str, int] = {}
        self.began = time.monotonic()

    def run(self, operations: int) -> None:
        """So many operations, each judged; then everything is given back."""
        ways: list[tuple[Callable[[], None], int]] = [
            (self.load, 30),
            (self.call, 22),
            (self.unload, 14),
            (self.hold, 14),
            (self.release, 8),
            (self.unload_in_use, 3),
            (self.burst, 6),
            (self.take_and_give_back, 10 if self.setting.ram else 0),
        ]
        self.settle()
        for _ in range(operations):
            (way,) = self.pick.choices([way for way, _ in ways], [weight for _, weight in ways])
            way()
        while self.readers:
            self.release()
        self.other.hold(0)
        for name in list(self.books.resident):
            self.tried("unload", name, lambda name=name: self.asked.unload(name))  # type: ignore[misc]
        wait_until(lambda: not self.asked.models(), 20, "an empty list of models")
        assert self.asked.status().devices[0].reserved_mb == 0
        wait_until(lambda: not self.served.engines(), 20, "the end of every engine")

    # --- operations ---
    def load(self) -> None:
        name = self.one(resident=False)
        wish: dict[str, Any] = {"context_length": self.pick.choice(self.setting.contexts)}
        wish |= {"slots": self.pick.choice([0, 1, 2, 3]), "pin": self.pick.random() < 0.15}
        wish |= {"keep_alive": self.pick.choice([0.0, 0.3])} if self.pick.random() < 0.2 else {"keep_alive": -1.0}
        known, fleeting, before = name in self.books.resident, wish["keep_alive"] >= 0, set(self.books.fleeting)
        if fleeting and not known:  # else it is still wished as before
            self.books.fleeting.add(name)
        refused = self.counts.get("insufficient_memory", 0)
        self.judged("load", name, lambda: self.asked.load(name, **wish), wish)
        if self.counts.get("insufficient_memory", 0) > refused:  # its calls load it as it was wished before
            self.books.fleeting = before
        elif not fleeting and not known:
            self.books.fleeting.discard(name)

    def call(self) -> None:
        if name := self.with_slot():
            self.judged("call", name, lambda: self.asked.infer(name, "Hello", max_tokens=2, raw=True))

    def unload(self) -> None:
        name = self.one(resident=True)
        if self.books.held[name]:
            return
        error = self.tried("unload", name, lambda: self.asked.unload(name))
        if name in self.books.resident and name not in self.books.fleeting:
            assert error is None, f"{name} is resident"
        elif name not in self.books.resident:
            assert isinstance(error, Conflict), f"{name} is not resident"
        self.settle(but=[name])

    def hold(self) -> None:
        """A call that goes on until it is told to end: from its first piece of text on it is in use for sure."""
        name = self.with_slot()
        if name is None or len(self.readers) == 3:
            return

        mine: list[Reader] = []

        def begin() -> None:
            while mine:  # it is tried again, and there may be one slot only
                self.readers.remove((name, mine[0]))
                mine.pop().hang_up()
                self.books.held[name] -= 1
            reader = Reader(self.served, "rest", model_name=name, max_tokens=2048, raw=True)
            wait_until(lambda: reader.chunks or reader.error, 30, "the beginning of an answer")
            if reader.error:
                # Without a slot there is nothing to hold; why is told by a call that is judged.
                reader.join()
                self.asked.infer(name, "Hello", max_tokens=2, raw=True)
                return
            mine.append(reader)
            self.readers.append((name, reader))
            self.books.held[name] += 1

        self.judged("hold", name, begin)

    def release(self) -> None:
        if not self.readers:
            return
        name, reader = self.readers.pop(self.pick.randrange(len(self.readers)))
        self.tell("release", name)
        reader.hang_up()
        assert reader.error is None, reader.error
        self.books.held[name] -= 1
        self.settle()

    def unload_in_use(self) -> None:
        """It waits for the calls in flight; by force, it does not, and they are told."""
        name = next((name for name, _ in self.readers), None)
        if name is None:
            return
        mine = [reader for held, reader in self.readers if held == name]
        if self.pick.random() < 0.5:
            assert self.tried("force", name, lambda: self.asked.unload(name, force=True)) is None
            for reader in mine:
                reader.join(30)
                assert not reader.is_alive()
                assert reader.error or not reader.chunks[-1]["final"]["success"]
        else:
            unloading = threading.Thread(target=self.tried, args=("drain", name, lambda: self.asked.unload(name)))
            unloading.start()
            wait_until(lambda: self.asked.model(name).status == "unloading", 10, "an unload that waits")
            for reader in mine:
                assert not reader.error, reader.error
                reader.hang_up()
            unloading.join(30)
            assert not unloading.is_alive()
        self.readers = [(held, reader) for held, reader in self.readers if held != name]
        del self.books.held[name]
        self.settle(but=[name])

    def burst(self) -> None:
        """Several at once: each is answered, calls with the answer or for want of memory only."""
        allowed: dict[str, tuple[type[ModelOpsError], ...]] = {
            "load": (Conflict, InsufficientMemory),
            "call": (InsufficientMemory,),
            "unload": (Conflict,),
        }

        def one(what: str, name: str, context: int) -> None:
            deeds: dict[str, Callable[[], object]] = {
                "load": lambda: self.asked.load(name, context_length=context, keep_alive=-1.0, pin=False),
                "call": lambda: self.asked.infer(name, "Hello", max_tokens=2, raw=True),
                "unload": lambda: self.asked.unload(name),
            }
            error = self.tried(what, name, deeds[what])
            if error and not isinstance(error, allowed[what]):
                wrong.append(f"{what} {name}: {error!r}")

        wrong: list[str] = []
        unloaded: set[str] = set()
        threads = []
        for _ in range(self.pick.randint(2, 5)):
            what = self.pick.choice(["load", "load", "call", "call", "call", "unload"])
            name = (self.with_slot() if what == "call" else None) or self.pick.choice(self.names)
            if (self.books.held[name] and what != "call") or not self.has_slot(name):
                continue
            unloaded |= {name} if what == "unload" else set()
            context = self.pick.choice(self.setting.contexts)
            threads.append(threading.Thread(target=one, args=(what, name, context)))
        self.tell("burst of", str(len(threads)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "something is stuck"
        assert not wrong, wrong
        before = self.books.resident
        self.settle(but=self.names)
        for name in before.keys() - self.books.resident.keys() - unloaded:
            assert not before[name].pinned, f"{name} is pinned"
            assert not self.books.held[name], f"{name} is in use"

    def take_and_give_back(self) -> None:
        size = 0 if self.other.mb else self.pick.randrange(100, self.setting.room_mb * 2 // 3)
        self.tell("other process holds", f"{size} MB")
        self.other.hold(size)
        self.settle()

    # --- how ---
    def judged(
        self, what: str, name: str, deed: Callable[[], object], wish: object = "", *, again: bool = False
    ) -> None:
        """Do it, and hold the outcome against the books. What is wrong because somebody else used the machine just at
        that moment is right when it is tried again."""
        known, in_use, began = name in self.books.resident, Counter(self.books.held), time.monotonic()
        error = self.tried(what, name, deed, wish)
        least, most = self.room(began)
        now = self.quiet()
        complaint, changed = "", [name] if name in self.books.fleeting else []
        if isinstance(error, InsufficientMemory):
            # Who has ended meanwhile was in use when it was decided.
            complaint = replace(self.books, held=in_use).judge_refusal(float(error.details["needed_mb"]), least)
            complaint = complaint or self.books.judge_stay(now, but=changed)
        elif isinstance(error, Conflict) and what == "load":
            assert known, f"{name} was not loaded: {error}"
        elif error:
            raise AssertionError(f"{what} {name}: {error!r}")
        elif known and name not in self.books.fleeting:
            assert what != "load", f"{name} was loaded twice"
        else:
            complaint = self.books.judge_load(name, now, least, most)
            changed = [*self.books.evictable, name]
        if complaint and self.setting.ram and not again:
            self.tell("is tried again:", complaint)
            self.counts["again"] = self.counts.get("again", 0) + 1
            self.settle(but=self.names)
            self.judged(what, name, deed, wish, again=True)
            return
        assert not complaint, complaint
        self.settle(but=changed)

    def tried(self, what: str, name: str, deed: Callable[[], object], wish: object = "") -> ModelOpsError | None:
        """Do it; the error, where it was refused."""
        self.counts[what] = self.counts.get(what, 0) + 1
        try:
            deed()
        except ModelOpsError as error:
            self.tell(what, name, wish or "", error.code, error.message)
            self.counts[error.code] = self.counts.get(error.code, 0) + 1
            return error
        self.tell(what, name, wish or "", "done")
        return None

    def tell(self, *words: object) -> None:
        free = host().free / MB - self.reserve_mb if self.setting.ram else 0
        self.history.append(f"{time.monotonic() - self.began:7.2f} {free:5.0f} MB  {' '.join(map(str, words))}")

    def one(self, *, resident: bool) -> str:
        """Any model, but most often one of these."""
        likely = [name for name in self.names if (name in self.books.resident) is resident]
        return self.pick.choice(likely if likely and self.pick.random() < 0.8 else self.names)

    def with_slot(self) -> str | None:
        """A model that has a slot for one more call, or would have when it is loaded."""
        free = [name for name in self.names if self.has_slot(name)]
        return self.pick.choice(free) if free else None

    def has_slot(self, name: str) -> bool:
        resident = self.books.resident.get(name)
        return resident is None or self.books.held[name] < resident.slots

    def room(self, since: float) -> tuple[Room, Room]:
        """What could be taken beside the residents of the books, at least and at most, since then."""
        resident = self.books.resident.values()
        if not self.setting.ram:
            left = {
                device: size - sum(info.devices.get(device, 0) for info in resident)
                for device, size in self.setting.devices.items()
            }
            return left, left
        coming = sum(max(0.0, info.memory_usage_mb - self.taken.get(info.model_name, 0.0)) for info in resident)
        least, most = self.free.since(since)
        return {"cpu": least - self.reserve_mb - coming}, {"cpu": most - self.reserve_mb - coming}

    def quiet(self) -> dict[str, ModelInfo]:
        """The residents, when nothing is on its way."""

        def still() -> dict[str, ModelInfo] | None:
            self.reap()
            models = {info.model_name: info for info in self.asked.models()}
            busy = {name: info.active_requests + info.queued_requests for name, info in models.items()}
            if any(info.status != "loaded" or self.books.held[name] != busy[name] for name, info in models.items()):
                return None
            return models

        found: list[dict[str, ModelInfo]] = []
        wait_until(lambda: (now := still()) is not None and not found.append(now), 30, "a quiet moment")  # type: ignore[func-returns-value]
        return found[-1]

    def reap(self) -> None:
        """Calls in flight end by themselves, too, with the model's last word."""
        for name, reader in [found for found in self.readers if not found[1].reading]:
            assert reader.ended()["success"], "a call in flight was cut short"
            self.readers.remove((name, reader))
            self.books.held[name] -= 1

    def settle(self, *, but: list[str] | None = None) -> None:
        """At a quiet moment only `but` came or went, the ledger is the sum of what lives, and calls in flight go on."""

        def added_up() -> bool:
            now = self.quiet()
            ledger = {device.device: device.reserved_mb for device in self.asked.status().devices}
            alive = {model_of(program): program for program in programs(self.served)}
            if alive.keys() != now.keys():
                return False
            self.taken = {name: taken_mb(program) for name, program in alive.items()}
            seen[:] = [now]
            return all(
                0 <= ledger[device] - sum(info.devices.get(device, 0) for info in now.values()) <= len(now)
                for device in ledger
            )

        seen: list[dict[str, ModelInfo]] = []
        wait_until(added_up, 20, "a ledger that is the sum of what lives")
        (now,) = seen
        complaint = self.books.judge_stay(now, but=but or [])
        assert not complaint, complaint
        for name, info in now.items():
            assert self.taken[name] <= info.memory_usage_mb + 1, f"{name} took {self.taken[name]} of {info}"
        self.books.resident = now


@contextmanager
def coordinator(folder: Path, setting: Setting, reserve_mb: int, smollm2: Path | None) -> Iterator[Served]:
    """One with the models of the setting, where only its room is to be had."""
    env = {"MODELOPS_ENGINE__CONTEXT_LENGTH": "2048", "MODELOPS_ENGINE__SLOTS": "2", **setting.env}
    if setting.ram:
        env["MODELOPS_MEMORY__RESERVE_MB"] = str(reserve_mb)
    if smollm2:
        with serving(folder, links=[(name, smollm2) for name in "abc"], env=env) as served:
            yield served
        return
    for name, context in CONTEXTS.items():
        tiny_gguf(folder / "models" / f"{name}.gguf", llama__context_length=context, **LAYERS)
    fake = {"token_s": 0.02, "hold": TOKEN_BYTES if "gpu0" not in setting.devices else 0}
    with serving(folder, fake=fake, env=env) as served:
        yield served


def killed_for_memory() -> int:
    """How often the kernel has killed somebody for want of memory since it was started."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def survives(tmp_path: Path, setting: Setting, operations: int, smollm2: Path | None = None) -> None:
    killed = killed_for_memory()
    with ExitStack() as stack:
        other = stack.enter_context(balloon())
        reserve = host().free // MB - setting.room_mb
        served = stack.enter_context(coordinator(tmp_path, setting, reserve, smollm2))
        asked = stack.enter_context(client(served))
        chaos = Chaos(served, asked, setting, reserve, other)
        stack.callback(chaos.free.stop)
        try:
            chaos.run(operations)
        except BaseException:
            print(f"CHAOS_SEED={SEED} CHAOS_OPERATIONS={operations}, after:")
            print("\n".join(chaos.history[-200:]))
            print(f"books: {chaos.books}\nlog:\n{served.log.read_text()[-5000:]}")
            raise
        print(f"{operations} operations, seed {SEED}: {chaos.counts} in {time.monotonic() - chaos.began:.1f} s")
        assert served.stop() == 0
        log = served.log.read_text()
        assert '"level": "error"' not in log, log
        assert "was killed" not in log, log
    assert killed_for_memory() == killed


@pytest.mark.timeout(60 + OPERATIONS * 2)
@pytest.mark.parametrize("what", ["budget", "machine", "gpus"])
def test_random_loads_unloads_and_calls_add_up(tmp_path: Path, what: str) -> None:
    survives(tmp_path, SETTINGS[what], OPERATIONS)


@pytest.mark.engine
@pytest.mark.timeout(60 + OPERATIONS * 2)
def test_random_loads_unloads_and_calls_of_a_real_model_add_up(tmp_path: Path, smollm2: Path) -> None:
    survives(tmp_path, SETTINGS["real"], OPERATIONS // 3, smollm2)
