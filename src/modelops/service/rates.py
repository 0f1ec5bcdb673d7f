"""Each caller's own limits: requests, and tokens of prompts and answers together, in a time.

Requests are counted in a moving window. Tokens are known when they have been made, so a caller goes on while it has
any left, and what an answer took is charged at its end: to a window that begins with the first charge. So requests at
the same time may overdraw a window; the next one begins whole. Who is over is told when there is room again,
and never too early.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelops.access import Caller
from modelops.api.errors import InvalidRequest, RateLimited
from modelops.service.windows import MOST_MOVING, Windows

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import RateLimiter

log = logging.getLogger(__name__)

_REDIS_PATIENCE_S = 0.5
_REDIS_PAUSE_S = 5.0  # before a Redis that did not answer is asked again
_REDIS_TTL_S = 0.5  # Redis rounds to whole seconds what is left of a window
_LEAST_S = 0.001  # at the very end of a window it is not over yet


@functools.lru_cache(maxsize=1024)
def parse(written: str) -> RateLimitItem:
    """A rate as it is written: "10/second", "60000 per minute". Raises InvalidRequest."""
    import limits

    try:
        (rate,) = limits.parse_many(written)  # several in one would be one, and the others forgotten
    except ValueError:
        rate = None
    if rate is None or rate.amount < 1:
        raise InvalidRequest(f"'{written}' is no rate; one is written 10/second, 600/minute or 100000/hour")
    return rate


class Rates:
    """Counts in this process, or with a `redis_url` in Redis, for several coordinators together.

    Where Redis does not answer the counting goes on in this process: a limit that is too wide for a while is better
    than nobody served. Raises ValueError for a `redis_url` that cannot be used at all.
    """

    def __init__(self, redis_url: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = _Shared(_redis(redis_url)) if redis_url else None
        self._ask_again_at: float | None = None  # None: Redis answers
        self._own = Windows()
        self._clock = clock

    async def admit(self, caller: Caller, *, spends_tokens: bool) -> None:
        """Count one request of `caller`. Raises RateLimited, with the seconds until it would be admitted."""
        if caller.rate and (wait := await self._on("request", caller)):
            raise RateLimited(f"'{caller.name}' may ask {caller.rate}", retry_after_s=wait, reason="request_rate")
        if spends_tokens and caller.token_rate and (wait := await self._on("budget", caller)):
            raise RateLimited(
                f"'{caller.name}' has used its tokens: {caller.token_rate}", retry_after_s=wait, reason="token_rate"
            )

    async def spend(self, caller: Caller, tokens: int) -> None:
        """Charge the tokens that a request took."""
        if caller.token_rate and tokens > 0:
            await self._on("charge", caller, tokens)

    async def close(self) -> None:
        """Close the connection to Redis."""
        if self._shared:
            await self._shared.close()

    async def _on(self, what: str, caller: Caller, tokens: int = 0) -> float:
        """Seconds to wait, 0 where there is room."""
        if self._shared and (self._ask_again_at is None or self._clock() >= self._ask_again_at):
            from limits.errors import StorageError

            silent = self._ask_again_at is not None
            if silent:
                self._pause()  # one caller finds out whether it answers again; the others need not wait for that
            try:
                wait = await self._shared.count(what, caller, tokens)
            except StorageError as error:
                if self._ask_again_at is None:
                    cause = type(error.__cause__ or error).__name__
                    log.warning("Redis does not answer (%s): rates are counted in this process meanwhile", cause)
                self._pause()
            else:
                if silent:
                    self._ask_again_at = None
                    log.info("Redis answers again")
                return wait
        return self._here(what, caller, tokens)

    def _pause(self) -> None:
        self._ask_again_at = self._clock() + _REDIS_PAUSE_S

    def _here(self, what: str, caller: Caller, tokens: int) -> float:
        item, now = parse(caller.rate if what == "request" else caller.token_rate), self._clock()
        rate = (caller.name, item.amount, item.get_expiry(), now)
        if what == "charge":
            self._own.charge(*rate, tokens)
            return 0.0
        wait = self._own.request(*rate) if what == "request" else self._own.budget(*rate)
        return math.ceil(wait * 1000) / 1000


class _Shared:
    """The counting in Redis: as in `Windows`, but that the clocks are Redis' and the coordinators' own."""

    def __init__(self, storage: RedisStorage) -> None:
        from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

        self._storage = storage
        self._moving: RateLimiter = MovingWindowRateLimiter(storage)
        self._fixed: RateLimiter = FixedWindowRateLimiter(storage)

    async def count(self, what: str, caller: Caller, tokens: int) -> float:
        """Seconds to wait, 0 where there is room."""
        names = (caller.name,) if what == "request" else (caller.name, "tokens")
        if what == "request":
            item = parse(caller.rate)
            limiter = self._moving if item.amount <= MOST_MOVING else self._fixed
            room = await limiter.hit(item, *names)
        else:
            item, limiter = parse(caller.token_rate), self._fixed
            if what == "charge":
                await limiter.hit(item, *names, cost=tokens)
                return 0.0
            room = await limiter.test(item, *names)
        if room:
            return 0.0
        reset, left = await limiter.get_window_stats(item, *names)
        if left > 0:
            return _LEAST_S  # there is room by now
        rounded = _REDIS_TTL_S if limiter is self._fixed else 0.0
        return max(0.0, reset + rounded - time.time()) + _LEAST_S

    async def close(self) -> None:
        bridge: Any = self._storage.bridge
        await bridge.get_connection().aclose()


def _redis(url: str) -> RedisStorage:
    if importlib.util.find_spec("redis") is None:
        raise ValueError(
            "rates.redis_url needs a package that is not installed: pip install 'modelops-coordinator[redis]'"
        )
    from limits.aio.storage import RedisStorage
    from limits.errors import ConfigurationError

    # The address is not told again: it may hold a password.
    wrong = ValueError("rates.redis_url is no address of a Redis; one is written redis://host:6379/0")
    if not url.startswith(("redis://", "rediss://")):
        raise wrong
    try:
        return RedisStorage(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",
            socket_timeout=_REDIS_PATIENCE_S,
            socket_connect_timeout=_REDIS_PATIENCE_S,
        )
    except (ConfigurationError, ValueError):
        raise wrong from None
