"""Checkpoints by hand: from a folder to the store and back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from launcher import __version__, names
from launcher.checkpoint import formats, paths, policy, safety
from launcher.checkpoint.manifest import SCHEMA, Facts, Lineage, Manifest, Ready
from launcher.checkpoint.policy import Policy
from launcher.checkpoint.tree import Folder
from launcher.errors import AccessDenied, FormatBroken, LocalResourceError, SourceNotFound, UsageError, of_os
from launcher.events import Emit, event
from launcher.inputs.cache import NodeCache, fetch_files
from launcher.inputs.selection import Selection
from launcher.progress import Progress
from launcher.settings import Settings
from launcher.store.journal import Journal
from launcher.store.store import Aborted, Checkpoint, Store
from launcher.store.upload import Changed, upload_files
from launcher.verify import open_tree

if TYPE_CHECKING:
    from launcher.inputs.remote import Remote


def push(
    store: Store,
    name: str,
    path: str,
    *,
    threads: int,
    force: bool,
    emit: Emit,
    parents: Sequence[str] = (),
    pickles: Policy = "warn",
    selection: Selection = Selection(),
    source: str = "",
    sha256: Mapping[str, str] | None = None,
    data_dir: str = "",
) -> Checkpoint:
    """Stores a folder's content, or one file, as the next version of `name`, unless the newest version is the same.

    `source`: where it is from, if not from `path`; `sha256`: of its files, as far as they are known there. `parents`: ids of
    the checkpoints that it was made from. Refused with FormatBroken where the files say that they are not whole, unless
    `force`; with UnsafePickle where its pickles have findings and `pickles` is deny. Symbolic links are followed nowhere:
    they and special files are named and left out.

    `data_dir`: where a journal is kept, so that the same call goes on where one was cut off; without it, nothing is.
    """
    name = names.check(name, "checkpoint name")
    tree = open_tree(path)
    lineage = Lineage(tuple(parents), (source or os.path.abspath(os.path.expanduser(path)),))
    if selection:
        tree = Folder(
            tree.root, {path: size for path, size in tree.files.items() if selection.takes(path)}, tree.others
        )
        if not tree.files:
            raise SourceNotFound(source=path, cause="no file of it is taken")
    judgement = formats.judge(tree)
    if not judgement.whole and judgement.verdict != "unknown" and not force:
        raise FormatBroken(
            source=source or path,
            cause="; ".join(judgement.reasons[:3]),
            hint="Push it all the same with --force, if it is what you mean.",
        )
    for other in tree.others:
        emit(event("left-out", f"Left out, because it is a link or no file: {other}", "warning"))
    paths.check_all(tree.files)
    found = safety.look(tree)
    policy.refuse(found.findings, pickles, name)
    policy.warn(found.findings, pickles, name, emit)
    format = formats.by_name(judgement.format)

    def about() -> dict[str, Any]:
        return {
            "format": judgement.format,
            "facts": format.facts(tree) if format else Facts(),
            "ready": format.ready(tree) if format else Ready(),
            "lineage": lineage,
            "safety": found.findings,
            "imports": found.imports,
        }

    words = (name, *lineage.sources, selection.text)
    return push_files(
        store,
        name,
        tree.files,
        sha256 or {},
        about,
        words,
        root=tree.root,
        threads=threads,
        emit=emit,
        data_dir=data_dir,
    )


def push_files(
    store: Store,
    name: str,
    sizes: Mapping[str, int],
    sha256: Mapping[str, str],
    about: Callable[[], dict[str, Any]],
    words: tuple[str, ...],
    *,
    root: str,
    opened: Callable[[str], int] | None = None,
    threads: int,
    emit: Emit,
    data_dir: str,
) -> Checkpoint:
    """Uploads files (path to size) from `root`, or as `opened` gives their descriptors, and commits the manifest. `sha256`: what
    the source gave, by path; `about`: what else the manifest says, asked for when all is there. Called again with the same
    `words` it goes on where it was cut off."""
    store.prepare()
    with Journal(store, data_dir, words) as journal:
        if known := journal.begin(sizes):
            text = f"Going on with a push that was cut off: {len(known)} of {len(sizes)} files are in the store"
            emit(event("push-goes-on", text, files=len(known), size=sum(file.size for file in known)))
        while True:
            with Progress(f"Pushing {name}", sum(sizes.values()), emit) as progress:
                try:
                    files = upload_files(
                        store, journal.id, root, sizes, threads=threads, on_bytes=progress, opened=opened,
                        journal=journal,
                    )  # fmt: skip
                except Changed as error:
                    raise LocalResourceError(
                        what=f"{error} was changed while it was being pushed; push again."
                    ) from error
                except PermissionError as error:
                    raise AccessDenied(what=str(error.filename), cause=error.strerror) from error
                except OSError as error:
                    cause = f"{error.filename or 'A file'} cannot be read: {error.strerror}."
                    raise LocalResourceError(what=cause, hint="Nothing was stored. Push again.") from error
            manifest = Manifest(
                schema=SCHEMA,
                id=journal.id,
                name=name,
                created=time.time(),
                writer=__version__,
                files=tuple(msgspec.structs.replace(file, sha256=sha256.get(file.path, "")) for file in files),
                size=sum(file.size for file in files),
                **about(),
            )
            try:
                pushed = store.commit(manifest)
            except Aborted:
                journal.restart()  # gc took us for dead and removed the files: everything again, under a new id.
                continue
            journal.finish()
            return pushed


def push_remote(
    store: Store,
    name: str,
    remote: Remote,
    cache: NodeCache,
    *,
    threads: int,
    force: bool,
    emit: Emit,
    parents: Sequence[str] = (),
    pickles: Policy = "warn",
    data_dir: str = "",
) -> Checkpoint:
    """Stores what is somewhere else as the next version of `name`, through the node cache, where a job finds it again."""
    name = names.check(name, "checkpoint name")
    with Progress(f"Fetching {remote.url}", remote.size, emit) as progress:
        path, lease = cache.fetch_remote(remote, progress)
    try:
        return push(
            store,
            name,
            str(path),
            threads=threads,
            force=force,
            emit=emit,
            parents=parents,
            pickles=pickles,
            source=remote.url,
            sha256=remote.sha256,
            data_dir=data_dir,
        )
    finally:
        lease.release()


def push_source(
    store: Store,
    name: str,
    source: str,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    selection: Selection,
    force: bool,
    emit: Emit,
    parents: Sequence[str],
    pickles: Policy,
) -> Checkpoint:
    """Stores what `source` names: a folder, a file, an archive, a URL, storage:NAME/PATH. See `push`."""
    from launcher.inputs import remote

    threads, data_dir = settings.transfer_threads, settings.data_dir
    found = remote.of_text(source, selection, settings, environ)
    if found:
        return push_remote(
            store, name, found, NodeCache.open(settings, emit), threads=threads, force=force, emit=emit, parents=parents,
            pickles=pickles, data_dir=data_dir,
        )  # fmt: skip
    return push(
        store, name, remote.local_path(source), threads=threads, force=force, emit=emit, parents=parents, pickles=pickles,
        selection=selection, data_dir=data_dir,
    )  # fmt: skip


def fetch(store: Store, ref: str, destination: str | None, *, threads: int, emit: Emit) -> tuple[str, Checkpoint]:
    """Copies a checkpoint into a new or empty folder, every file verified; the folder appears whole, by one rename.

    Until then it is `<destination>.part`, with which a second call goes on where one was cut off.
    """
    found = store.resolve(ref)
    manifest = found.manifest
    if destination == "":
        raise UsageError(what="--destination is empty.", hint="Leave it out where ./<name> is meant.")
    target = Path(os.path.abspath(destination or manifest.name.rpartition("/")[2]))
    partial = target.with_name(f"{target.name}.part")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(what=f"{target} exists and is no empty folder.", hint="Choose a new one: --destination DIR.")
    if partial.is_dir() and not set(Folder.scan(str(partial)).files) <= {file.path for file in manifest.files}:
        raise UsageError(what=f"The folder {partial} holds other files.", hint="Remove it, or choose another place.")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with Progress(f"Fetching {found.label}", manifest.size, emit) as progress:
            fetch_files(store, manifest, partial, threads=threads, on_bytes=progress, writable=True)
        partial.replace(target)
    except OSError as error:
        raise of_os(error, str(target)) from error
    return str(target), found
