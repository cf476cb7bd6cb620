"""How much of the grace storing gets, by what it took before: the job is not killed for bytes that it has not written yet."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.outputs.uploader import Stored
from launcher.runners.stopping import Reserve

_UNKNOWN, _LEAST, _MOST = 1 / 4, 1 / 20, 1 / 2
"""The part of the grace that storing gets: before anything was stored, at least, and at most."""
_SAFETY = 1.5
"""By which factor storing may take longer than it took before."""
_LAST = 4
"""Of so many checkpoints, the best rate counts: while the job runs, the uploader yields to it."""


def reserve(stored: Sequence[Stored], waiting: int, grace: float) -> Reserve:
    """What storing the `waiting` bytes needs, and what it needs with one more checkpoint like the last."""
    sent = [each for each in stored if each.sent and not each.repeated][-_LAST:]
    rate = max((each.sent / max(each.seconds, 0.001) for each in sent), default=None)

    def seconds(size: int) -> float:
        if rate is None:
            return grace * _UNKNOWN
        return min(max(_SAFETY * size / rate, grace * _LEAST), grace * _MOST)

    now = seconds(waiting) if waiting else grace * _LEAST
    return Reserve(now, max(now, seconds(waiting + (sent[-1].sent if sent else 0))))
