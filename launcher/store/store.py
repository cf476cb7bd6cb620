"""A store: opening it and committing to it. What is in it is found by `reading`, removed by `removal`.

Order of writes: files, manifest, name. Order of reads: name, manifest, files. So what a reader finds, everything that it
needs exists already. Deletes go the other way round, after a tombstone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from launcher import __version__
from launcher.checkpoint import manifest as manifests
from launcher.checkpoint.manifest import Abort, Manifest
from launcher.errors import InvalidDataError, StoreError, StoreUnsupported
from launcher.ids import new_id
from launcher.settings import Settings
from launcher.store import catalog, layout, removal, stamps
from launcher.store.reading import Checkpoint, Reader, VersionBody
from launcher.transfer.digest import of_bytes
from launcher.transfer.generic import GenericStore
from launcher.transfer.local import LocalStore
from launcher.transfer.object_store import Missing, Moved, OnBytes, Ours, Theirs, create
from launcher.transfer.places import open_place
from launcher.transfer.retry import call

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Aborted", "Checkpoint", "Store"]

SCHEMA = 1
_FIRST_CONTACT = 10.0
"""Seconds after which a store that was never reached counts as wrong, not as slow."""


class _StoreFile(msgspec.Struct, frozen=True):
    schema: int
    writer: str = ""


class Aborted(Exception):
    """What was uploaded under this id is gone (gc took its writer for dead): upload again under a new id."""


class Store(Reader):
    """A store over a place. Cheap to make; the first use that writes creates it."""

    _ready = False
    look_only = False
    """Whether it is only looked at: see `open`."""

    @classmethod
    def open(cls, settings: Settings, environ: Mapping[str, str], *, look_only: bool = False) -> Self:
        """The store of the settings. Nothing is contacted yet. `look_only`: nothing is written, there or in this node's
        index, and where no store is yet, it is as an empty one."""
        place = open_place(
            settings.store,
            timeout=settings.store_timeout,
            environ=environ,
            memory=settings.transfer_memory,
        )
        index = os.path.join(settings.cache_dir, "manifests")
        store = cls(
            place, timeout=settings.store_timeout, threads=settings.transfer_threads, index=None if look_only else index
        )
        store.look_only = look_only
        return store

    def prepare(self) -> None:
        """Makes sure that this is a store which this release may write to; creates it where nothing is.

        Raises StoreUnavailable, StoreUnsupported, AccessDenied, or StoreError for a store of a newer release.
        """
        if self._ready:
            return
        try:
            body = call(lambda: self.place.get(layout.STORE), min(self.timeout, _FIRST_CONTACT))
        except Missing:
            if self.look_only:
                return
            if isinstance(self.place, GenericStore):
                self.place.prove_exclusive()
            wanted = msgspec.json.encode(_StoreFile(SCHEMA, __version__))
            made = create(self.place, layout.STORE, wanted, timeout=self.timeout)
            body = made.body if isinstance(made, Theirs) else wanted
        try:
            found = msgspec.json.decode(body, type=_StoreFile)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreError(store=self.url, cause=f"store.json is damaged ({error})") from error
        if found.schema > SCHEMA:
            raise StoreError(
                store=self.url,
                cause=f"it has format {found.schema}, and this release knows {SCHEMA}",
                hint=f"Install a launcher at least as new as {found.writer}.",
            )
        self._ready = True

    def now(self) -> float:
        """Unix seconds by the store's own clock, cut to its resolution: the time it gives to an object written now.

        Ages of objects are differences to this, so that no machine's wrong clock decides about them. Raises
        StoreUnsupported where the place does not tell when an object was written.
        """
        key = f"{layout.CLOCK}{new_id()}"
        call(lambda: self.place.put(key, b"now"), self.timeout)
        try:
            times = [entry.modified for entry in self.listing(layout.CLOCK) if entry.key == key]
        finally:
            removal.remove(self, [key])
        if not times or not times[0]:
            raise StoreUnsupported(store=self.url, cause="it does not tell when an object was written")
        return times[0]

    def upload(self, checkpoint: str, source: str, path: str, on_bytes: OnBytes) -> Moved:
        """Stores one file of a checkpoint that is not committed yet."""
        return call(lambda: self.place.upload(source, layout.files(checkpoint) + path, on_bytes), self.timeout)

    def commit(self, manifest: Manifest) -> Checkpoint:
        """Proves that the files are stored, creates the manifest (the commit), then hands out the name's next version.

        Where the newest living version of the name has the same files from the same path, that one is returned as
        `repeated`, and the files of this one are removed. Idempotent for one id, by one process at a time. A crash before
        the manifest leaves files that gc removes; between manifest and name, a whole checkpoint that the next `commit` of
        the same id, or recovery, names. Raises Aborted, CommitUnknown, StoreError.
        """
        self.prepare()
        numbers = self.version_numbers(manifest.name)
        twin = self._twin(manifest, numbers)
        if twin:
            self._drop_files(manifest.id)
            if not self.exists(layout.manifest(twin.manifest.id)):
                raise Aborted(manifest.id)  # It was deleted meanwhile, and now neither is there.
            return dataclasses.replace(twin, repeated=True)
        key = layout.manifest(manifest.id)
        unproven = self._unproven(manifest)
        if unproven:
            self._check_abort(manifest.id)
            raise StoreError(store=self.url, cause=unproven)
        body = manifests.encode(manifest)
        made = create(self.place, key, body, timeout=self.timeout)
        again = not (isinstance(made, Ours) and made.fresh)
        if isinstance(made, Theirs):
            self._check_abort(manifest.id)
            body = made.body
            manifest = self.manifest(manifest.id)  # Only we write under our id: an earlier try of ours got this far.
        # Committed before and deleted since: between a lost answer and its retry, or before a crash of ours.
        if self.exists(layout.tombstone(manifest.id)):
            removal.finish(self, manifest.id)
            return Checkpoint(manifest, None, repeated=True)
        self._remember(manifest.id, body)
        self._remember_stamps(manifest)
        version = self.name(manifest, body, numbers, again=again)
        catalog.committed(self, manifest, version)
        return Checkpoint(manifest, version)

    def _remember_stamps(self, manifest: Manifest) -> None:
        if isinstance(self.place, LocalStore):
            taken = {
                file.path: self.place.stamps.pop(layout.files(manifest.id) + file.path, None) for file in manifest.files
            }
            stamps.remember(self.index, manifest.id, {path: found for path, found in taken.items() if found})

    def name(self, manifest: Manifest, body: bytes, numbers: Collection[int], *, again: bool) -> int:
        """Gives the checkpoint, whose manifest is stored as `body`, the next version of its name.

        `numbers`: those that were taken before: before its manifest was there, or with `again` (it may have a version) at
        any earlier time. Whoever else names it meanwhile writes the same body above them, and walking up finds that: a
        checkpoint gets one version, however many try.
        """
        known = self.version_of(manifest, numbers) if again else None
        if known:
            return known
        number = max(numbers, default=0) + 1
        digest = of_bytes(body)
        while True:
            version = msgspec.json.encode(VersionBody(manifest.id, manifest.name, digest, number))
            made = create(self.place, layout.version(manifest.name, number), version, timeout=self.timeout)
            if isinstance(made, Ours):
                return number
            number += 1

    def _twin(self, manifest: Manifest, numbers: Collection[int]) -> Checkpoint | None:
        """The newest living version of the name, where it is the same checkpoint and ours is not committed yet."""
        try:
            newest = next(self.living(manifest.name, numbers), None)
        except InvalidDataError:
            return None  # What is damaged is nothing to rely on: a new version is made.
        if newest is None or newest.manifest.id == manifest.id or not _same(newest.manifest, manifest):
            return None
        return None if self.exists(layout.manifest(manifest.id)) else newest

    def _unproven(self, manifest: Manifest) -> str:
        """Which file is not stored as it was sent, or nothing."""
        prefix = layout.files(manifest.id)
        try:
            call(lambda: self.place.settle(prefix), self.timeout)
        except Missing:
            return f"{prefix} is not there"
        stored = {entry.key: entry.size for entry in self.listing(prefix)}
        for file in manifest.files:
            size = stored.get(prefix + file.path)
            if size != file.size:
                return f"{prefix}{file.path} has {'no' if size is None else size} bytes there, {file.size} were sent"
        return ""

    def _check_abort(self, identifier: str) -> None:
        """Raises Aborted where gc decided against this id, and removes what was uploaded since."""
        key = layout.manifest(identifier)
        try:
            found = manifests.decode(self.get(key), key)
        except Missing:
            return
        if isinstance(found, Abort):
            self._drop_files(identifier)
            raise Aborted(identifier)

    def _drop_files(self, identifier: str) -> None:
        removal.remove(self, [entry.key for entry in self.listing(layout.files(identifier))])


def _same(one: Manifest, other: Manifest) -> bool:
    """Whether two checkpoints have the same files and came from the same path: of one job, or pushed from one place."""

    def files(manifest: Manifest) -> set[tuple[str, int, str, int]]:
        return {(file.path, file.size, file.digest, file.mode) for file in manifest.files}

    if one.origin and other.origin:
        place = (one.origin.job, one.origin.path) == (other.origin.job, other.origin.path)
    else:
        place = one.origin is other.origin and one.lineage == other.lineage
    return place and files(one) == files(other)
