"""A checkpoint of the store, as plain files, to a place elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from launcher import storages
from launcher.checkpoint.manifest import File
from launcher.errors import StoreError, UsageError
from launcher.events import Emit
from launcher.inputs.cache import NodeCache
from launcher.inputs.selection import Selection
from launcher.progress import Progress
from launcher.settings import Settings
from launcher.store.store import Checkpoint, Store
from launcher.transfer.cloud import SCHEMES
from launcher.transfer.object_store import ObjectStore
from launcher.transfer.places import open_place
from launcher.transfer.retry import call

_LAST = ("config.json", "model_index.json", "adapter_config.json")
"""What a library opens first is written last: until then the copy is not taken for a whole checkpoint."""


def target(text: str, settings: Settings, environ: Mapping[str, str]) -> ObjectStore:
    """The place that storage:NAME/PATH, a URL or a folder names. Raises UsageError for one that cannot be written."""
    if text.startswith("storage:"):
        name, _, path = text.removeprefix("storage:").partition("/")
        return storages.open_target(storages.load(settings.data_dir, name), path, settings, environ)
    scheme, separator, _ = text.partition("://")
    if separator and scheme not in SCHEMES and scheme != "file":
        raise UsageError(
            what=f"{text} cannot be exported to.", hint="Give a folder, or a URL with s3://, gs:// or az://."
        )
    return open_place(text, timeout=settings.store_timeout, environ=environ)


def export(
    store: Store,
    ref: str,
    place: ObjectStore,
    settings: Settings,
    *,
    selection: Selection = Selection(),
    emit: Emit,
) -> tuple[Checkpoint, int]:
    """Copies a checkpoint's files to a place and returns it with the number of bytes sent.

    The bytes come through the node cache, verified; every file's digest is taken again while it is sent, and its size
    listed back. A file that is there already with the same size is sent again, so that a second call finishes what a first
    one began. Raises UsageError where the place holds other files, StoreError, DigestMismatch.
    """
    found = store.resolve(ref)
    files = {file.path: file for file in found.manifest.files if selection.takes(file.path)}
    others = [
        entry.key for entry in call(lambda: list(place.list("")), settings.store_timeout) if entry.key not in files
    ]
    if others:
        raise UsageError(
            what=f"{place.url} holds other files, such as {others[0]}.", hint="Choose an empty or new path."
        )
    cache = NodeCache.open(settings, emit)
    size = sum(file.size for file in files.values())
    with Progress(f"Fetching {found.label}", found.manifest.size, emit) as progress:
        path, lease = cache.fetch(store, found.manifest, progress)
    try:
        with Progress(f"Exporting {found.label}", size, emit) as progress:

            def send(file: File) -> None:
                source = os.path.join(path, file.path)
                moved = call(lambda: place.upload(source, file.path, progress), settings.store_timeout)
                if moved.digest != file.digest:
                    raise StoreError(store=place.url, cause=f"{file.path} was changed in the cache while it was sent")

            first = [file for file in files.values() if file.path not in _LAST]
            with ThreadPoolExecutor(min(settings.transfer_threads, 8)) as pool:
                list(pool.map(send, first))
            for file in files.values():
                if file.path in _LAST:
                    send(file)
    finally:
        lease.release()
    call(lambda: place.settle(""), settings.store_timeout)
    sizes = {entry.key: entry.size for entry in call(lambda: list(place.list("")), settings.store_timeout)}
    for file in files.values():
        if sizes.get(file.path) != file.size:
            raise StoreError(store=place.url, cause=f"{file.path} has {sizes.get(file.path, 'no')} bytes there")
    return found, size
