"""The network: whether the ports can be had, who has them, and who could reach what listens there."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import ssl
from collections import Counter
from collections.abc import Iterator

import psutil

from modelops.cli.doctor.coordinator import Coordinator
from modelops.cli.doctor.findings import Area, Finding
from modelops.settings import PREFIX, Settings

AREA = Area("network")
_PATIENCE_S = 2.0
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, and listened on by nobody


def ports(settings: Settings, running: Coordinator | None) -> Iterator[Finding]:
    """Whether each transport can listen, or does."""
    host = settings.server.host
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        yield AREA.wrong("host", f"'{host}' is no address, and no name that is known here", _choose("host"))
        return
    wanted = {name: getattr(settings.server, f"{name}_port") for name in ("rest", "grpc", "zmq")}
    shared = {port for port, times in Counter(wanted.values()).items() if port and times > 1}
    ours = {port for _, port in running.listens()} if running else set()
    for name, port in wanted.items():
        if not port:
            yield AREA.ok(name, "takes any free port")
        elif port in shared:
            yield AREA.wrong(name, f"port {port} is given to more than one transport", _choose(f"{name}_port"))
        elif port in ours:
            yield AREA.ok(name, f"the coordinator listens on port {port}")
        elif fault := _bind(family, str(address[0]), port):
            if running and not ours and fault.errno == errno.EADDRINUSE:  # another user's: nobody tells what it has
                yield AREA.ok(name, f"port {port} is taken, as it seems by the coordinator (process {running.pid})")
            else:
                yield _not_bound(name, host, port, fault)
        else:
            yield AREA.ok(name, f"port {port} of {host} is free")
    if running and wanted["rest"] in ours:
        yield _alive(settings, wanted["rest"])


def exposure(settings: Settings, need_keys: bool | None) -> Iterator[Finding]:
    """Who could reach it, and read what is said, as a start tells it."""
    from modelops.app import exposed
    from modelops.transports.listening import is_loopback

    host = settings.server.host
    if is_loopback(host):
        yield AREA.ok("exposure", f"{host}: programs of this machine reach it, and no others")
        return
    found = exposed(settings, need_keys=bool(need_keys))
    if need_keys is None:
        yield AREA.warning("exposure", "whether there are keys is not known", "mend the state file first")
        found = [one for one in found if not one.refused]
    for one in found:
        if one.refused:
            yield AREA.wrong("exposure", one.what, one.mend)
        else:
            yield AREA.warning("exposure", one.what, one.mend)
    if not found:
        yield AREA.ok("exposure", f"{host} can be reached from other machines: encrypted, and with a key")


def _bind(family: int, address: str, port: int) -> OSError | None:
    """Why nobody could listen there; None where one could. It is free again at once, and nobody could connect."""
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
        except OSError as error:
            return error
    return None


def _not_bound(name: str, host: str, port: int, fault: OSError) -> Finding:
    key = f"{name}_port"
    if fault.errno == errno.EADDRINUSE:
        return AREA.wrong(name, f"port {port} is taken by {_holder(port)}", f"end that, or {_choose(key)}")
    if fault.errno == errno.EADDRNOTAVAIL:
        return AREA.wrong(name, f"{host} is no address of this machine", f"'ip address' tells them; {_choose('host')}")
    if fault.errno in (errno.EACCES, errno.EPERM):
        return AREA.wrong(name, f"port {port} is for privileged programs only", _choose(key))
    return AREA.wrong(name, f"{host}:{port} cannot be listened on: {os.strerror(fault.errno or 0)}", _choose(key))


def _choose(key: str) -> str:
    variable = f"{PREFIX}SERVER__{key.upper()}"
    return f"choose another: server.{key}, as --{key.replace('_', '-')} or {variable}"


def _holder(port: int) -> str:
    """Who listens on the port, as far as this user may know. Its arguments are not told: they may be secret."""
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.laddr and one.laddr.port == port and one.pid and one.status in (psutil.CONN_LISTEN, "NONE"):
                process = psutil.Process(one.pid)
                words = process.cmdline()
                what = "another coordinator" if "serve" in words and "modelops" in " ".join(words) else process.name()
                return f"{what} (process {one.pid})"
    return f"a program that only its own user, or root, may see (sudo ss -ltnp 'sport = :{port}')"


def _alive(settings: Settings, port: int) -> Finding:
    """Whether the running coordinator answers."""
    host = _LOCAL.get(settings.server.host, settings.server.host)
    where = f"{f'[{host}]' if ':' in host else host}:{port}/health/live"
    try:
        status = _get(settings, host, port)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        return AREA.warning("answer", f"{where} does not answer: {reason}", "look at its log; start it again")
    if status // 100 != 2:
        return AREA.warning("answer", f"{where} answers {status}", "look at its log; start it again")
    return AREA.ok("answer", f"{where} answers")


def _get(settings: Settings, host: str, port: int) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    if settings.tls.cert_file:
        # It should show the very certificate that is configured, whatever names are in that.
        context = ssl.create_default_context(cafile=settings.tls.cert_file)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE_S, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/health/live")
        return connection.getresponse().status
