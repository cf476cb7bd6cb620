"""A running job that is ended by the launcher for what it does not do: told first, and killed when its grace is over."""

from __future__ import annotations

import dataclasses
import signal
import time

from launcher.runners.running import Exit, Running

_DYING = 2.0
"""Seconds that processes get to die of SIGKILL; one in an uninterruptible wait does not."""


class Ending:
    """The same as `running`, whichever runner's that is, until somebody gives it up: it is told to stop then (SIGTERM), and
    killed `grace` seconds later. A subclass looks at it in `look`, which is called as often as `poll`."""

    def __init__(self, running: Running, grace: float) -> None:
        self.fd, self.rung, self.guarantee = running.fd, running.rung, running.guarantee
        self.signal, self.members, self.kill, self.close = running.signal, running.members, running.kill, running.close
        self.cpu_seconds, self.waiting = running.cpu_seconds, running.waiting
        self._running, self._grace = running, grace
        self._words = ""
        self._told = self._killed = 0.0

    def look(self, now: float) -> None:
        """Gives it up, if it is time for that. `now`: monotonic."""

    def give_up(self, words: str) -> None:
        """It is ended for this: what it did not do, in words."""
        self._words, self._told = words, time.monotonic()
        self._running.signal(signal.SIGTERM)

    def poll(self) -> Exit | None:
        ended = self._running.poll()
        now = time.monotonic()
        if ended is not None:
            return dataclasses.replace(ended, stalled=self._words) if self._words else ended
        if self._words:
            return self._end(now)
        self.look(now)
        return None

    def _end(self, now: float) -> Exit | None:
        if now < self._told + self._grace:
            return None
        self._running.kill()  # Each time round: what it starts meanwhile must end too.
        self._killed = self._killed or now
        if now < self._killed + _DYING:
            return None
        return Exit(128 + signal.SIGKILL, signal.SIGKILL, killed=True, stalled=self._words)
