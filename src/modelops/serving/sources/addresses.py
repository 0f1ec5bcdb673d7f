"""Which addresses a fetch may reach, and the connections to them.

A name is resolved once, every address is judged, and the connection is made to one of those very addresses, so that a
second answer of the resolver changes nothing. The certificate is still checked against the name.

Where the environment names a proxy (HTTPS_PROXY, ALL_PROXY, NO_PROXY), the proxy resolves names and decides what may be
reached; only addresses written as such are judged then. Certificates: SSL_CERT_FILE or SSL_CERT_DIR, else certifi's.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable
from urllib import request as environment

import httpcore
import httpx

from modelops.api.errors import InvalidRequest, ModelOpsError
from modelops.serving.sources.errors import FetchFailed

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEAD_END = re.compile(rb"\r?\n\r?\n")


def is_public(address: str) -> bool:
    """Whether `address` is of the open internet, and of no address hidden in another."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip.teredo:
            return False
        hidden = ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if hidden:
            return is_public(str(hidden))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def is_loopback(address: str) -> bool:
    """Whether `address` is this machine."""
    return ipaddress.ip_address(address).is_loopback


def resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, in the system's order. Raises FetchFailed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchFailed(f"the name '{host}' cannot be resolved; is it spelt right, and is there a network?") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def judge(host: str, addresses: Iterable[str], *, plain: bool, allow_private: bool, redirected: bool) -> None:
    """Raises InvalidRequest unless all `addresses` of `host` may be reached; FetchFailed when the server sent us there.

    `plain` is for http://, which is for this machine only: anybody on the way could replace the model.
    """
    refusal: type[ModelOpsError] = FetchFailed if redirected else InvalidRequest
    sent = "the server redirects to" if redirected else "the source is at"
    for address in addresses:
        if not allow_private and not is_public(address):
            raise refusal(
                f"{sent} '{host}', an address of this machine or of a private network; such are refused "
                "unless models.allow_private_sources says otherwise"
            )
        if plain and not is_loopback(address):
            raise refusal(f"{sent} http://{host}, which anybody on the way could change; https:// is needed")


class Connections(httpcore.NetworkBackend):
    """Connections to judged addresses only; to any where the operator chose the host, who is `trusted`."""

    def __init__(self, *, plain: bool, allow_private: bool, redirected: bool, trusted: bool) -> None:
        self._plain = plain
        self._allow_private = allow_private
        self._redirected = redirected
        self._trusted = trusted
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address of `host` that answers."""
        addresses = resolve(host, port)
        if not self._trusted:
            judge(
                host,
                addresses,
                plain=self._plain,
                allow_private=self._allow_private,
                redirected=self._redirected,
            )
        failure: Exception = FetchFailed(f"the name '{host}' has no address")
        for address in addresses:
            try:
                return Stream(self._inner.connect_tcp(address, port, timeout, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class Stream(httpcore.NetworkStream):
    """A connection that counts the bytes behind the head of an answer, also those that nobody asked for."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._head: bytes | None = b""
        self.received = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As the connection below."""
        data = self._inner.read(max_bytes, timeout)
        if self._head is None:
            self.received += len(data)
            return data
        self._head += data
        while end := _HEAD_END.search(self._head):
            body = self._head[end.end() :]
            if re.match(rb"HTTP/1\.\d 1\d\d", self._head):  # only an announcement: the answer's head is yet to come
                self._head = body
                continue
            self._head, self.received = None, len(body)
            break
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As the connection below."""
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        """As the connection below."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same over TLS."""
        return Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        """As the connection below."""
        return self._inner.get_extra_info(info)


def pool(scheme: str, host: str, *, allow_private: bool, redirected: bool, trusted: bool) -> httpcore.ConnectionPool:
    """For one request to `host`, directly or by the proxy. Raises ModelOpsError, also later, as it connects."""
    plain = scheme != "https"
    context = None if plain else _certificates()
    if not plain and (proxy := _proxy(host)):
        if not trusted:
            judge(host, _literal(host), plain=False, allow_private=allow_private, redirected=redirected)
        to_proxy = Connections(plain=False, allow_private=True, redirected=False, trusted=True)
        return httpcore.HTTPProxy(
            str(proxy.url), proxy_auth=proxy.raw_auth, ssl_context=context, network_backend=to_proxy
        )
    direct = Connections(plain=plain, allow_private=allow_private, redirected=redirected, trusted=trusted)
    return httpcore.ConnectionPool(ssl_context=context, network_backend=direct)


def certificate_fault(error: BaseException | None) -> str:
    """What is wrong with the other side's certificate, if that is behind `error`."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message.rstrip(".")
        error = error.__cause__ or error.__context__
    return ""


def _literal(host: str) -> list[str]:
    """The address that `host` is, or that every resolver gives for this machine's own name; none for other names."""
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        return []


def _proxy(host: str) -> httpx.Proxy | None:
    found = environment.getproxies()
    address = found.get("https") or found.get("all")
    if not address or environment.proxy_bypass(host):
        return None
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL):
        raise FetchFailed("the proxy that HTTPS_PROXY names has no usable address") from None
    if proxy.url.scheme not in ("http", "https"):
        raise FetchFailed("HTTPS_PROXY names a proxy that is neither http:// nor https://")
    return proxy


def _certificates() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError:
        raise FetchFailed("the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read") from None
