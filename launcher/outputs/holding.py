"""A folder's files behind open descriptors: once open, deleting them cannot take them away.

Opening is all that has to be quick (a whole checkpoint can live for 20 ms); judging and capturing come after.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import stat
from collections.abc import Iterable, Iterator, Mapping

from launcher.outputs.capture import Identity, identity_of

_RESERVE = 200
"""Descriptors left to the rest of the process."""


class Vanished(Exception):
    """A file was deleted, replaced or cut while it was being captured: the events that follow say what it became."""


class Held:
    """Some files of a folder, held open, and so a Tree. Use in a `with`, or `release` what is to stay open.

    What exceeds the process's limit of descriptors (which is raised as far as the kernel allows) is reached by path.
    """

    def __init__(self, root: str, paths: Iterable[str]) -> None:
        """Raises Vanished when a file is gone, OSError when one cannot be read."""
        self.root = root
        self.identities: dict[str, Identity] = {}
        self.descriptors: dict[str, int] = {}
        todo = list(paths)
        free = room(len(todo))
        try:
            for path in todo:
                if len(self.descriptors) < free:
                    fd = self.descriptors[path] = open_file(os.path.join(root, path))
                    status = os.fstat(fd)
                else:
                    status = os.stat(os.path.join(root, path), follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise Vanished(path)
                self.identities[path] = identity_of(status)
        except FileNotFoundError as error:
            self.close()
            raise Vanished(str(error.filename)) from error
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> Mapping[str, int]:
        return {path: identity[0] for path, identity in self.identities.items()}

    def read(self, path: str, start: int, length: int) -> bytes:
        with self.opened(path) as fd:
            return os.pread(fd, length, start)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """The file's descriptor. Raises Vanished where it is not held and another is at its place."""
        if path in self.descriptors:
            yield self.descriptors[path]
            return
        fd = open_file(os.path.join(self.root, path))
        try:
            if os.fstat(fd).st_ino != self.identities[path][2]:
                raise Vanished(path)
            yield fd
        finally:
            os.close(fd)

    def changed(self) -> str | None:
        """A file that was written to since it was opened, or None."""
        for path, identity in self.identities.items():
            with self.opened(path) as fd:
                if identity_of(os.fstat(fd)) != identity:
                    return path
        return None

    def open_writer(self) -> str | None:
        """A file that somebody has open for writing, or None.

        Asked from the kernel by a read lease, which it grants only where nobody else writes (fcntl(2), F_SETLEASE). Where
        leases do not work (another's file, network file systems) nothing is known, and None is returned: quiet decides.
        """
        for path in self.identities:
            with self.opened(path) as fd:
                if _is_written(fd):
                    return path
        return None

    def release(self) -> dict[str, int]:
        """Gives the descriptors away: the caller closes them."""
        given, self.descriptors = self.descriptors, {}
        return given

    def moved(self) -> Held:
        """The same, owned by somebody else: this one has nothing to close any more."""
        other = Held(self.root, ())
        other.identities, other.descriptors = self.identities, self.release()
        return other

    def close(self) -> None:
        for fd in self.release().values():
            os.close(fd)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def room(wanted: int) -> int:
    """How many descriptors may be opened now. Raises the soft limit to the hard one where `wanted` needs it: only then,
    because the job's processes inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) + _RESERVE
    if wanted > soft - used and soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(soft - used, 0)


def open_file(path: str) -> int:
    """A read-only descriptor; never follows a link, never waits for a FIFO's other end."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _is_written(fd: int) -> bool:
    try:
        # A writer who comes in between is told to us by this signal; the default one (SIGIO) would end the process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
