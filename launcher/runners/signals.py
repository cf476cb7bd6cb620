"""Signals that reach the launcher, caught from its first moment to its last, and put in order."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT, signal.SIGQUIT)


@dataclass
class Signals:
    """Signals that came, in order, behind a descriptor that a loop can wait on."""

    fd: int
    since: float = field(default_factory=time.monotonic)
    """When catching began (monotonic)."""
    taken: float = field(default_factory=time.monotonic)
    """When somebody last took them (monotonic): the loop that does it lives."""
    _came: list[tuple[int, float]] = field(default_factory=list)

    def take(self) -> list[tuple[int, float]]:
        """What came since the last call: number, and when (monotonic)."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        came, self._came, self.taken = self._came, [], time.monotonic()
        return came


@contextlib.contextmanager
def catching() -> Iterator[Signals]:
    """Catches stops and what is passed on, from here to the end of the block. Unblocks them last, so that a signal that
    was blocked since before this process's start (images do that) is not lost. Main thread only."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = Signals(reader)
    # The wake-up descriptor makes a waiting loop see the signal at once; the handler itself runs between two bytecodes.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def handler(number: int, frame: object) -> None:
        signals._came.append((number, time.monotonic()))

    numbers = [*STOPS, *PASSED]
    handlers = {number: signal.signal(number, handler) for number in numbers}
    handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    handlers[signal.SIGIO] = signal.signal(signal.SIGIO, signal.SIG_IGN)  # A lease of ours that a writer breaks.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield signals
    finally:
        for number, old in handlers.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
