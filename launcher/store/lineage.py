"""What a checkpoint was made from, and that from, as far as the store knows."""

from __future__ import annotations

import msgspec

from launcher.checkpoint.manifest import Manifest
from launcher.decoding import decode
from launcher.errors import ManifestInvalid
from launcher.store import layout
from launcher.store.reading import Checkpoint, Reader
from launcher.store.removal import Tombstone
from launcher.transfer.object_store import Missing


class Ancestor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One checkpoint of a lineage. `state`: available; deleted (what was in its manifest may still be known here); unknown
    (of another store, or damaged)."""

    id: str
    state: str
    name: str = ""
    version: int | None = None
    manifest: Manifest | None = None
    parents: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """name@vN, or the id where the name is not known."""
        return (f"{self.name}@v{self.version}" if self.version else self.name) or self.id


def trace(store: Reader, checkpoint: Checkpoint) -> list[Ancestor]:
    """The checkpoint and everything that it was made from, each once, children before their parents (breadth first)."""
    manifest = checkpoint.manifest
    found = {manifest.id: _available(manifest, checkpoint.version)}
    level = [manifest.id]
    while level:
        wanted = dict.fromkeys(parent for each in level for parent in found[each].parents if parent not in found)
        found |= {each.id: each for each in store.map(lambda identifier: _look(store, identifier), wanted)}
        level = list(wanted)
    return list(found.values())


def _look(store: Reader, identifier: str) -> Ancestor:
    try:
        manifest = store.manifest(identifier)
        return _available(manifest, store.version_of(manifest))
    except Missing:
        pass
    except ManifestInvalid:
        return Ancestor(id=identifier, state="unknown")
    try:
        tombstone = decode(store.get(layout.tombstone(identifier)), Tombstone)
    except (Missing, ValueError):
        return Ancestor(id=identifier, state="unknown")
    try:
        old = store.known(identifier)
    except (Missing, ManifestInvalid):
        old = None
    parents = old.lineage.parents if old else ()
    return Ancestor(
        id=identifier, state="deleted", name=tombstone.name, version=tombstone.version, manifest=old, parents=parents
    )


def _available(manifest: Manifest, version: int | None) -> Ancestor:
    return Ancestor(
        id=manifest.id,
        state="available",
        name=manifest.name,
        version=version,
        manifest=manifest,
        parents=manifest.lineage.parents,
    )
