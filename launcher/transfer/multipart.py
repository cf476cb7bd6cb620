"""Large files to S3 and its kin: parts in parallel, each checked by the server, and a second try goes on where one ended.

A part is a block of the digest (16 MiB; several, where S3's 10,000 parts would not be enough). It is read into memory once,
so that the digest is of the bytes sent, whatever happens to the file meanwhile. Nothing is written down for a second try: a
key belongs to one checkpoint, its id is in it, and what the server has of an unfinished upload of that key is the journal.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.errors import StoreUnavailable
from launcher.transfer.digest import BLOCK, of_blocks
from launcher.transfer.http import Body, Refused
from launcher.transfer.lanes import Lanes
from launcher.transfer.object_store import Moved, OnBytes, Unfinished
from launcher.transfer.s3 import Gone, Part, Uploads

_PIECE = 256 << 10
"""Bytes sent by one call: a connection is cut as stalled when one of them has not gone in time."""
_MOST_PARTS = 10_000
_IN_FLIGHT = 8
"""Parts of one file on their way at once, at most."""
_MOST_LANES = 64
_STARTS = 3
"""How often a file is begun anew when another process (gc) aborted its upload."""


class Memory:
    """Buffers for the parts of all files that are on their way: each is made once and used again. `lanes`: how many requests
    are on their way at once, besides."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes. One part is always let through."""
        self._limit = limit
        self.lanes = Lanes(_MOST_LANES)
        self._taken = 0
        self._idle: list[bytearray] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """A lane, and room for `size` bytes that somebody else allocates."""
        with self.lanes.one(size):
            with self._changed:
                self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._limit)
                self._taken += size
            try:
                yield
            finally:
                with self._changed:
                    self._taken -= size
                    self._changed.notify_all()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[memoryview]:
        """A buffer of `size` bytes, as soon as there is room for it."""
        whole = size if size < BLOCK // 4 else -(-size // BLOCK) * BLOCK
        with self.room(whole):
            with self._changed:
                fits = [each for each in self._idle if len(each) == whole]
                self._idle = fits[1:]
            buffer = fits[0] if fits else bytearray(whole)
            yield memoryview(buffer)[:size]
            if whole >= BLOCK:
                with self._changed:
                    self._idle.append(buffer)


def upload(uploads: Uploads, memory: Memory, source: str, size: int, key: str, on_bytes: OnBytes) -> Moved:
    """Stores a file of `size` (> 0) bytes: by one request up to a block, else in parts.

    Where it fails, the parts that arrived stay for the next try.

    Raises Refused, StoreUnavailable, OSError (also where the file has become shorter), and what `on_bytes` raises.
    """
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if size <= BLOCK:
            return _whole(uploads, memory, fd, size, key, on_bytes)
        for left in reversed(range(_STARTS)):
            upload, there = _begin(uploads, key)
            file = _File(uploads, memory, fd, size, key, upload, there, on_bytes)
            try:
                file.send()
                uploads.finish(key, upload, [file.parts[index] for index in range(file.count)])
                break
            except Gone as gone:
                if not left:
                    raise StoreUnavailable(store=key, cause=f"its upload was aborted again and again: {gone}") from gone
            except Refused:
                if not there:
                    raise
                uploads.abort(Unfinished(key, upload, 0.0))  # An earlier try's upload does not go with ours.
            on_bytes(-file.moved)
    finally:
        os.close(fd)
    blocks = [file.blocks[index] for index in range(len(file.blocks))]
    return Moved(size, of_blocks(blocks), tuple(block.hex() for block in blocks) if len(blocks) > 1 else ())


def _whole(uploads: Uploads, memory: Memory, fd: int, size: int, key: str, on_bytes: OnBytes) -> Moved:
    with memory.take(size) as data:
        digest = _read(fd, data, 0, key)
        uploads.put_whole(key, data, pieces(data, on_bytes))
    return Moved(size, of_blocks([digest]))


def _begin(uploads: Uploads, key: str) -> tuple[str, dict[int, Part]]:
    """The id of the upload of a key, and the parts that the server has from an earlier try."""
    with contextlib.suppress(Refused, Gone):  # A server without listings, or a role that may not list: from the start.
        earlier = [each for each in uploads.unfinished(key) if each.key == key]
        if earlier:
            newest = max(earlier, key=lambda each: each.began)
            return newest.id, uploads.parts(key, newest.id)
    return uploads.begin(key), {}


@dataclass
class _File:
    """A file while its parts go, from several threads, in any order."""

    uploads: Uploads
    memory: Memory
    fd: int
    size: int
    key: str
    upload: str
    there: dict[int, Part]
    on_bytes: OnBytes
    moved: int = 0
    parts: dict[int, Part] = field(default_factory=dict)
    blocks: dict[int, bytes] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def part(self) -> int:
        """Bytes of a part."""
        return BLOCK * -(-self.size // (BLOCK * _MOST_PARTS))

    @property
    def count(self) -> int:
        return -(-self.size // self.part)

    def send(self) -> None:
        """Sends every part that the server has not; raises the first failure when those in flight have ended."""
        indices = iter(range(self.count))

        def work() -> None:
            try:
                while not self.failures:
                    with self.lock:
                        index = next(indices, None)
                    if index is None:
                        return
                    self._one(index)
            except BaseException as error:
                self.failures.append(error)

        threads = [threading.Thread(target=work, name="upload", daemon=True) for _ in range(1, self._threads())]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _threads(self) -> int:
        return min(self.count, _IN_FLIGHT)

    def _one(self, index: int) -> None:
        start = index * self.part
        with self.memory.take(min(self.part, self.size - start)) as data:
            for offset in range(0, len(data), BLOCK):
                block = data[offset : offset + BLOCK]
                self.blocks[(start + offset) // BLOCK] = _read(self.fd, block, start + offset, self.key)
            part = self.there.get(index + 1)
            if part is not None and part.holds(data):
                part = self.uploads.known(part, data)
                self._count(len(data))
            else:
                body = pieces(data, self._count)
                part = self.uploads.put(self.key, self.upload, index + 1, data, body)
            self.parts[index] = part

    def _count(self, count: int) -> None:
        if self.failures:
            raise _Stopped
        with self.lock:
            self.moved += count
        try:
            self.on_bytes(count)
        except BaseException as error:
            self.failures.append(error)
            raise _Stopped from error


def _read(fd: int, data: memoryview, start: int, key: str) -> bytes:
    """Fills `data` from `start` of a file, and returns its digest."""
    import blake3

    state = blake3.blake3()
    position = 0
    while position < len(data):
        count = os.preadv(fd, [data[position : position + _PIECE]], start + position)
        if not count:
            raise OSError(f"{key}: the file became shorter while it was read")
        state.update(data[position : position + count])
        position += count
    digest: bytes = state.digest()
    return digest


class _Stopped(Exception):
    """Another part failed: this one is not sent to its end."""


def pieces(data: memoryview, on_bytes: OnBytes) -> Body:
    """A request's body in pieces. What an earlier attempt has counted is taken back."""
    counted = 0

    def body() -> Iterator[memoryview]:
        nonlocal counted
        if counted:
            on_bytes(-counted)
        counted = 0
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            counted += len(piece)
            on_bytes(len(piece))
            yield piece

    return body
