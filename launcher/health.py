"""Whether the launcher is well, and what its job has come to: what probes, metrics and the heartbeat file say.

Nothing is counted here but what events tell in passing: everything else is asked of the parts when somebody asks, so that
a job that nobody looks at pays nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from launcher import __version__
from launcher.events import Emit, Event, silent
from launcher.job.record import JobRecord
from launcher.job.spec import JobSpec
from launcher.outputs.collector import Collector
from launcher.outputs.watcher import LONGEST_PAUSE, Watcher
from launcher.runners.signals import Signals
from launcher.runners.tree import stat
from launcher.text import duration

if TYPE_CHECKING:
    from prometheus_client import Metric

Phase = Literal["prepare", "run", "collect", "ended"]
PHASES: tuple[Phase, ...] = ("prepare", "run", "collect", "ended")


class Health:
    """What is known of one launcher and its job. The main thread tells it what goes on; any thread may ask.

    `patience`: seconds without any sign of life after which a part counts as hung. For the uploader that is neither a byte
    nor a hundredth of a second of processor time while it stores something; for watcher and supervisor, who may sleep for
    `LONGEST_PAUSE`, so much more than that. A store that takes nothing is no reason: it is not the launcher that is ill.
    """

    def __init__(self, signals: Signals, *, patience: float, emit: Emit = silent) -> None:
        self.emit = emit
        """Where the loss of health is said."""
        self.phase: Phase = "prepare"
        self.record: JobRecord | None = None
        self._signals = signals
        self._patience = patience
        self._watcher: Watcher | None = None
        self._collectors: list[Collector] = []
        """Of every attempt: counters go on, as the job does."""
        self._deadline = 0.0
        self._fetched = self._fetching = 0
        self._work: tuple[int | None, str, float] = (None, "", 0.0)
        """The uploader: process id, how much it has done, and since when (monotonic) that has not changed."""

    def __call__(self, event: Event) -> None:
        """An `Emit`: takes from the events what no part can be asked for later."""
        if event.kind == "stop-requested":
            self._deadline = float(event.facts["deadline"])
        elif event.kind == "progress":
            self._fetching = int(event.facts["done"])
        elif event.kind == "input-ready":
            self._fetched, self._fetching = self._fetched + int(event.facts["fetched"]), 0

    def served(self, spec: JobSpec) -> contextlib.AbstractContextManager[object]:
        """For the time of a block, answers those who look from outside; nothing, where nobody asked for it. Raises
        LocalResourceError where the port cannot be had."""
        if not spec.health_port and not spec.heartbeat:
            return contextlib.nullcontext()
        from launcher.probes import Probes

        return Probes(self, spec.health_address(), spec.heartbeat)

    def watch(self, watcher: Watcher, collector: Collector) -> None:
        """An attempt begins: these are its watcher and its collector."""
        self._watcher = watcher
        self._collectors.append(collector)
        self.phase = "run"

    @property
    def ready(self) -> str:
        """Nothing while the job runs; else what is done instead, in words."""
        return "" if self.phase == "run" else f"the job does not run: phase {self.phase}"

    @property
    def trouble(self) -> str:
        """Nothing while every part of the launcher that is needed now lives; else which does not, in words."""
        troubles = (text for part, text in self._parts() if text)
        return next(troubles, "")

    def _parts(self) -> Iterator[tuple[str, str]]:
        """Each part, and what is wrong with it."""
        now = time.monotonic()
        long = self._patience + LONGEST_PAUSE
        running, watcher = self.phase == "run", self._watcher
        text = ""
        if running and now - self._signals.taken > long:
            text = f"the supervisor has not looked at the job for {duration(now - self._signals.taken)}"
        yield "supervisor", text
        text = ""
        if running and watcher:
            if not watcher.alive:
                text = "the watcher has ended: new checkpoints are not seen"
            elif now - watcher.beat > long:
                text = f"the watcher has not looked for {duration(now - watcher.beat)}: new checkpoints are not seen"
        yield "watcher", text
        yield "collector", self._collecting(now)

    def _collecting(self, now: float) -> str:
        collector = self._collectors[-1] if self._collectors else None
        if not collector or self.phase == "ended":
            return ""
        if not collector.alive:
            return "the collector has ended: checkpoints are not stored" if self.phase == "run" else ""
        pid = collector.storing
        if pid is None:
            self._work = (None, "", now)
            return ""
        done = _done(pid)
        if (pid, done) != self._work[:2]:
            self._work = (pid, done, now)
        idle = now - self._work[2]
        if idle <= self._patience:
            return ""
        return f"the uploader (process {pid}) has done nothing for {duration(idle)}: checkpoints are not stored"

    def beat(self) -> dict[str, Any]:
        """What the heartbeat file says: times in Unix seconds, sizes in bytes."""
        waiting = self._collectors[-1].waiting() if self._collectors else []
        return {
            "time": round(time.time(), 3),
            "pid": os.getpid(),
            "phase": self.phase,
            "attempt": self._attempt,
            "step_seen": self._watcher.last_step if self._watcher else None,
            "step_stored": self._step_stored,
            "pending": len(waiting),
            "pending_bytes": sum(capture.size for capture in waiting),
            "stop_requested": self._deadline > 0,
        }

    @property
    def _attempt(self) -> int:
        return self.record.attempts[-1].number if self.record and self.record.attempts else 1

    @property
    def _step_stored(self) -> int | None:
        steps = [
            each.step for collector in self._collectors for each in list(collector.stored) if each.step is not None
        ]
        return max(steps, default=None)

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client asks for them. What is not known yet is left out, never 0."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
            if value is not None:
                yield GaugeMetricFamily(f"launcher_{name}", text, value=value)

        def counter(name: str, text: str, value: float) -> Iterator[Metric]:
            yield CounterMetricFamily(f"launcher_{name}", text, value=value)

        collectors, watcher = self._collectors, self._watcher
        waiting = collectors[-1].waiting() if collectors else []
        stored = [each for collector in collectors for each in list(collector.stored)]
        info = GaugeMetricFamily("launcher_build_info", "The launcher's release.", labels=["version"])
        info.add_metric([__version__], 1)
        phases = GaugeMetricFamily("launcher_phase", "1 for what is done now.", labels=["phase"])
        for phase in PHASES:
            phases.add_metric([phase], phase == self.phase)
        parts = GaugeMetricFamily("launcher_part_up", "0 for a part that died or hangs.", labels=["part"])
        for part, trouble in self._parts():
            parts.add_metric([part], not trouble)
        yield from (info, phases, parts)
        yield from gauge("attempt", "Number of the job's attempt that runs, from 1.", self._attempt)
        yield from counter("restarts", "Attempts of the job before this one.", self._attempt - 1)
        yield from gauge("step_seen", "Highest step that the job saved.", watcher.last_step if watcher else None)
        yield from gauge("step_stored", "Highest step in the store.", self._step_stored)
        captured = sum(each.captured for each in collectors)
        yield from counter("checkpoints_captured", "Checkpoints that the job wrote whole.", captured)
        yield from counter("checkpoints_stored", "Checkpoints committed to the store.", len(stored))
        skipped = sum(len(each.skipped) for each in collectors)
        yield from counter("checkpoints_skipped", "Checkpoints captured and then left out.", skipped)
        yield from gauge("checkpoints_pending", "Checkpoints captured and not stored yet.", len(waiting))
        held = sum(capture.size for capture in waiting)
        yield from gauge("checkpoints_pending_bytes", "Size of those: what the spool holds.", held)
        last = max((each.captured_at for each in collectors), default=0.0)
        yield from gauge("last_capture_timestamp_seconds", "When the last checkpoint was captured.", last or None)
        last = max((each.stored_at for each in collectors), default=0.0)
        yield from gauge("last_stored_timestamp_seconds", "When the last checkpoint was stored.", last or None)
        yield from counter("upload_bytes", "Sent to the store.", sum(each.sent for each in stored))
        yield from counter("upload_seconds", "Time that this took.", sum(each.seconds for each in stored))
        yield from gauge("store_stalled", "1 while the store takes nothing.", any(each.stalled for each in collectors))
        yield from counter("download_bytes", "Fetched as the job's input.", self._fetched + self._fetching)
        yield from gauge("stop_requested", "1 once the job was asked to stop.", self._deadline > 0)
        yield from gauge("stop_deadline_timestamp_seconds", "When the job is killed.", self._deadline or None)


def _done(pid: int) -> str:
    """How much a process has done: its processor time, and the bytes that it read and wrote. Empty where it is gone."""
    try:
        fields = stat(pid)
        with open(f"/proc/{pid}/io") as file:
            moved = [line for line in file if line.startswith(("rchar", "wchar", "read_bytes", "write_bytes"))]
    except OSError:
        return ""
    return " ".join([*fields[11:15], *moved])
