from __future__ import annotations

import socket

import httpcore
import pytest

from bad_http import Answer, bad_server
from modelops.api.errors import InvalidRequest, ModelOpsError
from modelops.serving.sources.addresses import Connections, is_public, judge
from modelops.serving.sources.errors import FetchFailed

CONTENT = b"x" * 1000


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::1"]
)
def test_addresses_of_the_open_internet_may_be_reached(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "fe80::1", "fe80::1%lo", "fc00::1", "fd12::1", "224.0.0.1", "ff02::1", "255.255.255.255"),
        *("240.0.0.1", "192.0.2.1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:1.1.1.1", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    ],
)
def test_addresses_that_are_not_are_told(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(("redirected", "error"), [(False, InvalidRequest), (True, FetchFailed)])
def test_one_private_address_of_several_is_one_too_many(redirected: bool, error: type[ModelOpsError]) -> None:
    with pytest.raises(error, match="private network"):
        judge("host", ["1.1.1.1", "10.0.0.1"], plain=False, allow_private=False, redirected=redirected)
    judge("host", ["1.1.1.1", "10.0.0.1"], plain=False, allow_private=True, redirected=redirected)


def test_plain_http_is_for_this_machine_only() -> None:
    judge("host", ["127.0.0.1", "::1"], plain=True, allow_private=True, redirected=False)
    with pytest.raises(InvalidRequest, match="https:// is needed"):
        judge("host", ["192.168.1.1"], plain=True, allow_private=True, redirected=False)


def test_a_second_answer_of_the_resolver_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is asked for once; the connection goes to the address that was judged."""
    asked: list[str] = []
    system = socket.getaddrinfo

    def resolver(host: str, *arguments: object, **options: object) -> object:
        if host != "rebinding.test":
            return system(host, *arguments, **options)  # type: ignore[arg-type]
        asked.append(host)
        return system("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with bad_server() as judged, bad_server(host="127.0.0.2", port=judged.port) as other:
        judged.answers["/m.gguf"] = other.answers["/m.gguf"] = Answer(CONTENT)
        backend = Connections(plain=True, allow_private=True, redirected=False, trusted=False)
        with httpcore.ConnectionPool(network_backend=backend) as pool:
            answer = pool.request("GET", judged.url("/m.gguf", host="rebinding.test"))
        assert answer.content == CONTENT
        assert judged.asked("host") == [f"rebinding.test:{judged.port}"]
        assert other.requests == []
    assert asked == ["rebinding.test"]


def test_the_next_address_is_tried_when_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    system = socket.getaddrinfo

    def resolver(host: str, *arguments: object, **options: object) -> object:
        if host != "two.test":
            return system(host, *arguments, **options)  # type: ignore[arg-type]
        return [entry for address in ("127.0.0.3", "127.0.0.1") for entry in system(address, *arguments, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with bad_server() as server:
        server.answers["/m.gguf"] = Answer(CONTENT)
        backend = Connections(plain=True, allow_private=True, redirected=False, trusted=False)
        with httpcore.ConnectionPool(network_backend=backend) as pool:
            assert pool.request("GET", server.url("/m.gguf", host="two.test")).content == CONTENT
