"""How much of the grace storing gets, by what it took before: the job is not killed for bytes that it has not written yet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.events import Emit, event
from launcher.outputs.uploader import Stored
from launcher.runners.stopping import Reserve
from launcher.text import duration, size

_UNKNOWN, _LEAST, _MOST = 1 / 4, 1 / 20, 1 / 3
"""The part of the grace that storing gets: before anything was stored, at least, and at most. A save that takes 60 % of the grace
has its time, whatever storing took: what is saved can be stored later."""
_SAFETY = 1.5
"""By which factor storing may take longer than it took before."""
_LAST = 4
"""Of so many checkpoints, the best rate counts: while the job runs, the uploader yields to it."""


def reserve(stored: Sequence[Stored], waiting: int, grace: float) -> Reserve:
    """What storing the `waiting` bytes needs, and what it needs with one more checkpoint like the last."""
    sent, rate = _sent(stored), _rate(stored)

    def seconds(count: int) -> float:
        if rate is None:
            return grace * _UNKNOWN
        return min(max(_SAFETY * count / rate, grace * _LEAST), grace * _MOST)

    now = seconds(waiting) if waiting else grace * _LEAST
    return Reserve(now, max(now, seconds(waiting + (sent[-1].sent if sent else 0))))


def announce(stored: Sequence[Stored], waiting: int, left: float, emit: Emit) -> None:
    """Says, when the job has ended, what is left to store, and in what time (`left`: seconds; infinite without a stop)."""
    if not waiting:
        return
    rate = _rate(stored)
    text = f"The job has ended; {size(waiting)} are left to store"
    text += f", about {duration(waiting / rate)}" if rate else ""
    text += f". There is time for it: {duration(max(left, 0.0))}; a further signal ends it" if left < math.inf else ""
    emit(event("storing", text, waiting=waiting))


def _sent(stored: Sequence[Stored]) -> list[Stored]:
    return [each for each in stored if each.sent and not each.repeated][-_LAST:]


def _rate(stored: Sequence[Stored]) -> float | None:
    """Bytes a second; None before anything was stored."""
    return max((each.sent / max(each.seconds, 0.001) for each in _sent(stored)), default=None)
