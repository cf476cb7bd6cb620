"""Many files from a place to this machine: parallel ranges, each verified before it counts.

A unit is a block of 16 MiB or a whole smaller file. It is written at its place in the preallocated file while its digest is
taken, and fetched again (four times at most) where the digest is another one than the manifest's. A file that is there already,
whole or begun, is read first: blocks whose digest is right are kept, so that after a crash a download goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from launcher.errors import StoreUnavailable
from launcher.transfer.digest import BLOCK, CHUNK, of_blocks
from launcher.transfer.object_store import Moved, OnBytes, Readable
from launcher.transfer.retry import call

_TRIES = 5
_TICK = 0.1
_END = 1.0
"""Seconds that the threads get to end after a failure; one that waits for the network is left to itself."""


@dataclass(frozen=True)
class Wanted:
    """One object, where it shall lie, and its digest as `digest` writes it (empty: nobody knows it)."""

    key: str
    size: int
    destination: str
    digest: str = ""
    blocks: tuple[str, ...] = ()


class Damaged(Exception):
    """What the place has of an object is not what the digest says: `key`, `cause`."""

    def __init__(self, key: str, cause: str) -> None:
        self.key, self.cause = key, cause
        super().__init__(f"{key}: {cause}")


def download(
    place: Readable, wanted: Iterable[Wanted], *, threads: int, timeout: float, on_bytes: OnBytes
) -> list[Moved]:
    """Downloads every object and returns what came, in the order asked. The destinations' folders must exist.

    `timeout`: seconds that one unit is tried again without a byte arriving. The first failure ends it, and is raised when
    the units in flight have ended: Damaged, Missing, StoreUnavailable, StoreError, AccessDenied, OSError (no space).
    `on_bytes` may raise, too, to end it; it is called with 0 while nothing comes. Files are synced, then made read-only
    (0444).
    """
    files = [Arriving(place, each, timeout, on_bytes) for each in wanted]
    # The largest first: what is left at the end is small, and shared well.
    units = _units(sorted(files, key=lambda file: file.wanted.size, reverse=True))
    lock, failures = threading.Lock(), list[BaseException]()

    def work() -> None:
        buffer = memoryview(bytearray(CHUNK))
        try:
            while not failures:
                with lock:
                    unit = next(units, None)
                if unit is None:
                    return
                unit[0].fetch(unit[1], buffer)
        except BaseException as error:
            failures.append(error)

    count = min(threads, sum(file.count for file in files))
    workers = [threading.Thread(target=work, name="download", daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(_TICK)
                on_bytes(0)
    except BaseException as error:
        failures.append(error)
    deadline = time.monotonic() + _END
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0))
    if not any(worker.is_alive() for worker in workers):
        for file in files:  # A thread that hangs in the network may still write into its own.
            file.close()
    if failures:
        raise failures[0]
    return [file.moved() for file in files]


def _units(files: list[Arriving]) -> Iterator[tuple[Arriving, int]]:
    for file in files:
        for index in range(file.count):
            yield file, index


@dataclass
class Arriving:
    """A destination while its units arrive, in any order and from several threads: each is asked for once at a time."""

    place: Readable
    wanted: Wanted
    timeout: float
    on_bytes: OnBytes
    fd: int = -1
    kept: int = 0
    """Bytes that were there already and may be right."""
    digests: dict[int, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        return max(1, -(-self.wanted.size // BLOCK))

    def fetch(self, index: int, buffer: memoryview) -> None:
        """Brings one unit, verified; closes the file after its last one. `buffer`: CHUNK bytes for it alone.

        Raises Damaged, Missing, StoreUnavailable, StoreError, AccessDenied, OSError, and what `on_bytes` does; then it may be
        asked for again."""
        self._open()
        start = index * BLOCK
        length = min(BLOCK, self.wanted.size - start)
        expected = self._expected(index)
        if expected and start + length <= self.kept and self._on_disk(start, length, buffer) == expected:
            self.on_bytes(length)
            self._done(index, expected)
            return
        found = b""
        for _ in range(_TRIES):
            found = self._bring(start, length)
            if not expected or found == expected:
                self._done(index, found)
                return
            self.on_bytes(-length)
        raise Damaged(
            self.wanted.key,
            f"bytes {start} to {start + length} have the BLAKE3 digest {found.hex()}, not {expected.hex()}",
        )

    def _bring(self, start: int, length: int) -> bytes:
        import blake3

        state = blake3.blake3()
        position, end = start, start + length

        def sink(view: memoryview) -> None:
            nonlocal position
            written = 0
            while written < len(view):
                written += os.pwrite(self.fd, view[written:], position + written)
            state.update(view)
            position += len(view)
            self.on_bytes(len(view))

        def attempt() -> None:
            before = position
            try:
                self.place.stream(self.wanted.key, position, end - position, sink)
            except StoreUnavailable:
                if position == before:
                    raise  # Nothing came: this counts against the deadline. Else go on behind what came.

        while position < end:
            call(attempt, self.timeout)
        digest: bytes = state.digest()
        return digest

    def _expected(self, index: int) -> bytes:
        if self.wanted.blocks:
            return bytes.fromhex(self.wanted.blocks[index])
        return bytes.fromhex(self.wanted.digest.partition(":")[2])

    def _on_disk(self, start: int, length: int, buffer: memoryview) -> bytes:
        import blake3

        state = blake3.blake3()
        position = start
        while position < start + length:
            count = os.preadv(self.fd, [buffer[: min(len(buffer), start + length - position)]], position)
            if not count:
                break
            state.update(buffer[:count])
            position += count
        digest: bytes = state.digest()
        return digest

    def _open(self) -> None:
        with self.lock:
            if self.fd >= 0:
                return
            path = self.wanted.destination
            with contextlib.suppress(FileNotFoundError):
                os.chmod(path, 0o644)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                self.kept = os.fstat(fd).st_size
                os.ftruncate(fd, self.wanted.size)
                if self.wanted.size > BLOCK:
                    os.posix_fallocate(fd, 0, self.wanted.size)  # A full disk is found now, not at the end.
            except BaseException:
                os.close(fd)
                raise
            self.fd = fd

    def _done(self, index: int, digest: bytes) -> None:
        with self.lock:
            self.digests[index] = digest
            last = len(self.digests) == self.count
        if last:
            os.fsync(self.fd)
            os.fchmod(self.fd, 0o444)  # After the sync: a read-only file is whole, also after a power cut.
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def moved(self) -> Moved:
        blocks = [self.digests[index] for index in range(self.count)]
        return Moved(
            self.wanted.size, of_blocks(blocks), tuple(block.hex() for block in blocks) if len(blocks) > 1 else ()
        )
