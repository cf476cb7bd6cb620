"""Checkpoints by hand: from a folder to the store and back."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

from launcher import __version__, names
from launcher.checkpoint import formats, paths, safety
from launcher.checkpoint.manifest import SCHEMA, Facts, Manifest, Ready
from launcher.checkpoint.safety import Policy
from launcher.checkpoint.tree import Folder
from launcher.errors import AccessDenied, FormatBroken, LocalResourceError, UsageError
from launcher.events import Emit, event
from launcher.ids import new_id
from launcher.inputs.cache import fetch_file
from launcher.progress import Progress
from launcher.store.store import Checkpoint, Store
from launcher.store.upload import Changed, upload_files
from launcher.verify import open_tree


def push(
    store: Store, name: str, path: str, *, threads: int, force: bool, emit: Emit, pickles: Policy = "warn"
) -> Checkpoint:
    """Stores a folder's content, or one file, as the next version of `name`.

    Refused with FormatBroken where the files say that they are not whole, unless `force`; with UnsafePickle where its pickles
    have findings and `pickles` is deny. Symbolic links are followed nowhere: they and special files are named and left out.
    """
    names.check(name, "checkpoint name")
    tree = open_tree(path)
    judgement = formats.judge(tree)
    if not judgement.whole and judgement.verdict != "unknown" and not force:
        raise FormatBroken(
            source=path,
            cause="; ".join(judgement.reasons[:3]),
            hint="Push it all the same with --force, if it is what you mean.",
        )
    for other in tree.others:
        emit(event("left-out", f"Left out, because it is a link or no file: {other}", "warning"))
    paths.check_all(tree.files)
    found = safety.look(tree)
    safety.refuse(found.findings, pickles, name)
    safety.warn(found.findings, pickles, name, emit)
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
        safety=found.findings,
        imports=found.imports,
    )
    return store.commit(manifest)


def fetch(store: Store, ref: str, destination: str | None, *, threads: int, emit: Emit) -> tuple[str, Checkpoint]:
    """Copies a checkpoint into a new or empty folder, every file verified. A second call goes on where one was cut off."""
    found = store.resolve(ref)
    manifest = found.manifest
    target = os.path.abspath(destination or manifest.name.rpartition("/")[2])
    known = {file.path for file in manifest.files}
    if os.path.isdir(target) and not set(Folder.scan(target).files) <= known:
        raise UsageError(
            what=f"The folder {target} holds other files.", hint="Choose a new one with --destination DIR."
        )
    try:
        for file in manifest.files:
            Path(target, file.path).parent.mkdir(parents=True, exist_ok=True)
        with Progress(f"Fetching {found.label}", manifest.size, emit) as progress:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(
                    lambda file: fetch_file(store, manifest, file, os.path.join(target, file.path), progress.add),
                    manifest.files,
                ):
                    pass
        for file in manifest.files:
            os.chmod(os.path.join(target, file.path), file.mode | stat.S_IWUSR)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessDenied(what=target, cause=error.strerror) from error
        raise LocalResourceError(what=f"{target} cannot be written: {error.strerror}.") from error
    return target, found
