"""How long storing what a job leaves will take, by what storing took before."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.outputs.uploader import Stored

_UNKNOWN, _LEAST, _MOST = 1 / 4, 1 / 20, 1 / 2
"""The part of the grace that storing gets: before anything was stored, at least, and at most."""
_SAFETY = 1.5
"""By which factor storing may take longer than it took before."""
_LAST = 4
"""So many checkpoints tell the rate."""


def share(stored: Sequence[Stored], waiting: int, grace: float) -> float:
    """Seconds of the grace that storing gets: what `waiting` bytes and one more checkpoint like the last take at the measured
    rate, within limits. Before the first measurement a quarter, so that a save which takes 60 % of the grace has its time."""
    sent = [each for each in stored if each.sent and not each.repeated][-_LAST:]
    if not sent:
        return grace * _UNKNOWN
    rate = sum(each.sent for each in sent) / max(sum(each.seconds for each in sent), 0.001)
    return min(max(_SAFETY * (waiting + sent[-1].sent) / rate, grace * _LEAST), grace * _MOST)
