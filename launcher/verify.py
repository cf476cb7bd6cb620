"""Is it whole, what is it, and what would loading it run: of any folder, file, stored checkpoint or URL, by headers only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from launcher.checkpoint import formats, reference, safety
from launcher.checkpoint.judgement import Judgement
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import AccessDenied, SourceNotFound, UsageError
from launcher.settings import Settings
from launcher.store import layout
from launcher.store import tree as trees
from launcher.store.store import Store


def verify(
    target: str,
    store: Callable[[], Store],
    *,
    read_data: bool,
    settings: Settings,
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """What `launcher checkpoint verify` prints: format, verdict, whole, reasons, facts, ready, safety.

    Of a stored checkpoint the files must also be those of
    its manifest: in number and size, and with `read_data` in every byte. Raises SourceNotFound, CheckpointNotFound,
    AccessDenied, StoreError.
    """
    ref = None if os.path.exists(target) else reference.parse(target)
    damage: list[str] = []
    stored = False
    if ref is None or ref.kind == "path":
        tree: Tree = open_tree(target)
    elif ref.kind == "url":
        from launcher.inputs import remote
        from launcher.inputs.selection import Selection

        found = remote.find(ref.value, Selection(), settings, environ)
        if found.archive:
            raise UsageError(
                what=f"{found.url} is an archive; nobody can look into it from outside.", hint="Push it, and see."
            )
        tree = trees.remote_tree(found.place, found.entries, settings.store_timeout, settings.transfer_threads, target)
    else:
        opened = store()
        manifest = opened.resolve(ref).manifest
        prefix = layout.files(manifest.id)
        sizes = {entry.key: entry.size for entry in opened.listing(prefix)}
        wrong = trees.damage(opened, manifest, sizes, read_data=read_data)
        damage, stored = [f"{key.removeprefix(prefix)}: {cause}" for key, cause in wrong.items()], True
        tree = trees.tree_of(opened, manifest)
        if not damage:
            tree.read_heads(settings.transfer_threads)
    judgement = formats.judge(tree)
    if damage:
        judgement = Judgement("broken", judgement.format, tuple(damage))
    elif stored and judgement.verdict == "unknown":
        judgement = Judgement("whole", judgement.format)  # Committed, and every byte is as it was then.
    format = formats.by_name(judgement.format)
    looked = safety.look(tree)
    return {
        "format": judgement.format,
        "verdict": judgement.verdict,
        "whole": judgement.whole,
        "reasons": list(judgement.reasons),
        "facts": msgspec.to_builtins(format.facts(tree) if format else Facts()),
        "ready": msgspec.to_builtins(format.ready(tree) if format and judgement.whole else Ready()),
        "safety": {"findings": list(looked.findings), "imports": list(looked.imports)},
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
