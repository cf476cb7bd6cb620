"""How many requests are in flight at once: as many as make it faster, found out while they run.

A near server is fastest with few, as each takes processor time from the others; a far one needs many, as each waits. So the
number begins with four and doubles for as long as the rate grows by a fifth or more; where it did not, the last step is taken
back, and tried again ten seconds later. A server that says that it has too much to do (429, 503) gets half as many at once,
and no more for ten seconds.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator

from launcher.errors import StoreUnavailable

_FIRST = 4
_WINDOWS = ((0.2, 8), (0.5, 2))
"""Seconds that a rate is measured for, and how many requests for each lane have ended then: one of both, at least."""
_PAUSE = 0.2
"""Seconds without a request after which a rate begins anew, and in which one burst of refusals counts once."""
_GROWTH = 1.2
"""What twice as many must bring: where the waiting is far away it is nearly 2, and two windows of the same differ by a tenth."""
_AGAIN = 10.0
"""Seconds after which another number is tried."""
_REQUEST = 256 << 10
"""Bytes that a request counts for beside its own, so that small files and large ones can be compared."""
_OVERLOADED = re.compile(r"^(429|503)\b|status code: (429|503)|SlowDown")


class Lanes:
    """Lets up to `limit` requests pass at once, which finds itself between 1 and `most`. For any number of threads."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = min(_FIRST, most)
        self._most = most
        self._clock = clock
        self._changed = threading.Condition()
        self._taken = 0
        self._best, self._best_limit = 0.0, self.limit
        self._settled = self._last = clock()
        """When the limit was last found to be good, or cut."""
        self._begin()

    def _begin(self) -> None:
        # What was begun before says nothing about the rate: as many as are in flight are not counted.
        self._since, self._ended, self._moved = self._clock(), -self.limit, 0

    @contextlib.contextmanager
    def one(self, size: int) -> Iterator[None]:
        """One request for `size` bytes, as soon as there is a lane for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken < self.limit)
            if not self._taken and self._clock() - self._last > _PAUSE:
                self._begin()  # Nothing was asked for meanwhile.
            self._taken += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= 1
                self._ended += 1
                self._last = self._clock()
                if self._ended <= 0:
                    self._since = self._last
                else:
                    self._moved += size + _REQUEST
                seconds = self._last - self._since
                if any(seconds >= least and self._ended >= each * self.limit for least, each in _WINDOWS):
                    self._judge(self._moved / seconds)
                    self._begin()
                self._changed.notify_all()

    def _judge(self, rate: float) -> None:
        now = self._clock()
        if rate > _GROWTH * self._best:
            self._best, self._best_limit, self._settled = rate, self.limit, now
            self.limit = min(2 * self.limit, self._most)
        elif self.limit != self._best_limit:
            self.limit, self._settled = self._best_limit, now
        elif now - self._settled > _AGAIN:
            self._best, self._settled = rate, now
            self.limit = min(2 * self.limit, self._most)

    def failed(self, error: StoreUnavailable) -> None:
        """A request failed: half as many from now on, where the server said that they are too many."""
        with self._changed:
            now = self._clock()
            if not _OVERLOADED.search(str(error.facts["cause"])) or (
                self._best == math.inf and now - self._settled < _PAUSE
            ):
                return  # One burst of such answers is cut once.
            self.limit = self._best_limit = max(1, self.limit // 2)
            self._best, self._settled = math.inf, now
            self._begin()
