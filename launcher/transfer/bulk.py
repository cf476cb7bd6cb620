"""Many files from a place to this machine: parallel ranges, each verified before it counts.

A unit is a block of 16 MiB or a whole smaller file. It is written at its place in the preallocated file while its digest is
taken, and fetched again (four times at most) where the digest is another one than the manifest's. A file that is there already,
whole or begun, is read first: blocks whose digest is right are kept, so that after a crash a download goes on where it was.

Everything is synced, beside the downloading. The disk gets each unit to write as soon as it is there, so that little is left to
wait for at the end, and small files are synced many together: the first one's sync commits what the file system has to note down
about all of them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from launcher.errors import StoreUnavailable
from launcher.transfer.digest import BLOCK, CHUNK, of_blocks
from launcher.transfer.lanes import Lanes
from launcher.transfer.object_store import Moved, OnBytes, Readable, for_file
from launcher.transfer.retry import call

_TRIES = 5
_TICK = 0.1
_TOGETHER = 128
"""Small files that are open and synced together."""
_BATCHES = 2
"""So many times as many, or large files, may wait for the disk: each is open."""
_SYNC_FILE_RANGE_WRITE = 2
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
    mode: int = 0o444
    """What the file may be used for when it is whole and durable; until then it is writable."""


class Damaged(Exception):
    """What the place has of an object is not what the digest says: `key`, `cause`."""

    def __init__(self, key: str, cause: str) -> None:
        self.key, self.cause = key, cause
        super().__init__(f"{key}: {cause}")


def download(
    place: Readable, wanted: Iterable[Wanted], *, threads: int, timeout: float, on_bytes: OnBytes
) -> list[Moved]:
    """Downloads every object and returns what came, in the order asked. The destinations' folders must exist.

    `threads`: requests at once, at most (see `lanes`); each takes 2 MiB of memory or less.
    `timeout`: seconds that one unit is tried again without a byte arriving. The first failure ends it, and is raised when
    the units in flight have ended: Damaged, Missing, StoreUnavailable, StoreError, AccessDenied, OSError (no space).
    `on_bytes` may raise, too, to end it; it is called with 0 while nothing comes. Files are synced, then get their mode.
    """
    wanted = list(wanted)
    lanes, syncing = Lanes(threads), Syncing()
    files = [
        Arriving(place, each, timeout, for_file(on_bytes, os.path.basename(each.key), each.size), lanes, syncing)
        for each in wanted
    ]
    # The largest first: what is left at the end is small, and shared well.
    units = _units(sorted(files, key=lambda file: file.wanted.size, reverse=True))
    lock, failures = threading.Lock(), list[BaseException]()

    def work() -> None:
        try:
            while not failures:
                with lock:
                    file, index = next(units, (None, 0))
                if file is None:
                    return
                with lanes.one(file.length(index)):
                    if not failures:
                        file.fetch(index)
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
    try:
        if not failures:
            syncing.end()
    except OSError as error:
        failures.append(error)
    deadline = time.monotonic() + _END
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0))
    if syncing.stop(deadline) and not any(worker.is_alive() for worker in workers):
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
    lanes: Lanes
    syncing: Syncing
    fd: int = -1
    kept: int = 0
    """Bytes that were there already and may be right."""
    digests: dict[int, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        return max(1, -(-self.wanted.size // BLOCK))

    def length(self, index: int) -> int:
        """Bytes of a unit."""
        return min(BLOCK, self.wanted.size - index * BLOCK)

    def fetch(self, index: int) -> None:
        """Brings one unit, verified; after its last one the file is synced, or will be.

        Raises Damaged, Missing, StoreUnavailable, StoreError, AccessDenied, OSError, and what `on_bytes` does; then it may be
        asked for again."""
        self._open()
        start, length = index * BLOCK, self.length(index)
        expected = self._expected(index)
        if expected and self.kept and start + length <= self.kept and self._on_disk(start, length) == expected:
            self.on_bytes(length)
            self._done(index, expected)
            return
        found = b""
        for _ in range(_TRIES):
            found = self._bring(start, length)
            if not expected or found == expected:
                begin_to_write(self.fd, start, length)
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
            except StoreUnavailable as error:
                self.lanes.failed(error)
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

    def _on_disk(self, start: int, length: int) -> bytes:
        import blake3

        state, buffer = blake3.blake3(), memoryview(bytearray(CHUNK))
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
            flags, path = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, self.wanted.destination
            try:
                fd = os.open(path, flags | os.O_EXCL, 0o644)
            except FileExistsError:
                os.chmod(path, 0o644)
                fd = os.open(path, flags, 0o644)
                self.kept = os.fstat(fd).st_size
            try:
                if self.kept > self.wanted.size or self.wanted.size > BLOCK:
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
            self.syncing.add(self)

    def sync(self) -> None:
        """Makes it durable, and gives it its mode after that: a read-only file is whole, also after a power cut."""
        os.fsync(self.fd)
        os.fchmod(self.fd, self.wanted.mode)
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


class Syncing:
    """Syncs files that are whole, in a thread of its own beside those that download: a large one alone, small ones together."""

    def __init__(self) -> None:
        self._small: list[Arriving] = []
        self._lock = threading.Lock()
        self._waiting = queue.Queue[list[Arriving] | None](_BATCHES)
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def add(self, file: Arriving) -> None:
        """Takes a file that is whole. Waits where the disk is far behind. Raises OSError of a file before it."""
        with self._lock:
            if self._failure:
                raise self._failure
            self._thread = self._thread or self._start()
            if file.count > 1:
                full = [file]
            else:
                self._small.append(file)
                if len(self._small) < _TOGETHER:
                    return
                full, self._small = self._small, []
        self._waiting.put(full)

    def end(self) -> None:
        """Syncs what is left. Raises OSError."""
        if self._thread:
            self._waiting.put(self._small)
            self._waiting.put(None)
            self._thread.join()
        if self._failure:
            raise self._failure

    def stop(self, deadline: float) -> bool:
        """After a failure: leaves what was not synced. Waits for the file that is being synced until `deadline` (monotonic);
        False when it takes longer."""
        if not self._thread:
            return True
        self._failure = self._failure or OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=max(deadline - time.monotonic(), 0))
        self._thread.join(max(deadline - time.monotonic(), 0))
        return not self._thread.is_alive()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="sync", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while (files := self._waiting.get()) is not None:
            try:
                for file in files if not self._failure else ():
                    file.sync()
            except OSError as error:
                self._failure = error


def begin_to_write(fd: int, start: int, length: int) -> None:
    """Has the kernel begin to write these dirty bytes of a file to the disk, and waits for nothing but room in its queue. A
    hint: where it cannot be followed, the sync at the end does all of it."""
    _sync_file_range()(fd, start, length, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int]:
    import ctypes

    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:  # not Linux
        return lambda fd, start, length, flags: 0
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function  # type: ignore[no-any-return]
