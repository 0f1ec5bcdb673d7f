"""What a restart brings back, seen over all transports: the models that were loaded, as they were wished, and no other.

What a kill in the middle of something leaves behind is tested in tests/chaos.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bad_http import Answer, bad_server
from contract import wires
from contract.wires import TRANSPORTS, Wire
from support import Served, serving, tiny_gguf, wait_until

ASK = {"input_text": "Hello", "max_tokens": 2, "temperature": 0.0}
#: How each model was wished, over which transport.
WISHES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("rest", {}),
    "small": ("grpc", {"context_length": 512, "slots": 1, "cache_type": "q8_0"}),
    "stays": ("zmq", {"keep_alive": "-1", "pin": True}),
    "goes": ("rest", {"keep_alive": "1h", "slots": 3}),
    "two": ("grpc", {}),
}


@contextlib.contextmanager
def running(folder: Path, **env: str) -> Iterator[tuple[Served, dict[str, Wire]]]:
    with serving(folder, fake={}, env=env) as served, wires.connected(served) as clients:
        yield served, clients
        assert "Traceback" not in served.log.read_text()


def kill(served: Served) -> None:
    tree = served.engines()
    served.process.kill()
    served.process.wait()
    wait_until(lambda: not any(process.is_running() for process in tree), what="the end of every engine")


def end(served: Served) -> None:
    assert served.stop() == 0


def seen(wire: Wire) -> dict[str, dict[str, Any]]:
    """What is loaded, and how."""
    found = {}
    for model in wire.ok("list_models").models:
        assert model.status == "loaded"
        found[model.model_name] = {
            "version": model.model_version,
            "context_length": model.context_length,
            "slots": model.slots,
            "cache_type": model.cache_type,
            "pinned": model.pinned,
            "expires": model.HasField("expires_at"),
        }
    return found


def back(wire: Wire, names: set[str]) -> None:
    """Wait until just these are loaded."""
    loaded = sorted((name, "loaded") for name in names)
    wait_until(
        lambda: [(model.model_name, model.status) for model in wire.ok("list_models").models] == loaded,
        30,
        f"{names} to be loaded",
    )


def adds_up(wire: Wire, served: Served) -> None:
    """The ledger holds what the models hold, and there is an engine and a guard for each."""
    models = wire.ok("list_models").models
    (device,) = wire.ok("status").devices
    assert 0 <= device.reserved_mb - sum(model.memory_usage_mb for model in models) <= len(models)
    wait_until(lambda: len(served.engines()) == 2 * len(models))


@pytest.mark.parametrize("ending", [kill, end], ids=["killed", "ended"])
def test_what_was_loaded_comes_back_as_it_was_wished_and_nothing_else(
    ending: Callable[[Served], None], tmp_path: Path
) -> None:
    for name in [*WISHES, "unloaded", "over", "other"]:
        tiny_gguf(tmp_path / "models" / f"{name}.gguf")
    tiny_gguf(tmp_path / "models" / "sub" / "second.gguf", general__name="second")
    with running(tmp_path) as (served, clients):
        for name, (transport, wish) in WISHES.items():
            clients[transport].ok("load_model", model_name=name, **wish)
        rest = clients["rest"]
        rest.ok("register_version", model_name="two", model_path="sub/second.gguf")
        rest.ok("activate_version", model_name="two", model_version="v2")
        rest.ok("load_model", model_name="unloaded")
        rest.ok("unload_model", model_name="unloaded")
        rest.ok("infer", model_name="over", keep_alive="0", **ASK)
        wait_until(lambda: rest.info("over").status == "available")
        rest.ok("infer", model_name="plain", keep_alive="2h", **ASK)  # which holds until the next request only
        before = seen(rest)
        assert before["plain"].pop("expires")
        ending(served)
    with running(tmp_path) as (served, clients):
        for transport in TRANSPORTS:
            back(clients[transport], set(WISHES))
            after = seen(clients[transport])
            assert not after["plain"].pop("expires")
            assert after == before
        assert [after["small"][name] for name in ("context_length", "slots", "cache_type")] == [512, 1, "q8_0"]
        assert (after["stays"]["pinned"], after["goes"]["expires"], after["two"]["version"]) == (True, True, "v2")
        adds_up(clients["grpc"], served)
        for name in WISHES:
            assert clients["zmq"].ok("infer", model_name=name, **ASK).output_text == "w0 w1 "
        versions = clients["rest"].ok("list_versions", model_name="two").versions
        assert [(version.active, version.previous) for version in versions] == [(False, True), (True, False)]
        assert clients["rest"].ok("roll_back", model_name="two").model_version == "v1"
        for name in WISHES:
            clients["rest"].ok("unload_model", model_name=name)
        ending(served)
    with running(tmp_path) as (served, clients):  # nothing was loaded at the end
        assert clients["rest"].ok("list_models").models == []
        assert clients["rest"].info("two").model_version == "v1"
        adds_up(clients["rest"], served)


def test_what_went_for_another_does_not_come_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny_gguf(tmp_path / "models" / f"{name}.gguf", general__name=name)
    little = {"MODELOPS_MEMORY__BUDGET_MB": "70"}
    with running(tmp_path, **little) as (served, clients):
        for name in ("a", "b"):
            clients["rest"].ok("load_model", model_name=name)
        kill(served)
    with running(tmp_path) as (served, clients):
        back(clients["rest"], {"b"})
        adds_up(clients["rest"], served)
        kill(served)
    with running(tmp_path, MODELOPS_MODELS__RESTORE="false") as (served, clients):
        assert clients["rest"].ok("list_models").models == []
        assert served.engines() == []
        kill(served)
    with running(tmp_path, **little) as (served, clients):  # it is wanted still
        back(clients["rest"], {"b"})


def test_what_the_catalogue_names_is_there_from_the_start(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny_gguf(tmp_path / "models" / "sub" / f"{name}.gguf", general__name=name)
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text(
        """
        [chat]
        file = "sub/a.gguf"
        preload = true
        context_length = 512
        slots = 2
        keep_alive = "1h"
        pin = true
        aliases = ["default", "gpt-4o"]

        [later]
        file = "sub/b.gguf"
        type = "embedding"
        """
    )
    env = {"MODELOPS_MODELS__CATALOGUE": str(catalogue)}
    for _ in range(2):
        with running(tmp_path, **env) as (served, clients):
            for transport, wire in clients.items():
                back(wire, {"chat"} if transport == "rest" else {"chat", "later"})
                info = wire.info("gpt-4o")
                assert (info.model_name, info.context_length, info.slots, info.pinned) == ("chat", 512, 2, True)
                assert wire.ok("infer", model_name="default", **ASK).output_text == "w0 w1 "
                answer = wire.ok("embed", model_name="later", inputs=["Hello"])
                assert len(answer.embeddings[0].values) == 8
            clients["rest"].ok("unload_model", model_name="later")
            kill(served)


def test_what_the_catalogue_fetches_keeps_nobody_waiting(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "models" / "here.gguf")
    content = tiny_gguf(tmp_path / "elsewhere" / "m.gguf", general__name="elsewhere").read_bytes()
    catalogue = tmp_path / "catalogue.toml"
    with bad_server() as web:
        first = web.answers["/first.gguf"] = Answer(content, hold=len(content) // 2)
        web.answers["/later.gguf"] = Answer(content)
        catalogue.write_text(
            f"""
            [first]
            source = "{web.url("/first.gguf")}"
            preload = true
            pin = true

            [here]
            preload = true

            [later]
            source = "{web.url("/later.gguf")}"
            slots = 3
            """
        )
        env = {"MODELOPS_MODELS__CATALOGUE": str(catalogue), "MODELOPS_MODELS__ALLOW_PRIVATE_SOURCES": "true"}
        with running(tmp_path, **env) as (served, clients):
            rest = clients["rest"]
            wait_until(lambda: rest.info("here").status == "loaded")
            wait_until(lambda: "fetching" in rest.info("first").message)
            assert rest.info("first").status == "loading"
            assert web.asked("host", "/later.gguf") == []
            assert rest.ok("infer", model_name="later", **ASK).output_text == "w0 w1 "  # fetched on first use
            assert rest.info("later").slots == 3
            first.release.set()
            wait_until(lambda: rest.info("first").status == "loaded")
            assert rest.info("first").pinned
            kill(served)
        with running(tmp_path, **env) as (served, clients):  # what was fetched is there
            back(clients["rest"], {"first", "here", "later"})
            assert len(web.requests) == 2


@pytest.mark.engine
def test_the_real_engine_comes_back_and_answers_as_before(smollm2: Path, tmp_path: Path) -> None:
    asked = {"model_name": "m", "input_text": "What is the capital of France?", "max_tokens": 12, "temperature": 0.0}
    links = [("m", smollm2)]
    with serving(tmp_path, links=links) as served, wires.connected(served) as clients:
        clients["rest"].ok("load_model", model_name="m", context_length=512, slots=2, cache_type="q8_0", pin=True)
        before = clients["rest"].ok("infer", **asked).output_text
        kill(served)
    with serving(tmp_path) as served, wires.connected(served) as clients:
        back(clients["rest"], {"m"})
        for wire in clients.values():
            info = wire.info("m")
            assert (info.context_length, info.slots, info.cache_type, info.pinned) == (512, 2, "q8_0", True)
            assert wire.ok("infer", **asked).output_text == before
        adds_up(clients["rest"], served)
