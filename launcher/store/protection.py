"""Why a checkpoint has to stay: a person pinned or tagged it, a job was started from it, another checkpoint was made from it.

Pins and uses are objects of their own beside the immutable manifest. A use is written before the job downloads the
checkpoint, so retention that looks later sees it; retention that looked earlier has deleted the manifest by then, and the
job ends before it starts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from launcher.store import layout, removal, tags
from launcher.store.reading import Checkpoint, Reader
from launcher.store.summary import Summary
from launcher.transfer.retry import call


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Keeps a checkpoint from retention until it is removed."""

    checkpoint: str
    name: str
    pinned: float
    """Unix seconds by the clock of who did it."""
    note: str = ""


class Use(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job (id and name) was started from a checkpoint."""

    checkpoint: str
    job: str
    name: str
    started: float


def pin(store: Reader, checkpoint: Checkpoint, note: str = "") -> None:
    """Pins a checkpoint; pinning it again replaces the note."""
    body = Pin(checkpoint.manifest.id, checkpoint.manifest.name, time.time(), note)
    call(lambda: store.place.put(layout.pin(body.checkpoint), msgspec.json.encode(body)), store.timeout)


def unpin(store: Reader, checkpoint: Checkpoint) -> None:
    """Removes the pin, if there is one."""
    removal.remove(store, [layout.pin(checkpoint.manifest.id)])


def pinned(store: Reader) -> set[str]:
    """Ids of the pinned checkpoints."""
    return {layout.identifier(entry.key) for entry in store.listing(layout.PINS)}


def use(store: Reader, identifier: str, job: str, name: str) -> None:
    """Writes down that a job is started from a checkpoint."""
    body = Use(identifier, job, name, time.time())
    call(lambda: store.place.put(layout.use(identifier, job), msgspec.json.encode(body)), store.timeout)


def reasons(store: Reader, living: Iterable[Summary]) -> dict[str, list[str]]:
    """Why checkpoints have to stay, by id; `living`: every checkpoint of the store (see `catalog`)."""
    found: dict[str, list[str]] = defaultdict(list)
    for identifier in pinned(store):
        found[identifier].append("pinned")
    for move in tags.every(store):
        found[move.checkpoint].append(f"tagged {move.tag}")
    for each in living:
        for parent in each.parents:
            found[parent].append(f"{each.label} was made from it")
    for entry in store.listing(layout.USES):
        job = entry.key.rpartition("/")[2].removesuffix(".json")
        found[layout.identifier(entry.key)].append(f"job {job} was started from it")
    return dict(found)


def needed_now(store: Reader, checkpoint: Checkpoint) -> bool:
    """Whether a pin, a use or a tag is there at this moment: asked again directly before retention deletes something."""
    identifier = checkpoint.manifest.id
    return (
        bool(store.listing(f"{layout.USES}{identifier}/"))
        or store.exists(layout.pin(identifier))
        or any(move.checkpoint == identifier for move in tags.every(store, checkpoint.manifest.name))
    )
