"""What the node cache holds: each entry's description, which is also its lock, and how an entry leaves.

    <cache>/checkpoints/<id>/…      whole and verified: it exists only by one rename
    <cache>/partial/<id>/…          being downloaded; what is whole in it is kept after a crash
    <cache>/partial/<id>.evicted…   on its way out
    <cache>/entries/<id>.json       description; flock: exclusive while downloading or leaving, shared while a job uses it

Locks are held by the kernel and die with their process; nothing here needs cleaning after a kill. The file's modification
time is the entry's last use. A lock file may be removed only by who holds it exclusively, and counts only while it is the
one at its path: whoever gets a lock looks again. A last use that lies ahead keeps an entry until then, without a process.

Where flock lies (some network file systems give one lock to two at a time, or none at all) it is asked for nothing: every
process downloads to a partial folder of its own, the first rename makes the entry, and nothing is evicted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from launcher.checkpoint.manifest import File
from launcher.ids import new_id

_WAIT = 0.1
_FORGOTTEN = 86400.0
"""Seconds after which `prune` removes a download that nobody went on with."""


class About(msgspec.Struct, frozen=True):
    """An entry's description: what it is called, where it is from, and every file with its digest."""

    name: str
    source: str
    files: tuple[File, ...]
    shared: bool = False
    """Its files take no space of their own: reflinks or hard links of a local store's."""
    kind: Literal["checkpoint", "environment"] = "checkpoint"
    """environment: packages that were installed for jobs, see `launcher.requirements`."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def occupied(self) -> int:
        """Bytes that leave the file system with it."""
        return 0 if self.shared else self.size


@dataclass(frozen=True)
class Cached:
    """A whole entry: `used` in Unix seconds; `held`: a live process uses it; `kept`: until when (Unix seconds) somebody wants to
    find it here, if he does."""

    id: str
    about: About
    used: float
    held: bool
    kept: float | None = None


class Lease:
    """Keeps a cache entry from eviction while it is held: a shared lock that dies with this process."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self.since = os.fstat(fd).st_ctime_ns
        """When it was taken, by the file system's own clock: nothing in the entry is younger unless somebody changed it."""

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Entries:
    """The entries of a cache folder, and the locks on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def locks(self) -> bool:
        """Whether flock tells the truth on this file system: two descriptors never both get a file exclusively."""
        probe = self.folder / f".flock-{os.getpid()}-{threading.get_ident()}"
        first = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        second = os.open(probe, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
        except OSError:
            return False
        finally:
            os.close(first)
            os.close(second)
            probe.unlink(missing_ok=True)

    def path(self, identifier: str) -> Path:
        """Where the entry is, or would be."""
        return self.folder / "checkpoints" / identifier

    def partial(self, identifier: str) -> Path:
        """Where it is downloaded to."""
        return self.folder / "partial" / identifier

    def _about(self, identifier: str) -> Path:
        return self.folder / "entries" / f"{identifier}.json"

    def make(self, identifier: str, download: Callable[[Path], About], wait: Callable[[], None]) -> Lease:
        """The lease on an entry, which `download` fills where it is not there yet: one process does, the others wait.

        `wait` is called every 0.1 s while another process has the entry, and may raise to give up.
        """
        for part in ("checkpoints", "partial", "entries"):
            (self.folder / part).mkdir(parents=True, exist_ok=True, mode=0o755)
        path = self.path(identifier)
        if not self.locks:
            return self._make_unlocked(identifier, download)
        while True:
            fd = os.open(self._about(identifier), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _lock(fd, fcntl.LOCK_SH, wait)
                if not path.exists():
                    _lock(fd, fcntl.LOCK_EX, wait)
                    if self._current(fd, identifier) and not path.exists():
                        self._fill(fd, identifier, download)
                    _lock(fd, fcntl.LOCK_SH, wait)  # Not atomic: an eviction may come between, hence the loop.
                if self._current(fd, identifier) and path.exists():
                    _touch(fd)
                    return Lease(fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _fill(self, fd: int, identifier: str, download: Callable[[Path], About]) -> None:
        partial = self.partial(identifier)
        partial.mkdir(exist_ok=True)
        about = msgspec.json.encode(download(partial))
        _close(partial)
        os.ftruncate(fd, 0)
        os.pwrite(fd, about, 0)
        partial.rename(self.path(identifier))
        self.path(identifier).chmod(0o555)

    def _make_unlocked(self, identifier: str, download: Callable[[Path], About]) -> Lease:
        path = self.path(identifier)
        if not path.exists():
            partial = self.partial(f"{identifier}.{new_id()}")
            partial.mkdir()
            try:
                about = msgspec.json.encode(download(partial))
                _close(partial)
                # The description first: who finds the entry finds it too. All that write it write the same.
                written = self.partial(f"{partial.name}.json")
                written.write_bytes(about)
                written.replace(self._about(identifier))
                try:
                    partial.rename(path)
                    path.chmod(0o555)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
            finally:
                remove(partial)  # Where another process was first.
        fd = os.open(self._about(identifier), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _touch(fd)
        return Lease(fd)

    def keep(self, identifier: str, until: float) -> None:
        """Keeps an entry, of which the caller has the lease, until then (Unix seconds), or longer if somebody said so before."""
        fd = os.open(self._about(identifier), os.O_RDWR | os.O_CLOEXEC)
        try:
            _touch(fd, until)
        finally:
            os.close(fd)

    def _current(self, fd: int, identifier: str) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._about(identifier)))
        except FileNotFoundError:
            return False

    def list(self) -> list[Cached]:
        """Every whole entry, the least recently used first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder / "checkpoints"):
                with contextlib.suppress(FileNotFoundError), self._try(name) as free:
                    about = self._read(name)
                    used, now = self._about(name).stat().st_mtime, time.time()
                    found.append(Cached(name, about, min(used, now), not free, used if used > now else None))
        return sorted(found, key=lambda each: each.used)

    def occupied(self) -> int:
        """Bytes of all whole entries; without a lock."""
        try:
            return sum(self._read(name).occupied for name in os.listdir(self.folder / "checkpoints"))
        except FileNotFoundError:
            return 0

    def _read(self, identifier: str) -> About:
        try:
            return msgspec.json.decode(self._about(identifier).read_bytes(), type=About)
        except msgspec.DecodeError:
            return About("?", "?", ())

    @contextlib.contextmanager
    def _try(self, identifier: str) -> Iterator[bool]:
        """Whether nobody has the entry; if so nobody gets it in the block. Where locks lie, somebody may always have it."""
        if not self.locks:
            yield False
            return
        fd = os.open(self._about(identifier), os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield self._current(fd, identifier)
        except BlockingIOError:
            yield False
        finally:
            os.close(fd)

    def evict(self, identifier: str) -> bool:
        """Removes an entry that nobody holds; False where somebody does. A crash leaves what `sweep` removes."""
        with contextlib.suppress(FileNotFoundError), self._try(identifier) as free:
            if free:
                doomed = self.partial(f"{identifier}.evicted-{time.time_ns()}")
                path = self.path(identifier)
                path.chmod(0o755)
                path.rename(doomed)
                self._about(identifier).unlink()
                remove(doomed)
            return free
        return False

    def drop(self, identifier: str) -> None:
        """Removes an entry that can no longer be trusted, whoever holds it."""
        doomed = self.partial(f"{identifier}.evicted-{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):
            self.path(identifier).chmod(0o755)
            self.path(identifier).rename(doomed)
            remove(doomed)

    def sweep(self) -> None:
        """Removes what crashes left: entries on their way out, and downloads that nobody went on with for a day."""
        with contextlib.suppress(FileNotFoundError):
            for path in (self.folder / "partial").iterdir():
                if ".evicted-" in path.name:
                    remove(path)
                elif time.time() - _last_change(path) > _FORGOTTEN:
                    with contextlib.suppress(FileNotFoundError), self._try(path.name) as free:
                        if free:
                            remove(path)
                            self._about(path.name).unlink()
                    if not self.locks:
                        remove(path)


def _touch(fd: int, when: float | None = None) -> None:
    """Sets the last use to now or `when` (Unix seconds), never back."""
    when = time.time() if when is None else when
    if os.fstat(fd).st_mtime < when:
        os.utime(fd, (when, when))


def _last_change(path: Path) -> float:
    return max(found.lstat().st_mtime for found in (path, *path.rglob("*")))


def _close(folder: Path) -> None:
    """Takes write permission from every folder below one; the one itself is still to be renamed."""
    for parent, _, _ in os.walk(folder, topdown=False):
        if parent != str(folder):
            os.chmod(parent, 0o555)


def _lock(fd: int, kind: int, wait: Callable[[], None]) -> None:
    while True:
        try:
            return fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            time.sleep(_WAIT)


def remove(folder: Path) -> None:
    """Removes a tree without write permission; one that somebody else removes at the same time is no error."""
    with contextlib.suppress(FileNotFoundError):
        folder.chmod(0o755)
    for parent, folders, _ in os.walk(folder):
        for path in (os.path.join(parent, name) for name in folders):  # Before it is read: overlayfs leaves mode 000.
            with contextlib.suppress(FileNotFoundError):
                if not os.path.islink(path):
                    os.chmod(path, 0o755)
    shutil.rmtree(folder, ignore_errors=True)
