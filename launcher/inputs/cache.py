"""The node cache: one download of a checkpoint for every process and job of this machine.

    <cache>/checkpoints/<id>/…      whole and verified: it exists only by one rename
    <cache>/partial/<id>/…          being downloaded; what is whole in it is kept after a crash
    <cache>/locks/<id>              flock: exclusive while downloading, shared while a job uses it

Locks are held by the kernel and die with their process; nothing here needs cleaning after a kill.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from launcher.checkpoint.manifest import File, Manifest
from launcher.errors import AccessDenied, CheckpointNotFound, DigestMismatch, LocalResourceError, NoSpace
from launcher.store import layout
from launcher.store.store import Store
from launcher.text import size as as_size
from launcher.transfer import digest as digests
from launcher.transfer.object_store import Entry, Missing, ObjectStore, OnBytes
from launcher.transfer.retry import call

_MISSING = "it is missing in the store"


class Lease:
    """Keeps a cache entry from eviction while it is held: a shared lock that dies with this process."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class NodeCache:
    """The cache folder. `fetch` makes an entry whole and returns its path with a lease on it."""

    def __init__(self, folder: str, *, threads: int = 16) -> None:
        self.folder = Path(folder)
        self._threads = threads

    def entry(self, identifier: str) -> Path:
        """Where the checkpoint is, or would be."""
        return self.folder / "checkpoints" / identifier

    def missing_bytes(self, manifest: Manifest) -> int:
        """Bytes to download before this checkpoint can be used."""
        return 0 if self.entry(manifest.id).exists() else manifest.size

    def fetch(self, store: Store, manifest: Manifest, on_bytes: OnBytes) -> tuple[Path, Lease]:
        """The whole, verified checkpoint on this machine. Waits for another process that is downloading the same one.

        Raises DigestMismatch, NoSpace, StoreError. A crash leaves what was downloaded for the next attempt.
        """

        def download(partial: Path) -> None:
            def one(file: File) -> None:
                (partial / file.path).parent.mkdir(parents=True, exist_ok=True)
                fetch_file(store, manifest, file, str(partial / file.path), on_bytes)

            if len(manifest.files) < 3:
                for file in manifest.files:
                    one(file)
                return
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(self._threads) as pool:
                for _ in pool.map(one, manifest.files):
                    pass

        return self._make(manifest.id, manifest.size, f"checkpoint {manifest.name}", download)

    def _make(self, identifier: str, size: int, what: str, download: Callable[[Path], None]) -> tuple[Path, Lease]:
        try:
            for part in ("checkpoints", "partial", "locks"):
                (self.folder / part).mkdir(parents=True, exist_ok=True, mode=0o755)
            fd = os.open(self.folder / "locks" / identifier, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unusable(error, size) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            path = self.entry(identifier)
            while not path.exists():
                fcntl.flock(fd, fcntl.LOCK_EX)
                if not path.exists():
                    self._download(path, size, what, download)
                fcntl.flock(fd, fcntl.LOCK_SH)  # Not atomic: an eviction may come between, hence the loop.
            with contextlib.suppress(OSError):
                os.utime(fd)  # For eviction by last use.
            return path, Lease(fd)
        except BaseException:
            os.close(fd)
            raise

    def fetch_remote(self, place: ObjectStore, entries: tuple[Entry, ...], on_bytes: OnBytes) -> tuple[Path, Lease]:
        """A folder at a URL, as it is now: its listing (names, sizes, times) is the entry's identity. Sizes are checked;
        digests are not known there."""
        listing = "\n".join([place.url, *(f"{entry.key}\t{entry.size}\t{entry.modified}" for entry in entries)])
        identifier = digests.of_bytes(listing.encode()).removeprefix("blake3:")[:32]

        def download(partial: Path) -> None:
            for entry in entries:
                target = partial / entry.key
                target.parent.mkdir(parents=True, exist_ok=True)
                moved = call(functools.partial(place.download, entry.key, str(target), on_bytes), 60)
                if moved.size != entry.size:
                    raise DigestMismatch(path=entry.key, checkpoint=place.url, cause=f"{moved.size} bytes came")

        return self._make(identifier, sum(entry.size for entry in entries), place.url, download)

    def drop(self, identifier: str) -> None:
        """Removes an entry that can no longer be trusted. Crash-safe: it leaves its name before its files go."""
        path = self.entry(identifier)
        doomed = self.folder / "partial" / f"{identifier}.{time.time_ns()}"
        with contextlib.suppress(FileNotFoundError):
            path.chmod(0o755)
            path.rename(doomed)
            remove(doomed)

    def _download(self, path: Path, size: int, what: str, download: Callable[[Path], None]) -> None:
        partial = self.folder / "partial" / path.name
        try:
            partial.mkdir(exist_ok=True)
            free = shutil.disk_usage(partial).free
            have = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
            if size - have > free:
                raise NoSpace(
                    what=what,
                    path=self.folder,
                    need=as_size(size - have),
                    free=as_size(free),
                    setting="LAUNCHER_CACHE_DIR",
                )
            download(partial)
            for folder, _, _ in os.walk(partial, topdown=False):
                if folder != str(partial):
                    os.chmod(folder, 0o555)
            partial.rename(path)
            path.chmod(0o555)
        except OSError as error:
            raise self._unusable(error, size) from error

    def _unusable(self, error: OSError, need: int) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpace(
                what="the node cache", path=self.folder, need=as_size(need), free="less", setting="LAUNCHER_CACHE_DIR"
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return AccessDenied(
                what=str(self.folder), cause=error.strerror, hint="Choose a folder you may write: LAUNCHER_CACHE_DIR."
            )
        return LocalResourceError(what=f"The node cache {self.folder} cannot be used: {error}.")


def fetch_file(store: Store, manifest: Manifest, file: File, destination: str, on_bytes: OnBytes) -> None:
    """One verified file of a checkpoint to a local path, twice at most; a whole one that is there already is kept."""
    if os.path.exists(destination) and os.stat(destination).st_size == file.size:
        if digests.of_file(destination) == file.digest:
            on_bytes(file.size)
            return
    key = layout.files(manifest.id) + file.path
    cause = ""
    for _ in range(2):
        try:
            moved = call(lambda: store.place.download(key, destination, on_bytes), store.timeout)
        except Missing:
            cause = _MISSING
            continue
        if moved.size == file.size and moved.digest == file.digest:
            return
        cause = f"{moved.size} bytes with digest {moved.digest}, the manifest says {file.size} and {file.digest}"
        os.unlink(destination)
    if cause == _MISSING and not store.exists(layout.manifest(manifest.id)):
        raise CheckpointNotFound(ref=manifest.name, store=store.url, hint="It was deleted while it was being read.")
    raise DigestMismatch(path=file.path, checkpoint=manifest.id, cause=cause)


def remove(folder: Path) -> None:
    """Removes a tree without write permission."""
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def leases(held: Iterable[Lease]) -> Iterator[None]:
    """Releases all leases at the end."""
    try:
        yield
    finally:
        for lease in held:
            lease.release()
