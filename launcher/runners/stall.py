"""A job that stands still: noticed, described, and ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from launcher.events import Emit, event
from launcher.runners.ending import Ending
from launcher.runners.running import Running
from launcher.runners.tree import stat
from launcher.text import duration

IDLE = 0.02
"""Of a core, for each process that torchrun starts and one more: who uses less does nothing. Two ranks that wait for each other
in gloo used 0.3 and 0.6 % and torchrun's agent 0.2 % (measured); a rank that waits for a GPU usually spins, at 100 %."""


class Watched(Ending):
    """A running job which is told to stop (SIGTERM) when for `timeout` seconds it printed nothing, changed nothing in its output
    directory and used no processor, and is killed `grace` seconds later. Else the same as `running`.

    What cannot be known, such as an engine that does not answer, counts as work.
    """

    def __init__(
        self, running: Running, *, timeout: float, grace: float, ranks: int, log: Path, output: str, emit: Emit
    ) -> None:
        super().__init__(running, grace)
        self._timeout, self._emit = timeout, emit
        self._idle = IDLE * (ranks + 1)
        self._log, self._output = log, output
        self._tick = min(max(timeout / 20, 0.1), 15.0)
        self._looked = self._worked = time.monotonic()
        self._cpu = running.cpu_seconds()
        self._written = self._all_written()
        self._runnable: set[int] = set()

    def look(self, now: float) -> None:
        if now < self._looked + self._tick:
            return
        cpu, written = self._running.cpu_seconds(), self._all_written()
        runnable = {pid for pid in self._running.members() if _state(pid) == "R"}
        busy = cpu is None or self._cpu is None or cpu - self._cpu > self._idle * (now - self._looked)
        if busy or written != self._written or runnable & self._runnable:  # The last: it waits for a processor.
            self._worked = now
        self._looked, self._cpu, self._written, self._runnable = now, cpu, written, runnable
        if now - self._worked >= self._timeout:
            where = "; ".join(self._running.waiting()[:8])
            words = f"for {duration(now - self._worked)} no output, no file, no processor time"
            words += f" ({where})" if where else ""
            text = f"The job stands still, {words}: it has {duration(self._grace)} to end"
            self._emit(event("stalled", text, "warning", seconds=round(now - self._worked, 1)))
            self.give_up(words)

    def _all_written(self) -> tuple[int, int]:
        """The length of the job's output so far, and the last change in the output directory (nanoseconds)."""
        newest = 0
        for parent, _, files in os.walk(self._output):
            for path in (parent, *(os.path.join(parent, each) for each in files)):
                with contextlib.suppress(OSError):
                    newest = max(newest, os.lstat(path).st_mtime_ns)
        return (self._log.stat().st_size if self._log.exists() else 0), newest


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes and of their children that have ended, in seconds."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _state(pid: int) -> str:
    try:
        return stat(pid)[0]
    except OSError:
        return ""


def waiting(pids: Iterable[int]) -> list[str]:
    """What each of these processes waits in, as far as the kernel tells: `python (123) in futex_do_wait, state S`."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/comm") as file:
                name = file.read().strip()
            where = ""
            with contextlib.suppress(OSError), open(f"/proc/{pid}/wchan") as file:
                where = file.read().strip().strip("0")
            found.append(f"{name} ({pid}) in {where or 'an unknown place'}, state {_state(pid)}")
    return found
