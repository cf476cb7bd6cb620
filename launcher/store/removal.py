"""Deleting a checkpoint: tombstone, manifest, files, and what refers to it.

The tombstone decides, and stays for ever. A crash before it deletes nothing; a crash at any later point leaves a tombstone
from which gc goes on (`finish` may be repeated). The version's number stays taken, for names/ is never deleted from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from launcher.ids import is_id
from launcher.store import catalog, layout
from launcher.store.reading import Checkpoint, Reader
from launcher.transfer.object_store import Entry
from launcher.transfer.retry import call


class Tombstone(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a deleted checkpoint was; `deleted` in Unix seconds by the clock of who did it."""

    checkpoint: str
    name: str
    deleted: float
    version: int | None = None
    size: int = 0
    reason: str = ""


def delete(store: Reader, checkpoint: Checkpoint, reason: str = "") -> None:
    """Deletes a checkpoint. Raises StoreError, AccessDenied; then it is deleted or not, and trying again goes on."""
    manifest = checkpoint.manifest
    body = Tombstone(manifest.id, manifest.name, time.time(), checkpoint.version, manifest.size, reason)
    call(lambda: store.place.put(layout.tombstone(manifest.id), msgspec.json.encode(body)), store.timeout)
    finish(store, manifest.id)


def finish(store: Reader, identifier: str) -> None:
    """Everything of a deleted checkpoint but its tombstone: the manifest first, so that no reader finds it without files;
    pin and uses last, for they are harmless without it."""
    if not is_id(identifier):
        raise ValueError(f"{identifier!r} is no id, and what is below its prefix is not its own")
    catalog.deleted(store, identifier)
    remove(store, [layout.manifest(identifier)])
    for prefix in (layout.files(identifier), f"{layout.USES}{identifier}/"):
        remove(store, [entry.key for entry in store.listing(prefix)])
    remove(store, [layout.pin(identifier)])


def remove(store: Reader, keys: Iterable[str]) -> None:
    """Removes objects; one that is missing already is no error."""
    batch = list(keys)
    if batch:
        call(lambda: store.place.delete(batch), store.timeout)


def size(entries: Iterable[Entry]) -> int:
    """Bytes of some objects."""
    return sum(entry.size for entry in entries)
