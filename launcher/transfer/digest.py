"""Digests: BLAKE3, written so that a reader knows the rule.

    blake3:<64 hex digits>       of the bytes, for files up to one block
    blake3-16m:<64 hex digits>   of the digests (32 bytes each) of the file's blocks of 16 MiB, for larger ones

With blocks, parallel ranges and lazy reads are verified one by one, and a download goes on after a crash without a journal:
what is on disk proves itself. Measured on this kind of machine: BLAKE3 5.4 GB/s a thread, SHA-256 1.2 GB/s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

BLOCK = 16 << 20
"""Bytes of a block; the last one of a file may be shorter."""
CHUNK = 1 << 20
"""Bytes read at a time into one reused buffer: larger ones cost more in page faults than they save in calls."""


class Hasher:
    """Takes a file's bytes in order, in any pieces; `digest` and `blocks` are asked for at the end."""

    def __init__(self) -> None:
        import blake3

        self._new = blake3.blake3
        self._state = self._new()
        self._room = BLOCK
        self._full: list[bytes] = []
        self.size = 0

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self.size += len(view)
        while len(view) >= self._room:
            self._state.update(view[: self._room])
            view = view[self._room :]
            self._full.append(self._state.digest())
            self._state, self._room = self._new(), BLOCK
        if view:
            self._state.update(view)
            self._room -= len(view)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks' digests in hex; empty for a file of one block or less."""
        return tuple(digest.hex() for digest in self._all()) if self.size > BLOCK else ()

    @property
    def digest(self) -> str:
        return of_blocks(self._all())

    def _all(self) -> list[bytes]:
        rest = self._room < BLOCK or not self._full
        return [*self._full, self._state.digest()] if rest else self._full


def of_blocks(blocks: Sequence[bytes]) -> str:
    """The digest of a file from its blocks' digests, in order."""
    if len(blocks) == 1:
        return f"blake3:{blocks[0].hex()}"
    import blake3

    return f"blake3-16m:{blake3.blake3(b''.join(blocks)).hexdigest()}"


def of_bytes(data: bytes) -> str:
    """The digest of some bytes."""
    hasher = Hasher()
    hasher.update(data)
    return hasher.digest


def of_file(path: str | os.PathLike[str]) -> str:
    """The digest of a file's content."""
    hasher = Hasher()
    with open(path, "rb", buffering=0) as file:
        for chunk in chunks(file.fileno()):
            hasher.update(chunk)
    return hasher.digest


def chunks(fd: int) -> Iterator[memoryview]:
    """The content of an open file from its position on, as views into one buffer: use each before asking for the next."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    while count := os.readv(fd, [buffer]):
        yield view[:count]
