"""Finishing what crashes left in a store: files without a manifest and temporary files are removed, deletes that were cut
off are finished, commits that were cut off before their name get one.

Files of an upload that still goes on look the same as those of one that died. So gc takes only what is older than its
horizon by the store's own clock, and before it removes any file it commits the abort: it creates an Abort at the manifest's
key, exclusively. A writer that was only slow then finds it there, and uploads again under another id. One key decides; no
lease, and no clock of ours.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from launcher.checkpoint import manifest as manifests
from launcher.checkpoint.manifest import ABORT_LIMIT, Abort
from launcher.errors import ManifestInvalid, StoreUnsupported
from launcher.ids import is_id
from launcher.store import catalog, layout, removal
from launcher.store.datasets import FOLDER, Datasets
from launcher.store.store import SCHEMA, Store
from launcher.transfer.object_store import Entry, Missing, Theirs, create

Kind = Literal["upload", "delete", "name", "temporary", "parts"]


@dataclass(frozen=True)
class Leftover:
    """What one crash left. `kind`: an upload that was never committed, a delete or a commit (before its name) that
    was cut off, a temporary object, the parts of an object that never came to be (their size is not known, and shown as 0);
    `what`: the checkpoint's id, or the object's key; `age` in seconds."""

    kind: Kind
    what: str
    objects: int
    size: int
    age: float


@dataclass(frozen=True)
class Collected:
    """What gc found (and, unless it was a dry run, removed or finished), what it left because it is too young, and what
    this kind of store does not let it see."""

    removed: tuple[Leftover, ...]
    young: tuple[Leftover, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of what was removed."""
        return sum(each.size for each in self.removed if each.kind != "name")


def collect(store: Store, *, older: float, dry_run: bool = False) -> Collected:
    """Removes or finishes what has been left for more than `older` seconds; deletes are finished whatever their age.

    May run beside writers, readers, deletes and other collectors, and may be killed at any time: what is left is found by
    the next one. Raises StoreError, AccessDenied; StoreUnsupported where the store does not tell objects' times.
    """
    store.prepare()
    now = store.now()
    removed: list[Leftover] = []
    young: list[Leftover] = []
    for found in _leftovers(store, now):
        if found.kind != "delete" and not found.age > older:
            young.append(found)
        elif dry_run or _remove(store, found, now):
            removed.append(found)
    if not dry_run:
        tombs = {layout.identifier(entry.key) for entry in store.listing(layout.TOMBSTONES)}
        catalog.mend(store, store.ids().keys() - tombs, tombs)
    return Collected(tuple(removed), tuple(young), _notes(store))


def whole(store: Store, datasets: Datasets | None, *, older: float, dry_run: bool = False) -> Collected:
    """The same of a store with its datasets."""
    below = collect(datasets, older=older, dry_run=dry_run) if datasets else Collected((), (), ())
    own = collect(store, older=older, dry_run=dry_run)

    def joined(inner: Sequence[Leftover], outer: Sequence[Leftover]) -> tuple[Leftover, ...]:
        # Of temporary objects and parts the store lists those of its datasets too.
        return (*inner, *(each for each in outer if not each.what.startswith(f"{FOLDER}/")))

    notes = tuple(dict.fromkeys((*own.notes, *below.notes)))
    return Collected(joined(below.removed, own.removed), joined(below.young, own.young), notes)


def _leftovers(store: Store, now: float) -> Iterator[Leftover]:
    """Listings in the order files, tombstones, manifests: what is committed or deleted meanwhile is seen as that."""
    files = _by_id(store.listing(layout.FILES))
    attached = _by_id([*store.listing(layout.PINS), *store.listing(layout.USES)])
    deleted = {layout.identifier(entry.key) for entry in store.listing(layout.TOMBSTONES)}
    committed = _by_id(store.listing(layout.MANIFESTS))
    for identifier in sorted(filter(is_id, deleted)):
        entries = files.get(identifier, []) + attached.get(identifier, []) + committed.get(identifier, [])
        if entries:
            yield _leftover("delete", identifier, entries, now)
    for identifier, entries in sorted(files.items()):
        if identifier in deleted or not is_id(identifier):
            continue
        if all(entry.size < ABORT_LIMIT for entry in committed.get(identifier, [])):
            yield _leftover("upload", identifier, entries, now)
    versions = store.versions()
    for identifier, entries in sorted(committed.items()):
        if is_id(identifier) and identifier not in deleted | versions.keys() and entries[0].size >= ABORT_LIMIT:
            yield _leftover("name", identifier, entries, now)
    for entry in [*store.listing(layout.CLOCK), *store.place.leftovers()]:
        yield _leftover("temporary", entry.key, [entry], now)
    with contextlib.suppress(StoreUnsupported):  # `_notes` says so.
        for part in store.place.unfinished(""):
            yield Leftover("parts", part.key, 1, 0, max(0.0, now - part.began))


def _remove(store: Store, found: Leftover, now: float) -> bool:
    """Removes a leftover, unless it turns out to be none."""
    if found.kind == "delete":
        removal.finish(store, found.what)
        return True
    if found.kind == "temporary":
        removal.remove(store, [found.what])
        return True
    if found.kind == "parts":
        for upload in store.place.unfinished(found.what):
            if upload.key == found.what:
                store.place.abort(upload)  # Its writer, if it was only slow, begins anew.
        return True
    key = layout.manifest(found.what)
    if found.kind == "name":
        return _name(store, found.what)
    abort = msgspec.json.encode(Abort(schema=SCHEMA, id=found.what, aborted=now))
    made = create(store.place, key, abort, timeout=store.timeout)
    if isinstance(made, Theirs):
        try:
            if not isinstance(manifests.decode(made.body, key), Abort):
                return False  # Its writer was faster: it is a checkpoint.
        except ManifestInvalid:
            return False  # Unknown is no reason to remove anything; `check` names it.
    removal.remove(store, [entry.key for entry in store.listing(layout.files(found.what))])
    return True


def _name(store: Store, identifier: str) -> bool:
    """Gives a committed checkpoint the version that its writer did not live to give it."""
    try:
        manifest = store.manifest(identifier)
        body = store.get(layout.manifest(identifier))
    except (Missing, ManifestInvalid):
        return False  # Deleted meanwhile, or damaged: `check` names it.
    store.name(manifest, body, store.version_numbers(manifest.name), again=True)
    return True


def _leftover(kind: Kind, what: str, entries: Sequence[Entry], now: float) -> Leftover:
    """Its age is that of its newest object; an object of unknown time is new."""
    newest = max(entry.modified or now for entry in entries)
    return Leftover(kind, what, len(entries), removal.size(entries), max(0.0, now - newest))


def _by_id(entries: list[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[layout.identifier(entry.key)].append(entry)
    return found


def _notes(store: Store) -> tuple[str, ...]:
    try:
        next(store.place.unfinished(""), None)
    except StoreUnsupported as error:
        return (
            f"Parts of interrupted multipart uploads cannot be listed here ({error.facts['cause']}): let the bucket remove "
            "them (lifecycle rule AbortIncompleteMultipartUpload).",
        )
    return ()
