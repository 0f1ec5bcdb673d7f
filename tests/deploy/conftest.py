"""Fixtures: a coordinator under load for a minute, the Prometheus that watches it, and the load's own count."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from contract import wires
from contract.wires import Answer, Wire
from deploy.driving import Driver, Job, streamed
from deploy.prometheus import CLOCK_S, Prometheus, config, scraping
from support import need, serving, tiny_gguf, wait_until

#: As long as the longest window that is looked at whole, and two scrapes.
DRIVE_S = 62.0
ASK = {"input_text": "Hello", "max_tokens": 3}


@dataclass(frozen=True)
class Watched:
    """What was driven and scraped. `at`: when a minute of it was over; `settled`: when a later page had it all."""

    prometheus: Prometheus
    driver: Driver
    models_loaded: int
    page: str
    at: float
    settled: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """`quick` and `vectors` answer; `flaky` fails every other call; `broken` cannot be loaded; of `renewed` the version
    changes, and `left` is unloaded, at the start and at the end. Others use a quarter of the machine's GPU."""
    need("prometheus")
    folder, driver = tmp_path_factory.mktemp("watched"), Driver()
    sick = folder / "sick"
    files = {name: tiny_gguf(folder / "tiny") for name in ("quick", "flaky", "broken", "renewed", "left")}
    files["vectors"] = tiny_gguf(folder / "embedding", llama__pooling_type=1)
    tiny_gguf(folder / "theirs" / "two.gguf", general__name="two")
    models = {"flaky": {"sick_file": str(sick)}, "broken": {"load_fails": "error: out of luck"}}
    env = {
        "MODELOPS_MEMORY__SIMULATED_DEVICES": "gpu0=24000/6000",
        "MODELOPS_MODELS__ROOTS": str(folder / "theirs"),
    }
    load = ["quick", "flaky", "renewed", "left"]
    fake = {"token_s": 0.01, "models": models}
    with (
        serving(folder, links=list(files.items()), load=load, fake=fake, env=env) as served,
        wires.connected(served) as clients,
        scraping(tmp_path_factory.mktemp("prometheus"), served, config()) as prometheus,
    ):
        # In RAM: a made-up GPU does not tell what an engine takes of it.
        clients["rest"].ok("load_model", model_name="vectors", gpu_layers=-1)
        _pursue(clients["rest"])
        wait_until(prometheus.scraped, what="a first page")
        with driver.driving(_jobs(clients, sick)):
            began = time.time()
            _change_models(driver, clients["rest"], "activate_version", model_version="v2")
            wait_until(lambda: time.time() > began + DRIVE_S, DRIVE_S + 10, "the end of the drive")
            at = time.time()
            _change_models(driver, clients["rest"], "roll_back")
        over = time.time()
        wait_until(lambda: prometheus.scraped() > over, what="a page that shows all of it")
        loaded = [model for model in clients["rest"].ok("list_models").models if model.status == "loaded"]
        page = httpx.get(f"{served.rest}/metrics").text
        yield Watched(prometheus, driver, len(loaded), page, at, prometheus.scraped() + CLOCK_S)
        assert "Traceback" not in served.log.read_text()


def _jobs(clients: dict[str, Wire], sick: Path) -> list[Job]:
    rest, grpc, zmq = (clients[name] for name in ("rest", "grpc", "zmq"))
    quick, nobody = {"model_name": "quick"} | ASK, {"model_name": "nobody"} | ASK
    vectors = {"model_name": "vectors", "inputs": ["a", "b c"]}
    turns = itertools.count()

    def flaky() -> Answer:
        """Every other call is failed by the engine: never enough of them in a row to open the breaker."""
        if next(turns) % 2:
            sick.touch()
        else:
            sick.unlink(missing_ok=True)
        return zmq.call("infer", {"model_name": "flaky"} | ASK)

    return [
        Job("rest", "quick", 0.2, lambda: rest.call("infer", quick)),
        Job("grpc", "quick", 0.25, lambda: grpc.call("infer", quick)),
        Job("zmq", "quick", 0.3, lambda: zmq.call("infer", quick)),
        Job("rest", "quick", 0.5, streamed(lambda: rest.stream(quick))),
        Job("grpc", "quick", 0.5, streamed(lambda: grpc.stream(quick))),
        Job("rest", "vectors", 0.5, lambda: rest.call("embed", vectors)),
        Job("zmq", "vectors", 0.7, lambda: zmq.call("infer", {"model_name": "vectors"} | ASK)),
        Job("grpc", "(unknown)", 0.7, lambda: grpc.call("infer", nobody)),
        Job("zmq", "flaky", 0.5, flaky),
    ]


def _pursue(rest: Wire) -> None:
    """A goal that has loaded a model, and is cancelled then."""
    rest.ok("unload_model", model_name="left")
    goal = rest.ok("create_goal", title="kept", objective={"type": "availability", "models": ["left"]})

    def left() -> bool:
        return any(each.model_name == "left" and each.status == "loaded" for each in rest.ok("list_models").models)

    wait_until(left, what="a model that a goal has loaded")
    rest.ok("cancel_goal", goal_id=goal.goal_id)
    wait_until(lambda: rest.ok("get_goal", goal_id=goal.goal_id).status == "cancelled", what="the end of the goal")


def _change_models(driver: Driver, rest: Wire, renew: str, **how: str) -> None:
    """What happens to models beside being asked, and one that fails at once and is then refused."""
    if renew == "activate_version":
        rest.ok("register_version", model_name="renewed", model_path="two.gguf")
    else:
        rest.ok("load_model", model_name="left")
    rest.ok(renew, model_name="renewed", **how)
    rest.ok("unload_model", model_name="left")
    for _ in range(2):
        driver.ask(Job("rest", "broken", 0, lambda: rest.call("infer", {"model_name": "broken"} | ASK)))
