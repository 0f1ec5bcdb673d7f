"""How the transports listen: the address, the bounds on what clients may hold, the certificate and the key pair."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)


class CertificateError(Exception):
    """A certificate, a key or a key pair that cannot be used; the message says which file, and why."""


class Certificate:
    """The server's certificate, taken from its files again when they change.

    With `client_ca` clients may show a certificate of their own. Files that do not fit together, as while they are
    being exchanged one after the other, change nothing. Raises CertificateError where they cannot be used at first.

    `pair` is the private key and the chain, in PEM, exchanged both at once: other threads may look at any time. It is
    the same object until the next exchange. `context` is one object for good, and always holds a whole pair.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key = cert, key
        self.client_ca = _read(client_ca) if client_ca else None
        self._seen = self._stamp()
        self.pair = (_read(key), _read(cert))
        self.context = self._context(self.pair)
        if client_ca:
            try:
                self.context.load_verify_locations(client_ca)
            except ssl.SSLError:
                raise CertificateError(f"{client_ca} holds no certificate of an authority, in PEM") from None
            self.context.verify_mode = ssl.CERT_OPTIONAL

    @property
    def private_key(self) -> bytes:
        """The private key, in PEM."""
        return self.pair[0]

    @property
    def chain(self) -> bytes:
        """The certificate and those that vouch for it, in PEM."""
        return self.pair[1]

    def refresh(self) -> bool:
        """Take the files again if they have changed; whether they were taken. Connections that there are stay."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            pair = (_read(self._key), _read(self._cert))
            self._context(pair)  # on the one in use a failure would leave half of it
            if self._stamp() != stamp:
                return False  # they are being exchanged just now: what was read may be half of each
            self._load(self.context, pair)
        except CertificateError as error:
            log.debug("the certificate is not exchanged yet: %s", error)
            return False
        self._seen, self.pair = stamp, pair
        log.info("the certificate was exchanged")
        return True

    def _context(self, pair: tuple[bytes, bytes]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._load(context, pair)
        return context

    def _load(self, context: ssl.SSLContext, pair: tuple[bytes, bytes]) -> None:
        # It takes names of files only. The files may be others by now: what was read is what is loaded.
        try:
            with _in_memory(pair[0]) as key, _in_memory(pair[1]) as cert:
                context.load_cert_chain(cert, key, password=self._no_password)
        except OSError as error:
            found = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            reason = (found or "unreadable").lower().replace("_", " ")
            raise CertificateError(f"{self._cert} and {self._key} are no certificate with its key: {reason}") from None

    def _no_password(self) -> str:
        raise CertificateError(f"{self._key} is encrypted with a password: a key that nobody has to type for is needed")

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        try:
            return tuple((it.st_mtime_ns, it.st_size, it.st_ino) for it in (self._cert.stat(), self._key.stat()))
        except OSError as error:
            raise CertificateError(f"{error.filename} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class KeyPair:
    """What ZMQ encrypts with (CURVE): both keys as 40 characters of Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Listening:
    """What all transports have in common.

    `client_timeout_s` is how long a client may take to send a request, or to take the next piece of an answer;
    `idle_timeout_s` how long a REST connection may lie idle between two requests; `max_connections` holds for each
    transport.
    """

    host: str
    max_body_bytes: int = 1 << 20
    max_connections: int = 1000
    client_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    certificate: Certificate | None = None
    key_pair: KeyPair | None = None

    @property
    def loopback(self) -> bool:
        """Whether only programs of this machine reach it."""
        return is_loopback(self.host)


def is_loopback(name: str) -> bool:
    """Whether a name or an address is this machine's own, to itself."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def key_pair(file: Path) -> KeyPair:
    """The key pair in `file`, as `modelops keys curve` writes it. Raises CertificateError."""
    import zmq

    lines = _read(file).split()
    try:
        secret = lines[0]
        return KeyPair(zmq.curve_public(secret), secret)
    except (IndexError, ValueError, zmq.ZMQError):
        raise CertificateError(f"{file} holds no CURVE key; 'modelops keys curve' makes one") from None


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The name of a file with that content, which is on no disk."""
    with os.fdopen(os.memfd_create("pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateError(f"{file} cannot be read: {error.strerror}") from None
