"""Waits for the job, passes signals on, and ends it when its time is over."""

from __future__ import annotations

import dataclasses
import select
import signal
import time
from collections.abc import Callable

from launcher.events import Emit, Event, event
from launcher.runners.running import Exit, Running
from launcher.runners.stall import waiting
from launcher.runners.stopping import TICK, Reserve, Stop, Stops
from launcher.text import duration

_DYING = 2.0
"""Seconds that processes get to die of SIGKILL; one in an uninterruptible wait does not."""
_LATE = 0.5
"""Seconds until a process counts as one that outlived the job: an uploader that is just being started is not known yet."""


def supervise(
    running: Running,
    stops: Stops,
    *,
    reserve: Callable[[], Reserve] = Reserve,
    on_stop: Callable[[], None] = lambda: None,
    emit: Emit,
) -> Exit:
    """Returns how the job ended, at the latest 2 seconds after it was killed.

    A stop request is told to the job by the stop file, then by a signal. What it is promised is the grace without what storing
    needs when it has saved once more. It is killed when less is left than storing needs for what waits: as long as nothing
    does, killing it would only lose what it is saving. It is killed at once when SIGTERM, SIGINT or SIGHUP come again. Other
    signals are passed on as they are. `on_stop` is called once, when the job has been told.
    """
    poll = select.poll()
    poll.register(running.fd, select.POLLIN)
    poll.register(stops.fd, select.POLLIN)
    promised = killed = 0.0
    while True:
        for number in stops.take():
            running.signal(number)
        now = time.monotonic()
        if stops.request and not promised:
            seconds = max(stops.left - reserve().then, 0.0)
            promised = now + seconds
            stops.tell(seconds)
            running.signal(stops.request.told)
            on_stop()
            emit(_asked(stops.request, seconds, max(stops.left - seconds, 0.0)))
        if (ended := running.poll()) is not None:
            return dataclasses.replace(ended, killed=killed > 0)
        rest = max(promised - now, stops.left - reserve().now)
        if rest <= 0 or stops.insisted:
            if not killed:
                killed = now
                emit(_killed(again=rest > 0))
            running.kill()  # Each time round: what it starts meanwhile must end too.
            if now > killed + _DYING:
                return Exit(128 + signal.SIGKILL, signal.SIGKILL, killed=True)
        poll.poll(20 if killed else max(min(TICK, rest), 0.01) * 1000)


def close(running: Running, ended: Exit) -> tuple[Exit, list[str]]:
    """Ends what is left of the job (see `Running.close`). Returns how it ended, with the processes that outlived SIGKILL and
    where each of them waits, and what could be ended, in words."""
    left, until = running.close(), time.monotonic() + _LATE
    while (alive := running.members()) and time.monotonic() < until:
        time.sleep(0.02)
    gone = [each for each in left if not any(f"({pid})" in each for pid in alive)]
    return dataclasses.replace(ended, survivors=tuple(waiting(alive))), gone


def _asked(request: Stop, job: float, storing: float) -> Event:
    text = (
        f"{request.reason}: the job has {duration(job)} to end, and {duration(storing)} are left to store what it saves"
    )
    text += "; a second signal ends it now"
    return event("stop-requested", text, "warning", reason=request.reason, deadline=request.deadline, job=round(job, 3))


def _killed(*, again: bool) -> Event:
    text = "Asked again: killing the job now" if again else "The job did not end within its time: killing it"
    return event("killed", f"{text}. What it saved is stored still; one more signal gives that up too", "warning")
