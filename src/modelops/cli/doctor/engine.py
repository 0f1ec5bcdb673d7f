"""The engine: which one there is, whether it starts, and whether it can use the GPUs that there are."""

from __future__ import annotations

import asyncio
import functools
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from modelops.cli.doctor.findings import Area, Finding, count
from modelops.engines.sight import PATIENCE_S, Account, Said, account
from modelops.serving.devices import Device, ThisMachine
from modelops.serving.placement import HOST
from modelops.settings import Settings

AREA = Area("engine")
_CUDA = (
    "install a llama-server that was built for CUDA (llama.cpp publishes them), and name it in engine.executable "
    "(MODELOPS_ENGINE__EXECUTABLE=/path/to/llama-server); until then models run on the CPU"
)
_NAME_ONE = "name a llama-server in engine.executable (MODELOPS_ENGINE__EXECUTABLE), or leave that empty for xllamacpp"
#: What newer processors compute much of a prompt with: how Linux names it, and how llama.cpp does.
_NEWER = {"avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16", "amx_int8": "AMX_INT8"}
_PROCESSOR = Path("/proc/cpuinfo")
_VERSION = re.compile(r"^version: .*", re.MULTILINE)


def engine(settings: Settings) -> Iterator[Finding]:
    """What runs the models, and whether it would."""
    from modelops.api.errors import EngineFailed
    from modelops.engines.llama_cpp import find_executable

    try:
        executable = find_executable(settings.engine.executable)
    except EngineFailed as error:
        what, _, todo = error.message.partition(": ")
        yield AREA.wrong("engine", what, todo or _NAME_ONE)
        return
    yield from _executable(executable) if executable else _package()


def _executable(path: str) -> Iterator[Finding]:
    try:
        version = _ask(path, "--version")
    except OSError as error:
        yield AREA.wrong("engine", f"{path} cannot be started: {error.strerror}", _NAME_ONE)
        return
    if fault := _fault(version):
        yield AREA.wrong("engine", f"{path} does not start: {fault}", f"mend it, or {_NAME_ONE}")
        return
    told = _VERSION.search(version.text)
    if told is None:
        what = f"{path} starts, and does not tell its version: {version.last}"
        yield AREA.warning("engine", what, _NAME_ONE)
    else:
        yield AREA.ok("engine", f"{path}, {told[0]}")
    yield from gpus(there_now(), _account(path).gpus)


def _package() -> Iterator[Finding]:
    from importlib.metadata import version

    name = f"the package xllamacpp {version('xllamacpp')}"
    told = _account("")
    if told.said.status != 0:
        fault = _fault(told.said) or told.said.last
        mend = "install it again (pip install --force-reinstall xllamacpp), or name a llama-server in engine.executable"
        yield AREA.wrong("engine", f"{name} cannot be loaded: {fault}", mend)
        return
    unused = instructions_unused(told.built, _PROCESSOR.read_text() if _PROCESSOR.exists() else "")
    faster = (
        f"; this processor also has {', '.join(unused)}, which it was not built for: a llama-server that is built on "
        "this machine, and named in engine.executable, reads prompts faster"
    )
    yield AREA.ok("engine", f"{name}{faster if unused else ''}")
    yield from gpus(there_now(), told.gpus)


def instructions_unused(built: str, processor: str) -> list[str]:
    """What the processor, by Linux's description, has for prompts and an engine with llama.cpp's words of how it was
    built makes no use of; nothing where either says nothing of it."""
    flags = next((line for line in processor.splitlines() if line.startswith("flags")), "").split()
    used = re.findall(r"(\w+) = 1", built)
    return [name for flag, name in _NEWER.items() if flag in flags and name not in used] if used else []


@functools.cache
def _account(executable: str) -> Account:
    return asyncio.run(account(executable))


def blind(settings: Settings) -> bool:
    """Whether the engine says that it can use no GPU at all."""
    from modelops.api.errors import EngineFailed
    from modelops.engines.llama_cpp import find_executable

    try:
        return _account(find_executable(settings.engine.executable)).gpus == ()
    except EngineFailed:  # the engine's checks tell it
        return False


def there_now() -> list[Device]:
    """The GPUs that the driver shows."""
    return [device for device in ThisMachine().devices() if device.device != HOST]


def gpus(there: Sequence[Device], usable: Sequence[str] | None) -> Iterator[Finding]:
    """Whether the engine sees the GPUs that are there: it names the `usable` ones, None where it does not tell."""
    have = f"{count(len(there), 'GPU')} ({', '.join(sorted({gpu.name for gpu in there}))})"
    if not there:
        if usable:
            yield AREA.ok("GPU", f"the engine sees {', '.join(usable)}")
    elif usable is None:
        yield AREA.warning("GPU", f"there is {have}; whether the engine can use it is unknown", f"see its log; {_CUDA}")
    elif not usable:
        yield AREA.warning("GPU", f"there is {have}, and the engine sees none of it: it was built for the CPU", _CUDA)
    else:
        yield AREA.ok("GPU", f"the engine sees {', '.join(usable)} of {have}")


def _fault(said: Said) -> str:
    """Why a program did not start; empty where it did, if only to refuse its arguments."""
    if said.status is None:
        return f"it says nothing for {PATIENCE_S:.0f} s"
    if said.status < 0:
        name = signal.Signals(-said.status).name
        return f"it ends by {name}" + (": it was built for another processor" if name == "SIGILL" else "")
    return said.last if said.status in (126, 127) else ""  # by which shells and loaders say that nothing ran


def _ask(*argv: str) -> Said:
    """Raises OSError where the program cannot be started at all."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return Said(None)
    return Said(done.returncode, f"{done.stdout}\n{done.stderr}")
