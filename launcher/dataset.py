"""Putting a dataset together from files, folders and places elsewhere, and storing it."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher import push, storages
from launcher.checkpoint import paths
from launcher.checkpoint.manifest import Lineage
from launcher.checkpoint.tree import Folder
from launcher.errors import AccessDenied, SourceNotFound, UnsafePath, UsageError
from launcher.events import Emit, event
from launcher.inputs import remote
from launcher.inputs.cache import Held, NodeCache, leases
from launcher.inputs.remote import Remote
from launcher.inputs.selection import Selection
from launcher.progress import Progress
from launcher.settings import Settings
from launcher.store import datasets
from launcher.store.datasets import Datasets
from launcher.store.store import Checkpoint
from launcher.verify import open_tree

_EVERYTHING = ("*",)
"""Said to a hub repository, of which else only what a model needs is taken."""
_NAMED = 5
"""So many of the entries that are left out are named one by one."""


@dataclass(frozen=True)
class Source:
    """One `--file SRC[=DEST]`: a file or folder here (`path`, canonical), or what is somewhere else (`remote`)."""

    text: str
    """What was typed, without credentials, paths absolute: for the lineage."""
    place: str
    """Its path in the dataset: of a single file's, or of the folder that gets the files; empty for the root."""
    single: bool
    path: str = ""
    remote: Remote | None = None


def source(text: str, selection: Selection, settings: Settings, environ: Mapping[str, str]) -> Source:
    """What SRC or SRC=DEST names; the whole text is tried first, as names may hold `=`.

    Raises SourceNotFound, UsageError, AccessDenied, StoreError.
    """
    try:
        return _source(text, "", selection, settings, environ)
    except (SourceNotFound, UsageError, AccessDenied):
        before, equals, place = text.rpartition("=")
        if not equals or not before:
            raise
    return _source(before, _place(place, before), selection, settings, environ)


def _source(text: str, place: str, selection: Selection, settings: Settings, environ: Mapping[str, str]) -> Source:
    path, found = "", None
    if text.startswith("storage:") or ("://" in text and not text.startswith("file://")):
        wanted = Selection(selection.include or _EVERYTHING, selection.exclude)
        found = remote.find(_dataset_repository(text, settings), wanted, settings, environ).as_it_is()
        text, name = found.url, found.entries[0].key
        single = len(found.entries) == 1 and urllib.parse.unquote(found.url).endswith(f"/{name}")
    else:
        text = os.path.abspath(os.path.expanduser(remote.local_path(text)))
        if not os.path.exists(text):
            raise SourceNotFound(source=text, cause="there is no such file or folder")
        path, name, single = os.path.realpath(text), os.path.basename(text), not os.path.isdir(text)
    shown = f"{text}={place}" if place else text
    if single:
        place = os.path.join(place, name) if not place or place.endswith("/") else place
    return Source(shown, place, single, path, found)


def _dataset_repository(text: str, settings: Settings) -> str:
    """In a storage of the Hugging Face hub, ORG/NAME is a dataset's repository here, not a model's."""
    storage, _, path = text.removeprefix("storage:").partition("/")
    if not text.startswith("storage:") or path.startswith("datasets/"):
        return text
    hub = storages.load(settings.data_dir, storage).provider == "huggingface"
    return f"storage:{storage}/datasets/{path}" if hub else text


def _place(place: str, before: str) -> str:
    """DEST as a path in the dataset: `data/` is below it, under its own name. Raises UsageError."""
    try:
        paths.check(place.rstrip("/"))
    except UnsafePath as error:
        raise UsageError(
            what=f"--file {before}={place}: {error.text}",
            hint="DEST is a path in the dataset, such as data/train.jsonl, or a folder of it, such as data/.",
        ) from error
    return place


def push_dataset(
    store: Datasets,
    name: str,
    sources: Sequence[Source],
    selection: Selection,
    cache: NodeCache,
    settings: Settings,
    emit: Emit,
) -> Checkpoint:
    """Stores the files of all sources as the next version of `name`, unless the newest version is the same.

    Files are taken as they are: nothing is judged, unpacked or followed; links and special files are left out, and named.
    What is elsewhere comes through the node cache. Raises UsageError where two would be at one path, SourceNotFound,
    UnsafePath, AccessDenied, StoreError.
    """
    name = datasets.check_name(name)
    held: list[Held] = []
    files: dict[str, tuple[str, int]] = {}
    sha256: dict[str, str] = {}
    with leases(held):
        for each in sources:
            path = each.path
            if each.remote:
                with Progress(f"Fetching {each.text}", each.remote.size, emit) as progress:
                    folder, lease = cache.fetch_remote(each.remote, progress)
                held.append(lease)
                path = str(folder)
            tree = _tree(path, each, selection, emit)
            for inside, size in tree.files.items():
                target = each.place if each.single else os.path.join(each.place, inside)
                if target in files:
                    raise UsageError(
                        what=f"{files[target][0]} and {os.path.join(tree.root, inside)} would both be {target}.",
                        hint="Give one another place: --file SRC=DEST.",
                    )
                files[target] = os.path.join(tree.root, inside), size
                if each.remote and (digest := each.remote.sha256.get(inside)):
                    sha256[target] = digest
        paths.check_all(files)
        return _store(store, name, files, sha256, sources, selection, settings, emit)


def _tree(path: str, source: Source, selection: Selection, emit: Emit) -> Folder:
    tree = open_tree(path)
    files = {path: size for path, size in tree.files.items() if selection.takes(path)}
    if not files:
        raise SourceNotFound(source=source.text, cause="no file of it is taken", hint="Check --include, --exclude.")
    for other in tree.others[:_NAMED]:
        emit(event("left-out", f"Left out, because it is a link or no file: {other}", "warning"))
    if (more := len(tree.others) - _NAMED) > 0:
        emit(event("left-out", f"Left out, because they are links or no files: {more} more", "warning"))
    return Folder(tree.root, files, tree.others)


def _store(
    store: Datasets,
    name: str,
    files: Mapping[str, tuple[str, int]],
    sha256: Mapping[str, str],
    sources: Sequence[Source],
    selection: Selection,
    settings: Settings,
    emit: Emit,
) -> Checkpoint:
    lineage = Lineage(sources=tuple(each.text for each in sources))

    def opened(path: str) -> int:
        return os.open(files[path][0], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    return push.push_files(
        store,
        name,
        {path: size for path, (_, size) in files.items()},
        sha256,
        lambda: {"format": datasets.FORMAT, "lineage": lineage, "safety": ()},
        (name, *lineage.sources, selection.text),
        root="",
        opened=opened,
        threads=settings.transfer_threads,
        emit=emit,
        data_dir=settings.data_dir,
    )
