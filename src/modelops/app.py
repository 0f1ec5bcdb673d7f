"""The composition root: builds the parts from Settings, starts them in order, stops them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import modelops
from modelops.api.errors import AlreadyLoaded, ModelOpsError
from modelops.api.types import ModelLoadRequest
from modelops.engines.process import kill_leftovers
from modelops.goals.assembly import Pursuit
from modelops.learning.assembly import Learning
from modelops.metrics import Metrics
from modelops.metrics.families import LOOP_LAG
from modelops.service import Call, Coordinator, Parts
from modelops.service.callers import Callers
from modelops.service.rates import Rates
from modelops.serving.arrivals import Arrivals
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Machine, SimulatedMachine, ThisMachine
from modelops.serving.estimates import Estimates
from modelops.serving.pool import Pool
from modelops.serving.quantised import Quantised
from modelops.serving.residents import Residents
from modelops.serving.sources import Policy
from modelops.settings import ModelEntry, Settings, SettingsError, load_catalogue
from modelops.store.database import open_database
from modelops.store.estimates import EstimateQueries
from modelops.store.goals import GoalQueries
from modelops.store.jobs import JobQueries
from modelops.store.keys import KeyQueries
from modelops.store.models import ModelQueries
from modelops.store.residents import ResidentQueries
from modelops.tasks import Tasks
from modelops.tracing import Tracing
from modelops.transports.grpc import GrpcServer
from modelops.transports.listening import Certificate, CertificateError, Listening, is_loopback, key_pair
from modelops.transports.rest import RestServer
from modelops.transports.zmq import ZmqServer

log = logging.getLogger(__name__)

_LOOK_AT_CERTIFICATE_S = 1.0
_LOOK_AT_LOOP_S = 0.25
_MOST_FILES = 65_536
_LONGEST_SOCKET_PATH = 100  # of 108 bytes that the kernel takes, less a file's name


class StartError(Exception):
    """The coordinator cannot start; the message says why and what to do."""


@dataclass(frozen=True)
class Running:
    """A coordinator that serves."""

    coordinator: Coordinator
    pool: Pool
    residents: Residents
    learning: Learning
    pursuit: Pursuit
    beginning: Tasks
    rest: RestServer
    grpc: GrpcServer
    zmq: ZmqServer


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A coordinator that serves while the context is open; leaving it drains, stops the engines, and waits for both."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_only_one(settings.data_dir))
        runtime_dir = stack.enter_context(_runtime_dir(settings.data_dir))
        metrics = Metrics(enabled=settings.metrics.enabled)
        database = await open_database(settings.data_dir / "state.db", metrics)
        stack.push_async_callback(database.dispose)
        tracing = tracing_of(settings)
        stack.callback(tracing.close)
        callers = Callers(KeyQueries(database), rates_of(settings))
        stack.push_async_callback(callers.close)
        await callers.open()
        listening = listening_of(settings)
        _look_at_exposure(settings, need_keys=callers.need_keys)
        roots = [settings.models_dir, *settings.models.roots]
        settings.models_dir.mkdir(parents=True, exist_ok=True)
        residents = Residents(ResidentQueries(database))
        arrivals = Arrivals()
        allow = settings.models.allow_private_sources
        policy = Policy(allow_private=allow, stall_s=settings.models.fetch_stall_s)
        catalog = Catalog(ModelQueries(database), residents.queries, roots, arrivals, catalogue_of(settings), policy)
        stack.push_async_callback(catalog.close)
        await catalog.open()
        machine = machine_of(settings)
        stack.push_async_callback(residents.close)
        quantised = Quantised(catalog, arrivals, settings.data_dir / "quantised", settings.engine.quantization_type)
        estimates = Estimates(EstimateQueries(database), ask=settings.engine.probe)
        pool = Pool(settings, catalog, machine, quantised, estimates, metrics, runtime_dir, residents.remember)
        stack.push_async_callback(pool.close)
        stack.push_async_callback(arrivals.close)
        learning = Learning(settings, JobQueries(database), catalog, pool, machine, metrics, runtime_dir)
        stack.push_async_callback(learning.close)
        pursuit = Pursuit(settings, GoalQueries(database), catalog, pool, machine, learning, metrics)
        stack.push_async_callback(pursuit.close)
        jobs, goals = learning.jobs, pursuit.goals
        parts = Parts(settings, catalog, machine, pool, arrivals, quantised, callers, metrics, tracing, jobs, goals)
        coordinator = Coordinator(parts)
        stack.callback(coordinator.close)
        watching, beginning = Tasks("watch"), Tasks("begin")
        stack.push_async_callback(watching.close)
        stack.push_async_callback(beginning.close)
        watching.start("event loop", _watch_loop(metrics))
        server = settings.server
        rest = RestServer(coordinator, listening, server.rest_port)
        grpc = GrpcServer(coordinator, listening, server.grpc_port)
        zmq = ZmqServer(coordinator, listening, server.zmq_port)
        await learning.clear()
        await pursuit.clear()
        await pursuit.keep()
        transports = (("rest", rest), ("grpc", grpc), ("zmq", zmq))
        for _, transport in transports:
            stack.push_async_callback(transport.stop)  # of all, before any starts: where one fails, the rest end too
        for name, transport in transports:
            try:
                await transport.start()
            except OSError as error:
                raise StartError(_not_bound(name, transport.address, error)) from None
            coordinator.components[name] = partial(getattr, transport, "state")
        if listening.certificate:
            watching.start("certificate", _keep_fresh(listening.certificate))
        rows = await residents.queries.all() if settings.models.restore else []
        residents.restore(catalog, pool, rows)
        beginning.start("learning and goals", _begin(residents, learning, pursuit))
        try:
            yield Running(coordinator, pool, residents, learning, pursuit, beginning, rest, grpc, zmq)
        finally:
            coordinator.draining = True
            await grpc.drain()
            await beginning.close()  # or it would begin what is closed here
            await pursuit.close()
            await learning.close()  # what is under way goes back to the queue, before its engines and leases end
            await arrivals.close()
            await pool.close()  # both before the transports: through them, what is cut short is told so


async def serve(settings: Settings, load: Sequence[str], ready: Callable[[Running], Awaitable[None]]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what has been accepted; a second signal ends at once.

    The models named in `load` are loaded first; `ready` is called when they answer. Raises StartError.
    """
    _allow_many_files()
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    tasks = Tasks("serve")

    def signalled() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    async with running(settings) as parts:
        getting_ready = tasks.start("get ready", _get_ready(parts, load, ready))
        stopping = tasks.start("stop", stop.wait())
        await asyncio.wait({getting_ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if getting_ready.done():
            if failed := getting_ready.result():
                raise failed
            await stop.wait()
        log.info(
            "finishing what has been accepted, at most %.0f s; a second signal ends at once",
            settings.server.drain_s,
            extra={"drain_s": settings.server.drain_s},
        )
        parts.coordinator.draining = True  # who asks for readiness is told first
        await parts.grpc.drain()
        draining = tasks.start("drain", _drain(parts, settings))
        hurrying = tasks.start("hurry", at_once.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        await tasks.close()


async def _drain(parts: Running, settings: Settings) -> None:
    """Finish what was accepted; whoever asks meanwhile is refused, and so knows before its connection is closed."""
    noticed = asyncio.get_running_loop().time() + settings.server.drain_notice_s
    await parts.beginning.close()  # what has not begun yet does not any more
    await parts.pursuit.close()
    await parts.learning.close()  # it goes on after the restart
    await parts.pool.drain(settings.server.drain_s)
    await asyncio.sleep(max(0.0, noticed - asyncio.get_running_loop().time()))


async def _begin(residents: Residents, learning: Learning, pursuit: Pursuit) -> None:
    """Learning takes its memory after the models that were there before, and goals go on beside it."""
    await residents.begun()
    await learning.start()
    await pursuit.start()


async def _watch_loop(metrics: Metrics) -> None:
    """How late tasks are woken: what blocks the event loop is late for everybody."""
    while True:
        due = time.perf_counter() + _LOOK_AT_LOOP_S  # finer than the loop's own clock
        await asyncio.sleep(_LOOK_AT_LOOP_S)
        metrics.observe(LOOP_LAG, max(0.0, time.perf_counter() - due))


async def _keep_fresh(certificate: Certificate) -> None:
    while True:
        await asyncio.sleep(_LOOK_AT_CERTIFICATE_S)
        certificate.refresh()


async def _get_ready(
    parts: Running, load: Sequence[str], ready: Callable[[Running], Awaitable[None]]
) -> StartError | None:
    await parts.residents.begun()  # what was loaded before comes back as it was wished
    for name in load:
        try:
            await parts.coordinator.load_model(Call("start", "local"), ModelLoadRequest(model_name=name))
        except AlreadyLoaded:
            continue
        except ModelOpsError as error:
            return StartError(f"'{name}' could not be loaded: {error.message}")
    # What start-up made stays: without it a full garbage collection is short, and no request waits for one.
    gc.collect()
    gc.freeze()
    await ready(parts)
    return None


def _allow_many_files() -> None:
    """A connection is an open file: as many as the system lets us, where less is what a shell begins with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _MOST_FILES) if hard > 0 else _MOST_FILES, hard))


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data folder: two coordinators would both believe that they are the one writer of its state."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _open(data_dir / "lock", os.O_RDWR)
    except OSError as error:
        raise StartError(
            f"the data folder {data_dir} cannot be used: {error.strerror}; choose one with data_dir"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"a coordinator is already running on {data_dir}; stop it, or give this one its own with "
                "MODELOPS_DATA_DIR"
            ) from None
        yield
    finally:
        os.close(lock)


def _open(file: Path, flags: int) -> int:
    """Open or make a file that only its owner may read, also where it was left open to others."""
    handle = os.open(file, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)
    return handle


@contextlib.contextmanager
def _runtime_dir(data_dir: Path) -> Iterator[Path]:
    """A short folder for the engines' sockets; what a killed predecessor left behind goes first."""
    note = data_dir / "runtime"
    with contextlib.suppress(OSError):
        left = Path(note.read_text())
        if left.name.startswith("modelops-"):
            if count := kill_leftovers(str(left)):
                log.warning(
                    "killed %d processes that an earlier coordinator left behind", count, extra={"count": count}
                )
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="modelops-"))
    if len(str(folder)) > _LONGEST_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="modelops-", dir="/tmp"))
    with os.fdopen(_open(note, os.O_WRONLY | os.O_TRUNC), "w") as written:
        written.write(str(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink(missing_ok=True)


def listening_of(settings: Settings) -> Listening:
    """How the transports listen, with the certificate and the key pair. Raises StartError."""
    server, tls = settings.server, settings.tls
    if bool(tls.cert_file) != bool(tls.key_file):
        raise StartError("tls.cert_file and tls.key_file belong together: give both, or none")
    if tls.client_ca_file and not tls.cert_file:
        raise StartError("tls.client_ca_file is for clients' certificates, which take tls.cert_file and tls.key_file")
    try:
        certificate = None
        if tls.cert_file and tls.key_file:
            certificate = Certificate(tls.cert_file, tls.key_file, tls.client_ca_file)
        pair = key_pair(tls.curve_file) if tls.curve_file else None
    except CertificateError as error:
        raise StartError(str(error)) from None
    return Listening(
        host=server.host,
        max_body_bytes=server.max_body_bytes,
        max_connections=server.max_connections,
        client_timeout_s=server.client_timeout_s,
        idle_timeout_s=server.idle_timeout_s,
        certificate=certificate,
        key_pair=pair,
    )


@dataclass(frozen=True)
class Exposed:
    """Something that others can reach or read, and what to do about it. `refused`: so nothing starts."""

    what: str
    mend: str
    refused: bool = False


def exposed(settings: Settings, *, need_keys: bool) -> list[Exposed]:
    """What is open to other machines that perhaps should not be, the worst first."""
    host = settings.server.host
    if is_loopback(host):
        return []
    found = []
    if not need_keys:
        make = "'modelops keys create NAME' makes a key"
        if settings.server.insecure:
            found.append(Exposed(f"listening on {host} without keys: whoever reaches it may use it", make))
        else:
            what = f"{host} can be reached from other machines, and there is no key: whoever reaches it could use it"
            mend = "make a key with 'modelops keys create NAME', or say --insecure if that is meant"
            found.append(Exposed(what, mend, refused=True))
    if not settings.tls.cert_file:
        what = f"listening on {host} without a certificate: keys and prompts can be read on the way"
        found.append(Exposed(what, "'modelops tls self-signed' makes one for a first try (docs/security.md)"))
    if not settings.tls.curve_file:
        what = f"listening on {host}, and ZMQ is not encrypted"
        found.append(Exposed(what, "'modelops keys curve' makes a key for it"))
    return found


def _look_at_exposure(settings: Settings, *, need_keys: bool) -> None:
    """Whether what is open may be open; what crosses a network unencrypted is at least said. Raises StartError."""
    for found in exposed(settings, need_keys=need_keys):
        if found.refused:
            raise StartError(f"{found.what}. {found.mend[0].upper()}{found.mend[1:]}")
        log.warning("%s; %s", found.what, found.mend, extra={"host": settings.server.host})


def rates_of(settings: Settings) -> Rates:
    """The counting of callers' rates. Raises StartError."""
    try:
        return Rates(settings.rates.redis_url)
    except ValueError as error:
        raise StartError(str(error)) from None


def tracing_of(settings: Settings) -> Tracing:
    """Where spans go. Raises StartError."""
    told = settings.tracing
    if not told.otlp_endpoint:
        return Tracing()
    try:
        from modelops.tracing.otel import OpenTelemetry
    except ModuleNotFoundError:
        raise StartError(
            "tracing.otlp_endpoint needs packages that are not installed: pip install 'modelops-coordinator[tracing]'"
        ) from None
    try:
        return OpenTelemetry(told.otlp_endpoint, sample_ratio=told.sample_ratio, version=modelops.__version__)
    except ValueError as error:
        raise StartError(str(error)) from None


def catalogue_of(settings: Settings) -> dict[str, ModelEntry]:
    """What the catalogue file says. Raises StartError."""
    try:
        return load_catalogue(settings.models.catalogue)
    except SettingsError as error:
        raise StartError(str(error)) from None


def machine_of(settings: Settings) -> Machine:
    """Where models are placed: this machine, or a simulated one. Raises StartError."""
    written = settings.memory.simulated_devices
    if not written:
        return ThisMachine()
    try:
        return SimulatedMachine(written)
    except ValueError as error:
        raise StartError(f"memory.simulated_devices: {error}") from None


def _not_bound(name: str, address: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE or name == "grpc":
        return f"{name}: {address} is already in use; stop what uses it, or choose another with --{name}-port"
    return f"{name}: cannot listen on {address}: {error.strerror}"
