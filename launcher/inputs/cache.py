"""The node cache: one download of a checkpoint for every process and job of this machine.

`entries` has its layout and its locks. It stays under its limit by evicting what was not used for the longest time, never
what a live job holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launcher.checkpoint.manifest import File, Manifest
from launcher.errors import (
    AccessDenied,
    DigestMismatch,
    LauncherError,
    LocalResourceError,
    NoSpace,
)
from launcher.events import Emit, event
from launcher.inputs import share as sharing
from launcher.inputs.entries import About, Cached, Entries, Lease, remove
from launcher.settings import Settings, existing, parse_share
from launcher.store import layout, stamps
from launcher.store.store import Store
from launcher.text import size as as_size
from launcher.transfer import bulk
from launcher.transfer import digest as digests
from launcher.transfer.object_store import Missing, OnBytes

if TYPE_CHECKING:
    from launcher.inputs.remote import Remote


class Bring(Protocol):
    """Brings all files of a checkpoint below a folder, verified, as `fetch_files` does."""

    def __call__(
        self, store: Store, manifest: Manifest, folder: Path, /, *, threads: int, on_bytes: OnBytes
    ) -> None: ...


class NodeCache:
    """The cache folder. `fetch` makes an entry whole and returns its canonical path with a lease on it.

    `limit`: bytes, or a share of the file system's size (a float).
    """

    def __init__(
        self, folder: str, *, threads: int = 16, limit: int | float = 1.0, emit: Emit = lambda _: None
    ) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._entries = Entries(self.folder)
        self._threads = threads
        self._limit = limit
        self._emit = emit

    @classmethod
    def open(cls, settings: Settings, emit: Emit = lambda _: None) -> NodeCache:
        """The cache of the settings."""
        limit = parse_share(settings.cache_limit)
        return cls(settings.cache_dir, threads=settings.transfer_threads, limit=limit, emit=emit)

    def entry(self, identifier: str) -> Path:
        """Where the checkpoint is, or would be."""
        return self._entries.path(identifier)

    def identifier(self, manifest: Manifest, part: str = "") -> str:
        """The entry's id of a stored checkpoint, or of a selection of its files."""
        return f"{manifest.id}-{_hash(part)[:8]}" if part else manifest.id

    def identifier_of(self, remote: Remote) -> str:
        """The entry's id of what is somewhere else, as it is now."""
        return _hash(remote.identity)

    def there(self, identifier: str) -> Path | None:
        """The whole entry, in either way of being there; without a lock, so it may leave at any time."""
        found = (self.entry(identifier), self.entry(identifier + sharing.LINKED))
        return next((path for path in found if path.exists()), None)

    def fetch(
        self,
        store: Store,
        manifest: Manifest,
        on_bytes: OnBytes,
        linkable: Callable[[], bool] = lambda: False,
        *,
        part: str = "",
        bring: Bring | None = None,
    ) -> tuple[Path, Lease]:
        """The whole, verified checkpoint on this machine. Waits for another process that is downloading the same one.
        `part`: the manifest names only a selection of the files, and this text tells it from other ones. `bring`: how its
        files come, where that is not by `fetch_files`; called at most once.

        `linkable`: whether a hard link to a local store's files would be safe for the job, see `share`; asked at most once.
        Raises DigestMismatch, NoSpace, StoreError, and what `on_bytes` raises (also called with 0 while it waits). A crash
        leaves what was downloaded for the next attempt.
        """
        what = f"{store.noun} {manifest.name}"
        identifier = self.identifier(manifest, part)
        source = sharing.folder(store.place, manifest)
        way = self._way(store, manifest, linkable, identifier)

        def download(partial: Path) -> About:
            if source and way:
                self._share(store, manifest, source, partial, way, on_bytes)
            else:
                (bring or fetch_files)(store, manifest, partial, threads=self._threads, on_bytes=on_bytes)
            return About(manifest.name, store.url, manifest.files, shared=way is not None)

        # A linked entry has another name: a job that may not have links never finds it.
        identifier += sharing.LINKED if way == "link" else ""
        lease = self._make(identifier, 0 if way else manifest.size, what, download, on_bytes)
        return self.entry(identifier), lease

    def _share(
        self, store: Store, manifest: Manifest, source: Path, partial: Path, way: sharing.Way, on_bytes: OnBytes
    ) -> None:
        known = stamps.known(store.index, manifest.id)
        unproven, found = sharing.share(source, manifest, partial, way, known)
        on_bytes(manifest.size - sum(file.size for file in unproven))
        if unproven:
            sharing.verify(unproven, partial, store.noun, manifest.id, threads=self._threads, on_bytes=on_bytes)
            stamps.remember(store.index, manifest.id, known | sharing.unchanged(source, found))

    def at_hand(self, store: Store, manifest: Manifest, linkable: Callable[[], bool], *, part: str = "") -> bool:
        """Whether `fetch` would move no bytes: the entry is there, or a store on the same disk shares its files."""
        identifier = self.identifier(manifest, part)
        return self.entry(identifier).exists() or self._way(store, manifest, linkable, identifier) is not None

    def _way(
        self, store: Store, manifest: Manifest, linkable: Callable[[], bool], identifier: str
    ) -> sharing.Way | None:
        if sharing.folder(store.place, manifest) is None or self.entry(identifier).exists():
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return sharing.way(store.place, manifest, self.folder, linkable)

    def fetch_remote(self, remote: Remote, on_bytes: OnBytes) -> tuple[Path, Lease]:
        """What is somewhere else, as it is now: its identity is the entry's. Raises what `Remote.download` does."""

        def download(partial: Path) -> About:
            files = remote.download(partial, threads=self._threads, on_bytes=on_bytes)
            return About(remote.name, remote.url, files)

        identifier = self.identifier_of(remote)
        lease = self._make(identifier, remote.size, remote.url, download, on_bytes)
        return self.entry(identifier), lease

    def environment(self, identity: str) -> Path:
        """Where the environment of this identity is, or would be."""
        return self.entry("environment-" + _hash(identity))

    def fetch_environment(
        self, identity: str, name: str, source: str, build: Callable[[Path, Path], None], on_bytes: OnBytes
    ) -> tuple[Path, Lease]:
        """What `build` makes in a folder (its first argument, where a crash may have left something) for the place that it gets
        when it is whole (the second), once for all who ask for this identity. Raises what `build` and `on_bytes` do (which is
        called with 0 while it waits)."""
        identifier = self.environment(identity).name

        def make(partial: Path) -> About:
            try:
                build(partial, self.entry(identifier))
            except BaseException:
                remove(partial)
                raise
            return About(name, source, tuple(_described(partial)), kind="environment")

        lease = self._make(identifier, 0, f"the packages of {name}", make, on_bytes)
        return self.entry(identifier), lease

    def _make(
        self, identifier: str, size: int, what: str, download: Callable[[Path], About], on_bytes: OnBytes
    ) -> Lease:
        waiting = False

        def wait() -> None:
            nonlocal waiting
            if not waiting:
                self._emit(event("cache-waiting", f"Another launcher is downloading {what}: waiting for it"))
            waiting = True
            on_bytes(0)

        def fill(partial: Path) -> About:
            have = sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file())
            self.make_room(max(size - have, 0), what)
            return download(partial)

        try:
            return self._entries.make(identifier, fill, wait)
        except OSError as error:
            raise self._unusable(error, size) from error

    def make_room(self, need: int, what: str) -> None:
        """Evicts until `need` more bytes fit under the limit and on the disk. What live jobs hold stays, even above the
        limit. Raises NoSpace where the disk is too small all the same."""
        self.prune(self._bytes(self._limit) - need, free=need)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise NoSpace(
                what=what, path=self.folder, need=as_size(need), free=as_size(free), setting="LAUNCHER_CACHE_DIR"
            )

    def prune(self, limit: int | float, *, free: int = 0, dry_run: bool = False, kept: bool = False) -> list[Cached]:
        """Evicts the least recently used until the entries take `limit` (bytes, or a share of the file system) or less
        and `free` bytes are free, with a limit of 0 also those that take no space. `kept`: also those that somebody
        wants to find here later. Returns what went."""
        self._entries.sweep()
        found = self._entries.list()
        total, limit = sum(each.about.occupied for each in found), self._bytes(limit)
        available = shutil.disk_usage(self.folder).free if self.folder.exists() else 0
        gone = []
        for each in found:
            if limit > 0 and total <= limit and available >= free:
                break
            if not each.held and (kept or each.kept is None) and (dry_run or self._entries.evict(each.id)):
                gone.append(each)
                total -= each.about.occupied
                available += each.about.occupied
        return gone

    def keep(self, path: str, until: float) -> None:
        """Keeps an entry (its canonical path), of which the caller has the lease, until then (Unix seconds)."""
        self._entries.keep(os.path.basename(path), until)

    def entries(self) -> list[Cached]:
        """Every whole entry, the least recently used first."""
        return self._entries.list()

    def occupied(self) -> int:
        """Bytes that all entries take; without a lock."""
        return self._entries.occupied()

    def damage(self, cached: Cached) -> list[str]:
        """Why an entry is not what its description says: reads every byte."""
        path = self.entry(cached.id)
        found = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
        return _differences(path, found, cached.about.files)

    def drop(self, identifier: str) -> None:
        """Removes an entry that can no longer be trusted, whoever holds it."""
        self._entries.drop(identifier)

    def _bytes(self, limit: int | float) -> int:
        if isinstance(limit, int):
            return limit
        return int(limit * shutil.disk_usage(existing(self.folder)).total)

    def _unusable(self, error: OSError, need: int) -> LauncherError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpace(
                what="the node cache", path=self.folder, need=as_size(need), free="less", setting="LAUNCHER_CACHE_DIR"
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return AccessDenied(
                what=str(self.folder), cause=error.strerror, hint="Choose a folder you may write: LAUNCHER_CACHE_DIR."
            )
        return LocalResourceError(what=f"The node cache {self.folder} cannot be used: {error}.")


def _hash(text: str) -> str:
    return digests.of_bytes(text.encode("utf-8", "surrogateescape")).partition(":")[2][:32]


def changes(folder: str, manifest: Manifest) -> list[str]:
    """How a copy of a checkpoint differs from its manifest: reads every byte."""
    path = Path(folder)
    found = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    return _differences(path, found, manifest.files)


def _differences(folder: Path, found: set[str], files: Iterable[File]) -> list[str]:
    listed = {file.path: file for file in files}
    reasons = [f"{path} was {'added' if path in found else 'removed'}" for path in sorted(found ^ listed.keys())]
    for path in sorted(found & listed.keys()):
        if _digest(folder / path) != listed[path].digest:
            reasons.append(f"{path} has other content")
    return reasons


def _digest(path: Path) -> str:
    """Of a file's bytes; of a link's own text."""
    return digests.of_bytes(os.fsencode(os.readlink(path))) if path.is_symlink() else digests.of_file(path)


def _described(folder: Path) -> Iterator[File]:
    """Every file below a folder, which is read-only from now on."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if path.is_symlink():
            yield File(str(path.relative_to(folder)), 0, _digest(path))
        elif path.is_file():
            status = path.stat()
            path.chmod(status.st_mode & 0o555)
            yield File(
                str(path.relative_to(folder)), status.st_size, _digest(path), status.st_mode & 0o555, status.st_mtime
            )


def fetch_files(
    store: Store, manifest: Manifest, folder: Path, *, threads: int, on_bytes: OnBytes, writable: bool = False
) -> None:
    """All files of a checkpoint below `folder`, verified; goes on where an earlier call was cut off. They are read-only, or
    (`writable`) as they were, for their owner to change.

    Raises DigestMismatch with the file's name, StoreError, OSError.
    """
    prefix = layout.files(manifest.id)
    wanted = [
        bulk.Wanted(
            prefix + file.path,
            file.size,
            str(folder / file.path),
            file.digest,
            file.blocks,
            file.mode | stat.S_IWUSR if writable else 0o444,
        )
        for file in manifest.files
    ]
    _folders(wanted)
    try:
        bulk.download(store.place, wanted, threads=threads, timeout=store.timeout, on_bytes=on_bytes)
    except bulk.Damaged as error:
        path = error.key.removeprefix(prefix)
        raise DigestMismatch(path=path, what=store.noun, id=manifest.id, cause=error.cause) from error
    except Missing as error:
        if not store.exists(layout.manifest(manifest.id)):
            hint = "It was deleted while it was being read."
            raise store.not_found(ref=manifest.name, store=store.url, hint=hint) from error
        path = str(error).removeprefix(prefix)
        raise DigestMismatch(path=path, what=store.noun, id=manifest.id, cause="it is missing in the store") from error


def _folders(wanted: Iterable[bulk.Wanted]) -> None:
    for folder in {os.path.dirname(each.destination) for each in wanted}:
        os.makedirs(folder, exist_ok=True)


class Held(Protocol):
    """What a job keeps for its time: a lease on an entry, a view."""

    def release(self) -> None:
        """Gives it back; once more is no error."""


@contextlib.contextmanager
def leases(held: Iterable[Held]) -> Iterator[None]:
    """Releases everything at the end."""
    try:
        yield
    finally:
        for each in held:
            each.release()
