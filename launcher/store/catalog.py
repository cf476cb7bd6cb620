"""The catalog: one line for each checkpoint of a store, so that listing 100,000 of them reads neither 100,000 manifests nor
100,000 names. It is a cache three times over, and what is missing of it is made again from the manifests:

    <cache>/catalog/<store>.lines         this node's copy
    catalog/segments/<time>.<id>.zst      all lines as of a moment, written by whoever listed after many changes
    catalog/changes/<time>/<event>…       one empty object for each commit and delete: its key says all that a list shows

What a list shows must be true now. A commit writes its change after the name, a delete before the manifest goes (its tombstone
is there then, so it is decided). So whoever has the lines of a moment needs only the changes since, and the listing of the
manifests that are younger: that listing decides about everything younger than `MARGIN` before the moment, which covers a
writer that died before it wrote its change, and one that knows no catalog. Of an older checkpoint, a change says that it is
there, and then its manifest is asked; or that it is gone. Moments are times of the store's clock; a writer's clock may differ
by `MARGIN`. What is missed beyond that, gc writes down.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from launcher.checkpoint.manifest import ABORT_LIMIT, Manifest
from launcher.decoding import decode
from launcher.errors import AccessDenied, ManifestInvalid, StoreError
from launcher.ids import first_id, new_id
from launcher.store import layout
from launcher.store import summary as summaries
from launcher.store.summary import Summary
from launcher.transfer.digest import of_bytes
from launcher.transfer.object_store import Entry, Missing
from launcher.transfer.retry import call

if TYPE_CHECKING:
    from launcher.store.reading import Reader

SCHEMA = 1
MARGIN = 86400.0
"""Seconds that an upload may take, and a writer's clock be wrong, until the catalog needs more requests, or gc."""
_COMPACT_FROM = 1000
"""Changes since the newest segment after which another one is written, or the twentieth part of the lines if that is more."""
_MANY = 50
"""Checkpoints whose versions are looked up together, because that reads every name."""
_LARGEST = 1 << 31
"""Bytes of a segment's lines that a reader accepts."""


class _Head(msgspec.Struct, frozen=True):
    """The first line of a copy. `until`: everything that the store knew then is in it (Unix seconds by the store's clock);
    `change`: the youngest change that is in it, which must still be there: else it is another store's; `segment`: the key of
    the newest segment that is known; `since`: changes that are not in it; `digest`: of the lines."""

    schema: int
    until: float
    change: str
    segment: str
    since: int
    digest: str


@dataclass
class Lines:
    """The catalog of a moment. `lines`: JSON of a Summary each, in the order of ids."""

    lines: list[bytes] = field(default_factory=list)
    until: float = 0.0
    change: str = ""
    segment: str = ""
    since: int = 0

    def summaries(self, newest: int | None = None) -> list[Summary]:
        """The checkpoints in the order of ids (of capture), or only so many newest ones."""
        wanted = self.lines if newest is None else self.lines[max(0, len(self.lines) - newest) :]
        return summaries.decode_all(wanted)


def committed(store: Reader, manifest: Manifest, version: int) -> None:
    """Writes down a commit, after its name. Where that fails the catalog finds it by its manifest, or gc does."""
    with contextlib.suppress(StoreError, AccessDenied):
        _write(store, summaries.change(summaries.of_manifest(manifest, version), new_id()))


def deleted(store: Reader, identifier: str) -> None:
    """Writes down a delete that is decided, before its manifest goes. Raises StoreError, AccessDenied."""
    _write(store, f"{layout.change(new_id(), identifier)}.-")


def mend(store: Reader, committed_ids: Iterable[str], deleted_ids: Iterable[str]) -> None:
    """Writes down what no reader would learn otherwise: commits and deletes without a change, or with one whose writer's clock
    was wrong. Of these ids, all that are committed (and named) and all that are deleted."""
    there, gone = summaries.read_changes(entry for entry in store.listing(layout.CHANGES) if _in_time(entry))

    def one(identifier: str) -> None:
        with contextlib.suppress(Missing, ManifestInvalid):
            manifest = store.manifest(identifier, keep=False)
            if version := store.version_of(manifest):
                committed(store, manifest, version)

    list(store.map(one, sorted(set(committed_ids) - there.keys())))
    list(store.map(lambda each: deleted(store, each), sorted(set(deleted_ids) & there.keys() - gone)))


def _in_time(entry: Entry) -> bool:
    return not entry.modified or abs(summaries.told(entry) - entry.modified) <= MARGIN


def refresh(store: Reader) -> Lines:
    """The catalog as the store is now; leaves a copy on this node, and after many changes one in the store.

    Raises StoreUnavailable, StoreError, AccessDenied.
    """
    found = _local(store)
    lines = _refreshed(store, found) if found else None
    if lines is None:
        segment = _newest_segment(store)
        # Whatever store they are of: a line of an id is true for ever, where its manifest is there.
        lines = _refreshed(store, segment) or _refreshed(store, Lines((found or segment).lines))
    assert lines
    if lines.since > max(_COMPACT_FROM, len(lines.lines) // 20):
        _compact(store, lines)
    if lines != found:
        _keep(store, lines)
    return lines


def is_kept(store: Reader) -> bool:
    """Whether this node has a copy of the store's lines."""
    return store.index is not None and os.path.exists(path(os.path.dirname(store.index), store.url))


def kept(cache_dir: str, url: str) -> bytes:
    """This node's copy of a store's lines, as it was left: for completion, which asks no store. Empty where there is none."""
    try:
        with open(path(cache_dir, url), "rb") as file:
            file.readline()
            return file.read()
    except OSError:
        return b""


def _refreshed(store: Reader, base: Lines) -> Lines | None:
    """The lines of a moment, brought to now; None where they are not of this store."""
    young = first_id(base.until - MARGIN) if base.until else ""
    changes, manifests = store.listings(
        (layout.CHANGES, layout.before_change(young) if young else ""),
        (layout.MANIFESTS, layout.manifest(young).removesuffix(".json") if young else ""),
    )
    if base.change and not any(entry.key == base.change for entry in changes):
        return None
    there, gone = summaries.read_changes(changes)
    start = bisect.bisect_left(base.lines, _begin(young))
    old, have = base.lines[:start], {_id(line): line for line in base.lines[start:]}
    alive = {layout.identifier(entry.key) for entry in manifests if entry.size >= ABORT_LIMIT} - gone
    unknown = []
    for identifier in alive:
        fact = there.get(identifier)
        if fact:
            have[identifier] = summaries.encode(fact)
        elif identifier not in have or summaries.decode(have[identifier]).version is None:
            unknown.append(identifier)
    late = [each for each in there if each < young and each not in gone and not _is_named(old, each)]
    for line in _read(store, unknown + late, there):
        have[_id(line)] = line
        alive.add(_id(line))
    for identifier in (*gone, *late):
        if (place := _place(old, identifier)) is not None:
            del old[place]
    recent = sorted(line for identifier, line in have.items() if identifier in alive)
    if late:
        old, recent = sorted(old + recent), []
    return Lines(
        old + recent,
        max([base.until, *(min(summaries.told(entry), entry.modified) for entry in changes)]),
        changes[-1].key if changes else "",
        base.segment,
        base.since + sum(entry.key > base.change for entry in changes),
    )


def _read(store: Reader, identifiers: Sequence[str], there: Mapping[str, Summary | None]) -> list[bytes]:
    """The lines of checkpoints by their manifests; of what is gone or damaged there is none."""
    named = store.versions() if len(identifiers) > _MANY else {}

    def one(identifier: str) -> bytes | None:
        try:
            manifest = store.manifest(identifier, keep=False)
        except (Missing, ManifestInvalid):
            return None
        fact = there.get(identifier)
        version = fact.version if fact else named[identifier][0] if identifier in named else None
        return summaries.encode(
            summaries.of_manifest(manifest, version if version or named else store.version_of(manifest))
        )

    return [line for line in store.map(one, identifiers) if line]


def _local(store: Reader) -> Lines | None:
    if store.index is None:
        return None
    try:
        with open(path(os.path.dirname(store.index), store.url), "rb") as file:
            return _parse(file.read())
    except (OSError, ValueError):
        return None  # Absent or damaged: it is made again.


def _keep(store: Reader, lines: Lines) -> None:
    if store.index is None:
        return
    from launcher.job.record import write_atomically

    target = path(os.path.dirname(store.index), store.url)
    with contextlib.suppress(OSError):  # No room for a copy is no failure.
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_atomically(target, _body(lines), durable=False)


def _newest_segment(store: Reader) -> Lines:
    import zstandard

    for entry in reversed(store.listing(layout.SEGMENTS)):
        try:
            packed = store.get(entry.key)
            if zstandard.get_frame_parameters(packed).content_size > _LARGEST:
                continue
            found = _parse(zstandard.ZstdDecompressor().decompress(packed))
        except (Missing, ValueError, zstandard.ZstdError):
            continue  # Compacted away meanwhile, or damaged: an older one, or none, will do.
        return dataclasses.replace(found, segment=entry.key, since=0)
    return Lines()


def _compact(store: Reader, lines: Lines) -> None:
    """Leaves a segment for nodes that never saw the store, and removes those that nobody needs."""
    import zstandard

    with contextlib.suppress(StoreError, AccessDenied):  # Who may only read leaves it to others.
        keys = [entry.key for entry in store.listing(layout.SEGMENTS)]
        lines.since = 0
        if keys and keys[-1] > lines.segment:
            lines.segment = keys[-1]
            return
        lines.segment = layout.segment(lines.until, new_id())
        packed = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(_body(lines))
        store.place.put(lines.segment, packed)  # Once: where it fails, whoever lists next does it.
        if keys[:-1]:  # The newest one before stays for who reads it now.
            store.place.delete(keys[:-1])


def _body(lines: Lines) -> bytes:
    text = b"\n".join(lines.lines)
    head = _Head(SCHEMA, lines.until, lines.change, lines.segment, lines.since, of_bytes(text))
    return msgspec.json.encode(head) + b"\n" + text


def _parse(body: bytes) -> Lines:
    """Raises ValueError where it is damaged, or of another release."""
    first, _, text = body.partition(b"\n")
    head = decode(first, _Head)
    if head.schema != SCHEMA or head.digest != of_bytes(text):
        raise ValueError("it is damaged, or of another release")
    return Lines(text.split(b"\n") if text else [], head.until, head.change, head.segment, head.since)


def path(cache_dir: str, url: str) -> str:
    """Where this node keeps its copy of the catalog of a store."""
    return os.path.join(cache_dir, "catalog", f"{of_bytes(url.encode('utf-8', 'surrogateescape'))[-32:]}.lines")


def _write(store: Reader, key: str) -> None:
    call(lambda: store.place.put(key, b""), store.timeout)


def _begin(identifier: str) -> bytes:
    """How the line of a checkpoint begins, so that lines sort by id."""
    return f'["{identifier}'.encode()


def _id(line: bytes) -> str:
    return line[2:38].decode()


def _place(lines: Sequence[bytes], identifier: str) -> int | None:
    place = bisect.bisect_left(lines, _begin(identifier))
    return place if place < len(lines) and _id(lines[place]) == identifier else None


def _is_named(lines: Sequence[bytes], identifier: str) -> bool:
    place = _place(lines, identifier)
    return place is not None and summaries.decode(lines[place]).version is not None
