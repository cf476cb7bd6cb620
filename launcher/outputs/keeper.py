"""Takes what is held out of the writer's reach, by the first way that works for it: reflink, copy, hard link, descriptors.

Links are made and small files copied at once. What has to wait for the disk (a reflink waits for the dirty pages of its
source) is taken in a thread of its own, behind descriptors that are open already, so that the watcher never waits.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.events import Emit, event
from launcher.ids import new_id
from launcher.outputs.capture import How, Identity, identity_of
from launcher.outputs.filesystem import Place
from launcher.outputs.holding import Held, Vanished, room
from launcher.reflink import make_reflink

INLINE = 1 << 20
"""Bytes that are copied at once: less than a millisecond."""
SMALL = 64 << 20
"""Bytes up to which files that are rewritten in place are copied where the file system cannot reflink."""


@dataclass(frozen=True)
class Kept:
    """Files out of the writer's reach: what a Capture says of them."""

    id: str
    root: str
    how: How
    files: dict[str, Identity]
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)


Done = Callable[[Kept | None], None]
"""Called once, from any thread; None: the files changed or went while they were taken."""


class Keeper:
    """Owns the descriptors of `held` captures until their entry in the spool is gone, and the thread for what takes long."""

    def __init__(self, spool: Path, emit: Emit) -> None:
        self._spool = spool
        self._emit = emit
        self._holding: dict[str, dict[str, int]] = {}
        self._queue: queue.SimpleQueue[tuple[Held, list[str], Place, bool, Done] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._next_sweep = 0.0
        self._told: set[str] = set()

    def keep(self, held: Held, paths: Sequence[str], place: Place, *, in_place: bool, done: Done) -> None:
        """Takes `paths` of what is held and calls `done`, now or later. `in_place`: the job rewrites these files, so that a
        copy is better than a hard link. Raises OSError when they cannot be taken in any way."""
        size = sum(held.identities[path][0] for path in paths)
        if place.rung != "reflink" and not (in_place and INLINE < size <= SMALL):
            done(self._take(held, paths, place, in_place))
            return
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
            self._thread.start()
        self._queue.put((held.moved(), list(paths), place, in_place, done))

    def sweep(self) -> None:
        """Closes the descriptors of captures that were stored or given up. Cheap: looks once a second."""
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + 1
        for identifier in [each for each in self._holding if not (self._spool / each).exists()]:
            for fd in self._holding.pop(identifier).values():
                os.close(fd)

    def finish(self) -> None:
        """Waits for what is being taken. Descriptors stay open: what they hold is not stored yet."""
        if self._thread:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while job := self._queue.get():
            held, paths, place, in_place, done = job
            with held:
                try:
                    kept = self._take(held, paths, place, in_place)
                except OSError as error:
                    self._say("capture-failed", f"A checkpoint could not be captured: {error.strerror}")
                    kept = None
                done(kept)

    def _take(self, held: Held, paths: Sequence[str], place: Place, in_place: bool) -> Kept | None:
        size = sum(held.identities[path][0] for path in paths)
        ways: list[How] = ["reflink"] if place.rung == "reflink" else []
        ways += ["copy"] if in_place and size <= SMALL and not ways else []
        ways += ["link"] if place.rung != "held" else []
        for how in (*ways, "held"):
            try:
                return self._hold(held, paths) if how == "held" else self._place(held, paths, place.folder, how)
            except Vanished:
                return None
            except OSError as error:
                self._say("capture-degraded", f"Files cannot be captured by {how} ({error.strerror}): trying otherwise")
        return self._place(held, paths, self._spool, "copy")

    def _place(self, held: Held, paths: Sequence[str], folder: Path, how: How) -> Kept | None:
        """Files of the spool, made by links, reflinks or copies. Raises Vanished or OSError, and leaves nothing behind."""
        identifier = new_id()
        target = self._spool / identifier / "files"
        try:
            if folder == self._spool:
                target.mkdir(parents=True)
            else:
                (folder / identifier / "files").mkdir(parents=True)
                target.parent.mkdir(parents=True)
                target.symlink_to(folder / identifier / "files")
            kept = Kept(identifier, str(target), how, {})
            for path in paths:
                there = target / path
                there.parent.mkdir(parents=True, exist_ok=True)
                if how != "link" or not _link(held, path, there):
                    _duplicate(held, path, there, by_clone=how == "reflink")
                    kept.files[path] = identity_of(os.stat(there))
                    continue
                kept.files[path] = identity_of(os.stat(there))
                if kept.files[path] != held.identities[path]:
                    raise Vanished(path)
            if changed := held.changed():
                raise Vanished(changed)
            return kept
        except BaseException as error:
            shutil.rmtree(folder / identifier, ignore_errors=True)
            shutil.rmtree(self._spool / identifier, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                raise Vanished(str(error.filename)) from error
            raise

    def _hold(self, held: Held, paths: Sequence[str]) -> Kept:
        """The files stay where they are, behind descriptors. Raises OSError where there are too few of these."""
        if any(path not in held.descriptors for path in paths) or room(0) == 0:
            raise OSError(24, "too many open files")
        kept = Kept(new_id(), held.root, "held", {path: held.identities[path] for path in paths})
        (self._spool / kept.id).mkdir(parents=True)
        for path, fd in held.release().items():
            if path not in kept.files:
                os.close(fd)
                continue
            status = os.fstat(fd)
            kept.descriptors[path], kept.marks[path] = fd, (status.st_nlink, status.st_ctime_ns)
        self._holding[kept.id] = kept.descriptors
        return kept

    def _say(self, kind: str, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._emit(event(kind, text, "warning"))


def _link(held: Held, path: str, target: Path) -> bool:
    """A hard link; False where the file was deleted and is only held: it has to be copied."""
    try:
        os.link(os.path.join(held.root, path), target, follow_symlinks=False)
        return True
    except FileNotFoundError:
        if path not in held.descriptors:
            raise
        return False


def _duplicate(held: Held, path: str, target: Path, *, by_clone: bool) -> None:
    with held.opened(path) as source, open(target, "xb", buffering=0) as file:
        before = os.fstat(source)
        if by_clone:
            make_reflink(source, file.fileno())
        else:
            _copy(source, file.fileno(), before.st_size, path)
        os.fchmod(file.fileno(), before.st_mode & 0o777)
        with contextlib.suppress(OSError):
            os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))


def _copy(source: int, target: int, size: int, path: str) -> None:
    position = 0
    while position < size:
        try:
            count = os.copy_file_range(source, target, size - position, position, position)
        except OSError:  # Some file systems refuse it; what is read and written works everywhere.
            count = os.pwrite(target, os.pread(source, min(size - position, 1 << 20), position), position)
        if count == 0:
            raise Vanished(path)
        position += count
