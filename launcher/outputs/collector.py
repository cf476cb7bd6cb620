"""Turns captures into commits, in a thread beside the job; owns the queue and the deadline.

The training never waits for it. What cannot be stored now stays in the spool and is tried again at the end of the job and
by `launcher recover`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher import __version__
from launcher.checkpoint import formats, safety
from launcher.checkpoint.manifest import SCHEMA, Facts, Lineage, Manifest, Origin, Ready
from launcher.checkpoint.safety import Policy
from launcher.errors import LauncherError, UnsafePickle
from launcher.events import Emit, event
from launcher.ids import new_id
from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture
from launcher.store.store import Aborted, Checkpoint, Store
from launcher.store.upload import Changed, upload_files
from launcher.text import duration
from launcher.text import size as as_size


def store_capture(store: Store, capture: Capture, job: str, *, threads: int, pickles: Policy = "warn") -> Checkpoint:
    """Uploads and commits one capture. Idempotent: its id is the checkpoint's, so a second time only finishes the first.

    Raises Changed (the files are others now), FileNotFoundError (they are gone), UnsafePickle, LauncherError.
    """
    tree = capture.tree()
    found = safety.look(tree)
    for path in capture.files if found.findings else ():
        if not capture.unchanged(path, os.stat(os.path.join(capture.root, path), follow_symlinks=False)):
            raise Changed(path)  # What was found is of another file.
    safety.refuse(found.findings, pickles, capture.name)
    format = formats.by_name(capture.format)
    identifier = capture.id
    while True:
        files = upload_files(
            store,
            identifier,
            capture.root,
            capture.files,
            threads=threads,
            on_bytes=lambda count: None,
            unchanged=capture.unchanged,
        )
        manifest = Manifest(
            schema=SCHEMA,
            id=identifier,
            name=capture.name,
            created=capture.captured,
            writer=__version__,
            format=capture.format,
            files=files,
            size=sum(file.size for file in files),
            facts=format.facts(tree) if format else Facts(),
            ready=format.ready(tree) if format else Ready(),
            origin=Origin(job, capture.job, capture.path, capture.node, capture.attempt),
            lineage=Lineage(capture.parents, capture.sources, capture.repository, capture.commit, capture.command),
            safety=found.findings,
            imports=found.imports,
        )
        try:
            return store.commit(manifest)
        except Aborted:
            identifier = new_id()  # gc took us for dead and removed the files: everything again under another id.


class Collector:
    """A queue and a thread. `put` from any thread; `drain` once, when nothing more will be put."""

    def __init__(
        self,
        store: Store,
        spool: Path,
        job: str,
        *,
        threads: int,
        pickles: Policy = "warn",
        emit: Emit,
        on_changed: Callable[[str], None],
        on_committed: Callable[[Checkpoint], None],
    ) -> None:
        self._store = store
        self._spool = spool
        self._job = job
        self._threads = threads
        self._pickles = pickles
        self._emit = emit
        self._on_changed = on_changed
        self._on_committed = on_committed
        self._queue: queue.SimpleQueue[Capture | None] = queue.SimpleQueue()
        self.pending: list[tuple[Capture, str]] = []
        """What could not be stored yet, and why."""
        self.committed: list[Checkpoint] = []
        self.skipped: list[tuple[str, str]] = []
        """(name, reason)"""
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def put(self, capture: Capture) -> None:
        self._queue.put(capture)

    def drain(self, timeout: float, *, cancelled: Callable[[], bool] = lambda: False) -> list[tuple[Capture, str]]:
        """Stores what is left, for at most `timeout` seconds or until `cancelled`; returns what could not be, and why."""
        deadline = time.monotonic() + timeout
        self._queue.put(None)
        while self._thread.is_alive():
            self._thread.join(0.05)
            if time.monotonic() > deadline or cancelled():
                return [(capture, "storing was stopped") for capture in captures.load(self._spool)]
        failed, self.pending = self.pending, []
        for capture, reason in failed:
            if time.monotonic() < deadline and not self.pending:
                self._store_one(capture)
            else:
                self.pending.append((capture, reason))
        return self.pending

    def _run(self) -> None:
        # Hashing and storing yield to the training, and to the watcher. A thread has a nice value of its own on Linux.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while (capture := self._queue.get()) is not None:
            self._store_one(capture)

    def _store_one(self, capture: Capture) -> None:
        started = time.monotonic()
        try:
            checkpoint = store_capture(self._store, capture, self._job, threads=self._threads, pickles=self._pickles)
        except (Changed, FileNotFoundError) as error:
            captures.discard(capture.id, self._spool)
            reason = f"{os.path.basename(str(error.args[-1])) or 'a file'} was written again before it was stored"
            self.skipped.append((capture.name, reason))
            self._emit(event("checkpoint-superseded", f"{capture.name}: {reason}; the newer state follows", "debug"))
            self._on_changed(capture.path)
        except UnsafePickle as error:
            captures.discard(capture.id, self._spool)
            self.skipped.append((capture.name, error.text))
            self._emit(event("checkpoint-skipped", f"Not collected: {error.text}", "warning", error=error.kind))
        except LauncherError as error:
            self.pending.append((capture, error.text))
            self._emit(
                event(
                    "checkpoint-pending", f"{capture.name} is not stored yet: {error.text}", "warning", error=error.kind
                )
            )
        else:
            captures.discard(capture.id, self._spool)
            self.committed.append(checkpoint)
            self._on_committed(checkpoint)
            manifest = checkpoint.manifest
            safety.warn(manifest.safety or (), self._pickles, manifest.name, self._emit)
            self._emit(
                event(
                    "checkpoint-committed",
                    f"Stored {checkpoint.label} ({as_size(manifest.size)}, {duration(time.monotonic() - started)})",
                    id=manifest.id,
                    name=manifest.name,
                    version=checkpoint.version,
                    step=manifest.facts.step,
                    size=manifest.size,
                    seconds=round(time.monotonic() - started, 3),
                )
            )
