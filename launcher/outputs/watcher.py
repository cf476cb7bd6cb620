"""Sees checkpoints as the job writes them, and captures each the moment it is whole.

Events are hints; a scan decides. A folder is looked at at once when a file is closed that some library writes last or when
the next checkpoint begins, and otherwise when it has been quiet for the settle time, or when the job is over. Once a file of a
folder was deleted, the folder is on its way out and is no longer a candidate (measured: a half-deleted Trainer checkpoint
passes for a whole one without optimizer).
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.checkpoint import formats
from launcher.checkpoint.judgement import Context, Judgement
from launcher.errors import UnsafePath
from launcher.events import Emit, event
from launcher.outputs import candidates
from launcher.outputs.candidates import ROOT, Candidate
from launcher.outputs.capture import Capture
from launcher.outputs.filesystem import RUNGS, Place, Rung, probe
from launcher.outputs.holding import Vanished
from launcher.outputs.judging import Busy, Judge, Subject, age
from launcher.outputs.keeper import Keeper
from launcher.outputs.roots import Root, Sign
from launcher.text import printable

_TICK = 0.2
"""Seconds between looks at the clock while something is not settled, at most; a quarter of the settle time where less."""
_SOON = 0.001
"""Seconds until a file that is still open is looked at again at first; each time twice as long, up to the settle time."""
LONGEST_PAUSE = 60.0
"""Seconds that it sleeps at most."""
_NICE = -10


class Watcher:
    """Watches the output directory, and further folders, in a thread of its own.

    `start` before the job, `finish` after it: the last look happens there, in the caller's thread. `on_capture` is called
    from any thread.
    """

    def __init__(
        self,
        root: str,
        spool: Path,
        subject: Subject,
        *,
        world_size: int | None,
        settle: float,
        on_capture: Callable[[Capture], None],
        emit: Emit,
        also: Sequence[str] = (),
        rungs: Sequence[Rung] = RUNGS,
    ) -> None:
        """`settle`: seconds of quiet that prove files written. `also`: further folders, which may not be there yet; their
        checkpoints are named after the folder too. `rungs`: the ways to capture that are tried."""
        self._spool = spool
        self._settle = settle
        self._tick = min(_TICK, max(settle / 4, 0.01))
        self._emit = emit
        self._rungs = rungs
        self._roots = [Root(root, "", subject.job, emit, self._report)]
        self._roots += [
            Root(each, os.path.basename(os.path.abspath(each)), subject.job, emit, self._report) for each in also
        ]
        for each in self._roots:
            each.pulse = self._urgent
        self._places: dict[str, Place] = {}
        self._on_capture = on_capture
        self._keeper = Keeper(spool, emit)
        self._judge = Judge(
            spool,
            subject,
            self._keeper,
            Context(world_size=world_size, final=False),
            on_capture=self._captured,
            settle=settle,
            emit=emit,
        )
        self._reported: dict[tuple[str, str], str] = {}
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._busy: list[tuple[float, float, Root, Sign]] = []
        """Looks to repeat: when (monotonic), the delay that led to it, where and why."""
        self._hurrying = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.beat = time.monotonic()
        """When its thread last did something (monotonic): at least every `LONGEST_PAUSE`, and often while it is at work."""

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def last_step(self) -> int | None:
        """The highest step of any checkpoint that was captured."""
        return self._judge.last_step

    @property
    def reported(self) -> list[tuple[str, str]]:
        """(name, reason) of what was seen and could not be captured."""
        return [(name, reason) for (name, _), reason in self._reported.items()]

    def start(self, *, new: bool = False) -> None:
        """Begins to watch. What lies in the folders already is not the job's doing unless it changes, or with `new`."""
        for root in self._roots:
            self._attach(root, new=new)
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def quiet(self) -> float | None:
        """Seconds since something changed in the folders; 0 while a change is not settled, None where nothing ever was."""
        found = [candidate for root in self._roots for candidate in list(root.candidates.values())]
        if not found or any(candidate.dirty for candidate in found):
            return 0.0 if found else None
        return time.monotonic() - max(candidate.changed for candidate in found)

    def adopt(self) -> None:
        """For recovery: whatever lies in the folders is looked at by `finish`."""
        for root in self._roots:
            if os.path.isdir(root.path):
                self._places[root.path] = probe(root.path, self._spool, self._rungs)

    def finish(self, *, unknown_counts: bool) -> list[tuple[str, Judgement]]:
        """The last look, when nobody writes any more. `unknown_counts`: the job ended well, so that folders which no
        format knows count as whole. Returns what is salvage: path and judgement."""
        self._stopping = True
        os.write(self._waker, b"x")
        if self._thread:
            self._thread.join()
        os.close(self._wake)
        os.close(self._waker)
        self._keeper.finish()
        for root in self._roots:
            if root.path not in self._places and not self._attach(root, new=True):
                continue
            for sign in root.read():
                self._follow(root, sign)
            root.scan(self._tick)
            root.close()
        self._judge.context = Context(world_size=self._judge.context.world_size, final=True)
        self._judge.ended_well = unknown_counts
        salvage = []
        for root in [root for root in self._roots if root.path in self._places]:
            for candidate in sorted(root.candidates.values(), key=age):
                judgement = self._safely(root, candidate, self._judge.quiet)
                if judgement and not judgement.whole:
                    salvage.append((printable(root.origin(candidate.path)), judgement))
        self._keeper.finish()
        return salvage

    def again(self, path: str) -> None:
        """The capture of this path (as its manifest would say it) turned out to be no checkpoint: look at it anew."""
        any(root.again(path) for root in reversed(self._roots))

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, root: Root, *, new: bool) -> bool:
        """Begins to watch a folder that is there. `new`: what lies in it is the job's doing."""
        if not root.attach():
            return False
        place = self._places[root.path] = probe(root.path, self._spool, self._rungs)
        text = f"Checkpoints in {printable(root.path)} are captured by {place.rung}"
        self._emit(event("capture-ready", text, "debug", how=place.rung))
        root.scan(self._tick)
        for candidate in () if new else root.candidates.values():
            candidate.captured = candidates.files(candidate)
            candidate.flats, candidate.dirty = dict(candidate.captured), False
        return True

    def _run(self) -> None:
        formats.load()
        # A whole checkpoint may live for 20 ms on a machine whose processors are all taken, and this needs less than one of
        # them. A thread has a nice value of its own on Linux; without the privilege it keeps the process's.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stopping:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for root in self._roots:
                if root.fd is not None:
                    poll.register(root.fd, select.POLLIN)
            poll.poll(self._pause() * 1000)
            if self._stopping:
                return
            self.beat = time.monotonic()
            for root in self._roots:
                try:
                    self._attend(root)
                except Exception as error:
                    self._report(root.name(ROOT), root.origin(ROOT), _reason(error))
                    time.sleep(self._tick)
            self._keeper.sweep()

    def _pause(self) -> float:
        """Seconds to sleep: until something is due, where no event comes first."""
        now = time.monotonic()
        if self._busy:
            return max(min(due for due, *_ in self._busy) - now, 0.0)
        missing = any(root.path not in self._places for root in self._roots)
        dirty = any(candidate.dirty for root in self._roots for candidate in list(root.candidates.values()))
        if missing or dirty:
            return self._tick
        return min(LONGEST_PAUSE, *(max(root.wait(now), 0.01) for root in self._roots))

    def _attend(self, root: Root) -> None:
        if root.path not in self._places:
            self._attach(root, new=True)
            return
        self._urgent()
        now = time.monotonic()
        if root.due(now):
            root.scan(self._tick)
        for candidate in list(root.candidates.values()):
            quiet = self._judge.patience if candidate.patient else self._settle / 2
            if candidate.dirty and now - candidate.changed >= quiet:
                self._safely(root, candidate, self._settled)

    def _urgent(self) -> None:
        """What must not wait, also in the middle of a walk through a large folder: events, and the looks they ask for."""
        if self._hurrying:
            return
        self._hurrying, self.beat = True, time.monotonic()
        try:
            self._follow_again()
            for root in self._roots:
                for sign in root.read():
                    self._follow(root, sign)
        finally:
            self._hurrying = False

    def _follow(self, root: Root, sign: Sign, delay: float = _SOON) -> None:
        """Looks at what a sign points to; in a moment again, where the close that it tells of is not over yet."""

        def look(root: Root, place: Place, candidate: Candidate) -> Judgement | None:
            try:
                if sign.kind == "closed":
                    self._judge.closed(root, place, candidate)
                elif sign.kind == "flat":
                    self._judge.flat(root, place, candidate, sign.file)
                else:
                    return self._judge.quiet(root, place, candidate)
            except Busy:
                if delay < self._settle:
                    self._busy.append((time.monotonic() + delay, delay, root, sign))
            return None

        self._safely(root, sign.candidate, look, sign.file)

    def _follow_again(self) -> None:
        now = time.monotonic()
        due = [each for each in self._busy if each[0] <= now]
        self._busy = [each for each in self._busy if each[0] > now]
        for _, delay, root, sign in due:
            self._follow(root, sign, delay * 2)

    def _settled(self, root: Root, place: Place, candidate: Candidate) -> Judgement | None:
        """No event for half of the settle time: if the files have not changed for the other half either, look."""
        seen = candidates.glance(candidate, root.pulse)
        if seen != candidate.seen:
            root.differs(candidate, seen)
            return None
        candidate.dirty = False
        return self._judge.quiet(root, place, candidate)

    def _safely(
        self,
        root: Root,
        candidate: Candidate,
        look: Callable[[Root, Place, Candidate], Judgement | None],
        file: str = "",
    ) -> Judgement | None:
        """One candidate's trouble is reported by its name, and must not blind the watcher to the others."""
        try:
            return look(root, self._places[root.path], candidate)
        except Vanished:
            candidate.dirty, candidate.changed = True, time.monotonic()
            return None
        except UnsafePath as error:
            reason, candidate.dirty = error.text, False
        except Exception as error:  # Tried again later: a network file system has bad moments.
            reason = _reason(error)
            candidate.dirty = candidate.patient = True
            candidate.changed = time.monotonic()
        path = file or candidate.path
        self._report(root.name(path), root.origin(path), reason)
        return None

    def _captured(self, capture: Capture) -> None:
        self._reported.pop((capture.name, printable(capture.path)), None)
        self._on_capture(capture)

    def _report(self, name: str, path: str, reason: str) -> None:
        path, reason = printable(path), printable(reason)
        if self._reported.get((name, path)) == reason:
            return
        self._reported[name, path] = reason
        text = f"Not collected: {path}: {reason}"
        self._emit(event("checkpoint-skipped", text, "warning", path=path, reason=reason))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    return f"it cannot be looked at ({type(error).__name__}: {error})"


__all__ = ["Subject", "Watcher"]
