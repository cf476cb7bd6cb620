"""One stop request with a deadline, whoever asks for it: a signal, whoever makes the stop file, or the time limit.

The deadline is `grace` seconds after the request: by then the launcher is gone too, because whoever sent the signal kills what
is left then. So the grace is shared out: to the job, to storing its last checkpoints, and to the launcher's own end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.errors import Preempted
from launcher.job.record import write_atomically
from launcher.runners.signals import STOPS, Signals
from launcher.text import duration

TICK = 0.5
"""Seconds between two looks for the stop file."""
_CLOSING = 1.0
"""Seconds of the grace that the launcher's own end gets, or a tenth of it where that is less."""


@dataclass(frozen=True)
class Stop:
    """A request to stop. `at` and `deadline` are Unix seconds."""

    reason: str
    """In words: SIGTERM, the stop file, the time limit of 8 h."""
    signal: int | None
    """The signal that asked; None for the stop file and the time limit."""
    at: float
    deadline: float

    @property
    def told(self) -> int:
        """The signal that the job is told with: the one that came where it always means a stop, else SIGTERM."""
        return self.signal if self.signal in STOPS and self.signal else signal.SIGTERM


@dataclass(frozen=True)
class Reserve:
    """Seconds of the grace that storing needs: for what waits `now`, and `then`, with one more checkpoint."""

    now: float = 0.0
    then: float = 0.0


class Stops:
    """Stop requests from all sides. For the main thread; `check` from any."""

    def __init__(self, signals: Signals, *, grace: float, also: Collection[int] = (), limit: float = 0.0) -> None:
        """`also`: signals that ask for a stop, beside SIGTERM, SIGINT and SIGHUP. `limit`: seconds that all may take, the grace
        included, counted from when signals were caught; 0: no limit."""
        self.grace = grace
        self.fd = signals.fd
        self.request: Stop | None = None
        self.insisted = 0
        """How many of SIGTERM, SIGINT, SIGHUP came after the first one of them."""
        self._signals = signals
        self._also = frozenset(also)
        self._limit = limit
        self._limited = signals.since + limit - grace if limit else None
        self._file: Path | None = None
        self._passed: list[int] = []
        self._stopped = False
        self._end = 0.0
        self._lock = threading.Lock()

    def watch(self, file: Path) -> None:
        """From now on, this file asks for a stop when somebody makes it. One that is there is of an earlier attempt."""
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        self._file = file

    def tell(self, seconds: float) -> None:
        """Makes the stop file, for whoever waits for it: JSON with the `deadline` (Unix seconds), which is `seconds` from now,
        and the `reason`."""
        if self._file and self.request:
            content = {"deadline": time.time() + seconds, "reason": self.request.reason}
            with contextlib.suppress(OSError):
                write_atomically(str(self._file), msgspec.json.encode(content) + b"\n", durable=False)

    def take(self) -> list[int]:
        """Looks for a request, and returns the signals that came since the last call and ask for none."""
        self._look()
        with self._lock:
            passed, self._passed = self._passed, []
        return passed

    def check(self) -> None:
        """Between the steps of a preparation: raises Preempted once a stop was asked for."""
        self._look()
        if self.request:
            raise Preempted(signal=self.request.reason)

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        self._look()
        return self.request is not None

    @property
    def left(self) -> float:
        """Seconds until the launcher begins its own end; infinite while no stop was asked for."""
        return self._end - min(_CLOSING, self.grace / 10) - time.monotonic() if self.request else float("inf")

    def patience(self, *, to_the_end: bool = False) -> Callable[[], bool]:
        """For work after the job: a function that says when to give it up. That is when the time is over (`to_the_end`: also
        that of the launcher's own end), and when a stop signal comes from now on which is not the first."""
        self._look()
        before = self.insisted
        extra = min(_CLOSING, self.grace / 10) if to_the_end else 0.0

        def over() -> bool:
            self._look()
            return self.left + extra <= 0 or self.insisted > before

        return over

    def within(self, work: Callable[[], object], *, to_the_end: bool = False) -> bool:
        """Does `work` in a thread, and leaves it to itself when its time is over (see `patience`): a store that does not
        answer must not keep the launcher. Returns whether it was done; raises what it raises."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        over = self.patience(to_the_end=to_the_end)
        thread = threading.Thread(target=run, name="at-the-end", daemon=True)
        thread.start()
        thread.join(0.05)
        while thread.is_alive() and not over():
            thread.join(0.02)
        if failed:
            raise failed[0]
        return not thread.is_alive()

    def _look(self) -> None:
        with self._lock:
            for number, came in self._signals.take():
                if number not in STOPS and number not in self._also:
                    self._passed.append(number)
                    continue
                if not self.request:
                    self._ask(signal.Signals(number).name, number, came)
                elif number in STOPS:
                    self.insisted += self._stopped
                self._stopped |= number in STOPS
            if self.request:
                return
            now = time.monotonic()
            if self._limited is not None and now >= self._limited:
                self._ask(f"the time limit of {duration(self._limit)}", None, self._limited)
            elif self._file and self._file.exists():
                self._ask("the stop file", None, now)

    def _ask(self, reason: str, number: int | None, came: float) -> None:
        at = time.time() - (time.monotonic() - came)
        self._end = came + self.grace
        self.request = Stop(reason, number, at, at + self.grace)
