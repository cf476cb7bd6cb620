"""A watched folder: what happens in it, told by events and by scans, and what that means for its candidates.

Events are hints, a scan is the truth: events can be lost, come before their watch, or never come (another machine's writer
on a network file system). Both only date the candidates here; nothing is read, judged or captured.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from launcher import names
from launcher.checkpoint import formats
from launcher.events import Emit, event
from launcher.outputs import candidates
from launcher.outputs.candidates import ROOT, Candidate, Seen
from launcher.outputs.capture import identity_of
from launcher.outputs.filesystem import SPOOL, network
from launcher.outputs.inotify import CLOSE_WRITE, CREATE, DELETE, MOVED_FROM, MOVED_TO, Inotify, Notice

_RESCAN = 5.0
"""Seconds between scans where events tell everything, at least."""
_SHARE = 500
"""A scan that took a CPU second is repeated after this many: 0.2 % of a core."""
_POLLED_SHARE = 20
"""The same where events do not tell everything: 5 % of a core."""
_TENSORS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".distcp", ".gguf", ".npz", ".nemo")


@dataclass(frozen=True)
class Sign:
    """Why to look at a candidate at once: a library's last file was closed, a flat file was, or the next checkpoint began
    (which proves that this one is over as well as quiet does)."""

    kind: Literal["closed", "flat", "over"]
    candidate: Candidate
    file: str = ""


class Root:
    """One watched folder and its candidates. Used by the watcher's thread; `again` by any."""

    def __init__(self, path: str, label: str, job: str, emit: Emit, report: Callable[[str, str, str], None]) -> None:
        """`label` is empty for the output directory, else the part of its checkpoints' names. `report` takes the name,
        the path and the reason of what is not collected."""
        self.path = os.path.realpath(path)
        self.label = label
        self.candidates: dict[str, Candidate] = {}
        self._job = f"{job}/{label}" if label else job
        self._emit = emit
        self._report = report
        self._lock = threading.Lock()
        self._inotify: Inotify | None = None
        self._network: str | None = None
        self._next_scan = 0.0

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────

    def origin(self, path: str) -> str:
        """Where a candidate or flat file was written, as manifests say it."""
        if not self.label:
            return path
        return self.path if path == ROOT else os.path.join(self.path, path)

    def name(self, path: str) -> str:
        """The checkpoint's name."""
        return names.clean(self._job if path == ROOT else f"{self._job}/{path}")

    def candidate(self, path: str) -> Candidate:
        with self._lock:
            return self.candidates.setdefault(path, Candidate(self.path, path, time.monotonic()))

    def again(self, origin: str) -> bool:
        """What was captured of this origin turned out to be no checkpoint: it is looked at anew. False: not ours."""
        path = origin
        if self.label:
            if origin != self.path and not origin.startswith(f"{self.path}/"):
                return False
            path = os.path.relpath(origin, self.path)
        with self._lock:
            candidate = self.candidates.get(path) or self.candidates.get(ROOT)
            if candidate:
                if candidate.path == path:
                    candidate.lost = True
                else:
                    candidate.flats.pop(path, None)
                candidate.dirty, candidate.changed = True, time.monotonic()
        return True

    # ── the folder itself ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def fd(self) -> int | None:
        """Readable when there are events."""
        return self._inotify.fd if self._inotify else None

    @property
    def blind(self) -> bool:
        """Whether events do not tell everything here."""
        return self._inotify is None or not self._inotify.complete or self._network is not None

    def attach(self) -> bool:
        """Begins to watch. False as long as the folder is not there."""
        if not os.path.isdir(self.path):
            return False
        self._network = network(self.path)
        if self._network:
            self._emit(
                event(
                    "watch-polling", f"{self.path} is on {self._network}: it is scanned, events do not tell all there"
                )
            )
        try:
            self._inotify = Inotify(self.path)
        except OSError as error:
            text = f"inotify is not available ({error.strerror}): {self.path} is scanned instead"
            self._emit(event("watch-degraded", text, "warning"))
        return True

    def close(self) -> None:
        if self._inotify:
            self._inotify.close()
            self._inotify = None

    # ── scans ────────────────────────────────────────────────────────────────────────────────────────────────────

    def due(self, now: float) -> bool:
        """Whether it is time to scan."""
        return now >= self._next_scan

    def wait(self, now: float) -> float:
        """Seconds until the next scan."""
        return max(self._next_scan - now, 0.0)

    def scan(self, tick: float) -> None:
        """Compares what is on disk with what was seen last, and dates what has changed. `tick`: seconds until the next
        scan where events do not tell everything, unless scanning is too dear for that."""
        started = time.thread_time()
        found: dict[str, Seen] = {}
        owners: dict[str, str | None] = {}
        for path, status in candidates.walk(self.path, unreadable=self._unreadable):
            folder = path.rpartition("/")[0]
            if folder not in owners:
                owners[folder] = candidates.of_file(path)
            owner = owners[folder]
            if owner is None:
                continue
            if not stat.S_ISREG(status.st_mode):
                self._not_a_file(path, status)
                continue
            inside = path if owner == ROOT else path[len(owner) + 1 :]
            found[owner] = found.get(owner, Seen()).plus(inside, identity_of(status))
        for path in [path for path in self.candidates if path not in found and path != ROOT]:
            if not os.path.isdir(self.candidates[path].folder):
                self.gone(path)
        for path, seen in found.items():
            candidate = self.candidate(path)
            if seen != candidate.seen:
                self.differs(candidate, seen)
        cost = time.thread_time() - started
        pause = max(tick, _POLLED_SHARE * cost) if self.blind else max(_RESCAN, _SHARE * cost)
        self._next_scan = time.monotonic() + pause

    def differs(self, candidate: Candidate, seen: Seen) -> None:
        """Its files are others than at the last look."""
        if candidate.captured and candidate.path != ROOT and seen.count < len(candidate.captured):
            with contextlib.suppress(OSError):
                candidate.leaving |= candidates.files(candidate).items() <= candidate.captured.items()
        candidate.seen, candidate.patient = seen, False
        candidate.dirty, candidate.changed = True, time.monotonic()

    def _unreadable(self, path: str, error: OSError) -> None:
        owner = candidates.of_file(f"{path}/_") if path else ROOT
        if owner is not None:
            self._report(self.name(owner), self.origin(path), f"the folder cannot be read ({error.strerror})")

    def _not_a_file(self, path: str, status: os.stat_result) -> None:
        if not stat.S_ISLNK(status.st_mode):
            kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
            reason = f"it is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, which is never opened"
        else:
            target = os.path.realpath(os.path.join(self.path, path))
            if target.startswith(f"{self.path}/") and "/" not in path:
                return  # An alias beside the checkpoints, such as latest -> checkpoint-500.
            reason = "it is a symbolic link, which is not followed"
        self._report(self.name(path), self.origin(path), reason)

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self) -> list[Sign]:
        """Takes in the events since the last call."""
        signs: list[Sign] = []
        while self._inotify and (notices := self._inotify.read()):
            for notice in notices:
                if notice.overflow:
                    self._emit(event("watch-overflow", f"Events were lost: {self.path} is scanned", "debug"))
                    self._next_scan = 0.0
                elif notice.is_folder:
                    signs += self._folder(notice)
                else:
                    signs += self._file(notice)
        return signs

    def _file(self, notice: Notice) -> list[Sign]:
        path, mask = notice.path, notice.mask
        owner = candidates.of_file(path)
        if owner is None:
            return []
        name = path.rpartition("/")[2]
        candidate = self.candidate(owner)
        candidate.changed, candidate.dirty, candidate.patient = time.monotonic(), True, False
        if mask & DELETE and owner != ROOT:
            if not formats.is_temporary(name) and not formats.is_sentinel(name):
                candidate.leaving = True
        elif mask & (CREATE | MOVED_TO):
            candidate.leaving = False
        if mask & (CLOSE_WRITE | MOVED_TO) and name.endswith(_TENSORS) and not formats.is_temporary(name):
            candidate.promising = True
        if owner == ROOT:
            return [Sign("flat", candidate, name)] if mask & (CLOSE_WRITE | MOVED_TO) else []
        if mask & (CREATE | MOVED_FROM) or not formats.completes(name):
            return []
        candidate.promising = True
        return [Sign("closed", candidate)]

    def _folder(self, notice: Notice) -> list[Sign]:
        path, mask = notice.path, notice.mask
        if path.partition("/")[0] == SPOOL:
            return []
        if mask & (DELETE | MOVED_FROM):
            for each in [each for each in self.candidates if each == path or each.startswith(f"{path}/")]:
                self.gone(each, deleted=bool(mask & DELETE))
            return []
        if candidates.of_file(f"{path}/_") != path:
            return []
        over = [
            Sign("over", each)
            for each in self.candidates.values()
            if each.dirty and each.path not in (path, ROOT) and os.path.dirname(each.path) == os.path.dirname(path)
        ]
        candidate = self.candidate(path)
        candidate.leaving, candidate.missed = False, notice.missed
        if not mask & MOVED_TO:
            return over
        folders = path.split("/")
        candidate.promising |= candidates.is_named(folders, len(folders))
        return [*over, Sign("closed", candidate)]  # One rename may make it whole.

    def gone(self, path: str, *, deleted: bool = True) -> None:
        """A candidate's folder is no more."""
        candidate = self.candidates.pop(path, None)
        if not candidate or candidate.captured is not None or not deleted:
            return
        if candidate.missed:
            self._report(self.name(path), self.origin(path), "it came and went before it could be looked at")
        elif candidate.promising:
            self._report(self.name(path), self.origin(path), "it was deleted before it could be captured")
