"""Finding what is in a store. Order of reads: name, manifest, files.

The node keeps copies of manifests. They tell what a checkpoint was, never that it still exists: that is asked of the store,
one checkpoint by its manifest, many by the listing of manifests/.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from launcher.checkpoint import manifest as manifests
from launcher.checkpoint import reference as references
from launcher.checkpoint.manifest import Abort, Manifest
from launcher.checkpoint.reference import Reference
from launcher.decoding import decode
from launcher.errors import CheckpointNotFound, ManifestInvalid, NotFoundError, ObjectDamaged, UsageError
from launcher.ids import is_id
from launcher.names import key as name_key
from launcher.settings import nearest
from launcher.store import catalog, layout, tags
from launcher.transfer.digest import of_bytes
from launcher.transfer.object_store import Entry, Missing, ObjectStore
from launcher.transfer.retry import call

T = TypeVar("T")
R = TypeVar("R")
_DELETED_IN_A_ROW = 4
"""So many deleted versions are asked for one by one; further ones are looked up in one listing."""


class VersionBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a version's object holds; `checkpoint` is also the id of its writer, `manifest` the digest of its manifest.
    The first objects of this schema had no `manifest` and `version`."""

    checkpoint: str
    name: str
    manifest: str = ""
    version: int = 0

    def mistake(self, key: str) -> str:
        """Why this cannot be the object at `key`, or nothing."""
        number = layout.version_number(key)
        if not is_id(self.checkpoint) or self.version not in (0, number) or layout.versions(self.name) not in key:
            return f"it is about version {self.version} of {self.name!r}, checkpoint {self.checkpoint!r}"
        return ""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint with the version that its name gave it (None: committed and not named yet)."""

    manifest: Manifest
    version: int | None
    committed: float = 0.0
    """When its manifest was created, in Unix seconds by the store's clock; 0 where that was not asked."""
    repeated: bool = False
    """A commit made nothing new: the newest version has the same files, or this one was committed and deleted before."""

    @property
    def label(self) -> str:
        """name@vN."""
        return f"{self.manifest.name}@v{self.version}" if self.version else self.manifest.name


class Reader:
    """What is in the store of a place. `index`: a folder for copies of manifests. One object may serve several threads."""

    noun = "checkpoint"
    """What it holds, as messages and commands call it."""
    not_found: type[NotFoundError] = CheckpointNotFound

    def __init__(self, place: ObjectStore, *, timeout: float, threads: int = 16, index: str | None = None) -> None:
        self.place = place
        self.url = place.url
        self.timeout = timeout
        self._threads = threads
        self.index = index
        self._bodies: dict[str, VersionBody] = {}  # A version's object never changes.

    def listing(self, prefix: str) -> list[Entry]:
        """Every object below a prefix, in key order. Raises StoreError."""
        return call(lambda: list(self.place.list(prefix)), self.timeout)

    def listings(self, *wanted: tuple[str, str]) -> list[list[Entry]]:
        """Several listings at a time: of each pair, every object below the prefix whose key is greater than the second."""

        def one(each: tuple[str, str]) -> list[Entry]:
            return call(lambda: list(self.place.list(*each)), self.timeout)

        return list(self.map(one, wanted, from_count=2))

    def beginning(self, prefix: str, text: str) -> list[Entry]:
        """Every object whose key begins with the prefix (a folder's) and the text."""
        first = prefix + text
        # Not after `first` itself: SeaweedFS then leaves out what is below a folder of that name.
        before = first[:-1] + chr(ord(first[-1]) - 1) + "~"

        def found() -> list[Entry]:
            later = itertools.dropwhile(lambda each: each.key < first, self.place.list(prefix, before))
            return list(itertools.takewhile(lambda each: each.key.startswith(first), later))

        return call(found, self.timeout)

    def get(self, key: str) -> bytes:
        """A small object. Raises Missing, StoreError."""
        return call(lambda: self.place.get(key), self.timeout)

    def exists(self, key: str) -> bool:
        """Whether a small object is there."""
        try:
            self.get(key)
        except Missing:
            return False
        return True

    def ids(self) -> dict[str, float]:
        """Id of every manifest (aborts and damaged ones included) to the time it was created, by the store's clock."""
        found = {layout.identifier(entry.key): entry.modified for entry in self.listing(layout.MANIFESTS)}
        return {identifier: created for identifier, created in found.items() if is_id(identifier)}

    def manifest(self, identifier: str, digest: str = "", *, keep: bool = True) -> Manifest:
        """The manifest of a checkpoint that exists now. Raises Missing, ManifestInvalid (also where the object has not the
        `digest` that its version recorded). `keep`: leave a copy on this node."""
        key = layout.manifest(identifier)
        body = self.get(key)
        found = _decode(body, key, identifier, digest)
        if keep:
            self._remember(identifier, body)
        return found

    def known(self, identifier: str, digest: str = "") -> Manifest:
        """The manifest of a checkpoint that exists or existed, from this node's copy where there is one."""
        if self.index:
            path = os.path.join(self.index, f"{identifier}.json")
            try:
                with open(path, "rb") as file:
                    return _decode(file.read(), path, identifier, digest)
            except (OSError, ManifestInvalid):
                pass  # A copy that is absent or damaged is read again from the store.
        return self.manifest(identifier, digest)

    def version(self, name: str, number: int) -> VersionBody:
        """Which checkpoint has this version. Raises Missing, ObjectDamaged."""
        return self._body(layout.version(name, number))

    def version_numbers(self, name: str) -> list[int]:
        """The numbers that were ever given to versions of this name, ascending."""
        return sorted(n for entry in self.listing(layout.versions(name)) if (n := layout.version_number(entry.key)))

    def version_of(self, manifest: Manifest, numbers: Collection[int] | None = None) -> int | None:
        """The version that its name gave to a checkpoint, among these `numbers` (default: all)."""
        ordered = sorted(self.version_numbers(manifest.name) if numbers is None else numbers)
        # Mostly versions are in the order of ids; where a long upload was overtaken, it is near.
        near = bisect.bisect_left(ordered, manifest.id, key=lambda number: self._named(manifest.name, number))
        for _, number in sorted((abs(place - near), number) for place, number in enumerate(ordered)):
            if self._named(manifest.name, number) == manifest.id:
                return number
        return None

    def _named(self, name: str, number: int) -> str:
        """The id that a version names; empty where it is damaged."""
        try:
            return self.version(name, number).checkpoint
        except (Missing, ObjectDamaged):
            return ""

    def living(self, name: str, numbers: Collection[int]) -> Iterator[Checkpoint]:
        """The versions of a name that were not deleted, of these numbers, newest first. Raises InvalidDataError at a version
        that is damaged: an older one must not be taken for it unnoticed."""
        in_a_row = 0
        deleted: Collection[str] = ()
        for number in sorted(numbers, reverse=True):
            body = self.version(name, number)
            if in_a_row == _DELETED_IN_A_ROW:
                deleted = {layout.identifier(entry.key) for entry in self.listing(layout.TOMBSTONES)}
            if body.checkpoint in deleted:
                continue
            try:
                yield Checkpoint(self.manifest(body.checkpoint, body.manifest), number)
            except Missing:
                in_a_row += 1
                if not self.exists(layout.tombstone(body.checkpoint)):
                    cause = f"it names {body.checkpoint}, which is neither there nor deleted"
                    raise ObjectDamaged(key=layout.version(name, number), cause=cause) from None

    def resolve(self, reference: Reference | str) -> Checkpoint:
        """The checkpoint that a reference (not a URL or path) means. Raises CheckpointNotFound, InvalidDataError, UsageError."""
        ref = references.parse(reference) if isinstance(reference, str) else reference
        if ref.kind in ("url", "path"):
            raise UsageError(
                what=f"{ref.text} is a {'URL' if ref.kind == 'url' else 'path'}, not a checkpoint in the store."
            )
        if ref.kind == "job":
            return self._of_job(ref)
        if ref.kind == "name" and ref.version is None and (found := self._tagged(ref)):
            return found
        if ref.kind == "name":
            numbers = [n for n in self.version_numbers(ref.value) if ref.version in (None, n)]
            for newest in self.living(ref.value, numbers):
                return newest
        identifiers = [ref.value] if ref.kind == "id" else []
        if ref.prefix:
            entries = self.beginning(layout.MANIFESTS, ref.value.lower())
            identifiers = [each for entry in entries if is_id(each := layout.identifier(entry.key))]
            if len(identifiers) > 1:
                raise UsageError(
                    what=f"{ref.text} is the beginning of {len(identifiers)} ids: {', '.join(identifiers[:4])}.",
                    hint="Type more of it.",
                )
        for identifier in identifiers:
            try:
                manifest = self.manifest(identifier)
            except Missing:
                break
            return Checkpoint(manifest, self.version_of(manifest))
        raise self.not_found(ref=ref.text, store=self.url, hint=self._hint(ref))

    def _tagged(self, ref: Reference) -> Checkpoint | None:
        """The checkpoint to which a tag points, where NAME@TAG is one."""
        label = tags.split(ref.value)
        move = tags.current(self, *label) if label else None
        if not move or not move.checkpoint:
            return None
        try:
            return Checkpoint(self.manifest(move.checkpoint), move.version)
        except Missing:
            hint = f"{move.label} points to version {move.version}, which was deleted."
            raise CheckpointNotFound(ref=ref.text, store=self.url, hint=hint) from None

    def _of_job(self, ref: Reference) -> Checkpoint:
        if ref.version is None:
            newest = max(self.of_job(ref.value), key=lambda found: found.manifest.id, default=None)
            if newest:
                return newest
        # JOB/FOLDER is the name that collection gave it.
        try:
            found = self.resolve(Reference(ref.text, "name", ref.value, ref.version))
        except CheckpointNotFound:
            raise CheckpointNotFound(ref=ref.text, store=self.url, hint=self._hint(ref)) from None
        if found.manifest.origin is None:
            raise CheckpointNotFound(
                ref=ref.text,
                store=self.url,
                hint=f"{ref.value} was pushed, not written by a job: use -C {ref.value!r}.",
            )
        return found

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint, in the order of ids (of capture); damaged ones are left out (`check` names them)."""
        return self._load(self.ids(), self.versions())

    def of_job(self, name: str) -> list[Checkpoint]:
        """What jobs of this name wrote, in the order of ids."""
        versions = self._versions(
            self.beginning(layout.NAMES, name_key(name)[:100])
        )  # A long name's key ends in a digest.
        if not versions:
            return []
        first, last = layout.manifest(min(versions)), layout.manifest(max(versions))

        def until_last() -> list[Entry]:
            listed = self.place.list(layout.MANIFESTS, first[: -len(".json")])
            return list(itertools.takewhile(lambda each: each.key <= last, listed))

        ids = {layout.identifier(entry.key): entry.modified for entry in call(until_last, self.timeout)}
        found = self._load({each: ids[each] for each in sorted(versions) if each in ids}, versions)
        return [each for each in found if each.manifest.origin and each.manifest.origin.name == name]

    def _load(self, ids: Mapping[str, float], versions: Mapping[str, tuple[int, str]]) -> list[Checkpoint]:
        def one(item: tuple[str, float]) -> Checkpoint | None:
            number, digest = versions.get(item[0], (None, ""))
            try:
                return Checkpoint(self.known(item[0], digest), number, item[1])
            except (Missing, ManifestInvalid):
                return None

        return [found for found in self.map(one, sorted(ids.items())) if found]

    def map(self, function: Callable[[T], R], items: Iterable[T], *, from_count: int = 4) -> Iterator[R]:
        """`function` of every item, in order, several at a time where there are so many."""
        todo = list(items)
        if len(todo) < from_count:
            yield from map(function, todo)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self._threads) as pool:
            yield from pool.map(function, todo)

    def versions(self) -> dict[str, tuple[int, str]]:
        """Checkpoint id to version number and manifest digest, of every name."""
        return self._versions(self.listing(layout.NAMES))

    def _versions(self, entries: Iterable[Entry]) -> dict[str, tuple[int, str]]:
        def one(key: str) -> tuple[str, tuple[int, str]] | None:
            number = layout.version_number(key)
            try:
                body = self._body(key) if number else None
            except (Missing, ObjectDamaged):
                return None
            return (body.checkpoint, (number, body.manifest)) if number and body else None

        found = self.map(one, [entry.key for entry in entries])
        return dict(each for each in found if each)

    def _body(self, key: str) -> VersionBody:
        if key not in self._bodies:
            try:
                body = decode(self.get(key), VersionBody)
            except ValueError as error:
                raise ObjectDamaged(key=key, cause=str(error)) from error
            if body.mistake(key):
                raise ObjectDamaged(key=key, cause=body.mistake(key))
            self._bodies[key] = body
        return self._bodies[key]

    def _remember(self, identifier: str, body: bytes) -> None:
        if not self.index:
            return
        from launcher.job.record import write_atomically

        try:
            os.makedirs(self.index, exist_ok=True)
            write_atomically(os.path.join(self.index, f"{identifier}.json"), body, durable=False)
        except OSError:
            pass  # No room for a copy is no failure.

    def _hint(self, ref: Reference) -> str | None:
        found = catalog.refresh(self).summaries()
        known = {each.name for each in found}
        if ref.kind == "job":
            known |= {each.job for each in found if each.job}
        near = nearest(ref.value, known)
        if near:
            return f"Nearest names: {', '.join(near)}"
        return None if known else f"There is none yet: launcher {self.noun} push NAME --file FOLDER"


def _decode(body: bytes, key: str, identifier: str, digest: str) -> Manifest:
    """The manifest in `body`. Raises Missing for an abort, ManifestInvalid for what is not the manifest of this id."""
    if digest and of_bytes(body) != digest:
        raise ManifestInvalid(key=key, cause="it has not the digest that its version recorded")
    found = manifests.decode(body, key)
    if isinstance(found, Abort):
        raise Missing(key)
    if found.id != identifier:
        raise ManifestInvalid(key=key, cause=f"it is the manifest of {found.id}")
    return found
