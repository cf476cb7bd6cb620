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

    def unchanged(self, path: str, status: os.stat_result) -> bool:
        """Whether a file is still the one that was captured."""
        return identity_of(status) == self.files[path]


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


def link(source: str, files: Iterable[str], spool: Path) -> tuple[str, Path]:
    """Hard-links files into a new folder of the spool; returns (id, folder). Raises Vanished, or OSError where the file
    system cannot link (then nothing is left behind)."""
    identifier = new_id()
    target = spool / identifier / "files"
    target.mkdir(parents=True)
    made = {""}
    try:
        for path in files:
            folder = os.path.dirname(path)
            if folder not in made:
                os.makedirs(target / folder, exist_ok=True)
                made.add(folder)
            os.link(os.path.join(source, path), target / path, follow_symlinks=False)
    except FileNotFoundError as error:
        shutil.rmtree(spool / identifier)
        raise Vanished(str(error.filename)) from error
    except OSError:
        shutil.rmtree(spool / identifier)
        raise
    return identifier, target


def save(capture: Capture, spool: Path) -> None:
    """Writes the capture down beside its files: from now on a crash cannot lose it."""
    folder = spool / capture.id
    folder.mkdir(exist_ok=True)
    write_atomically(str(folder / "capture.json"), msgspec.json.encode(capture))


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
            fd = os.open(os.path.join(root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return path
        finally:
            os.close(fd)
    return None
