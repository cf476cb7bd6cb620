"""The one cap on the rate of transfers."""

from __future__ import annotations

import threading
import time


class Throttle:
    """Lets `rate` bytes a second pass, from all threads together (0: as many as come). `take` is an OnBytes.

    Each caller waits until its own bytes would have passed, so no burst is ever owed: 20 MB at 4 MB/s take 5 s or more.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._passed = 0.0
        """Monotonic time at which everything taken so far has passed."""

    def take(self, count: int) -> None:
        """Returns when `count` more bytes may have passed."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._passed = max(self._passed, now) + count / self._rate
            wait = self._passed - now
        time.sleep(wait)
