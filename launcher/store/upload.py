"""From local files to a committed checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from launcher.checkpoint.manifest import File
from launcher.store.store import Store
from launcher.transfer.object_store import OnBytes


class Changed(Exception):
    """A file was written to while it was being uploaded: what was sent is no checkpoint."""


def upload_files(
    store: Store,
    checkpoint: str,
    root: str,
    paths: Iterable[str],
    *,
    threads: int,
    on_bytes: OnBytes,
    unchanged: Callable[[str, os.stat_result], bool] | None = None,
) -> tuple[File, ...]:
    """Uploads files below `root` and returns their manifest entries, sorted by path.

    The digest is of the bytes sent. Raises Changed when size, mtime or inode of a file differ afterwards from before (or
    `unchanged`, asked afterwards, says so): two states of a file are never mixed under one digest unnoticed.
    """

    def one(path: str) -> File:
        source = os.path.join(root, path)
        before = os.stat(source, follow_symlinks=False)
        moved = store.upload(checkpoint, source, path, on_bytes)
        after = os.stat(source, follow_symlinks=False)
        same = _identity(before) == _identity(after) and moved.size == after.st_size
        if not same or (unchanged and not unchanged(path, after)):
            raise Changed(path)
        return File(path, moved.size, moved.digest, before.st_mode & 0o777, before.st_mtime, moved.blocks)

    todo = sorted(paths)
    if len(todo) == 1:
        return (one(todo[0]),)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(threads, len(todo))) as pool:
        return tuple(pool.map(one, todo))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
