"""Who a caller is, and what it may: without a clock, a file or a network."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.access import (
    ANYBODY,
    SCOPES,
    STRANGER,
    WEIGHTS,
    Caller,
    Credentials,
    Key,
    Keyring,
    check,
    digest_of,
    new_text,
)
from modelops.api.errors import PermissionDenied, Unauthenticated
from modelops.api.operations import Scope

NOW = 1_000.0


def made(name: str = "ci", *, certificate: bool = False, **fields: Any) -> tuple[str, Key]:
    text, number, digest = new_text()
    scopes: frozenset[Scope] = frozenset({"infer"})
    key = Key(number, name, "" if certificate else digest, scopes)
    return text, replace(key, **fields)


def test_a_keys_text_finds_its_row_and_its_secret_is_nowhere_in_it() -> None:
    text, key = made()
    secret = text.rpartition("_")[2]
    assert len(secret) == 48  # 192 bits
    assert secret not in repr(key) + repr(Credentials(text))
    assert key.digest == digest_of(secret)
    assert Keyring([key]).identify(Credentials(text), NOW).name == "ci"


def test_no_two_keys_are_the_same() -> None:
    assert len({new_text()[0] for _ in range(1000)}) == 1000


def test_the_caller_is_as_its_key_says() -> None:
    text, key = made(priority="high", rate="3/second", token_rate="9/minute")
    caller = Keyring([key]).identify(Credentials(text), NOW)
    assert caller == Caller("ci", frozenset({"infer"}), WEIGHTS["high"], "3/second", "9/minute")


def test_without_keys_everybody_is_anybody_whatever_is_shown() -> None:
    for shown in (Credentials(), Credentials("your-api-key-here"), Credentials(certificate="me")):
        assert Keyring().identify(shown, NOW) is ANYBODY
    assert not Keyring().closed


def test_who_shows_nothing_is_a_stranger_once_there_is_a_key() -> None:
    assert Keyring([made()[1]]).identify(Credentials(), NOW) is STRANGER


def test_the_last_key_revoked_shuts_the_door() -> None:
    ring = Keyring([made(revoked_at=1.0)[1]])
    assert ring.closed
    assert ring.identify(Credentials(), NOW) is STRANGER


@given(st.text(max_size=80))
def test_no_text_but_the_keys_own_opens(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Keyring([made()[1]]).identify(Credentials(text or "x"), NOW)


def test_every_change_of_one_character_shuts() -> None:
    text, key = made()
    ring = Keyring([key, made("other")[1]])
    for place in range(len(text)):
        changed = text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]
        with pytest.raises(Unauthenticated, match="none of this coordinator's"):
            ring.identify(Credentials(changed), NOW)


def test_the_holder_of_a_key_is_told_what_is_the_matter_with_it() -> None:
    text, key = made(expires_at=NOW)
    with pytest.raises(Unauthenticated, match="'ci' expired on 1970-01-01 00:16:40 UTC"):
        Keyring([key]).identify(Credentials(text), NOW)
    assert Keyring([key]).identify(Credentials(text), NOW - 0.001).name == "ci"
    with pytest.raises(Unauthenticated, match="'ci' has been revoked"):
        Keyring([replace(key, revoked_at=5.0)]).identify(Credentials(text), NOW)
    # Also by a clock that was set back since.
    with pytest.raises(Unauthenticated, match="'ci' has been revoked"):
        Keyring([replace(key, revoked_at=NOW + 60)]).identify(Credentials(text), NOW)
    # And nobody else is.
    with pytest.raises(Unauthenticated, match="none of this"):
        Keyring([key]).identify(Credentials(text[:-1] + ("0" if text[-1] != "0" else "1")), NOW)


# --- certificates ---
def test_a_certificate_is_known_by_its_name() -> None:
    _, key = made("box", certificate=True)
    assert Keyring([key]).identify(Credentials(certificate="box"), NOW).name == "box"
    for shown in (Credentials(certificate="bax"), Credentials(certificate="BOX")):
        with pytest.raises(Unauthenticated, match="known to nobody"):
            Keyring([key]).identify(shown, NOW)
    with pytest.raises(Unauthenticated, match="known to nobody"):
        Keyring([replace(key, revoked_at=1.0)]).identify(Credentials(certificate="box"), NOW)


def test_a_key_with_a_text_is_no_certificate_and_the_other_way_round() -> None:
    text, key = made("box")
    with pytest.raises(Unauthenticated):
        Keyring([key]).identify(Credentials(certificate="box"), NOW)
    for secret in ("", "0" * 48):
        _, certificate = made("box", certificate=True)
        with pytest.raises(Unauthenticated):
            Keyring([certificate]).identify(Credentials(f"mok_{certificate.id}_{secret}"), NOW)
    _, certificate = made("other", certificate=True)
    assert Keyring([key, certificate]).identify(Credentials(text, "other"), NOW).name == "box"  # the key counts


# --- scopes ---
@pytest.mark.parametrize(("has", "wanted"), list(itertools.product([None, *SCOPES], repeat=2)))
def test_a_scope_opens_itself_and_admin_opens_all(has: Scope | None, wanted: Scope | None) -> None:
    caller = Caller("ci", frozenset({has}) if has else frozenset())
    if wanted is None or has in (wanted, "admin"):
        check(caller, wanted, "this")
    else:
        with pytest.raises(
            PermissionDenied, match=f"'this' takes a key with the scope '{wanted}'; it has {has or 'none'}"
        ):
            check(caller, wanted, "this")


def test_a_stranger_is_asked_for_a_key_and_told_where() -> None:
    check(STRANGER, None, "health")
    with pytest.raises(Unauthenticated) as error:
        check(STRANGER, "infer", "infer")
    for place in ("X-API-Key", "Authorization: Bearer", "metadata", "api_key"):
        assert place in error.value.message


def test_weights_rise_with_priority() -> None:
    assert list(WEIGHTS) == ["low", "medium", "high", "critical"]
    assert list(WEIGHTS.values()) == sorted(WEIGHTS.values())
