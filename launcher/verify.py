"""Is it whole, what is it, and what would loading it run: of any folder, file, stored checkpoint or URL, by headers only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import msgspec

from launcher.checkpoint import formats, reference, safety
from launcher.checkpoint.judgement import Judgement
from launcher.checkpoint.manifest import Facts, Manifest, Ready
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import AccessDenied, DigestMismatch, SourceNotFound
from launcher.inputs.cache import fetch_file
from launcher.inputs.remote import RemoteTree, remote_tree
from launcher.store import layout
from launcher.store.store import Store
from launcher.transfer.object_store import Entry, ObjectStore
from launcher.transfer.places import open_place

NEIGHBOURS = 10_000
"""Objects of a folder among which a single one is looked for."""


def verify(
    target: str,
    store: Callable[[], Store],
    *,
    read_data: bool,
    timeout: float,
    threads: int,
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """What `launcher checkpoint verify` prints: format, verdict, whole, reasons, facts, ready, safety.

    `timeout`: seconds that one request to a remote place is tried again. Of a stored checkpoint the files must also be those of
    its manifest: in number and size, and with `read_data` in every byte. Raises SourceNotFound, CheckpointNotFound,
    AccessDenied, StoreError.
    """
    ref = None if os.path.exists(target) else reference.parse(target)
    damage: list[str] = []
    stored = False
    if ref is None or ref.kind == "path":
        tree: Tree = open_tree(target)
    elif ref.kind == "url":
        place, entries = _listed(ref.value, timeout, environ)
        tree = remote_tree(place, entries, timeout, threads, target)
    else:
        opened = store()
        manifest = opened.resolve(ref).manifest
        damage, stored = _damage(opened, manifest, read_data), True
        sizes = {file.path: file.size for file in manifest.files}
        tree = RemoteTree(opened.place, layout.files(manifest.id), sizes, opened.timeout)
        if not damage:
            tree.read_heads(threads)
    judgement = formats.judge(tree)
    if damage:
        judgement = Judgement("broken", judgement.format, tuple(damage))
    elif stored and judgement.verdict == "unknown":
        judgement = Judgement("whole", judgement.format)  # Committed, and every byte is as it was then.
    format = formats.by_name(judgement.format)
    found = safety.look(tree)
    return {
        "format": judgement.format,
        "verdict": judgement.verdict,
        "whole": judgement.whole,
        "reasons": list(judgement.reasons),
        "facts": msgspec.to_builtins(format.facts(tree) if format else Facts()),
        "ready": msgspec.to_builtins(format.ready(tree) if format and judgement.whole else Ready()),
        "safety": {"findings": list(found.findings), "imports": list(found.imports)},
    }


def _listed(url: str, timeout: float, environ: Mapping[str, str]) -> tuple[ObjectStore, list[Entry]]:
    """What lies below a URL; where that is nothing, the object of this name beside its neighbours."""
    place = open_place(url, timeout=timeout, environ=environ)
    entries = list(place.list(""))
    folder, _, name = url.rstrip("/").rpartition("/")
    if not entries and not folder.endswith("/"):
        place = open_place(folder, timeout=timeout, environ=environ)
        entries = [entry for entry in islice(place.list(""), NEIGHBOURS) if entry.key == name]
    return place, entries


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


def _damage(store: Store, manifest: Manifest, read_data: bool) -> list[str]:
    """Why the stored files are not those of the manifest."""
    prefix = layout.files(manifest.id)
    stored = {entry.key: entry.size for entry in store.place.list(prefix)}
    reasons = []
    for file in manifest.files:
        size = stored.get(prefix + file.path)
        if size is None:
            reasons.append(f"{file.path} is missing")
        elif size != file.size:
            reasons.append(f"{file.path} has {size} of {file.size} bytes")
    if read_data and not reasons:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="launcher-verify-") as folder:
            for file in manifest.files:
                try:
                    fetch_file(store, manifest, file, os.path.join(folder, "data"), lambda count: None)
                except DigestMismatch as error:
                    reasons.append(error.text)
    return reasons
