"""inotify(7) through ctypes: what the watcher needs of it and no more.

Own code, because the libraries for it import asyncio (80 ms here, half of the start-up budget) and this has to be ready
before the job's first write. The kernel's interface is 3 calls and one struct, unchanged since 2005.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO = 0x4, 0x8, 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
OVERFLOW, IGNORED, ISDIR = 0x4000, 0x8000, 0x40000000
_ONLYDIR, _DONT_FOLLOW = 0x01000000, 0x02000000
MASK = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
_EVENT = struct.Struct("iIII")


@dataclass(frozen=True)
class Notice:
    """One event: `path` is relative to the root that is watched; `overflow`: some were lost, scan again."""

    path: str
    mask: int
    missed: bool = False
    """A folder that was gone again before it could be watched: what was in it is not known."""

    @property
    def overflow(self) -> bool:
        return bool(self.mask & OVERFLOW)

    @property
    def is_folder(self) -> bool:
        return bool(self.mask & ISDIR)


class Inotify:
    """Watches a folder and all folders below it. `fd` is readable when there is something to `read`.

    Raises OSError from the constructor where the kernel has no instance or watch left.
    """

    def __init__(self, root: str) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.root = root
        self._folders: dict[int, str] = {}
        self.complete = True
        """False once a folder could not be watched (limits): scan more often then."""
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify_init1")
        self._add("")
        for _ in self._below(""):
            pass  # What is there already is the first scan's.

    def close(self) -> None:
        os.close(self.fd)

    def _add(self, folder: str) -> bool:
        """False where the folder is gone already."""
        path = os.fsencode(os.path.join(self.root, folder))
        watch = self._libc.inotify_add_watch(self.fd, path, MASK | _ONLYDIR | _DONT_FOLLOW)
        if watch >= 0:
            self._folders[watch] = folder
            return True
        gone = ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR)
        self.complete = self.complete and gone
        return not gone

    def _below(self, folder: str) -> Iterator[Notice]:
        """Watches every folder below and tells what is there already: it may have come before the watch."""
        try:
            entries = list(os.scandir(os.path.join(self.root, folder)))
        except OSError:
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
            except OSError:
                continue
            yield Notice(path, (CREATE | ISDIR) if is_folder else CLOSE_WRITE)
            if is_folder:
                self._add(path)
                yield from self._below(path)

    def read(self) -> list[Notice]:
        """What happened since the last call, in order; a new folder's content follows its own notice."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        notices: list[Notice] = []
        position = 0
        while position < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, position)
            start = position + _EVENT.size
            name = os.fsdecode(data[start : start + length].rstrip(b"\0"))
            position = start + length
            if mask & OVERFLOW:
                notices.append(Notice("", OVERFLOW))
                continue
            if mask & IGNORED:
                self._folders.pop(watch, None)
                continue
            folder = self._folders.get(watch)
            if folder is None:
                continue
            path = f"{folder}/{name}" if folder else name
            if mask & ISDIR and mask & (CREATE | MOVED_TO):
                there = self._add(path)
                notices += [Notice(path, mask, missed=not there), *self._below(path)]
                continue
            notices.append(Notice(path, mask))
            if mask & ISDIR and mask & MOVED_FROM:
                self._forget(path)
        return notices

    def _forget(self, folder: str) -> None:
        for watch, path in list(self._folders.items()):
            if path == folder or path.startswith(f"{folder}/"):
                self._libc.inotify_rm_watch(self.fd, watch)
                del self._folders[watch]
