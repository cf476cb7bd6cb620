"""A checkpoint in a store or behind a URL, as a tree of files: read by ranges, headers only; and whether its bytes are there."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from launcher.checkpoint.manifest import File, Manifest
from launcher.errors import LauncherError, SourceNotFound
from launcher.store import layout
from launcher.store.reading import Reader
from launcher.transfer.digest import Hasher
from launcher.transfer.object_store import Entry, Missing, Readable
from launcher.transfer.retry import call

HEAD = 16 << 10
"""Bytes of every remote file that are read at once: most headers are shorter."""


def remote_tree(place: Readable, entries: Iterable[Entry], timeout: float, threads: int, text: str) -> RemoteTree:
    """What was listed below a URL as a tree, its files' beginnings read. Raises SourceNotFound where nothing is."""
    sizes = {entry.key: entry.size for entry in entries}
    if not sizes:
        raise SourceNotFound(source=text, cause="nothing is there")
    tree = RemoteTree(place, "", sizes, timeout)
    tree.read_heads(threads)
    return tree


def tree_of(store: Reader, manifest: Manifest) -> RemoteTree:
    """A committed checkpoint."""
    sizes = {file.path: file.size for file in manifest.files}
    return RemoteTree(store.place, layout.files(manifest.id), sizes, store.timeout)


def damage(store: Reader, manifest: Manifest, stored: Mapping[str, int], *, read_data: bool) -> dict[str, str]:
    """Why the stored files are not those of the manifest: key to reason, for each that is not. `stored`: what is below
    the checkpoint's prefix, key to size; `read_data`: also every byte is read. Raises StoreError where nothing answers."""
    prefix = layout.files(manifest.id)
    wrong = {}
    for file in manifest.files:
        key = prefix + file.path
        if key not in stored:
            wrong[key] = "it is missing"
        elif stored[key] != file.size:
            wrong[key] = f"it has {stored[key]} bytes, and {file.size} in the manifest"
        elif read_data and (cause := _content(store, key, file)):
            wrong[key] = cause
    return wrong


def _content(store: Reader, key: str, file: File) -> str:
    hasher = Hasher()

    def rest() -> None:
        store.place.stream(key, hasher.size, file.size - hasher.size, hasher.update)

    try:
        call(rest, store.timeout)
    except Missing:
        return "it is missing"
    except LauncherError as error:
        return f"it cannot be read: {error.text}"
    return "" if hasher.digest == file.digest else "its bytes are others than those that were stored"


class RemoteTree:
    """Objects of a store as a tree: read by ranges, what was read in advance not again."""

    def __init__(self, place: Readable, prefix: str, sizes: Mapping[str, int], timeout: float) -> None:
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
