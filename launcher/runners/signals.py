"""Signals that reach the launcher, caught from its first moment to its last, and put in order.

There are two ways to receive them, because there are two kinds of process. The plain init (`launcher/init.py`) has one thread
and one child, so it keeps every signal blocked and waits for them (`hold`, `wait`). The main job has libraries, threads and
other children, which inherit a blocked signal: it has handlers (`catching`).

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SUSPENDING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_FAULTS = (
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT,
    signal.SIGPIPE, signal.SIGXFSZ, signal.SIGXCPU, signal.SIGIO,
)  # fmt: skip
"""What the kernel also raises at a process for what that does itself. (SIGIO: somebody opens a file that a lease is on.)"""


class Signals:
    """Signals that came, in order, behind a descriptor that a loop can wait on."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.since = time.monotonic()
        """When catching began (monotonic)."""
        self.taken = self.since
        """When somebody last took them (monotonic): the loop that does it lives."""
        self._came: list[tuple[int, float]] = []
        self._dropped: frozenset[int] = frozenset()

    def came(self, number: int) -> None:
        """Takes note of a signal; the handler's part."""
        self._came.append((number, time.monotonic()))

    def drop(self, numbers: Iterable[int]) -> None:
        """From now on these are as if they never came (`--rewrite HUP:0`)."""
        self._dropped = frozenset(numbers)

    def take(self) -> list[tuple[int, float]]:
        """What came since the last call: number, and when (monotonic)."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        came, self._came, self.taken = self._came, [], time.monotonic()
        return [each for each in came if each[0] not in self._dropped]


@contextlib.contextmanager
def catching() -> Iterator[Signals]:
    """Catches stops and what is passed on, from here to the end of the block: every signal that can be caught but the job
    control's (`runners/tree.py` has those while there is a job) and those of faults, as tini does. Main thread only.

    Unblocks them last, so that a signal that was blocked since before this process's start (images do that) is not lost.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = Signals(reader)
    # The wake-up descriptor makes a waiting loop see the signal at once; the handler itself runs between two bytecodes.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    numbers = _catchable() - {*_FAULTS, *SUSPENDING}
    handlers = {number: signal.signal(number, lambda number, frame: signals.came(number)) for number in numbers}
    handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    handlers[signal.SIGIO] = signal.signal(signal.SIGIO, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        yield signals
    finally:
        for number, old in handlers.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def hold() -> None:
    """Blocks every signal, so that none is lost, or ends this process, until `wait` or `catching`: the kernel throws away
    what comes for a PID 1 that neither blocks nor handles it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def wait(seconds: float) -> int | None:
    """The next signal of all that can be caught, those of faults too where somebody sent them; SIGCHLD among them.
    None after `seconds`, or for one that the kernel raised at us. For a process that holds them."""
    found = signal.sigtimedwait(_catchable() | {signal.SIGCHLD}, seconds)
    if found is None or (found.si_signo in _FAULTS and (found.si_code > 0 or found.si_pid == os.getpid())):
        return None
    return found.si_signo


def release() -> None:
    """In the child that becomes the job: no signal is blocked, or handled as Python does."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _catchable() -> set[int]:
    """Every signal but KILL and STOP, which cannot be caught, and CHLD, which is about our own children; and HUP only where
    it is not ignored: that is how nohup asks to outlive a terminal, for the job too."""
    never = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        never.add(signal.SIGHUP)
    return {int(number) for number in signal.valid_signals()} - never
