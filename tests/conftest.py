"""Fixtures. `smollm2` is the real default model's file; `served` a coordinator that serves it, shared by all tests."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

import tiny_llama
from modelops import settings
from modelops.serving import sources
from support import Served, need_packages, serving

# How long an example takes, to be made or to be tried, is the machine's.
hypothesis.settings.register_profile("any", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any")


def pytest_configure() -> None:
    # A shell has what it starts in the background ignore it, and so would the programs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of models of whoever runs the tests: all of their data that is read, and none of it is written."""
    folder = settings.load(environ={}).models_dir
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp("nobody")))
        yield folder


@pytest.fixture(scope="session")
def smollm2(own_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's file: the user's own where it is whole, else fetched."""
    source = sources.parse(sources.KNOWN["smollm2"])
    file = own_models / "smollm2.gguf"
    if not sources.has_digest(file, source.sha256):
        file = tmp_path_factory.mktemp("fetched") / "smollm2.gguf"
        asyncio.run(sources.fetch(source, file, lambda _done, _total: None))
    return file


@pytest.fixture
def begun() -> Callable[[], list[psutil.Process]]:
    """The processes that live below this one and began after the test did, each before its children."""
    others = psutil.Process().children()

    def begun() -> list[psutil.Process]:
        mine = [child for child in psutil.Process().children() if child not in others]
        return [process for child in mine for process in (child, *child.children(recursive=True))]

    return begun


@pytest.fixture(scope="session")
def served(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with the model `smollm2` loaded, for tests that leave it as they found it."""
    with serving(tmp_path_factory.mktemp("served"), links=[("smollm2", smollm2)], load=["smollm2"]) as running:
        yield running


#: What the extra `learning` brings.
_LEARNING = ("torch", "transformers", "peft", "trl", "datasets", "safetensors")


@pytest.fixture(scope="session")
def learning() -> None:
    """For a test that needs the extra: it is installed, or the test is skipped."""
    need_packages(*_LEARNING)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is trained in a second."""
    return tiny_llama.write(tmp_path_factory.mktemp("models") / "tiny.gguf")
