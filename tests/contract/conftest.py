"""Fixtures: a client of each transport, of the coordinator with the real model and of one with a fake engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract import wires
from contract.openapi import conforms
from contract.refusals import ERRORS, GOOD
from contract.wires import BY_NAME, TRANSPORTS, Answer, Wire
from support import Served, serving, tiny_gguf, wait_until


@pytest.fixture(scope="session")
def real(served: Served) -> Iterator[dict[str, Wire]]:
    """Clients of the real model, `smollm2`."""
    with wires.connected(served) as clients:
        # The digest is recorded a moment after the load; from then on the model's description does not change.
        wait_until(lambda: clients["rest"].call("get_model", {"model_name": "smollm2"}).result.digest)
        yield clients
        assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="session")
def quick_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator whose engine answers two tokens at once, and which works on no learning jobs and goals: they wait.

    `quick`, `vectors` (of type embedding) and `scores` (reranker) are loaded, `other` is not; `elsewhere.gguf` and
    `two.gguf` are files in a folder that is not the coordinator's own.
    """
    folder = tmp_path_factory.mktemp("quick")
    tiny = tiny_gguf(folder / "tiny")
    vectors = tiny_gguf(folder / "embedding", llama__pooling_type=1)
    scores = tiny_gguf(folder / "ranking", llama__pooling_type=4)
    for name in ("elsewhere", "two"):
        tiny_gguf(folder / "theirs" / f"{name}.gguf", general__name=name)
    links = [("quick", tiny), ("other", tiny), ("vectors", vectors), ("scores", scores)]
    env = {"MODELOPS_MODELS__ROOTS": str(folder / "theirs")}
    env |= {"MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0", "MODELOPS_GOALS__MAX_ACTIVE": "0"}
    load = ["quick", "vectors", "scores"]
    with serving(folder, links=links, load=load, fake={"tokens": 2}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="session")
def quick(quick_served: Served) -> Iterator[dict[str, Wire]]:
    """Clients of the quick fake."""
    with wires.connected(quick_served) as clients:
        yield clients


@pytest.fixture(scope="module")
def clients(served: Served) -> Iterator[dict[str, Wire]]:
    """Clients of the coordinator that is the module's own, its fixture `served`."""
    with wires.connected(served) as found:
        yield found


@pytest.fixture
def called(clients: dict[str, Wire]) -> Iterator[dict[str, Wire]]:
    """The clients, for tests that give their creates names."""
    yield clients
    for wire in clients.values():
        wire.create_key = None


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model's file, for coordinators of a test's own."""
    return tiny_gguf(tmp_path / "tiny")


@pytest.fixture
def check(served: Served, real: dict[str, Wire]) -> Callable[..., None]:
    """Checks a refusal, and that a normal request is answered after it."""

    def check(transport: str, operation: str, answer: Answer, code: str, *named: str) -> None:
        assert answer.code == code, answer.seen
        http, rpc = ERRORS[code]
        if transport == "rest":
            assert answer.status == http
            conforms(BY_NAME[operation].route, answer)
        elif transport == "grpc":
            assert answer.status in rpc
            assert answer.request_id
        assert answer.message
        for name in named:
            assert name in answer.message
        for secret in (str(served.data_dir), str(served.data_dir.parent), "Traceback", "site-packages", "modelops/"):
            assert secret not in answer.seen
        after = real[transport].call("infer", GOOD)
        assert after.code == "", after.seen

    return check


# --- models that come and go ---
@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with a model of each kind for each transport: `gated` is loaded when a file of that name is there,
    `broken` never, `crashing` once; it fetches from this machine."""
    folder = tmp_path_factory.mktemp("states")
    kinds: dict[str, dict[str, Any]] = {
        "broken": {"load_fails": "error: out of luck"},
        "plain": {},
        "crashing": {"load_fails": ["", *["error: not yet"] * 9], "die_after": 1},
        "gated": {},
    }
    behaviours = {
        f"{kind}-{transport}": behaviour | {"count_file": str(folder / f"starts of {kind}-{transport}")}
        for kind, behaviour in kinds.items()
        for transport in TRANSPORTS
    }
    for name in behaviours:
        if name.startswith("gated"):
            behaviours[name]["ready_file"] = str(folder / "gates" / name)
    (folder / "gates").mkdir()
    links = [(name, tiny_gguf(folder / "tiny")) for name in behaviours]
    env = {"MODELOPS_MODELS__ALLOW_PRIVATE_SOURCES": "true"}
    fake = {"token_s": 0.02, "models": behaviours}
    with serving(folder, links=links, fake=fake, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="session")
def staged_wires(staged: Served) -> Iterator[dict[str, Wire]]:
    with wires.connected(staged) as found:
        yield found


@pytest.fixture(params=TRANSPORTS)
def wire(request: pytest.FixtureRequest, staged_wires: dict[str, Wire]) -> Wire:
    """A client of each transport, of the coordinator whose models come and go."""
    wire: Wire = staged_wires[request.param]
    return wire


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """For what is asked meanwhile."""
    with ThreadPoolExecutor(8) as made:
        yield made
