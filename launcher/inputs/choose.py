"""Which checkpoints the job gets, where each will be, and how it gets there: first all the checks, then the bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from launcher import names
from launcher.checkpoint import paths, reference, safety
from launcher.checkpoint.manifest import Manifest
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import AccessDenied, CheckpointNotFound, InputChanged, SourceNotFound, UsageError
from launcher.inputs.cache import NodeCache, changes
from launcher.inputs.entries import Lease
from launcher.inputs.selection import Selection
from launcher.settings import Settings
from launcher.store import tree as trees
from launcher.store.store import Store
from launcher.transfer.object_store import OnBytes

if TYPE_CHECKING:
    from launcher.inputs.remote import Remote


@dataclass(frozen=True)
class Chosen:
    """A resolved input: exactly one of `manifest` (in the store; only the files that are taken), `folder` (a local path) and
    `remote` (a URL, an archive) is set."""

    text: str
    names: tuple[str, ...]
    """Folders below the input directory at which the job finds it."""
    manifest: Manifest | None = None
    folder: str | None = None
    remote: Remote | None = None
    part: str = ""
    """Of a stored checkpoint: the selection, where it is not taken whole."""

    @property
    def source(self) -> str:
        """Where it came from, for the lineage: a URL pinned to what was found, without credentials."""
        return self.remote.url if self.remote else self.text

    @property
    def size(self) -> int:
        """Bytes; 0 for a local folder, which is not copied."""
        if self.manifest:
            return self.manifest.size
        return self.remote.size if self.remote else 0


@dataclass(frozen=True)
class Provided:
    """An input that is on this machine, ready to be mounted."""

    chosen: Chosen
    path: str
    lease: Lease | None
    before: dict[str, tuple[int, int, int]]
    """For a local folder: path to (size, mtime in ns, inode), to see changes by the job."""


def choose(
    texts: Iterable[str],
    store: Store,
    settings: Settings,
    environ: Mapping[str, str],
    selection: Selection = Selection(),
) -> list[Chosen]:
    """Resolves every `REF` or `REF=FOLDER`. Raises CheckpointNotFound, SourceNotFound, UsageError."""

    def resolved(text: str, mounts: tuple[str, ...]) -> Chosen:
        return _resolved(text, mounts, store, settings, environ, selection)

    chosen = [_one(text, resolved, store) for text in texts]
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


def _one(text: str, resolved: Callable[[str, tuple[str, ...]], Chosen], store: Store) -> Chosen:
    try:
        return resolved(text, ())
    except (CheckpointNotFound, SourceNotFound, UsageError):
        ref, equals, folder = text.rpartition("=")  # Lightning's names hold `=`, so the whole text was tried first.
        if not equals or not ref or not folder:
            raise
        try:
            paths.check(folder)
            return resolved(ref, (folder,))
        except CheckpointNotFound as error:
            raise CheckpointNotFound(ref=ref, store=store.url, hint=error.hint) from None


def _resolved(
    text: str,
    mounts: tuple[str, ...],
    store: Store,
    settings: Settings,
    environ: Mapping[str, str],
    selection: Selection,
) -> Chosen:
    ref = reference.parse(text)
    if ref.kind in ("url", "path"):
        return _not_stored(text, mounts, settings, environ, selection)
    found = store.resolve(ref).manifest
    own = (ref.mount_name,) if ref.mount_name == found.name or ref.kind != "id" else (ref.mount_name, found.name)
    if ref.kind == "name" and ref.value != found.name:  # chosen by the beginning of an id
        own = (ref.value, found.name)
    files = tuple(file for file in found.files if selection.takes(file.path))
    if not files:
        raise SourceNotFound(
            source=text, cause="none of its files is taken", hint="Check --include, --exclude, --only."
        )
    found = msgspec.structs.replace(found, files=files, size=sum(file.size for file in files))
    return Chosen(text, mounts or own, manifest=found, part=selection.text)


def _not_stored(
    text: str, mounts: tuple[str, ...], settings: Settings, environ: Mapping[str, str], selection: Selection
) -> Chosen:
    """A folder here, or what has to be fetched or unpacked first."""
    from launcher.inputs import remote  # HTTP, archives and the hub cost some 30 ms of imports

    found = remote.of_text(text, selection, settings, environ)
    folder = os.path.abspath(os.path.expanduser(remote.local_path(text)))
    if not found:
        _check_folder(text, folder)
    if not found and selection:
        found = remote.of_path(folder, selection, settings.store_timeout)
    if found:
        return Chosen(text, mounts or (names.clean(found.name or "checkpoint"),), remote=found)
    return Chosen(text, mounts or (reference.parse(folder).mount_name,), folder=folder)


def _check_folder(text: str, folder: str) -> None:
    if not os.path.isdir(folder):
        cause = "it is a file; give the folder that holds it" if os.path.exists(folder) else "there is no such folder"
        raise SourceNotFound(source=text, cause=cause)
    try:
        if not os.listdir(folder):
            raise SourceNotFound(source=text, cause="the folder is empty")
    except PermissionError as error:
        raise AccessDenied(what=folder, cause=error.strerror) from error


def findings(chosen: Chosen, store: Store, settings: Settings) -> tuple[str, ...]:
    """What the input's pickles hold that is not known to be harmless: by its manifest, else by a look at their headers."""
    tree: Tree
    if chosen.manifest:
        if chosen.manifest.safety is not None and not chosen.part:
            return chosen.manifest.safety
        tree = trees.tree_of(store, chosen.manifest)
    elif chosen.remote and chosen.remote.archive:
        return ()  # Looked at when it is unpacked: `findings_inside`.
    elif chosen.remote:
        place, entries = chosen.remote.place, chosen.remote.entries
        tree = trees.remote_tree(place, entries, settings.store_timeout, settings.transfer_threads, chosen.text)
    else:
        assert chosen.folder
        tree = Folder.scan(chosen.folder)
    return safety.look(tree).findings


def findings_inside(provided: Provided) -> tuple[str, ...]:
    """The same of what came as an archive: nobody can look into one before it is unpacked."""
    packed = provided.chosen.remote and provided.chosen.remote.archive
    return safety.look(Folder.scan(provided.path)).findings if packed else ()


def provide(chosen: Chosen, store: Store, cache: NodeCache, on_bytes: OnBytes) -> Provided:
    """Brings an input's bytes to this machine, verified."""
    if chosen.manifest:
        path, lease = cache.fetch(store, chosen.manifest, on_bytes, part=chosen.part)
        return Provided(chosen, str(path), lease, {})
    if chosen.remote:
        path, lease = cache.fetch_remote(chosen.remote, on_bytes)
        return Provided(chosen, str(path), lease, {})
    assert chosen.folder
    return Provided(chosen, chosen.folder, None, _state(chosen.folder))


def verify(provided: Provided, cache: NodeCache) -> None:
    """After a job that nothing kept from writing: raises InputChanged, and drops the cache's copy, where it did write."""
    cause = ""
    if provided.chosen.manifest:
        cause = next(iter(changes(provided.path, provided.chosen.manifest)), "")
    elif provided.before and _state(provided.path) != provided.before:
        cause = "a file's size, time or identity is another one than before"
    if not cause:
        return
    if provided.chosen.manifest:
        cache.drop(os.path.basename(provided.path))
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
