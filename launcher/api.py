"""The Python API: what `launcher/__init__.py` lists. It raises the command line's errors (`launcher.errors`), prints nothing
unless it is asked to, and never ends the caller's process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher import settings as configuration
from launcher.checkpoint.policy import Policy
from launcher.errors import LauncherError
from launcher.events import Caller, Event, OnEvent
from launcher.inputs.selection import Selection
from launcher.job.spec import JobSpec
from launcher.job_process import run
from launcher.result import Result
from launcher.settings import Settings
from launcher.store.store import Checkpoint, Store

if TYPE_CHECKING:
    from launcher.inputs.cache import Held

__all__ = [
    "Checkpoint", "Event", "JobSpec", "LauncherError", "Result", "Store", "checkpoint_path", "fetch_checkpoint", "open_store",
    "push_checkpoint", "run",
]  # fmt: skip

_held: dict[Path, Held] = {}
"""Keeps what `checkpoint_path` returned in the node cache, until this process ends."""


def open_store(url: str | None = None) -> Store:
    """A store: a folder, `s3://…`, `gs://…`, `az://…`; by default that of `launcher config show`. Nothing is contacted yet.

    `checkpoints()` lists it, `of_job(NAME)` what the jobs of a name wrote, `resolve(REF)` finds one.
    Raises SettingsError, UsageError.
    """
    return Store.open(*_settings(url))


def checkpoint_path(
    ref: str,
    *,
    store: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: Literal["all", "inference"] = "all",
    pickles: Policy = "warn",
    on_event: OnEvent | None = None,
) -> Path:
    """The folder of a checkpoint on this machine, whole and verified: `from_pretrained(launcher.checkpoint_path("ft_01"))`.

    `ref` is what `-C` takes: a name, `name@vN`, an id, `job:NAME`, a URL. It comes once, into the node cache, where every job of
    this machine finds it too, and stays there until this process ends. It is shared: nothing may be written into it. A path is
    returned as it is. `include` and `exclude` are globs of the files to take; `only="inference"` leaves out optimizers and the
    like; `pickles="deny"` refuses what may run code when it is loaded.

    Raises CheckpointNotFound, SourceNotFound, DigestMismatch, UnsafePickle, StoreError, NoSpace.
    """
    from launcher.inputs import choose
    from launcher.inputs.cache import NodeCache

    settings, environ = _settings(store)
    emit = Caller(on_event)
    provided = choose.bring(
        ref, Store.open(settings, environ), settings, environ, NodeCache.open(settings, emit), emit,
        selection=Selection(tuple(include), tuple(exclude), only), pickles=pickles,
    )  # fmt: skip
    if provided.lease and _held.setdefault(Path(provided.path), provided.lease) is not provided.lease:
        provided.lease.release()
    return Path(provided.path)


def fetch_checkpoint(
    ref: str, destination: str | os.PathLike[str], *, store: str | None = None, on_event: OnEvent | None = None
) -> Path:
    """Copies a stored checkpoint into a new or empty folder, every file verified, and returns the folder. It is the caller's.

    Raises CheckpointNotFound, DigestMismatch, StoreError, UsageError (there are other files), AccessDenied, LocalResourceError.
    """
    from launcher import push as pushing

    settings, environ = _settings(store)
    threads, emit = settings.transfer_threads, Caller(on_event)
    path, _ = pushing.fetch(Store.open(settings, environ), ref, os.fspath(destination), threads=threads, emit=emit)
    return Path(path)


def push_checkpoint(
    name: str,
    source: str | os.PathLike[str],
    *,
    store: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: Literal["all", "inference"] = "all",
    parents: Iterable[str] = (),
    pickles: Policy = "warn",
    force: bool = False,
    on_event: OnEvent | None = None,
) -> Checkpoint:
    """Stores a folder's content, a file, an archive or what is at a URL as the next version of `name`.

    What is the same as its newest version is not stored again (`repeated`). `parents`: references of what it was made from.
    `force`: also what is not whole.

    Raises SourceNotFound, FormatBroken (not whole), UnsafePickle, UnsafePath, StoreError, UsageError (no name).
    """
    from launcher import push as pushing

    settings, environ = _settings(store)
    place, emit = Store.open(settings, environ), Caller(on_event)
    return pushing.push_source(
        place, name, os.fspath(source), settings, environ, selection=Selection(tuple(include), tuple(exclude), only),
        parents=[place.resolve(each).manifest.id for each in parents], pickles=pickles, force=force, emit=emit,
    )  # fmt: skip


def _settings(store: str | None) -> tuple[Settings, dict[str, str]]:
    environ = configuration.process_environment()
    return configuration.load({"store": store}, environ)[0], environ
