"""Sees checkpoints as the job writes them, and captures each the moment it is whole.

Events are hints; a scan decides. A folder is looked at at once when a file is closed that some library writes last, and
otherwise when it has been quiet for the settle time, or when the job is over. Once a file of a folder was deleted, the
folder is on its way out and is no longer a candidate (measured: a half-deleted Trainer checkpoint passes for a whole one
without optimizer).
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launcher import names
from launcher.checkpoint import formats
from launcher.checkpoint.judgement import Context, Judgement
from launcher.checkpoint.tree import Folder
from launcher.events import Emit, event
from launcher.ids import new_id
from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture, Identity, Vanished
from launcher.outputs.inotify import CREATE, DELETE, MOVED_FROM, MOVED_TO, Inotify, Notice
from launcher.text import printable

ROOT = "."
SPOOL = ".launcher"
"""A folder of this name in the output directory is ours (the spool, where no other place can take links)."""
_TICK = 0.2
_RESCAN = 5.0


@dataclass(frozen=True)
class Subject:
    """What every capture of this job says about its origin."""

    job: str
    attempt: int = 1
    node: int = 0
    parents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    repository: str = ""
    commit: str = ""
    command: tuple[str, ...] = ()


@dataclass
class Candidate:
    """A folder of the output directory (or its root, or one flat file) that may become a checkpoint."""

    path: str
    changed: float
    """Monotonic time of the last sign of a writer."""
    seen: dict[str, Identity] = field(default_factory=dict)
    """Its files at the last look."""
    captured: dict[str, Identity] | None = None
    """Its files at the last capture."""
    dirty: bool = False
    """Something happened since the last look."""
    leaving: bool = False
    """A file of it was deleted: rotation is removing it."""
    missed: bool = False
    """It was gone again before it could be watched."""
    promising: bool = False
    """It held tensors or a library's last file at some moment: its loss must be reported."""


class Watcher:
    """Watches one output directory in a thread of its own; `on_capture` is called from it.

    `start` before the job, `finish` after it: the last look happens there, in the caller's thread.
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
    ) -> None:
        self.root = os.path.realpath(root)
        self.spool = spool
        self.subject = subject
        self._context = Context(world_size=world_size, final=False)
        self._settle = settle
        self._on_capture = on_capture
        self._emit = emit
        self._candidates: dict[str, Candidate] = {}
        self._lock = threading.Lock()
        self._inotify: Inotify | None = None
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._links = True
        self._warned: set[str] = set()
        self.reported: list[tuple[str, str]] = []
        """(name, reason) of what was seen and could not be captured."""
        self.last_step: int | None = None

    def start(self) -> None:
        """Begins to watch. What lies in the folder already is not the job's doing unless it changes."""
        try:
            self._inotify = Inotify(self.root)
        except OSError as error:
            self._emit(
                event("watch-degraded", f"inotify is not available ({error.strerror}): scanning instead", "warning")
            )
        for candidate in self._scan().values():
            candidate.captured = candidate.seen
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def adopt(self) -> None:
        """For recovery: whatever lies in the folder is looked at by `finish`."""
        self._scan()

    def finish(self, *, unknown_counts: bool) -> list[tuple[str, Judgement]]:
        """The last look, when nobody writes any more. `unknown_counts`: the job ended well, so that folders which no
        format knows count as whole. Returns what is salvage: path and judgement."""
        self._stopping = True
        os.write(self._waker, b"x")
        if self._thread:
            self._thread.join()
        if self._inotify:
            self._drain()
            self._inotify.close()
            self._inotify = None
        os.close(self._wake)
        os.close(self._waker)
        self._scan()
        self._context = Context(world_size=self._context.world_size, final=True)
        salvage = []
        for candidate in sorted(self._candidates.values(), key=lambda each: _age(each)):
            judgement = self._look(candidate, unknown_counts=unknown_counts)
            if judgement and not judgement.whole:
                salvage.append((candidate.path, judgement))
        return salvage

    def again(self, path: str) -> None:
        """The capture of this path turned out to be no checkpoint: look at it anew."""
        with self._lock:
            candidate = self._candidates.get(path) or self._candidates.get(ROOT)
            if candidate:
                candidate.captured, candidate.dirty, candidate.changed = None, True, time.monotonic()

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._inotify:
            poll.register(self._inotify.fd, select.POLLIN)
        next_scan = time.monotonic() + _RESCAN
        while not self._stopping:
            waiting = any(candidate.dirty for candidate in self._candidates.values())
            blind = not self._inotify or not self._inotify.complete
            pause = _TICK if waiting or blind else min(_RESCAN, max(next_scan - time.monotonic(), 0))
            poll.poll(pause * 1000)
            if self._stopping:
                return
            self._drain()
            now = time.monotonic()
            if blind or now >= next_scan:
                self._scan()
                next_scan = time.monotonic() + _RESCAN
            for candidate in list(self._candidates.values()):
                if candidate.dirty and now - candidate.changed >= self._settle / 2:
                    self._quiet(candidate)

    def _drain(self) -> None:
        while self._inotify and (notices := self._inotify.read()):
            for notice in notices:
                if notice.overflow:
                    self._emit(event("watch-overflow", "Events were lost: scanning the output directory", "debug"))
                    self._scan()
                else:
                    self._notice(notice)

    def _notice(self, notice: Notice) -> None:
        path = notice.path
        top, slash, _ = path.partition("/")
        if top == SPOOL:
            return
        name = path.rpartition("/")[2]
        if notice.is_folder and not slash:
            if notice.mask & (DELETE | MOVED_FROM):
                self._gone(top, deleted=bool(notice.mask & DELETE))
            elif not formats.is_temporary(top):
                candidate = self._candidate(top)
                candidate.leaving, candidate.missed = False, notice.missed
                if notice.mask & MOVED_TO:  # It may have become whole by this one rename.
                    self._now(top)
            return
        candidate = self._candidate(top if slash else ROOT)
        candidate.changed, candidate.dirty = time.monotonic(), True
        if notice.mask & DELETE and slash and not notice.is_folder:
            if not formats.is_temporary(name) and not formats.is_sentinel(name):
                candidate.leaving = True
        elif notice.mask & (CREATE | MOVED_TO) and not notice.is_folder:
            candidate.leaving = False
        if slash and not notice.mask & (CREATE | MOVED_FROM) and formats.completes(name):
            candidate.promising = True
            self._now(top)

    def _candidate(self, path: str) -> Candidate:
        with self._lock:
            return self._candidates.setdefault(path, Candidate(path, time.monotonic()))

    def _gone(self, path: str, *, deleted: bool = True) -> None:
        candidate = self._candidates.pop(path, None)
        if not candidate or candidate.captured is not None or not deleted:
            return
        if candidate.missed:
            self._report(path, "it came and went before it could be looked at")
        elif candidate.promising:
            self._report(path, "it was deleted before it could be captured")

    def _report(self, path: str, reason: str) -> None:
        self.reported.append((self._name(path), reason))
        self._emit(
            event(
                "checkpoint-skipped", f"Not collected: {printable(path)}: {reason}", "warning", path=path, reason=reason
            )
        )

    def _name(self, path: str) -> str:
        job = self.subject.job
        return job if path == ROOT else names.clean(f"{job}/{path}")

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _scan(self) -> dict[str, Candidate]:
        """Compares what is on disk with what was seen last, and dates what has changed."""
        found: dict[str, dict[str, Identity]] = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.root):
                if entry.name != SPOOL and entry.is_dir(follow_symlinks=False) and not formats.is_temporary(entry.name):
                    found[entry.name] = self._files(entry.name)
            if root_files := self._root_files():
                found[ROOT] = root_files
        for path in [path for path in self._candidates if path not in found and path != ROOT]:
            self._gone(path)
        for path, files in found.items():
            candidate = self._candidate(path)
            if files != candidate.seen:
                self._differs(candidate, files)
        return self._candidates

    def _files(self, path: str) -> dict[str, Identity]:
        folder = os.path.join(self.root, path)
        return captures.snapshot(folder, Folder.scan(folder).files)

    def _now(self, path: str) -> None:
        """A file that some library writes last was closed: hold all of the folder first, judge it then."""
        candidate = self._candidate(path)
        if candidate.leaving:
            return
        try:
            held = captures.Held(os.path.join(self.root, path))
        except (Vanished, OSError):
            return  # On its way out, or never whole: what becomes of it is seen by the events that follow.
        with held:
            if held.identities == candidate.captured:
                return
            judgement = formats.judge(held, self._context)
            if judgement.whole and judgement.proven and not held.open_writer():
                self._capture(candidate, held, judgement)

    def _differs(self, candidate: Candidate, files: dict[str, Identity]) -> None:
        if candidate.captured and candidate.path != ROOT and files.items() < candidate.captured.items():
            candidate.leaving = True
        candidate.seen, candidate.dirty, candidate.changed = files, True, time.monotonic()

    def _quiet(self, candidate: Candidate) -> None:
        """No event for half of the settle time: if the files have not changed for the other half either, look."""
        files = self._root_files() if candidate.path == ROOT else self._files(candidate.path)
        if files != candidate.seen:
            self._differs(candidate, files)
            return
        candidate.dirty = False
        self._look(candidate, unknown_counts=False)

    def _root_files(self) -> dict[str, Identity]:
        return captures.snapshot(self.root, os.listdir(self.root))

    def _look(self, candidate: Candidate, *, unknown_counts: bool) -> Judgement | None:
        """Judges a candidate as it lies there and captures it where it is whole. None: nothing new, or no checkpoint."""
        if candidate.path == ROOT:
            return self._look_at_root(candidate)
        try:
            held = captures.Held(os.path.join(self.root, candidate.path))
        except Vanished:
            candidate.leaving = True
            return None
        with held:
            if not held.files or held.identities == candidate.captured or candidate.leaving:
                return None
            candidate.seen = held.identities
            judgement = formats.judge(held, self._context)
            if judgement.verdict == "unknown":
                if not any(formats.holds_tensors(held, path) for path in held.files):
                    return None  # Not a checkpoint: part of the job's outputs.
                if unknown_counts:
                    judgement = Judgement("whole", "unknown")
            if judgement.whole and not held.open_writer() and not self._capture(candidate, held, judgement):
                return None
            return judgement

    def _look_at_root(self, candidate: Candidate) -> Judgement | None:
        tree = Folder(self.root, {path: identity[0] for path, identity in sorted(candidate.seen.items())})
        if not tree.files or candidate.seen == candidate.captured:
            return None
        format = formats.recognise(tree)
        claimed = format.claims(tree) if format else frozenset()
        result = None
        if format and claimed:
            own = formats.part(tree, claimed)
            judgement = format.judge(own, self._context)
            files = {path: candidate.seen[path] for path in sorted(claimed)}
            before = {path: each for path, each in (candidate.captured or {}).items() if path in claimed}
            holds = any(formats.holds_tensors(own, path) for path in claimed)
            if files != before and judgement.whole and not captures.open_writer(self.root, files):
                self._capture_in_place(ROOT, files, judgement)
            elif files != before and holds and not judgement.whole:
                result = judgement
        for path in tree.files:
            if path in claimed or not formats.holds_tensors(tree, path):
                continue
            if (candidate.captured or {}).get(path) == candidate.seen[path]:
                continue
            single = formats.part(tree, [path])
            judgement = formats.judge(single, self._context)
            if judgement.verdict == "unknown":
                judgement = Judgement("whole", "unknown")
            if judgement.whole and not captures.open_writer(self.root, [path]):
                self._warn_flat(path)
                self._capture_in_place(path, {path: candidate.seen[path]}, judgement)
            elif not judgement.whole and self._context.final:
                result = result or judgement
        candidate.captured = candidate.seen
        return result

    def _warn_flat(self, path: str) -> None:
        if "flat" in self._warned:
            return
        self._warned.add("flat")
        beside = any(name != ROOT for name in self._candidates)
        self._emit(
            event(
                "flat-file",
                f"{printable(path)} was saved as a flat file (legacy mode); it is collected as a checkpoint of its own."
                + (" Beside folders it is ambiguous which files belong together." if beside else "")
                + f"\nSave into a folder instead: torch.save(x, output / {path!r} / 'model.pt')",
                "warning",
                path=path,
            )
        )

    # ── capturing ────────────────────────────────────────────────────────────────────────────────────────────────

    def _capture(self, candidate: Candidate, held: captures.Held, judgement: Judgement) -> bool:
        # Where nobody writes any more, a temporary file is what a killed writer left.
        paths = [path for path in held.files if not formats.is_temporary(path)]
        if self._links:
            try:
                identifier, target, files = held.link(paths, self.spool)
            except Vanished:
                return False  # Replaced or cut in this moment: the events that follow say what it became.
            except OSError as error:
                self._links = False
                text = f"The file system cannot link ({error.strerror}): checkpoints are read in place"
                self._emit(event("capture-degraded", text, "warning"))
        candidate.captured = candidate.seen = held.identities
        candidate.dirty = False
        if not self._links:
            return self._capture_in_place(candidate.path, {path: held.identities[path] for path in paths}, judgement)
        self._made(identifier, candidate.path, str(target), True, files, judgement)
        return True

    def _capture_in_place(self, path: str, files: dict[str, Identity], judgement: Judgement) -> bool:
        root = os.path.join(self.root, path) if os.path.isdir(os.path.join(self.root, path)) else self.root
        identifier = new_id()
        self._made(identifier, path, root, False, files, judgement)
        return True

    def _made(
        self, identifier: str, path: str, root: str, linked: bool, files: dict[str, Identity], judgement: Judgement
    ) -> None:
        subject = self.subject
        format = formats.by_name(judgement.format)
        tree = Folder(root, {name: identity[0] for name, identity in sorted(files.items())})
        step = format.facts(tree).step if format else None
        made = Capture(
            id=identifier,
            job=subject.job,
            name=self._name(path),
            path=path,
            root=root,
            linked=linked,
            format=judgement.format,
            step=step,
            files=files,
            captured=time.time(),
            attempt=subject.attempt,
            node=subject.node,
            parents=subject.parents,
            sources=subject.sources,
            repository=subject.repository,
            commit=subject.commit,
            command=subject.command,
        )
        captures.save(made, self.spool)
        if step is not None:
            self.last_step = max(step, self.last_step or 0)
        self._emit(
            event("checkpoint-captured", f"Captured {made.name}", "debug", name=made.name, id=made.id, step=step)
        )
        self._on_capture(made)


def _age(candidate: Candidate) -> tuple[bool, int]:
    """Oldest folder first, the root last: its own checkpoint is the job's result."""
    return candidate.path == ROOT, max((identity[1] for identity in candidate.seen.values()), default=0)
