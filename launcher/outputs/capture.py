"""Captures: a checkpoint put out of the writer's reach without copying.

A folder is hard-linked, file by file, into the job's spool: rotation may then delete it as it likes. A hard link shares
the inode with a writer who rewrites in place, so a capture records every file's identity (size, mtime, inode) and nothing
is committed whose identity has changed. Files that are known to be rewritten (the root's own checkpoint, flat files) are
not linked but read where they are, under the same check.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from launcher.checkpoint.tree import Folder
from launcher.ids import new_id
from launcher.job.record import write_atomically

Identity = tuple[int, int, int]
"""Size in bytes, mtime in nanoseconds, inode."""


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """A whole candidate. `root` is where its files are: in the spool (`linked`), or where the job wrote them."""

    id: str
    """Becomes the checkpoint's id, so that storing it twice is impossible."""
    job: str
    """The job's name."""
    name: str
    """The checkpoint's name: JOB/FOLDER, or JOB for the root's own."""
    path: str
    """Relative to the output directory; `.` for the root's own."""
    root: str
    linked: bool
    format: str
    step: int | None
    files: dict[str, Identity]
    captured: float
    attempt: int = 1
    node: int = 0
    parents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    repository: str = ""
    commit: str = ""
    command: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(identity[0] for identity in self.files.values())

    def tree(self) -> Folder:
        return Folder(self.root, {path: identity[0] for path, identity in sorted(self.files.items())})

    def open(self, path: str) -> int:
        """A new read-only descriptor of a captured file. Raises FileNotFoundError where it is gone."""
        return _open(os.path.join(self.root, path))

    def unchanged(self, path: str, status: os.stat_result) -> bool:
        """Whether a file is still the one that was captured."""
        return identity_of(status) == self.files[path]


HELD = 400
"""Files of one folder that are held open at a time: the usual limit of a process is 1,024."""


class Vanished(Exception):
    """A file of the folder was deleted while it was being linked: it is on its way out."""


def identity_of(status: os.stat_result) -> Identity:
    return status.st_size, status.st_mtime_ns, status.st_ino


def snapshot(root: str, paths: Iterable[str]) -> dict[str, Identity]:
    """The identity of each file; those that are gone are left out."""
    result = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(os.path.join(root, path), follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                result[path] = identity_of(status)
    return result


class Held:
    """A folder's files behind open descriptors, and so a Tree: once open, deleting them cannot take them away.

    Opening is all that has to be quick; judging, linking and, where a file was deleted meanwhile, copying come after. Use
    in a `with`. Beyond HELD files the rest is reached by path.
    """

    def __init__(self, root: str) -> None:
        """Raises Vanished when a file goes while the folder is being opened."""
        self.root = root
        self.identities: dict[str, Identity] = {}
        self._fds: dict[str, int] = {}
        try:
            for path in Folder.scan(root).files:
                if len(self._fds) < HELD:
                    fd = self._fds[path] = _open(os.path.join(root, path))
                    self.identities[path] = identity_of(os.fstat(fd))
                else:
                    self.identities[path] = identity_of(os.stat(os.path.join(root, path), follow_symlinks=False))
        except FileNotFoundError as error:
            self.close()
            raise Vanished(str(error.filename)) from error
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> dict[str, int]:
        return {path: identity[0] for path, identity in self.identities.items()}

    def read(self, path: str, start: int, length: int) -> bytes:
        if path in self._fds:
            return os.pread(self._fds[path], length, start)
        return Folder(self.root, self.files).read(path, start, length)

    def open_writer(self) -> str | None:
        """A file that somebody has open for writing, or None (see `open_writer`)."""
        return next((path for path, fd in self._fds.items() if _is_written(fd)), None) or open_writer(
            self.root, (path for path in self.identities if path not in self._fds)
        )

    def link(self, paths: Iterable[str], spool: Path) -> tuple[str, Path, dict[str, Identity]]:
        """Puts files into a new folder of the spool: (id, folder, identities there).

        By hard links; what was deleted meanwhile is copied from its descriptor. Raises Vanished where neither is possible
        or a file was replaced, OSError where the file system cannot link. Then nothing is left behind.
        """
        identifier = new_id()
        target = spool / identifier / "files"
        made: dict[str, Identity] = {}
        try:
            target.mkdir(parents=True)
            for path in paths:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(os.path.join(self.root, path), target / path, follow_symlinks=False)
                except FileNotFoundError:
                    if path not in self._fds:
                        raise
                    _copy(self._fds[path], target / path)
                    made[path] = identity_of(os.stat(target / path))
                    continue
                made[path] = identity_of(os.stat(target / path, follow_symlinks=False))
                if made[path] != self.identities[path]:
                    raise Vanished(path)
        except BaseException as error:
            shutil.rmtree(spool / identifier, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                raise Vanished(str(error.filename)) from error
            raise
        return identifier, target, made

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _copy(source: int, target: Path) -> None:
    with open(target, "xb", buffering=0) as file:
        position, size = 0, os.fstat(source).st_size
        while position < size:
            count = os.copy_file_range(source, file.fileno(), size - position, position, position)
            if count == 0:
                raise FileNotFoundError(errno.ENOENT, "it was cut while it was being copied", str(target))
            position += count
        times = os.fstat(source)
        os.utime(file.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))


def save(capture: Capture, spool: Path) -> None:
    """Writes the capture down beside its files: from now on a crash of ours cannot lose it.

    Not synced: the watcher must not wait for the disk (a save can live for 25 ms only), and nothing was announced yet.
    """
    folder = spool / capture.id
    folder.mkdir(exist_ok=True)
    write_atomically(str(folder / "capture.json"), msgspec.json.encode(capture), durable=False)


def load(spool: Path) -> list[Capture]:
    """The captures that a spool holds, oldest first. Links without a capture.json (a crash in between) are removed: the
    folder they came from is judged again."""
    found = []
    for folder in sorted(spool.iterdir()) if spool.is_dir() else ():
        try:
            found.append(msgspec.json.decode((folder / "capture.json").read_bytes(), type=Capture))
        except (FileNotFoundError, msgspec.DecodeError):
            shutil.rmtree(folder, ignore_errors=True)
    return found


def discard(identifier: str, spool: Path) -> None:
    """Forgets a capture, once stored or found to be none."""
    shutil.rmtree(spool / identifier, ignore_errors=True)


def open_writer(root: str, paths: Iterable[str]) -> str | None:
    """A file that somebody has open for writing, or None.

    Asked from the kernel by a read lease, which it grants only where nobody else writes (fcntl(2), F_SETLEASE). Where
    leases do not work (other owner, network file systems) nothing is known, and None is returned: quiet decides there.
    """
    for path in paths:
        try:
            fd = _open(os.path.join(root, path))
        except OSError:
            continue
        try:
            if _is_written(fd):
                return path
        finally:
            os.close(fd)
    return None


def _is_written(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False
