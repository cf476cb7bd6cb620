"""A stored checkpoint as a tree: what formats look at is read by ranges, and nothing else is."""

from __future__ import annotations

import errno

from launcher.checkpoint.manifest import Manifest
from launcher.store import layout
from launcher.store.reading import Reader
from launcher.transfer.object_store import Missing
from launcher.transfer.retry import call


class Stored:
    """A `launcher.checkpoint.tree.Tree` over the files of a committed checkpoint."""

    def __init__(self, store: Reader, manifest: Manifest) -> None:
        self._store = store
        self._prefix = layout.files(manifest.id)
        self.files = {file.path: file.size for file in manifest.files}

    def read(self, path: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`. Raises OSError where the file is missing, StoreError."""
        try:
            length = min(length, self.files[path] - start)
            return call(lambda: self._store.place.read(self._prefix + path, start, length), self._store.timeout)
        except Missing as error:
            raise OSError(errno.ENOENT, "it is missing in the store") from error
