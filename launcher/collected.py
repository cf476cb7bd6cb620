"""What a job wrote that is no checkpoint, as one archive: FlexAI's `output_0.zip`, with every path below `output/`."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import AccessDenied, LocalResourceError, NoSpace, NotFoundError
from launcher.events import Emit
from launcher.job.folder import JobFolder
from launcher.progress import Progress
from launcher.report import plain_files
from launcher.store import layout
from launcher.store.store import Store
from launcher.text import size as as_size
from launcher.transfer import bulk


@dataclass(frozen=True)
class Archive:
    """The archive that was made: how many files are in it, and their bytes."""

    path: Path
    files: int
    size: int


def fetch(
    store: Store, folder: JobFolder, destination: str | None, *, threads: int, emit: Emit, node: int = 0
) -> Archive:
    """Writes `output_<node>.zip` into `destination` (default: the current folder), whole by one rename; one that is there is
    replaced. From the store; what a job that has not ended, or was cut off, has not stored yet from its folder here.

    Raises NotFoundError where there is nothing, AccessDenied, NoSpace, StoreError.
    """
    prefix = layout.outputs(folder.id)
    stored = {entry.key.removeprefix(prefix): entry for entry in store.listing(prefix)}
    here = {name: path for name, path in plain_files(str(folder.path / "output")) if name not in stored}
    if not stored and not here:
        name = folder.read().name
        raise NotFoundError(
            what=f"Job {name} has written nothing but checkpoints.",
            hint=f"launcher checkpoint fetch {name}; other files are those below $FLEXAI_OUTPUT_DIR.",
        )
    total = sum(entry.size for entry in stored.values()) + sum(os.path.getsize(path) for path in here.values())
    target = Path(os.path.abspath(destination or ".")) / f"output_{node}.zip"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".launcher-", dir=target.parent) as scratch,
            Progress(f"Fetching the outputs of {folder.read().name}", total, emit) as progress,
        ):
            made = Path(scratch, target.name)
            with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
                for name in sorted(stored.keys() | here.keys()):
                    if name in here:
                        _add(archive, here[name], name, progress)
                        continue
                    part = os.path.join(scratch, "part")
                    wanted = bulk.Wanted(stored[name].key, stored[name].size, part, mode=0o644)
                    bulk.download(store.place, [wanted], threads=threads, timeout=store.timeout, on_bytes=progress)
                    if stored[name].modified:
                        os.utime(part, (stored[name].modified, stored[name].modified))
                    _add(archive, part, name, lambda count: None)
                    os.unlink(part)
            made.replace(target)
    except OSError as error:
        raise _failed(target, error, total) from error
    return Archive(target, len(stored) + len(here), total)


def _add(archive: zipfile.ZipFile, path: str, name: str, on_bytes: Callable[[int], None]) -> None:
    archive.write(path, f"output/{name}")
    on_bytes(os.path.getsize(path))


def _failed(target: Path, error: OSError, need: int) -> Exception:
    import errno
    import shutil

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = as_size(shutil.disk_usage(target.parent).free)
        return NoSpace(what=target.name, path=target.parent, need=as_size(need), free=free, setting="--destination")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(what=str(target), cause=error.strerror, hint="Choose another folder: --destination DIR.")
    return LocalResourceError(
        what=f"{target} cannot be written: {error.strerror}.", hint="Choose another folder: --destination DIR."
    )
