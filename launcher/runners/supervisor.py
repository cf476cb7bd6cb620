"""Waits for the job, passes signals on, and ends it when its time is over. The one loop that knows signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.errors import Preempted
from launcher.events import Emit, event
from launcher.runners.running import Exit, Running
from launcher.text import duration

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT, signal.SIGQUIT)


@dataclass
class Signals:
    """Signals that came, in order, behind a descriptor that a loop can wait on."""

    fd: int
    stop: int | None = None
    """The first stop request."""
    _came: list[int] = field(default_factory=list)

    def take(self) -> list[int]:
        """What came since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        came, self._came = self._came, []
        return came

    def check(self) -> None:
        """Between the steps of a preparation: raises Preempted once a stop was asked for."""
        if self.stop:
            raise Preempted(signal=signal.Signals(self.stop).name)


@contextlib.contextmanager
def catching() -> Iterator[Signals]:
    """Catches stops and what is passed on, from here to the end of the block. Unblocks them last, so that a signal that
    was blocked since before this process's start (images do that) is not lost. Main thread only."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = Signals(reader)
    # The wake-up descriptor makes a waiting loop see the signal at once; the handler itself runs between two bytecodes.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def handler(number: int, frame: object) -> None:
        signals._came.append(number)
        if number in STOPS and signals.stop is None:
            signals.stop = number

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


def supervise(running: Running, signals: Signals, *, grace: float, emit: Emit) -> Exit:
    """Returns how the job ended, at the latest `grace` + 2 seconds after a stop request.

    The first stop request (SIGTERM, SIGINT, SIGHUP) is passed to the job, which has `grace` seconds; a second one, or the
    end of the grace, kills it. Other signals are passed on as they are.
    """
    poll = select.poll()
    poll.register(running.fd, select.POLLIN)
    poll.register(signals.fd, select.POLLIN)
    deadline: float | None = None
    killed: float | None = None
    while True:
        for number in signals.take():
            if number not in STOPS:
                running.signal(number)
            elif deadline is None:
                deadline = time.monotonic() + grace
                emit(
                    event(
                        "stop-requested",
                        f"{signal.Signals(number).name}: the job has {duration(grace)} to end; a second signal ends it now",
                        "warning",
                        signal=signal.Signals(number).name,
                        grace=grace,
                    )
                )
                running.signal(number)
            elif killed is None:
                emit(event("killed", f"{signal.Signals(number).name} again: ending the job now", "warning"))
                running.kill()
                killed = time.monotonic()
        if (ended := running.poll()) is not None:
            return ended
        now = time.monotonic()
        if deadline is not None and killed is None and now >= deadline:
            emit(event("killed", f"The job did not end within {duration(grace)}: killing it", "warning"))
            running.kill()
            killed = now
        if killed is not None and now > killed + 2:
            return Exit(128 + signal.SIGKILL, signal.SIGKILL)
        wait = 60.0 if deadline is None else max(0.01, min(0.5, (killed + 2 if killed else deadline) - now))
        poll.poll(wait * 1000)
