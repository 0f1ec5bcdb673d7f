"""Who a caller is and what it may: keys, what they open, and the check of what a caller shows. Pure but for the making
of a key.

A key's text is `mok_<id>_<secret>`. Only a digest of the secret is kept: it is 192 random bits, so that guessing is
hopeless and a slow hash would protect nothing. The id finds the row; the secret is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args

from modelops.api.errors import PermissionDenied, Unauthenticated
from modelops.api.operations import Scope

Priority = Literal["low", "medium", "high", "critical"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
#: Shares of a busy model: a caller of one step more gets four times as much. Weights, not ranks: nobody starves.
WEIGHTS: Mapping[Priority, float] = {"low": 1.0, "medium": 4.0, "high": 16.0, "critical": 64.0}

_TEXT = re.compile(r"mok_([0-9a-f]{8})_([0-9a-f]{48})")
_WANTED = (
    "this coordinator wants a key: as the header 'X-API-Key' or 'Authorization: Bearer', as gRPC metadata of those "
    "names, or as the field 'api_key' of a ZMQ message"
)


@dataclass(frozen=True)
class Key:
    """A key as it is kept. Times are seconds since the epoch; None: never.

    Without a `digest` it has no text: it is for callers that show a client certificate with its name. `rate` and
    `token_rate` are written as "10/second"; empty: no limit. Holders of the scope `admin` have all others too.
    """

    id: str
    name: str
    digest: str
    scopes: frozenset[Scope]
    priority: Priority = "medium"
    rate: str = ""
    token_rate: str = ""
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True)
class Credentials:
    """What a caller shows: the text of a key, or the common name of a client certificate that has been verified."""

    key: str = field(default="", repr=False)
    certificate: str = ""

    @classmethod
    def of_headers(cls, x_api_key: str, authorization: str, certificate: str) -> Credentials:
        """From what REST's headers and gRPC's metadata of those names hold; the first one counts where both do."""
        scheme, _, given = authorization.partition(" ")
        return cls(x_api_key or (given.strip() if scheme.lower() == "bearer" else ""), certificate)


@dataclass(frozen=True)
class Caller:
    """Who calls. The name is that of its key, empty for callers without one; `weight` is its share of a busy model."""

    name: str
    scopes: frozenset[Scope]
    weight: float = WEIGHTS["medium"]
    rate: str = ""
    token_rate: str = ""


#: Everybody, while there are no keys at all.
ANYBODY = Caller("", frozenset(SCOPES))
#: Who shows nothing, once there are keys.
STRANGER = Caller("", frozenset())


def new_text() -> tuple[str, str, str]:
    """A new key's text, which is shown once; its id; and the digest of its secret, which is kept."""
    number, secret = secrets.token_hex(4), secrets.token_hex(24)
    return f"mok_{number}_{secret}", number, digest_of(secret)


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keyring:
    """All keys that were ever made, revoked ones too: with the last one gone the door is shut, not open."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        everyone = list(keys)
        self._by_id = {key.id: key for key in everyone}
        self._by_certificate = {key.name: key for key in everyone if not key.digest and key.revoked_at is None}

    @property
    def closed(self) -> bool:
        """Whether callers need a key."""
        return bool(self._by_id)

    def identify(self, shown: Credentials, now: float) -> Caller:
        """Who shows that, at `now` seconds since the epoch; STRANGER for nothing. Raises Unauthenticated."""
        if not self.closed:
            return ANYBODY
        if shown.key:
            return _caller(self._of_text(shown.key), now)
        if shown.certificate:
            key = self._by_certificate.get(shown.certificate)
            if key is None:
                raise Unauthenticated(
                    f"the client certificate of '{shown.certificate[:64]}' is known to nobody here; "
                    "'modelops keys create NAME --certificate' makes it known"
                )
            return _caller(key, now)
        return STRANGER

    def _of_text(self, text: str) -> Key:
        written = _TEXT.fullmatch(text)
        key = self._by_id.get(written[1]) if written else None
        digest = digest_of(written[2] if written else "")
        # Compared also where there is nothing to compare with: the time tells nothing either way.
        same = hmac.compare_digest(digest, key.digest if key else "")
        if key is None or not same:
            raise Unauthenticated("the key is none of this coordinator's")
        return key


def check(caller: Caller, scope: Scope | None, what: str) -> None:
    """Whether `caller` may do what takes `scope`, called `what`; None: everybody may.

    Raises Unauthenticated for who has shown nothing, PermissionDenied for a key without the scope.
    """
    if scope is None or scope in caller.scopes or "admin" in caller.scopes:
        return
    if caller is STRANGER:
        raise Unauthenticated(_WANTED)
    has = f"it has {', '.join(sorted(caller.scopes))}" if caller.scopes else "it has none"
    raise PermissionDenied(f"'{what}' takes a key with the scope '{scope}'; {has}")


def _caller(key: Key, now: float) -> Caller:
    if key.revoked_at is not None:  # whatever the clock says: it may have been set back
        raise Unauthenticated(f"the key '{key.name}' has been revoked")
    if key.expires_at is not None and key.expires_at <= now:
        ended = datetime.fromtimestamp(key.expires_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        raise Unauthenticated(f"the key '{key.name}' expired on {ended}")
    return Caller(key.name, key.scopes, WEIGHTS[key.priority], key.rate, key.token_rate)
