"""The one retry policy: what is tried again, how often, for how long.

Tried again: StoreUnavailable, which the engines raise for 408, 429, 5xx (but 501), time-outs, resets, stalled and short
bodies, bodies that the server found damaged, and expired signatures (the next attempt signs anew). Everything else (403, 404,
no space, bad data) fails at once with its cause. Waits grow from 0.1 s to 5 s with full jitter, or are what the server asked
for (Retry-After, at most 60 s). An operation is given up when it has failed for `timeout` seconds; one that brings bytes
begins its time anew.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.errors import StoreUnavailable

if TYPE_CHECKING:
    from tenacity import Retrying

T = TypeVar("T")
_FIRST_WAIT = 0.1
"""Seconds, at most, before the first time that something is tried again."""


def policy(timeout: float, sleep: Callable[[float], None] = time.sleep) -> Retrying:
    """Attempts for `for attempt in policy(timeout): with attempt: …`; the last failure is raised after `timeout` seconds."""
    import tenacity  # 40 ms, and a local store that works never needs it

    jitter = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=5)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreUnavailable),
        wait=lambda state: max(jitter(state), _asked(state.outcome.exception() if state.outcome else None)),
        stop=tenacity.stop_after_delay(timeout),
        sleep=sleep,
        reraise=True,
    )


def _asked(error: BaseException | None) -> float:
    """Seconds that the server asked for (Retry-After)."""
    asked = error.facts.get("retry_after") if isinstance(error, StoreUnavailable) else None
    return asked if isinstance(asked, float) else 0.0


def call(function: Callable[[], T], timeout: float, sleep: Callable[[float], None] = time.sleep) -> T:
    """Calls `function` until it succeeds, fails for good, or has failed for `timeout` seconds. `sleep` may raise to end it."""
    try:
        return function()
    except StoreUnavailable as error:
        wait = max(random.uniform(0, _FIRST_WAIT), _asked(error))
    sleep(wait)
    return policy(timeout, sleep)(function)


def engine_config(timeout: float) -> dict[str, Any]:
    """The same policy for obstore's own retries, which resume a body that was cut where it was cut."""
    return {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=timeout),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
    }
