"""Which checkpoints the job gets, where each will be, and how it gets there: first all the checks, then the bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint import paths, reference, safety
from launcher.checkpoint.manifest import Manifest
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import AccessDenied, CheckpointNotFound, InputChanged, SourceNotFound, UsageError
from launcher.inputs.cache import Lease, NodeCache
from launcher.inputs.remote import RemoteTree, remote_tree
from launcher.settings import Settings
from launcher.store import layout
from launcher.store.store import Store
from launcher.transfer import digest as digests
from launcher.transfer.object_store import Entry, ObjectStore, OnBytes
from launcher.transfer.places import open_place


@dataclass(frozen=True)
class Chosen:
    """A resolved input: exactly one of `manifest` (in the store), `folder` (a local path) and `remote` (a URL) is set."""

    text: str
    names: tuple[str, ...]
    """Folders below the input directory at which the job finds it."""
    manifest: Manifest | None = None
    folder: str | None = None
    remote: tuple[ObjectStore, tuple[Entry, ...]] | None = None

    @property
    def size(self) -> int:
        """Bytes; 0 for a local folder, which is not copied."""
        if self.manifest:
            return self.manifest.size
        return sum(entry.size for entry in self.remote[1]) if self.remote else 0


@dataclass(frozen=True)
class Provided:
    """An input that is on this machine, ready to be mounted."""

    chosen: Chosen
    path: str
    lease: Lease | None
    before: dict[str, tuple[int, int, int]]
    """For a local folder: path to (size, mtime in ns, inode), to see changes by the job."""


def choose(texts: Iterable[str], store: Store, settings: Settings, environ: Mapping[str, str]) -> list[Chosen]:
    """Resolves every `REF` or `REF=FOLDER`. Raises CheckpointNotFound, SourceNotFound, UsageError."""
    chosen = [_one(text, store, settings, environ) for text in texts]
    taken: dict[str, str] = {}
    for each in chosen:
        for name in each.names:
            for other, text in taken.items():
                if name == other or name.startswith(f"{other}/") or other.startswith(f"{name}/"):
                    raise UsageError(
                        what=f"-C {each.text} and -C {text} would be at the same place ({name}).",
                        hint="Give one another folder: -C REF=FOLDER.",
                    )
            taken[name] = each.text
    return chosen


def _one(text: str, store: Store, settings: Settings, environ: Mapping[str, str]) -> Chosen:
    try:
        return _resolved(text, (), store, settings, environ)
    except (CheckpointNotFound, SourceNotFound, UsageError):
        ref, equals, folder = text.rpartition("=")  # Lightning's names hold `=`, so the whole text was tried first.
        if not equals or not ref or not folder:
            raise
        try:
            paths.check(folder)
            return _resolved(ref, (folder,), store, settings, environ)
        except CheckpointNotFound as error:
            raise CheckpointNotFound(ref=ref, store=store.url, hint=error.hint) from None


def _resolved(
    text: str, names: tuple[str, ...], store: Store, settings: Settings, environ: Mapping[str, str]
) -> Chosen:
    ref = reference.parse(text)
    if ref.kind == "path":
        folder = os.path.abspath(os.path.expanduser(ref.value))
        if not os.path.isdir(folder):
            cause = (
                "it is a file; give the folder that holds it" if os.path.exists(folder) else "there is no such folder"
            )
            raise SourceNotFound(source=text, cause=cause)
        try:
            if not os.listdir(folder):
                raise SourceNotFound(source=text, cause="the folder is empty")
        except PermissionError as error:
            raise AccessDenied(what=folder, cause=error.strerror) from error
        return Chosen(text, names or (reference.parse(folder).mount_name,), folder=folder)
    if ref.kind == "url":
        place = open_place(ref.value, timeout=settings.store_timeout, environ=environ)
        entries = tuple(place.list(""))
        if not entries:
            raise SourceNotFound(source=text, cause="nothing is there")
        paths.check_all(entry.key for entry in entries)
        return Chosen(text, names or (ref.mount_name,), remote=(place, entries))
    found = store.resolve(ref).manifest
    own = (ref.mount_name,) if ref.mount_name == found.name or ref.kind != "id" else (ref.mount_name, found.name)
    if ref.kind == "name" and ref.value != found.name:  # chosen by the beginning of an id
        own = (ref.value, found.name)
    return Chosen(text, names or own, manifest=found)


def findings(chosen: Chosen, store: Store, settings: Settings) -> tuple[str, ...]:
    """What the input's pickles hold that is not known to be harmless: by its manifest, else by a look at their headers."""
    tree: Tree
    if chosen.manifest:
        if chosen.manifest.safety is not None:
            return chosen.manifest.safety
        sizes = {file.path: file.size for file in chosen.manifest.files}
        tree = RemoteTree(store.place, layout.files(chosen.manifest.id), sizes, settings.store_timeout)
    elif chosen.remote:
        tree = remote_tree(*chosen.remote, settings.store_timeout, settings.transfer_threads, chosen.text)
    else:
        assert chosen.folder
        tree = Folder.scan(chosen.folder)
    return safety.look(tree).findings


def provide(chosen: Chosen, store: Store, cache: NodeCache, on_bytes: OnBytes) -> Provided:
    """Brings an input's bytes to this machine, verified."""
    if chosen.manifest:
        path, lease = cache.fetch(store, chosen.manifest, on_bytes)
        return Provided(chosen, str(path), lease, {})
    if chosen.remote:
        path, lease = cache.fetch_remote(*chosen.remote, on_bytes)
        return Provided(chosen, str(path), lease, {})
    assert chosen.folder
    return Provided(chosen, chosen.folder, None, _state(chosen.folder))


def verify(provided: Provided, cache: NodeCache) -> None:
    """After a job that nothing kept from writing: raises InputChanged, and drops the cache's copy, where it did write."""
    cause = ""
    if provided.chosen.manifest:
        found = {str(path.relative_to(provided.path)) for path in Path(provided.path).rglob("*") if not path.is_dir()}
        listed = {file.path: file for file in provided.chosen.manifest.files}
        for path in sorted(found ^ listed.keys()):
            cause = f"{path} was {'added' if path in found else 'removed'}"
        for path in sorted(found & listed.keys()):
            if digests.of_file(os.path.join(provided.path, path)) != listed[path].digest:
                cause = f"{path} has other content"
    elif provided.before and _state(provided.path) != provided.before:
        cause = "a file's size, time or identity is another one than before"
    if not cause:
        return
    if provided.chosen.manifest:
        cache.drop(provided.chosen.manifest.id)
    raise InputChanged(name=provided.chosen.names[0], cause=cause)


def _state(folder: str) -> dict[str, tuple[int, int, int]]:
    result = {}
    for parent, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(parent, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            result[os.path.relpath(path, folder)] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return result
