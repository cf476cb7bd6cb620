"""From local files to a committed checkpoint."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable

from launcher.checkpoint.manifest import File, Manifest
from launcher.errors import StoreError, StoreUnavailable
from launcher.store import layout
from launcher.store.journal import Journal
from launcher.store.store import Store
from launcher.transfer.digest import of_file
from launcher.transfer.object_store import Missing, OnBytes, for_file
from launcher.transfer.retry import call

_LARGE, _LARGE_AT_ONCE = 1 << 20, 3
"""Files above so many bytes are sent so many at a time: each holds up to 40 MiB of memory on its way to an object store, and is
sent in parallel parts anyway."""
_ALWAYS_COMPARED = 8 << 20
"""Bytes up to which a file is always read once more to compare it: it costs milliseconds."""


class Changed(Exception):
    """A file was written to while it was being uploaded: what was sent is no checkpoint."""


class Earlier:
    """The files of a job's last stored checkpoint: one that is equal is copied inside the store instead of sent again.

    To know, a file of the same path and size is read once more than sending it takes. So a large file that was found to
    differ once (weights, optimizer) is not compared again.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, File]] = {}
        self._differing: set[str] = set()
        self.saved = 0
        """Bytes that were copied instead of sent."""

    def remember(self, manifest: Manifest) -> None:
        """`manifest` was stored: the next checkpoint is compared with it."""
        prefix = layout.files(manifest.id)
        self._files = {file.path: (prefix + file.path, file) for file in manifest.files}

    def copy(self, store: Store, checkpoint: str, path: str, source: str, size: int) -> File | None:
        """The stored file, where an equal one could be copied to `path` of `checkpoint`; None where it has to be sent."""
        key, file = self._files.get(path, ("", None))
        if file is None or file.size != size or path in self._differing:
            return None
        if of_file(source) != file.digest:
            if size > _ALWAYS_COMPARED:
                self._differing.add(path)
            return None
        try:
            call(lambda: store.place.copy(key, layout.files(checkpoint) + path), store.timeout)
        except StoreUnavailable:
            raise
        except (Missing, StoreError):
            return None  # Removed meanwhile, or more than the place can copy.
        self.saved += size
        return file


def upload_files(
    store: Store,
    checkpoint: str,
    root: str,
    paths: Iterable[str],
    *,
    threads: int,
    on_bytes: OnBytes,
    opened: Callable[[str], int] | None = None,
    unchanged: Callable[[str, os.stat_result], bool] | None = None,
    earlier: Earlier | None = None,
    journal: Journal | None = None,
) -> tuple[File, ...]:
    """Uploads files below `root` and returns their manifest entries, sorted by path.

    `opened` gives a new descriptor of a file where it is not to be found below `root`. The digest is of the bytes sent. What
    `journal` has from an earlier try is not sent again.
    Raises Changed when size, mtime or inode of a file differ afterwards from before (or `unchanged`, asked afterwards, says
    so): two states of a file are never mixed under one digest unnoticed.
    """

    large = threading.Semaphore(_LARGE_AT_ONCE)

    def by_path(path: str) -> int:
        return os.open(os.path.join(root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def one(path: str) -> File:
        fd = (opened or by_path)(path)
        try:
            source = f"/proc/self/fd/{fd}"
            before = os.fstat(fd)
            if journal and (kept := journal.kept(path, before)):
                on_bytes(kept.size)
                return kept
            with large if before.st_size > _LARGE else contextlib.nullcontext():
                copied = earlier.copy(store, checkpoint, path, source, before.st_size) if earlier else None
                moved = copied or store.upload(checkpoint, source, path, for_file(on_bytes, path, before.st_size))
            after = os.fstat(fd)
        finally:
            os.close(fd)
        same = _identity(before) == _identity(after) and moved.size == after.st_size
        if not same or (unchanged and not unchanged(path, after)):
            raise Changed(path)
        file = File(path, moved.size, moved.digest, before.st_mode & 0o777, before.st_mtime, moved.blocks)
        if journal:
            journal.note(file, after)
        return file

    todo = sorted(paths)
    if len(todo) == 1:
        return (one(todo[0]),)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(threads, len(todo))) as pool:
        return tuple(pool.map(one, todo))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
