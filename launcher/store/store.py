"""A store: opening it, committing to it, finding what is in it.

Order of writes: files, manifest, name. Order of reads: name, manifest, files. So what a reader finds, everything that it
needs exists already. Deletes go the other way round, after a tombstone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from launcher import __version__
from launcher.checkpoint import manifest as manifests
from launcher.checkpoint import reference as references
from launcher.checkpoint.manifest import Abort, Manifest
from launcher.checkpoint.reference import Reference
from launcher.errors import CheckpointNotFound, ManifestInvalid, StoreError, UsageError
from launcher.names import key as name_key
from launcher.settings import Settings, nearest
from launcher.store import layout
from launcher.transfer.generic import GenericStore
from launcher.transfer.object_store import Missing, Moved, ObjectStore, OnBytes, Ours, Theirs, create
from launcher.transfer.places import open_place
from launcher.transfer.retry import call

T = TypeVar("T")
R = TypeVar("R")
SCHEMA = 1
_FIRST_CONTACT = 10.0
"""Seconds after which a store that was never reached counts as wrong, not as slow."""


class VersionBody(msgspec.Struct, frozen=True):
    """What a version's object holds; `checkpoint` is also the id of its writer."""

    checkpoint: str
    name: str


_VERSIONS = msgspec.json.Decoder(VersionBody)  # Made before any thread: msgspec's first decoding of a type is not safe.


class _StoreFile(msgspec.Struct, frozen=True):
    schema: int
    writer: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint with the version that its name gave it (None: committed and not named yet)."""

    manifest: Manifest
    version: int | None

    @property
    def label(self) -> str:
        """name@vN."""
        return f"{self.manifest.name}@v{self.version}" if self.version else self.manifest.name


class Aborted(Exception):
    """gc committed the abort of this id first: upload again under a new id."""


class Store:
    """A store over a place. Cheap to make; the first use that writes creates it."""

    def __init__(self, place: ObjectStore, *, timeout: float, threads: int = 16, index: str | None = None) -> None:
        self.place = place
        self.url = place.url
        self.timeout = timeout
        self._threads = threads
        self._index = index
        self._ready = False

    @classmethod
    def open(cls, settings: Settings, environ: Mapping[str, str]) -> Store:
        """The store of the settings. Nothing is contacted yet."""
        place = open_place(settings.store, timeout=settings.store_timeout, environ=environ)
        index = os.path.join(settings.cache_dir, "manifests")
        return cls(place, timeout=settings.store_timeout, threads=settings.transfer_threads, index=index)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self) -> None:
        """Makes sure that this is a store which this release may write to; creates it where nothing is.

        Raises StoreUnavailable, StoreUnsupported, AccessDenied, or StoreError for a store of a newer release.
        """
        if self._ready:
            return
        try:
            body = call(lambda: self.place.get(layout.STORE), min(self.timeout, _FIRST_CONTACT))
        except Missing:
            if isinstance(self.place, GenericStore):
                self.place.prove_exclusive()
            wanted = msgspec.json.encode(_StoreFile(SCHEMA, __version__))
            made = create(self.place, layout.STORE, wanted, timeout=self.timeout)
            body = made.body if isinstance(made, Theirs) else wanted
        try:
            found = msgspec.json.decode(body, type=_StoreFile)
        except msgspec.DecodeError as error:
            raise StoreError(store=self.url, cause=f"store.json is damaged ({error})") from error
        if found.schema > SCHEMA:
            raise StoreError(
                store=self.url,
                cause=f"it has format {found.schema}, and this release knows {SCHEMA}",
                hint=f"Install a launcher at least as new as {found.writer}.",
            )
        self._ready = True

    def upload(self, checkpoint: str, source: str, path: str, on_bytes: OnBytes) -> Moved:
        """Stores one file of a checkpoint that is not committed yet."""
        return call(lambda: self.place.upload(source, layout.files(checkpoint) + path, on_bytes), self.timeout)

    def commit(self, manifest: Manifest) -> Checkpoint:
        """Proves that the files are stored, creates the manifest (the commit), then hands out the name's next version.

        Idempotent for one id. A crash before the manifest leaves files that gc removes; between manifest and name, a whole
        checkpoint that the next `commit` of the same id, or recovery, names. Raises Aborted, CommitUnknown, StoreError.
        """
        self.prepare()
        prefix = layout.files(manifest.id)
        call(lambda: self.place.settle(prefix), self.timeout)
        stored = call(lambda: {entry.key: entry.size for entry in self.place.list(prefix)}, self.timeout)
        for file in manifest.files:
            if stored.get(prefix + file.path) != file.size:
                raise StoreError(
                    store=self.url,
                    cause=f"{prefix}{file.path} has {stored.get(prefix + file.path, 'no')} bytes there, {file.size} were sent",
                )
        key = layout.manifest(manifest.id)
        made = create(self.place, key, manifests.encode(manifest), timeout=self.timeout)
        again = not (isinstance(made, Ours) and made.fresh)
        if isinstance(made, Theirs):
            found = manifests.decode(made.body, key)
            if isinstance(found, Abort):
                raise Aborted(manifest.id)
            manifest = found  # Only we write under our id: an earlier try of ours got this far.
        if self._index:
            self._remember(os.path.join(self._index, f"{manifest.id}.json"), manifests.encode(manifest))
        return Checkpoint(manifest, self.name(manifest, again=again))

    def name(self, manifest: Manifest, *, again: bool) -> int:
        """Gives the checkpoint the next version of its name. `again`: it may have one from an earlier try."""
        numbers = self._version_numbers(manifest.name)
        if again:
            known = self._version_of(manifest)
            if known:
                return known
        number = max(numbers, default=0) + 1
        body = msgspec.json.encode(VersionBody(manifest.id, manifest.name))
        while True:
            made = create(self.place, layout.version(manifest.name, number), body, timeout=self.timeout)
            if isinstance(made, Ours):
                return number
            number += 1

    def delete(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint: tombstone, manifest, files; a crash in between leaves what gc finishes. The version's
        number stays taken for ever."""
        identifier = checkpoint.manifest.id
        body = msgspec.json.encode({"checkpoint": identifier, "name": checkpoint.manifest.name, "deleted": time.time()})
        call(lambda: self.place.put(layout.tombstone(identifier), body), self.timeout)
        call(lambda: self.place.delete([layout.manifest(identifier)]), self.timeout)
        if self._index:
            import contextlib

            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._index, f"{identifier}.json"))
        prefix = layout.files(identifier)
        call(lambda: self.place.delete([prefix + file.path for file in checkpoint.manifest.files]), self.timeout)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def manifest(self, identifier: str) -> Manifest:
        """A committed checkpoint's manifest. Raises Missing, ManifestInvalid."""
        cached = os.path.join(self._index, f"{identifier}.json") if self._index else None
        if cached and os.path.exists(cached):
            try:
                with open(cached, "rb") as file:
                    found = manifests.decode(file.read(), cached)
                if isinstance(found, Manifest):
                    return found
            except (OSError, ManifestInvalid):
                pass  # The index is a cache: what is damaged there is read again from the store.
        key = layout.manifest(identifier)
        body = call(lambda: self.place.get(key), self.timeout)
        found = manifests.decode(body, key)
        if isinstance(found, Abort) or found.id != identifier:
            raise Missing(key)
        if cached:
            self._remember(cached, body)
        return found

    def _remember(self, path: str, body: bytes) -> None:
        from launcher.job.record import write_atomically

        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_atomically(path, body)
        except OSError:
            pass  # No room for a cache is no failure.

    def resolve(self, reference: Reference | str) -> Checkpoint:
        """The checkpoint that a reference (not a URL or path) means. Raises CheckpointNotFound, UsageError."""
        ref = references.parse(reference) if isinstance(reference, str) else reference
        if ref.kind in ("url", "path"):
            raise UsageError(what=f"{ref.text} is a {ref.kind}, not a checkpoint in the store.")
        if ref.kind == "job":
            return self._of_job(ref)
        if ref.kind == "name":
            numbers = self._version_numbers(ref.value)
            wanted = [ref.version] if ref.version else sorted(numbers, reverse=True)
            for number in wanted:
                if number in numbers:
                    body = self._version_body(ref.value, number)
                    try:
                        return Checkpoint(self.manifest(body.checkpoint), number)
                    except Missing:
                        continue  # Deleted: its number stays taken.
        identifiers = [ref.value] if ref.kind == "id" else []
        if ref.prefix:
            identifiers = [each for each in self._ids() if each.startswith(ref.value.lower())]
            if len(identifiers) > 1:
                raise UsageError(
                    what=f"{ref.text} is the beginning of {len(identifiers)} ids: {', '.join(identifiers[:4])}.",
                    hint="Type more of it.",
                )
        for identifier in identifiers:
            try:
                found = self.manifest(identifier)
            except Missing:
                break
            return Checkpoint(found, self._version_of(found))
        raise CheckpointNotFound(ref=ref.text, store=self.url, hint=self._hint(ref))

    def _of_job(self, ref: Reference) -> Checkpoint:
        if ref.version is None:
            newest = max(self.of_job(ref.value), key=lambda found: found.manifest.id, default=None)
            if newest:
                return newest
        # JOB/FOLDER is the name that collection gave it.
        try:
            found = self.resolve(Reference(ref.text, "name", ref.value, ref.version))
        except CheckpointNotFound as error:
            raise CheckpointNotFound(ref=ref.text, store=self.url, hint=error.hint) from None
        if found.manifest.origin is None:
            raise CheckpointNotFound(
                ref=ref.text,
                store=self.url,
                hint=f"{ref.value} was pushed, not written by a job: use -C {ref.value!r}.",
            )
        return found

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint, oldest first; damaged manifests are left out (`damaged` names them)."""
        return self._load(self._ids(), self._all_versions())

    def of_job(self, name: str) -> list[Checkpoint]:
        """What jobs of this name wrote, oldest first."""
        prefix = name_key(name)[:100]  # A long name's key ends in a digest.
        versions = self._all_versions(lambda key: key.startswith(prefix))
        found = self._load(sorted(versions), versions)
        return [each for each in found if each.manifest.origin and each.manifest.origin.name == name]

    def _load(self, identifiers: Iterable[str], versions: Mapping[str, int]) -> list[Checkpoint]:
        def one(identifier: str) -> Checkpoint | None:
            try:
                return Checkpoint(self.manifest(identifier), versions.get(identifier))
            except (Missing, ManifestInvalid):
                return None

        return [found for found in self._map(one, identifiers) if found]

    def _map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        todo = list(items)
        if len(todo) < 4:
            yield from map(function, todo)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self._threads) as pool:
            yield from pool.map(function, todo)

    def _ids(self) -> list[str]:
        entries = call(lambda: list(self.place.list(layout.MANIFESTS)), self.timeout)
        return [entry.key.removeprefix(layout.MANIFESTS).removesuffix(".json") for entry in entries]

    def _all_versions(self, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, int]:
        """Checkpoint id to version number, for the names whose key is wanted."""
        entries = call(lambda: list(self.place.list(layout.NAMES)), self.timeout)
        keys = [entry.key for entry in entries if wanted(entry.key.removeprefix(layout.NAMES).partition("/")[0])]

        def one(key: str) -> tuple[str, int] | None:
            number = layout.version_number(key)
            try:
                return (self._body(key).checkpoint, number) if number else None
            except (Missing, StoreError):
                return None

        return dict(found for found in self._map(one, keys) if found)

    def _version_numbers(self, name: str) -> list[int]:
        entries = call(lambda: list(self.place.list(layout.versions(name))), self.timeout)
        return sorted(number for entry in entries if (number := layout.version_number(entry.key)))

    def _version_of(self, manifest: Manifest) -> int | None:
        for number in reversed(self._version_numbers(manifest.name)):
            if self._version_body(manifest.name, number).checkpoint == manifest.id:
                return number
        return None

    def _version_body(self, name: str, number: int) -> VersionBody:
        return self._body(layout.version(name, number))

    def _body(self, key: str) -> VersionBody:
        body = call(lambda: self.place.get(key), self.timeout)
        try:
            return _VERSIONS.decode(body)
        except msgspec.DecodeError as error:
            raise StoreError(store=self.url, cause=f"{key} is damaged ({error})") from error

    def _hint(self, ref: Reference) -> str | None:
        known = {found.manifest.name for found in self.checkpoints()}
        near = nearest(ref.value, known)
        if near:
            return f"Nearest names: {', '.join(near)}"
        return None if known else "The store is empty: launcher checkpoint push NAME --file FOLDER"
