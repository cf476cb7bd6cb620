"""Checkpoints by hand: from a folder to the store, back, and is it whole."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher import __version__, names
from launcher.checkpoint import formats, paths, reference
from launcher.checkpoint.judgement import Judgement
from launcher.checkpoint.manifest import SCHEMA, Facts, Lineage, Manifest, Ready
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import AccessDenied, FormatBroken, LocalResourceError, SourceNotFound, UsageError
from launcher.events import Emit, event
from launcher.ids import new_id
from launcher.inputs.cache import NodeCache, fetch_files
from launcher.inputs.remote import Remote
from launcher.inputs.selection import Selection
from launcher.progress import Progress
from launcher.store import layout
from launcher.store.store import Checkpoint, Store
from launcher.store.upload import Changed, upload_files
from launcher.transfer.digest import Hasher
from launcher.transfer.object_store import Missing
from launcher.transfer.retry import call


def push(
    store: Store,
    name: str,
    path: str,
    *,
    threads: int,
    force: bool,
    emit: Emit,
    selection: Selection = Selection(),
    source: str = "",
) -> Checkpoint:
    """Stores a folder's content, or one file, as the next version of `name`. `source`: where it is from, if not `path`.

    Refused with FormatBroken where the files say that they are not whole, unless `force`. Symbolic links are followed
    nowhere: they and special files are named and left out.
    """
    names.check(name, "checkpoint name")
    tree = open_tree(path)
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
    store.prepare()
    identifier = new_id()
    with Progress(f"Pushing {name}", sum(tree.files.values()), emit) as progress:
        try:
            files = upload_files(store, identifier, tree.root, tree.files, threads=threads, on_bytes=progress.add)
        except Changed as error:
            raise LocalResourceError(what=f"{error} was changed while it was being pushed; push again.") from error
        except PermissionError as error:
            raise AccessDenied(what=str(error.filename), cause=error.strerror) from error
    format = formats.by_name(judgement.format)
    manifest = Manifest(
        schema=SCHEMA,
        id=identifier,
        name=names.check(name),
        created=time.time(),
        writer=__version__,
        format=judgement.format,
        files=files,
        size=sum(file.size for file in files),
        facts=format.facts(tree) if format else Facts(),
        ready=format.ready(tree) if format else Ready(),
        lineage=Lineage(sources=(source or os.path.abspath(os.path.expanduser(path)),)),
    )
    return store.commit(manifest)


def push_remote(
    store: Store, name: str, remote: Remote, cache: NodeCache, *, threads: int, force: bool, emit: Emit
) -> Checkpoint:
    """Stores what is somewhere else as the next version of `name`, through the node cache, where a job finds it again."""
    names.check(name, "checkpoint name")
    with Progress(f"Fetching {remote.url}", remote.size, emit) as progress:
        path, lease = cache.fetch_remote(remote, progress.add)
    try:
        return push(store, name, str(path), threads=threads, force=force, emit=emit, source=remote.url)
    finally:
        lease.release()


def fetch(store: Store, ref: str, destination: str | None, *, threads: int, emit: Emit) -> tuple[str, Checkpoint]:
    """Copies a checkpoint into a new or empty folder, every file verified; the folder appears whole, by one rename.

    Until then it is `<destination>.part`, with which a second call goes on where one was cut off.
    """
    found = store.resolve(ref)
    manifest = found.manifest
    target = Path(os.path.abspath(destination or manifest.name.rpartition("/")[2]))
    partial = target.with_name(f"{target.name}.part")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(what=f"{target} exists and is no empty folder.", hint="Choose a new one: --destination DIR.")
    if partial.is_dir() and not set(Folder.scan(str(partial)).files) <= {file.path for file in manifest.files}:
        raise UsageError(what=f"The folder {partial} holds other files.", hint="Remove it, or choose another place.")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with Progress(f"Fetching {found.label}", manifest.size, emit) as progress:
            fetch_files(store, manifest, partial, threads=threads, on_bytes=progress.add)
        for file in manifest.files:
            os.chmod(partial / file.path, file.mode | stat.S_IWUSR)
        partial.replace(target)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessDenied(what=str(target), cause=error.strerror) from error
        raise LocalResourceError(what=f"{target} cannot be written: {error.strerror}.") from error
    return str(target), found


def verify(target: str, store: Callable[[], Store], *, read_data: bool) -> dict[str, Any]:
    """The judgement on a folder, file or stored checkpoint: verdict, format, whole, reasons, facts."""
    ref = None if os.path.exists(target) else reference.parse(target)
    if ref is None or ref.kind == "path":
        tree: Tree = open_tree(target)
        judgement = formats.judge(tree)
    else:
        opened = store()
        found = opened.resolve(ref)
        stored = _Stored(opened, found.manifest)
        tree = stored
        judgement = formats.judge(tree)
        reasons = stored.damage(read_data)
        if reasons:
            judgement = Judgement("broken", judgement.format, tuple(reasons))
        elif judgement.verdict == "unknown":
            judgement = Judgement("whole", judgement.format)  # Committed, and every byte is as it was then.
    format = formats.by_name(judgement.format)
    import msgspec

    facts = msgspec.to_builtins(format.facts(tree)) if format else {}
    return {
        "format": judgement.format,
        "verdict": judgement.verdict,
        "whole": judgement.whole,
        "reasons": list(judgement.reasons),
        "facts": facts,
    }


def open_tree(path: str) -> Folder:
    """A folder or a single file as a tree. Raises SourceNotFound, AccessDenied."""
    path = os.path.abspath(os.path.expanduser(path))
    try:
        tree = Folder.scan(path) if os.path.isdir(path) else Folder.single(path)
    except FileNotFoundError as error:
        raise SourceNotFound(source=path, cause="there is no such file or folder") from error
    except PermissionError as error:
        raise AccessDenied(what=path, cause=error.strerror) from error
    if not tree.files:
        raise SourceNotFound(source=path, cause="the folder holds no file")
    return tree


class _Stored:
    """A stored checkpoint as a tree: headers are read by ranges."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        self._prefix = layout.files(manifest.id)
        self.files = {file.path: file.size for file in manifest.files}

    def read(self, path: str, start: int, length: int) -> bytes:
        try:
            length = min(length, self.files[path] - start)
            return call(lambda: self._store.place.read(self._prefix + path, start, length), self._store.timeout)
        except Missing as error:
            raise OSError(errno.ENOENT, "it is missing in the store") from error

    def damage(self, read_data: bool) -> list[str]:
        """Why the stored files are not those of the manifest."""
        stored = {entry.key: entry.size for entry in self._store.place.list(self._prefix)}
        reasons = []
        for file in self._manifest.files:
            size = stored.get(self._prefix + file.path)
            if size != file.size:
                reasons.append(
                    f"{file.path} is missing" if size is None else f"{file.path} has {size} of {file.size} bytes"
                )
        if read_data and not reasons:
            for file in self._manifest.files:
                hasher = Hasher()
                self._store.place.stream(self._prefix + file.path, 0, file.size, hasher.update)
                if hasher.digest != file.digest:
                    reasons.append(f"{file.path} has the digest {hasher.digest}, not {file.digest}")
        return reasons
