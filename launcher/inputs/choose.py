"""Which checkpoints the job gets, where each will be, and how it gets there: first all the checks, then the bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from launcher import names
from launcher.checkpoint import paths, policy, reference
from launcher.checkpoint.manifest import Dataset, Manifest
from launcher.checkpoint.policy import Policy
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import (
    AccessDenied,
    CheckpointNotFound,
    InputChanged,
    LauncherError,
    SourceNotFound,
    UsageError,
)
from launcher.events import Emit
from launcher.inputs import share
from launcher.inputs.cache import NodeCache, changes
from launcher.inputs.entries import Lease
from launcher.inputs.selection import Selection
from launcher.progress import Progress
from launcher.settings import Settings
from launcher.store import tree as trees
from launcher.store.store import Store
from launcher.transfer.object_store import OnBytes

if TYPE_CHECKING:
    from launcher.inputs.lazy import LazyInput
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
    dataset: Dataset | None = None
    """What it is as a dataset; None for a checkpoint."""

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
    """Canonical."""
    lease: Lease | None = None
    linked: str = ""
    """The local store's folder of which `path` has hard links; empty where it has none."""
    before: dict[str, State] = field(default_factory=dict)
    """For a local folder: what its files were, to see changes by the job."""
    lazy: LazyInput | None = None
    """Serves it while it arrives; `path` is then where it will be."""

    @property
    def same_bytes(self) -> set[str]:
        """The folders through which a job could reach this input's files, besides its own input directory."""
        if self.lazy:
            cache = os.path.dirname(os.path.dirname(self.path))
            return {os.path.dirname(self.path), os.path.join(cache, "partial")}
        return {os.path.dirname(self.path) if self.lease else self.path, *([self.linked] if self.linked else [])}


def choose(
    texts: Iterable[str],
    store: Store,
    settings: Settings,
    environ: Mapping[str, str],
    selection: Selection = Selection(),
) -> list[Chosen]:
    """Resolves every `REF` or `REF=FOLDER`. Raises CheckpointNotFound, SourceNotFound, UsageError."""

    def resolved(text: str, mounts: tuple[str, ...]) -> Chosen:
        return resolve(text, mounts, store, settings, environ, selection)

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


def resolve(
    text: str,
    mounts: tuple[str, ...],
    store: Store,
    settings: Settings,
    environ: Mapping[str, str],
    selection: Selection,
) -> Chosen:
    """Resolves one `REF`; `mounts`: its folders, if not those of its name. Raises what `choose` does."""
    ref = reference.parse(text)
    if ref.kind in ("url", "path"):
        return _not_stored(text, mounts, settings, environ, selection)
    found = store.resolve(ref).manifest
    own = (ref.mount_name,) if ref.mount_name == found.name or ref.kind != "id" else (ref.mount_name, found.name)
    if ref.kind == "name" and ref.value != found.name:  # chosen by the beginning of an id, or by a tag
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
    return _look(tree)


def findings_inside(provided: Provided) -> tuple[str, ...]:
    """The same of what came as an archive: nobody can look into one before it is unpacked."""
    packed = provided.chosen.remote and provided.chosen.remote.archive
    return _look(Folder.scan(provided.path)) if packed else ()


def _look(tree: Tree) -> tuple[str, ...]:
    from launcher.checkpoint import safety  # 40 ms, and mostly a manifest knows.

    return safety.look(tree).findings


def provide(
    chosen: Chosen,
    store: Store,
    cache: NodeCache,
    on_bytes: OnBytes,
    linkable: Callable[[], bool] = lambda: False,
    lazily: Callable[[Manifest, str], LazyInput] | None = None,
) -> Provided:
    """Brings an input's bytes to this machine, verified. `linkable`: see `NodeCache.fetch`. `lazily`: starts what serves a
    stored checkpoint (of which the text is the selection) while it arrives; not called where all of it is at hand."""
    if chosen.manifest and lazily and not cache.at_hand(store, chosen.manifest, linkable, part=chosen.part):
        server = lazily(chosen.manifest, chosen.part)
        if server.wait(lambda: on_bytes(0)):
            path = cache.entry(cache.identifier(chosen.manifest, chosen.part))
            return Provided(chosen, str(path), lazy=server)
    if chosen.manifest:
        path, lease = cache.fetch(store, chosen.manifest, on_bytes, linkable, part=chosen.part)
        linked = share.folder(store.place, chosen.manifest) if path.name.endswith(share.LINKED) else ""
        return Provided(chosen, str(path), lease, os.path.realpath(linked) if linked else "")
    if chosen.remote:
        path, lease = cache.fetch_remote(chosen.remote, on_bytes)
        return Provided(chosen, str(path), lease)
    assert chosen.folder
    return Provided(chosen, os.path.realpath(chosen.folder), before=_states(chosen.folder))


def bring(
    text: str,
    store: Store,
    settings: Settings,
    environ: Mapping[str, str],
    cache: NodeCache,
    emit: Emit,
    *,
    selection: Selection = Selection(),
    pickles: Policy = "warn",
) -> Provided:
    """One checkpoint for whoever reads it on this machine and is no job: resolved, looked into, brought here, leased.

    Raises what `resolve` and `provide` do, and UnsafePickle.
    """
    chosen = resolve(text, (), store, settings, environ, selection)
    found = findings(chosen, store, settings)
    policy.refuse(found, pickles, text)
    policy.warn(found, pickles, text, emit)
    with Progress(f"Fetching {text}", chosen.size, emit) as progress:
        provided = provide(chosen, store, cache, progress)
    try:
        found = findings_inside(provided)
        policy.refuse(found, pickles, text)
        policy.warn(found, pickles, text, emit)
    except LauncherError:
        if provided.lease:
            provided.lease.release()
        raise
    return provided


def expected(chosen: Chosen, cache: NodeCache) -> tuple[Provided, int]:
    """An input as `provide` would bring it, and how many bytes of it would have to come, at most. Nothing is fetched or made."""
    if chosen.folder:
        return Provided(chosen, os.path.realpath(chosen.folder)), 0
    if chosen.manifest:
        identifier = cache.identifier(chosen.manifest, chosen.part)
    else:
        assert chosen.remote
        identifier = cache.identifier_of(chosen.remote)
    there = cache.there(identifier)
    return Provided(chosen, str(there or cache.entry(identifier))), 0 if there else chosen.size


def verify(provided: Provided, cache: NodeCache, rung: str) -> None:
    """After a job on a rung that does not keep everything from it: raises InputChanged, and drops the cache's copy, where it
    did change something. Content is read again but where Landlock protected it."""
    cause = ""
    if provided.chosen.manifest and rung != "landlock":
        cause = next(iter(changes(provided.path, provided.chosen.manifest)), "")
    if not cause and provided.lease:
        cause = _younger(provided.path, provided.lease.since)
    if provided.before:
        cause = _difference(provided.before, _states(provided.path), links=rung != "landlock")
    if not cause:
        return
    if provided.lease:
        cache.drop(os.path.basename(provided.path))
    what = "dataset" if provided.chosen.dataset else "checkpoint"
    raise InputChanged(what=what, name=provided.chosen.names[0], cause=cause)


class State(NamedTuple):
    """What a job can change of a file: times in ns."""

    inode: int
    size: int
    modified: int
    mode: int
    owner: int
    group: int
    changed: int


def _younger(folder: str, since: int) -> str:
    """What was changed in a cache entry after `since` (ns): whatever is written, renamed or set sets the inode's change time,
    which no call can set back."""
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):
            if os.lstat(path).st_ctime_ns > since:
                return f"{os.path.relpath(path, folder)} was changed (content, mode, owner, times or attributes)"
    return ""


def _states(folder: str) -> dict[str, State]:
    result = {}
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            result[os.path.relpath(path, folder)] = State(
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_ctime_ns,
            )
    return result


def _difference(before: dict[str, State], after: dict[str, State], *, links: bool) -> str:
    """How a folder differs from what it was. `links`: also where only the change time differs, as after a new hard link."""
    for path in sorted(before.keys() | after.keys()):
        if path not in after or path not in before:
            return f"{path} was {'removed' if path in before else 'added'}"
        if before[path][:-1] != after[path][:-1] or (links and before[path] != after[path]):
            return f"{path} is another file, or its size, times, mode, owner or attributes are other ones"
    return ""
