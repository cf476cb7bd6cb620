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
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from launcher.checkpoint.manifest import Manifest
from launcher.errors import AccessDenied, DigestMismatch, LocalResourceError, NoSpace
from launcher.store import layout
from launcher.store.store import Store
from launcher.text import size as as_size
from launcher.transfer import bulk
from launcher.transfer import digest as digests
from launcher.transfer.object_store import Entry, Missing, ObjectStore, OnBytes


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
            fetch_files(store, manifest, partial, threads=self._threads, on_bytes=on_bytes)

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
            wanted = [bulk.Wanted(entry.key, entry.size, str(partial / entry.key)) for entry in entries]
            _folders(wanted)
            bulk.download(place, wanted, threads=self._threads, timeout=60, on_bytes=on_bytes)

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
            have = sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file())
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


def fetch_files(store: Store, manifest: Manifest, folder: Path, *, threads: int, on_bytes: OnBytes) -> None:
    """All files of a checkpoint below `folder`, verified; goes on where an earlier call was cut off.

    Raises DigestMismatch with the file's name, StoreError, OSError.
    """
    prefix = layout.files(manifest.id)
    wanted = [
        bulk.Wanted(prefix + file.path, file.size, str(folder / file.path), file.digest, file.blocks)
        for file in manifest.files
    ]
    _folders(wanted)
    try:
        bulk.download(store.place, wanted, threads=threads, timeout=store.timeout, on_bytes=on_bytes)
    except (bulk.Damaged, Missing) as error:
        key, cause = (error.key, error.cause) if isinstance(error, bulk.Damaged) else (str(error), "it is missing")
        raise DigestMismatch(path=key.removeprefix(prefix), checkpoint=manifest.id, cause=cause) from error


def _folders(wanted: Iterable[bulk.Wanted]) -> None:
    for folder in {os.path.dirname(each.destination) for each in wanted}:
        os.makedirs(folder, exist_ok=True)


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
