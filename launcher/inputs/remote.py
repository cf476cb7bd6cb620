"""A checkpoint behind a URL, as a tree of files: read by ranges, headers only."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from launcher.errors import SourceNotFound
from launcher.transfer.object_store import Entry, Missing, ObjectStore
from launcher.transfer.retry import call

HEAD = 16 << 10
"""Bytes of every remote file that are read at once: most headers are shorter."""


def remote_tree(place: ObjectStore, entries: Iterable[Entry], timeout: float, threads: int, text: str) -> RemoteTree:
    """What was listed below a URL as a tree, its files' beginnings read. Raises SourceNotFound where nothing is."""
    sizes = {entry.key: entry.size for entry in entries}
    if not sizes:
        raise SourceNotFound(source=text, cause="nothing is there")
    tree = RemoteTree(place, "", sizes, timeout)
    tree.read_heads(threads)
    return tree


class RemoteTree:
    """Objects of a store as a tree: read by ranges, what was read in advance not again."""

    def __init__(self, place: ObjectStore, prefix: str, sizes: Mapping[str, int], timeout: float) -> None:
        self._place, self._prefix, self._timeout = place, prefix, timeout
        self.files = dict(sorted(sizes.items()))
        self._heads: dict[str, bytes] = {}

    def read_heads(self, threads: int) -> None:
        """Reads the beginning of every file, many at a time: one after the other would cost a round trip each."""
        from concurrent.futures import ThreadPoolExecutor

        def head(path: str) -> tuple[str, bytes]:
            try:
                return path, self.read(path, 0, HEAD)
            except OSError:
                return path, b""

        with ThreadPoolExecutor(threads) as pool:
            heads: Iterable[tuple[str, bytes]] = pool.map(head, [path for path, size in self.files.items() if size])
            self._heads = {path: data for path, data in heads if data}

    def read(self, path: str, start: int, length: int) -> bytes:
        length = max(min(length, self.files[path] - start), 0)
        head = self._heads.get(path, b"")
        if start + length <= len(head) or not length:
            return head[start : start + length]
        try:
            return call(lambda: self._place.read(self._prefix + path, start, length), self._timeout)
        except Missing as error:
            raise OSError(errno.ENOENT, "it is missing in the store") from error
