"""Waits for the job, passes signals on, and ends it when its time is over."""

from __future__ import annotations

import select
import signal
import time

from launcher.events import Emit, event
from launcher.runners.running import Exit, Running
from launcher.runners.signals import STOPS, Signals
from launcher.runners.tree import TICK
from launcher.text import duration


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
        poll.poll(TICK * 1000)
