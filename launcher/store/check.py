"""Is the whole store sound? Names every object that is damaged, missing, exchanged or strange; changes nothing.

What makes damage visible: every file's size and digest are in its manifest, every manifest's digest in its version's object,
every version's name and checkpoint in two places, and numbers have no gaps.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import msgspec

from launcher.checkpoint import manifest as manifests
from launcher.checkpoint.manifest import Abort, Manifest
from launcher.decoding import decode
from launcher.errors import ManifestInvalid, ObjectDamaged
from launcher.ids import is_id
from launcher.store import layout
from launcher.store.datasets import FOLDER, Datasets
from launcher.store.protection import Pin, Use
from launcher.store.reading import VersionBody
from launcher.store.removal import Tombstone
from launcher.store.store import Store
from launcher.store.tags import Move
from launcher.store.tree import damage
from launcher.transfer.digest import of_bytes
from launcher.transfer.object_store import Entry, Missing

_STRANGE = "it is not written as this release writes it"


@dataclass(frozen=True)
class Damage:
    """One object (its key) and what is wrong with it."""

    key: str
    cause: str


@dataclass(frozen=True)
class Checked:
    """What was looked at, what is wrong, and what is only unfinished."""

    checkpoints: int
    files: int
    damage: tuple[Damage, ...]
    notes: tuple[str, ...]
    datasets: int = 0


def check(store: Store, *, read_data: bool) -> Checked:
    """Checks every object of the store; `read_data`: also every byte of every file. Raises StoreError, AccessDenied."""
    return _Check(store).run(read_data)


def whole(store: Store, datasets: Datasets | None, *, read_data: bool) -> Checked:
    """The same of a store with its datasets, whose keys begin with `datasets/`."""
    own = check(store, read_data=read_data)
    if not datasets:
        return own
    below = check(datasets, read_data=read_data)
    damage = tuple(Damage(f"{FOLDER}/{each.key}", each.cause) for each in below.damage)
    notes = tuple(f"{FOLDER}: {note}" for note in below.notes)
    return Checked(own.checkpoints, own.files + below.files, own.damage + damage, own.notes + notes, below.checkpoints)


class _Check:
    """One pass. Listings in the order of reads (names, manifests, files): a commit meanwhile looks like none or whole; a
    delete meanwhile is asked for again before it is called damage."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._damage: list[Damage] = []
        self._notes: list[str] = []
        self._versions: dict[str, list[str]] = defaultdict(list)
        """Checkpoint id to the keys of the versions that name it."""
        self._digests: dict[str, str] = {}

    def run(self, read_data: bool) -> Checked:
        store = self._store
        store.prepare()
        named = store.listing(layout.NAMES)
        committed = store.listing(layout.MANIFESTS)
        stored: dict[str, dict[str, Entry]] = defaultdict(dict)
        for entry in store.listing(layout.FILES):
            stored[layout.identifier(entry.key)][entry.key] = entry
        deleted = self._small(layout.TOMBSTONES, Tombstone)
        self._small(layout.PINS, Pin)
        self._small(layout.USES, Use)
        self._names(named)
        self._tags()
        found: dict[str, Manifest] = {}
        seen: set[str] = set()
        for entry, manifest in zip(committed, store.map(self._manifest, [entry.key for entry in committed])):
            seen.add(layout.identifier(entry.key))
            if manifest:
                found[manifest.id] = manifest
        count = 0
        for identifier, manifest in found.items():
            count += len(manifest.files)
            if not (set(self._versions[identifier]) & {entry.key for entry in named}):
                self._not_named(manifest)
            self._files(manifest, stored.get(identifier, {}), read_data)
        for identifier, keys in self._versions.items():
            if identifier not in seen and identifier not in deleted:
                self._say(layout.manifest(identifier), f"it is missing, and {keys[0]} names it")
                self._say(keys[0], f"it names {identifier}, which is neither there nor deleted")
        for identifier in sorted(stored.keys() - seen - deleted):
            size = sum(entry.size for entry in stored[identifier].values())
            if is_id(identifier):
                self._notes.append(
                    f"{layout.files(identifier)} was never committed ({size} bytes): gc removes it in time"
                )
            else:
                self._say(f"{layout.FILES}{identifier}", "it belongs to no checkpoint")
        for identifier in sorted(deleted & (seen | stored.keys())):
            self._notes.append(f"the delete of {identifier} was cut off: gc finishes it")
        return Checked(len(found), count, tuple(self._damage), tuple(self._notes))

    def _say(self, key: str, cause: str) -> None:
        self._damage.append(Damage(key, cause))

    def _small(self, prefix: str, kind: type[Tombstone] | type[Pin] | type[Use]) -> set[str]:
        """Ids of the objects below a prefix, each of which must be a `kind` about the id in its key."""
        entries = self._store.listing(prefix)

        def mistake(entry: Entry) -> str:
            try:
                body = decode(self._store.get(entry.key), kind)
            except Missing:
                return ""
            except ValueError as error:
                return str(error)
            identifier = layout.identifier(entry.key)
            return "" if body.checkpoint == identifier and is_id(identifier) else "it is about another checkpoint"

        for entry, cause in zip(entries, self._store.map(mistake, entries)):
            if cause:
                self._say(entry.key, cause)
        return {identifier for entry in entries if is_id(identifier := layout.identifier(entry.key))}

    def _names(self, entries: list[Entry]) -> None:
        numbers: dict[str, set[int]] = defaultdict(set)

        def read(entry: Entry) -> VersionBody | str | None:
            folder, number = layout.identifier(entry.key), layout.version_number(entry.key)
            if not number or entry.key.count("/") != 2:
                return "it is no version of a name"
            numbers[folder].add(number)
            try:
                raw = self._store.get(entry.key)
                body = decode(raw, VersionBody)
            except Missing:
                return None
            except ValueError as error:
                return str(error)
            # The digest beside makes no sense where a flipped bit hides its key.
            return body.mistake(entry.key) or (body if msgspec.json.encode(body) == raw else _STRANGE)

        for entry, body in zip(entries, self._store.map(read, entries)):
            if isinstance(body, str):
                self._say(entry.key, body)
            elif body:
                self._versions[body.checkpoint].append(entry.key)
                if body.manifest:
                    self._digests[body.checkpoint] = body.manifest
        for folder, have in sorted(numbers.items()):
            for number in sorted(set(range(1, max(have))) - have):
                self._say(f"{layout.NAMES}{folder}/v{number:08d}.json", "it is missing: a later number was given")
        for identifier, keys in self._versions.items():
            for key in keys[1:]:
                self._say(key, f"it names {identifier}, which has the version {keys[0]}")

    def _tags(self) -> None:
        numbers: dict[str, list[int]] = defaultdict(list)
        entries = self._store.listing(layout.TAGS)

        def mistake(entry: Entry) -> str:
            try:
                body = self._store.get(entry.key)
                move = decode(body, Move)
            except Missing:
                return ""
            except ValueError as error:
                return str(error)
            return move.mistake(entry.key) or ("" if msgspec.json.encode(move) == body else _STRANGE)

        for entry, cause in zip(entries, self._store.map(mistake, entries)):
            numbers[entry.key.rpartition("/")[0]].append(layout.version_number(entry.key) or 0)
            if cause:
                self._say(entry.key, cause)
        for folder, have in numbers.items():
            for number in sorted(set(range(1, max(have))) - set(have)):
                self._say(f"{folder}/v{number:08d}.json", "it is missing: the tag was moved again later")

    def _manifest(self, key: str) -> Manifest | None:
        """A manifest that is right; None for an abort, for one that is gone meanwhile, and for a wrong one, which is said."""
        identifier = layout.identifier(key)
        try:
            body = self._store.get(key)
            found = manifests.decode(body, key)
            if found.id != identifier or key != layout.manifest(identifier):
                raise ManifestInvalid(key=key, cause=f"it is about {found.id}")
            if isinstance(found, Abort):
                return None
            if of_bytes(body) != self._digests.get(identifier, of_bytes(body)):
                version = self._versions[identifier][0]
                self._say(version, f"it records another digest than {key} has: one of them is damaged")
                raise ManifestInvalid(key=key, cause=f"it has another digest than {version} recorded")
        except Missing:
            return None
        except ManifestInvalid as error:
            self._say(key, str(error.facts["cause"]))
            return None
        return found

    def _not_named(self, manifest: Manifest) -> None:
        """A manifest that no version of the listing names: committed meanwhile, cut off before its name, or a lost name."""
        try:
            version = self._store.version_of(manifest)
        except ObjectDamaged:
            version = None
        if version is None:
            key = layout.versions(manifest.name)
            self._say(
                key, f"no version names {manifest.id}, which is committed: its writer was cut off, or one is missing"
            )

    def _files(self, manifest: Manifest, stored: dict[str, Entry], read_data: bool) -> None:
        sizes = {key: entry.size for key, entry in stored.items()}
        wrong = list(damage(self._store, manifest, sizes, read_data=read_data).items())
        listed = {layout.files(manifest.id) + file.path for file in manifest.files}
        wrong += [(key, f"the manifest of {manifest.name} does not list it") for key in sizes.keys() - listed]
        if wrong and self._store.exists(layout.manifest(manifest.id)):
            for key, cause in wrong:
                self._say(key, cause)
