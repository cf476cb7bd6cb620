"""From a store on the same file system into the node cache without copying a byte: by reflinks, else by hard links.

A reflink is a file of its own and always safe. A hard link is the store's own file under another name, so it is only for a
job that cannot change it: root's or the caller's read-only file, on a rung that also holds its mode (see `protection`).

What this node wrote or read before, and nobody has written to since, is taken as it is (see `stamps`); every other file is read
whole and compared with the manifest, like everything that comes into the cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from launcher.checkpoint.manifest import File, Manifest
from launcher.errors import DigestMismatch
from launcher.reflink import make_reflink
from launcher.store import layout
from launcher.transfer import digest as digests
from launcher.transfer.local import LocalStore, Stamp, stamp
from launcher.transfer.object_store import ObjectStore, OnBytes

Way = Literal["reflink", "link"]
LINKED = "+linked"
"""The end of a cache entry's id whose files are hard links."""


def folder(place: ObjectStore, manifest: Manifest) -> Path | None:
    """The folder in which a local store has a checkpoint's files."""
    return Path(place.root) / layout.files(manifest.id) if isinstance(place, LocalStore) else None


def way(place: ObjectStore, manifest: Manifest, cache: Path, linkable: Callable[[], bool]) -> Way | None:
    """How the store's files can be shared with the cache: tried on one of the store. `linkable` says whether a hard link is safe
    for the job; asked only where it would be needed."""
    source = folder(place, manifest)
    if source is None or not manifest.files:
        return None
    file, probe = source / manifest.files[0].path, cache / f".share-{os.getpid()}"
    try:
        with open(file, "rb") as origin, open(probe, "wb") as made, contextlib.suppress(OSError):
            make_reflink(origin.fileno(), made.fileno())
            return "reflink"
        probe.unlink()
        if file.stat().st_mode & 0o222:
            return None
        # Not the file itself: a link changes its change time, by which it may be known.
        os.link(Path(place.url) / layout.manifest(manifest.id), probe)
        return "link" if linkable() else None
    except OSError:
        return None  # Another file system, or files of another user.
    finally:
        probe.unlink(missing_ok=True)


def share(
    source: Path, manifest: Manifest, target: Path, way: Way, known: Mapping[str, Stamp]
) -> tuple[list[File], dict[str, Stamp]]:
    """Puts every file below `target`. Returns those that had not the stamp that is known, or lost it meanwhile, which are to be
    verified; and what stamps these have. Raises OSError."""
    unproven, found = list[File](), dict[str, Stamp]()
    for file in manifest.files:
        path = target / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # An attempt that was cut off.
        with open(
            source / file.path, "rb", buffering=0
        ) as origin:  # Opening it asks a network file system for its times.
            before = stamp(os.fstat(origin.fileno()))
            if way == "link":
                os.link(source / file.path, path, follow_symlinks=False)
                after = stamp(path.stat(follow_symlinks=False))
                same = before[:3] == after[:3]  # The change time is that of our link.
            else:
                with open(path, "xb", buffering=0) as made:
                    make_reflink(origin.fileno(), made.fileno())
                    os.fchmod(made.fileno(), 0o444)
                after = stamp(os.fstat(origin.fileno()))
                same = before == after
        if not same or before != known.get(file.path):
            unproven.append(file)
            found |= {file.path: after} if same else {}
    return unproven, found


def unchanged(source: Path, stamps: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """Those of the stamps that the store's files have now. Raises OSError."""
    return {path: each for path, each in stamps.items() if stamp((source / path).stat(follow_symlinks=False)) == each}


def verify(files: Iterable[File], folder: Path, what: str, identifier: str, *, threads: int, on_bytes: OnBytes) -> None:
    """Reads every file of a checkpoint or dataset (`what`) whole. Raises DigestMismatch for one that is not what the manifest
    says, OSError."""

    def one(file: File) -> None:
        if digests.of_file(folder / file.path) != file.digest:
            raise DigestMismatch(path=file.path, what=what, id=identifier, cause="the store's file has other content")
        on_bytes(file.size)

    with ThreadPoolExecutor(threads, "verify") as pool:
        for _ in pool.map(one, files):
            pass
