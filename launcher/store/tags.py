"""Tags: NAME@TAG, labels of a name that move from one of its versions to another.

    tags/<name>/<tag>/v00000001.json      the first place that it had, v00000002.json the next one, …

Each move is an object of its own, created exclusively under the next number: of two that move a tag at once one wins, and the
other is told. Nothing is ever written over or removed, so the whole history stays; a tag that is taken away is a move to nothing.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import msgspec

from launcher.decoding import decode
from launcher.errors import CheckpointNotFound, NotFoundError, ObjectDamaged, TagMoved, UsageError
from launcher.ids import new_id
from launcher.store import layout
from launcher.transfer.object_store import Missing, Ours, create

if TYPE_CHECKING:
    from launcher.store.reading import Checkpoint, Reader
    from launcher.store.store import Store

_TAG = re.compile(r"(?!v[0-9]+$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Move(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a tag pointed from a moment on: a checkpoint (id) and its version, or nothing (""). `moved`: Unix seconds by the
    clock of who did it; `writer`: an id of this move, as every object that is created exclusively has one."""

    name: str
    tag: str
    number: int
    checkpoint: str
    version: int | None
    moved: float
    writer: str

    @property
    def label(self) -> str:
        """NAME@TAG."""
        return f"{self.name}@{self.tag}"

    def mistake(self, key: str) -> str:
        """Why this cannot be the object at `key`, or nothing."""
        if not is_tag(self.tag) or key != layout.tag_move(self.name, self.tag, self.number):
            return f"it is about move {self.number} of {self.label}"
        return ""


def is_tag(text: str) -> bool:
    """Whether `text` can be a tag: 1 to 64 of letters, digits, `.`, `_` and `-`; not like a version (v3)."""
    return _TAG.fullmatch(text) is not None


def split(text: str) -> tuple[str, str] | None:
    """Name and tag in NAME@TAG; None where it cannot be one."""
    name, _, tag = text.rpartition("@")
    return (name, tag) if name and is_tag(tag) else None


def current(store: Reader, name: str, tag: str) -> Move | None:
    """Where a tag points now: its last move, also where that took it away; None where it never was. Raises ObjectDamaged."""
    entries = store.listing(layout.tag(name, tag))
    return _read(store, entries[-1].key) if entries else None


def every(store: Reader, name: str | None = None, *, history: bool = False) -> list[Move]:
    """Where the tags (of one name) point now, in the order of keys; or every place that they had (`history`), also none.
    Raises ObjectDamaged, StoreError."""
    keys = [entry.key for entry in store.listing(layout.tags(name) if name else layout.TAGS)]
    if not history:
        keys = list({key.rpartition("/")[0]: key for key in keys}.values())
    return [move for move in store.map(lambda key: _read(store, key), keys) if move.checkpoint or history]


def move(store: Store, checkpoint: Checkpoint, tag: str) -> tuple[Move, Move | None]:
    """Points a tag of the checkpoint's name to it; returns the move and the one before. Where it points there, nothing is done.

    Raises UsageError for what is no tag or is a checkpoint's name, TagMoved where somebody else moved it meanwhile,
    CheckpointNotFound where the checkpoint was deleted meanwhile.
    """
    manifest = checkpoint.manifest
    if not is_tag(tag):
        raise UsageError(
            what=f"{tag!r} is no tag.",
            hint="A tag has 1 to 64 letters, digits and . _ - and does not look like a version (v3).",
        )
    label = f"{manifest.name}@{tag}"
    if store.version_numbers(label):
        raise UsageError(what=f"{label} is the name of a checkpoint.", hint="Choose another tag.")
    store.prepare()
    before = current(store, manifest.name, tag)
    if before and before.checkpoint == manifest.id:
        return before, before
    made = _append(store, before, manifest.name, tag, manifest.id, checkpoint.version)
    if not store.exists(layout.manifest(manifest.id)) or store.exists(layout.tombstone(manifest.id)):
        _append(
            store, made, manifest.name, tag, before.checkpoint if before else "", before.version if before else None
        )
        raise CheckpointNotFound(
            ref=checkpoint.label, store=store.url, hint="It was deleted while it was being tagged."
        )
    return made, before


def remove(store: Store, name: str, tag: str) -> Move:
    """Takes a tag away; returns where it pointed. Raises NotFoundError, TagMoved."""
    before = current(store, name, tag)
    if before is None or not before.checkpoint:
        from launcher.settings import nearest

        near = nearest(f"{name}@{tag}", (each.label for each in every(store)))
        raise NotFoundError(
            what=f"There is no tag {name}@{tag}.",
            hint=f"Nearest tags: {', '.join(near)}" if near else "`launcher checkpoint tags` lists them.",
        )
    _append(store, before, name, tag, "", None)
    return before


def _append(store: Store, before: Move | None, name: str, tag: str, checkpoint: str, version: int | None) -> Move:
    wanted = Move(name, tag, before.number + 1 if before else 1, checkpoint, version, time.time(), new_id())
    key = layout.tag_move(name, tag, wanted.number)
    made = create(store.place, key, msgspec.json.encode(wanted), timeout=store.timeout)
    if isinstance(made, Ours):
        return wanted
    theirs = _decoded(made.body, key)
    if theirs.checkpoint != checkpoint:
        place = f"version {theirs.version}" if theirs.checkpoint else "nothing"
        raise TagMoved(tag=wanted.label, place=place)
    return theirs


def _read(store: Reader, key: str) -> Move:
    try:
        return _decoded(store.get(key), key)
    except Missing as error:
        raise ObjectDamaged(key=key, cause="it was there, and is gone") from error


def _decoded(body: bytes, key: str) -> Move:
    try:
        found = decode(body, Move)
    except ValueError as error:
        raise ObjectDamaged(key=key, cause=str(error)) from error
    if cause := found.mistake(key):
        raise ObjectDamaged(key=key, cause=cause)
    return found
