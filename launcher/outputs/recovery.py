"""After a crash: everything that was complete on disk and is not committed yet is committed, exactly once."""

from __future__ import annotations

import os
from collections.abc import Callable

from launcher.errors import UsageError
from launcher.events import Emit, event
from launcher.job import folder as folders
from launcher.job.folder import JobFolder
from launcher.job.record import JobRecord
from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture
from launcher.outputs.collector import Collector
from launcher.outputs.spool import Spool
from launcher.outputs.uploader import Stored, Task, Uploader
from launcher.outputs.watcher import Subject, Watcher
from launcher.runners.tree import LEFTOVER_GRACE, end_job
from launcher.settings import Settings
from launcher.store.store import Store

Pending = list[tuple[Capture, str]]
"""What could not be stored, and why."""

_GONE = 10.0
"""Seconds that the uploader of a launcher which was killed gets to end; it ends with its input."""


def recover(name: str, settings: Settings, store: Store, emit: Emit) -> tuple[list[Stored], Pending]:
    """Finishes what the newest job of this name, and those before it, left whole on this machine. A second time does nothing.

    Returns what was committed now and what could not be. Raises JobNotFound, and UsageError where the job still runs.
    """
    newest = JobFolder.find(settings.data_dir, name)
    todo = [each for each in folders.of_name(settings.data_dir, name) if each.owes and each.id != newest.id]
    stored: list[Stored] = []
    pending: Pending = []
    for folder in (*todo, newest):
        if not folder.take(_GONE):
            raise UsageError(what=f"Job {name} is still running.", hint=f"launcher training stop {name}")
        try:
            done, left = _finish(folder, settings, store, emit)
        finally:
            folder.close()
        stored, pending = stored + done, pending + left
    return stored, pending


def finish_earlier(
    name: str, settings: Settings, store: Store, emit: Emit, *, cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Before a job of this name starts: what a launcher that was killed left of an earlier one, so that it can be its input.

    What cannot be stored stays where it is, with a warning. Raises StoreUnavailable.
    """
    for folder in list(folders.of_name(settings.data_dir, name)):
        if not folder.owes or not folder.take(_GONE):
            continue  # Stored, or still running: whoever makes the new job's folder says so.
        try:
            store.prepare()
            emit(event("recovering", f"An earlier job {name} ({folder.id}) was cut off: storing what it left"))
            _, pending = _finish(folder, settings, store, emit, cancelled=cancelled)
        finally:
            folder.close()
        if pending:
            text = f"{len(pending)} checkpoint(s) of the earlier job are not stored yet: {pending[0][1]}"
            emit(event("recovery-incomplete", f"{text}\nFinish with: launcher recover {name}", "warning"))


def _finish(
    folder: JobFolder, settings: Settings, store: Store, emit: Emit, *, cancelled: Callable[[], bool] = lambda: False
) -> tuple[list[Stored], Pending]:
    """Stores what the spool holds, then what lies whole in the output directory and was never captured.

    A capture's id is its checkpoint's id, so storing one twice only finishes the first; a folder whose files are all in the
    store already (same sizes and times) is not stored again.
    """
    record = folder.read()
    if not record.attempts:
        return [], []  # Killed before it had prepared anything.
    attempt = record.attempts[-1]
    if left := folder.owes and end_job(folder.id, LEFTOVER_GRACE):
        text = f"The job went on without its launcher: ended {', '.join(left[:5])}"
        emit(event("job-ended-late", text, "warning"))
    spool = folder.path / "spool"
    before = set(record.checkpoints)
    found = [each.manifest for each in store.of_job(record.name)]
    known = {
        (each.origin.path, frozenset((file.path, file.size, file.mtime) for file in each.files))
        for each in found
        if each.origin and each.origin.job == folder.id
    }

    def note(stored: Stored) -> None:
        if stored.id not in record.checkpoints:
            record.checkpoints.append(stored.id)
            folder.write(record)

    collector = Collector(
        Uploader(
            Task(settings=settings, job=folder.id, pickles=record.spec.pickles),
            log=folder.path / "logs" / "uploader.log",
            keep=(folder.lock,),
        ),
        Spool(spool),
        emit=emit,
        on_changed=lambda path: None,
        on_committed=note,
    )
    for capture in captures.load(spool):
        known.add((capture.path, _files(capture)))
        collector.put(capture)

    def fresh(capture: Capture) -> None:
        if (capture.path, _files(capture)) in known:
            captures.discard(capture.id, spool)
        else:
            collector.put(capture)

    if os.path.isdir(attempt.output):
        watcher = Watcher(
            attempt.output,
            spool,
            _subject(record),
            world_size=attempt.world_size,
            settle=0,
            on_capture=fresh,
            emit=emit,
            also=attempt.watch,
        )
        watcher.adopt()
        watcher.finish(unknown_counts=False)
    pending = collector.drain(settings.drain_timeout, cancelled=cancelled)
    if not pending:
        folder.settle()
    return [each for each in collector.stored if each.id not in before], pending


def _subject(record: JobRecord) -> Subject:
    attempt = record.attempts[-1]
    return Subject(
        job=record.name,
        attempt=attempt.number,
        parents=tuple(each.checkpoint for each in attempt.inputs if each.checkpoint),
        sources=tuple(each.reference for each in attempt.inputs if not each.checkpoint),
        repository=record.source.get("repository", ""),
        commit=record.source.get("commit", ""),
        command=record.spec.command,
    )


def _files(capture: Capture) -> frozenset[tuple[str, int, float]]:
    root = capture.root
    result = []
    for path, (size, _, _) in capture.files.items():
        try:
            result.append((path, size, os.stat(os.path.join(root, path)).st_mtime))
        except FileNotFoundError:
            result.append((path, size, -1.0))
    return frozenset(result)
