"""What is captured and not stored yet: the queue, the uploader that works it off, and what to do when it grows.

The training never waits for it. The spool is its journal: a capture is written down there before it is queued and removed
after its commit is recorded, so that a crash at any point leaves what `launcher recover` finishes under the same id.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from launcher.checkpoint import policy
from launcher.events import Emit, event
from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture
from launcher.outputs.spool import Spool
from launcher.outputs.uploader import Answer, Ended, Failed, Refused, Stored, Superseded, Uploader
from launcher.text import duration, size

_STARTS = 3
"""How often the uploader is started for one capture before that one is put aside."""
_STOP = 2.0
"""Seconds to wait for an uploader that was killed (one in an uninterruptible wait cannot be waited for)."""
_READY = 3.0
"""Seconds after which the uploader is started though nothing is captured yet: a job that is over sooner need not have one."""
_PATIENCE = 30.0
"""Seconds until a store that took nothing is asked again; a new capture asks at once."""


class Collector:
    """A queue and a thread that talks to the uploader. `put` from any thread; `drain` once, when nothing more will be put.

    `on_committed` and `on_changed` (with the capture's path) are called from its thread.
    """

    def __init__(
        self,
        uploader: Uploader,
        spool: Spool,
        *,
        emit: Emit,
        on_changed: Callable[[str], None],
        on_committed: Callable[[Stored], None],
    ) -> None:
        self._uploader = uploader
        self._spool = spool
        self._emit = emit
        self._on_changed = on_changed
        self._on_committed = on_committed
        self._changed = threading.Condition()
        self._waiting: list[Capture] = []
        self._current: Capture | None = None
        self._closing = self._stopped = False
        self.stalled = False
        """The store took nothing last time."""
        self._asking = False
        self._tried_again = False
        """At the end, what was put aside is tried once more."""
        self.pending: list[tuple[Capture, str]] = []
        """What could not be stored yet, and why."""
        self.stored: list[Stored] = []
        self.skipped: list[tuple[str, str]] = []
        """(name, reason)"""
        self.captured = 0
        """How many were put."""
        self.captured_at = self.stored_at = 0.0
        """When the last one was put, and when the last one was stored: Unix seconds."""
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def put(self, capture: Capture) -> None:
        """Queues a capture that is in the spool. Never waits for the store."""
        with self._changed:
            self._waiting.append(capture)
            self.captured, self.captured_at = self.captured + 1, time.time()
            held = self.held
            excess = self._spool.excess(self._waiting, held)
            self._waiting = [each for each in self._waiting if each not in excess]
            self._changed.notify()
        for each in excess:
            captures.discard(each.id, self._spool.path)
            reason = (
                f"--when-full newest: {size(held)} waited to be stored, and --spool is {size(self._spool.limit(held))}"
            )
            self.skipped.append((each.name, reason))
            self._emit(event("checkpoint-skipped", f"Not stored: {each.name}: {reason}", "warning", name=each.name))
        if not excess and self._spool.rises(held):
            text = f"{size(held)} of captured checkpoints wait to be stored, more than --spool allows"
            text += f" ({size(self._spool.limit(held))}): the store is slower than the job saves. "
            dropped = "Nothing older can be dropped." if self._spool.when_full == "newest" else "All are kept."
            self._emit(event("spool-full", text + dropped, "warning", held=held, limit=self._spool.limit(held)))

    def drain(self, timeout: float, *, cancelled: Callable[[], bool] = lambda: False) -> list[tuple[Capture, str]]:
        """Stores what is left, for at most `timeout` seconds or until `cancelled`; returns what could not be, and why."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify()
        while self._thread.is_alive():
            self._uploader.hurry()
            self._thread.join(0.05)
            if (now := time.monotonic()) > deadline or cancelled():
                self._stopped = True
                while self._thread.is_alive() and time.monotonic() < now + _STOP:
                    self._uploader.kill()
                    self._thread.join(0.05)
                break
        # What the spool still holds is what is not stored, whatever happened here.
        reasons = {capture.id: reason for capture, reason in self.pending}
        left = captures.load(self._spool.path)
        return [(capture, reasons.get(capture.id, "storing was stopped")) for capture in left]

    @property
    def held(self) -> int:
        """Bytes that are captured and not stored yet."""
        return sum(capture.size for capture in self.waiting())

    def waiting(self) -> list[Capture]:
        """What is captured and not stored yet, whatever it waits for. From any thread."""
        with self._changed:
            known = [*self._waiting, *(capture for capture, _ in self.pending)]
            known += [self._current] if self._current else []
        return list({capture.id: capture for capture in known}.values())

    @property
    def alive(self) -> bool:
        """Whether its thread runs; after `drain` it does not."""
        return self._thread.is_alive()

    @property
    def storing(self) -> int | None:
        """The uploader's process id while it stores something."""
        return self._uploader.pid if self._asking else None

    def _run(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing, _READY)
            if not self._closing:
                self._uploader.start()
        while capture := self._next():
            self._asking = True
            answer = self._ask(capture)
            self._asking = False
            if answer:
                self._take(capture, answer)
        self._uploader.close()

    def _next(self) -> Capture | None:
        """The next capture to store, oldest first; None at the end."""
        with self._changed:
            self._current = None
            if self.stalled and not self._closing:
                self._changed.wait(_PATIENCE)
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting and not self._tried_again:
                self._tried_again = True
                self._waiting, self.pending = [capture for capture, _ in self.pending], []
            if self._waiting and not self._stopped:
                self._current = self._waiting.pop(0)
            return self._current

    def _ask(self, capture: Capture) -> Answer | None:
        how = ""
        for _ in range(_STARTS):
            try:
                return self._uploader.store(capture)
            except Ended as error:
                if self._stopped:
                    return None
                how = str(error)
                self._emit(event("uploader-ended", f"The uploader: {how}; it is started again", "debug"))
        return Failed(f"the uploader failed {_STARTS} times: {how}", "uploader-ended", store=False)

    def _take(self, capture: Capture, answer: Answer) -> None:
        match answer:
            case Stored():
                self.stored.append(answer)
                self.stored_at = time.time()
                # In this order: after a crash in between, recovery finds the capture, and its commit by the same id.
                try:
                    self._on_committed(answer)
                except OSError as error:
                    self._emit(event("record-failed", f"The job's record cannot be written: {error}", "warning"))
                captures.discard(capture.id, self._spool.path)
                self._tell(answer)
                self.stalled = False
            case Superseded(reason):
                captures.discard(capture.id, self._spool.path)
                self.skipped.append((capture.name, reason))
                text = f"{capture.name}: {reason}; the newer state follows"
                self._emit(event("checkpoint-superseded", text, "debug"))
                self._on_changed(capture.path)
            case Refused(reason):
                captures.discard(capture.id, self._spool.path)
                self.skipped.append((capture.name, reason))
                self._emit(event("checkpoint-skipped", f"Not collected: {reason}", "warning", name=capture.name))
            case Failed():
                if not self.stalled:
                    text = f"{capture.name} is not stored yet: {answer.reason}"
                    self._emit(event("checkpoint-pending", text, "warning", error=answer.kind))
                self._wait_for_better(capture, answer)

    def _wait_for_better(self, capture: Capture, failed: Failed) -> None:
        """Where the store takes nothing, everything waits in its order, so that an older state of a folder never becomes a
        newer version; where only this capture cannot be stored, it is put aside and the others go on."""
        with self._changed:
            if not failed.store:
                self.pending.append((capture, failed.reason))
            elif self.stalled and self._closing:
                self.pending += [(each, failed.reason) for each in (capture, *self._waiting)]
                self._waiting, self._tried_again = [], True
            else:
                self._waiting.insert(0, capture)
                self.stalled = True

    def _tell(self, stored: Stored) -> None:
        facts: dict[str, Any] = {
            "id": stored.id, "name": stored.name, "version": stored.version, "step": stored.step, "size": stored.size,
            "sent": stored.sent, "seconds": stored.seconds,
        }  # fmt: skip
        if stored.repeated:
            text = f"Unchanged: {stored.label} has the same files"
            self._emit(event("checkpoint-unchanged", text, **facts))
            return
        known = f", {size(stored.saved)} of it were there already" if stored.saved else ""
        text = f"Stored {stored.label} ({size(stored.size)}{known}, {duration(stored.seconds)})"
        self._emit(event("checkpoint-committed", text, **facts))
        policy.warn(stored.findings, "warn", stored.label, self._emit)
