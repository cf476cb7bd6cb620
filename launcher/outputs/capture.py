"""Captures: a checkpoint put out of the writer's reach, and its entry in the spool.

<spool>/<id>/capture.json   the Capture
<spool>/<id>/files          its files; a link to a folder on the job's file system where the spool is on another
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Literal

import msgspec

from launcher.checkpoint.manifest import Dataset
from launcher.checkpoint.tree import Tree
from launcher.job.record import write_atomically

Identity = tuple[int, int, int]
"""Size in bytes, mtime in nanoseconds, inode."""

How = Literal["reflink", "copy", "link", "held"]
"""reflink, copy: files of our own. link: our names for the job's inodes. held: the job's files behind descriptors."""


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """A whole candidate. `root` is where its files are: in the spool, or (`held`) where the job wrote them."""

    id: str
    """Becomes the checkpoint's id, so that storing it twice is impossible."""
    job: str
    """The job's name."""
    name: str
    """The checkpoint's name: JOB/FOLDER, or JOB for the root's own."""
    path: str
    """Relative to the output directory, `.` for the root's own; absolute for what --watch found."""
    root: str
    how: How
    format: str
    step: int | None
    files: dict[str, Identity]
    captured: float
    """Unix seconds."""
    marks: dict[str, tuple[int, int]] = {}
    """Number of links and ctime (ns) of each file that is held."""
    holder: int = 0
    """The process that holds `descriptors`."""
    descriptors: dict[str, int] = {}
    attempt: int = 1
    node: int = 0
    parents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    repository: str = ""
    commit: str = ""
    changes: str = ""
    command: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(identity[0] for identity in self.files.values())

    def tree(self) -> Tree:
        return _Captured(self)

    def open(self, path: str) -> int:
        """A new read-only descriptor of the captured file, even where it was deleted meanwhile; the caller closes it.

        FileNotFoundError when the file is gone, or another is at its place. Works from any process of the same user.
        """
        places = [(os.path.join(self.root, path), os.O_NOFOLLOW)]
        if path in self.descriptors:
            places.insert(0, (f"/proc/{self.holder}/fd/{self.descriptors[path]}", 0))
        for place, flags in places:
            try:
                fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES):
                    continue
                raise
            if os.fstat(fd).st_ino == self.files[path][2]:
                return fd
            os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "the captured file is gone", path)

    def unchanged(self, path: str, status: os.stat_result) -> bool:
        """Whether a file is still the one that was captured.

        Of held files the ctime counts too, where nobody added or removed a name (rotation does): it finds a writer who put
        the mtime back. Of linked ones it does not, because our own links change it.
        """
        if identity_of(status) != self.files[path]:
            return False
        links, changed = self.marks.get(path, (0, 0))
        return status.st_nlink != links or status.st_ctime_ns == changed


class _Captured:
    """A capture's files as a Tree."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.files = {path: identity[0] for path, identity in sorted(capture.files.items())}

    def read(self, path: str, start: int, length: int) -> bytes:
        fd = self._capture.open(path)
        try:
            return os.pread(fd, length, start)
        finally:
            os.close(fd)


def identity_of(status: os.stat_result) -> Identity:
    return status.st_size, status.st_mtime_ns, status.st_ino


def save(capture: Capture, spool: Path) -> None:
    """Writes the capture down beside its files: from now on a crash of ours cannot lose it (but for `held` ones, whose
    descriptors end with us).

    Not synced: the watcher must not wait for the disk (a save can live for 25 ms only), and nothing was announced yet.
    """
    folder = spool / capture.id
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(str(folder / "capture.json"), msgspec.json.encode(capture), durable=False)


def load(spool: Path) -> list[Capture]:
    """The captures that a spool holds, oldest first. Files without a capture.json (a crash in between) are removed: the
    folder they came from is judged again."""
    found = []
    for folder in sorted(spool.iterdir()) if spool.is_dir() else ():
        try:
            found.append(msgspec.json.decode((folder / "capture.json").read_bytes(), type=Capture))
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            discard(folder.name, spool)
    return found


def discard(identifier: str, spool: Path) -> None:
    """Forgets a capture, once stored or found to be none."""
    folder = spool / identifier
    with contextlib.suppress(OSError):
        away = Path(os.readlink(folder / "files")).parent
        shutil.rmtree(away, ignore_errors=True)
        away.parent.rmdir()
    shutil.rmtree(folder, ignore_errors=True)
