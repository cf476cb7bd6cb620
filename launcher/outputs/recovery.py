"""After a crash: everything that was complete on disk and is not committed yet is committed, exactly once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from launcher.checkpoint.manifest import Dataset
from launcher.checkpoint.policy import Policy
from launcher.errors import UsageError
from launcher.events import Emit, JsonLines, Redactor, event, to_all
from launcher.job import folder as folders
from launcher.job.folder import UPLOADER_GRACE, JobFolder
from launcher.job.record import Attempt, JobRecord
from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture
from launcher.outputs.collector import Collector
from launcher.outputs.spool import Spool
from launcher.outputs.uploader import Stored, Task, Uploader
from launcher.outputs.watcher import Subject, Watcher
from launcher.runners import docker, handover
from launcher.runners.tree import LEFTOVER_GRACE, end_job
from launcher.settings import Settings
from launcher.store.store import Store

Pending = list[tuple[Capture, str]]
"""What could not be stored, and why."""


@dataclass(frozen=True)
class Recovered:
    """What became of one job: what was committed now, and what could not be stored, with the reason."""

    job: str
    id: str
    stored: list[Stored]
    pending: Pending
    running: str = ""
    """Who runs the job, where it still runs and nothing was done."""


def recover(name: str, settings: Settings, store: Store, emit: Emit, redactor: Redactor) -> list[Recovered]:
    """Finishes what the newest job of this name (or the one with this id), and those before it, left whole on this machine. A
    second time does nothing.

    Raises JobNotFound, and UsageError where a job still runs.
    """
    newest = JobFolder.find(settings.data_dir, name)
    earlier = [each for each in folders.of_name(settings.data_dir, name) if each.owes and each.id != newest.id]
    found = []
    for folder in (*earlier, newest):
        found.append(_taken(folder, settings, store, emit, redactor))
        if found[-1].running:
            hint = f"launcher training stop {name}"
            raise UsageError(what=f"Job {name} is still running ({found[-1].running}).", hint=hint)
    return found


def recover_all(settings: Settings, store: Store, emit: Emit, redactor: Redactor) -> list[Recovered]:
    """The same for every job of this machine that may have left something. Those that run are named, and left alone."""
    owing = [folder for folder in folders.every(settings.data_dir) if folder.owes]
    return [_taken(folder, settings, store, emit, redactor) for folder in owing]


def _taken(folder: JobFolder, settings: Settings, store: Store, emit: Emit, redactor: Redactor) -> Recovered:
    name = folder.read().name
    if not folder.take(UPLOADER_GRACE):
        return Recovered(name, folder.id, [], [], running=folder.holder())
    try:
        stored, pending = _finish(folder, settings, store, emit, redactor)
    finally:
        folder.close()
    return Recovered(name, folder.id, stored, pending)


def finish_earlier(
    name: str,
    settings: Settings,
    store: Store,
    emit: Emit,
    redactor: Redactor,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Before a job of this name starts: what a launcher that was killed left of an earlier one, so that it can be its input,
    or of this one, so that it can go on from there.

    What cannot be stored stays where it is, with a warning. Raises StoreUnavailable.
    """
    for folder in list(folders.of_name(settings.data_dir, name)):
        if not folder.owes or not folder.take(UPLOADER_GRACE):
            continue  # Stored, or still running: whoever makes the new job's folder says so.
        try:
            store.prepare()
            emit(event("recovering", f"Job {name} ({folder.id}) was cut off: storing what it left"))
            _, pending = _finish(folder, settings, store, emit, redactor, cancelled=cancelled)
        finally:
            folder.close()
        if pending:
            text = f"{len(pending)} checkpoint(s) of the earlier job are not stored yet: {pending[0][1]}"
            emit(event("recovery-incomplete", f"{text}\nFinish with: launcher recover {name}", "warning"))


def _finish(
    folder: JobFolder,
    settings: Settings,
    store: Store,
    emit: Emit,
    redactor: Redactor,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[list[Stored], Pending]:
    """Stores what the spool holds, then what lies whole in the output directory and was never captured. The job's own events
    tell of it too.

    A capture's id is its checkpoint's id, so storing one twice only finishes the first; a folder whose files are all in the
    store already (same sizes and times) is not stored again.
    """
    record = folder.read()
    if not record.attempts:
        return [], []  # Killed before it had prepared anything.
    events = JsonLines(folder.path / "events.jsonl", redactor)
    try:
        return _store(folder, record, settings, store, to_all(emit, events), cancelled)
    finally:
        events.close()


def _store(
    folder: JobFolder,
    record: JobRecord,
    settings: Settings,
    store: Store,
    emit: Emit,
    cancelled: Callable[[], bool],
) -> tuple[list[Stored], Pending]:
    ours = record.spec.runner != "sidecar"  # Else it may live on: another container's launcher only collected from it.
    if left := ours and folder.owes and end_job(folder.id, LEFTOVER_GRACE):
        text = f"The job went on without its launcher: ended {', '.join(left[:5])}"
        emit(event("job-ended-late", text, "warning"))
    if record.spec.runner == "docker" and folder.owes:
        docker.end(folder.id)
    if ours and folder.owes:
        handover.forget(folder.path)
    # The last attempt may have been killed before it came to its output directory.
    attempt = next((each for each in reversed(record.attempts) if each.output), record.attempts[-1])
    output = _here(attempt.output, folder)
    before = set(record.checkpoints)
    spool = Spool(folder.path / "spool")
    stored, found = collector(folder, record, settings, store, emit, spool, pickles=record.spec.pickles)
    if os.path.isdir(output):
        watcher = Watcher(
            output,
            spool.path,
            subject(record, attempt),
            world_size=attempt.world_size,
            settle=0,
            on_capture=found,
            emit=emit,
            also=attempt.watch,
        )
        watcher.adopt()
        watcher.finish(unknown_counts=False)
    pending = stored.drain(settings.drain_timeout, cancelled=cancelled)
    if not pending:
        folder.settle()
    return [each for each in stored.stored if each.id not in before], pending


def _here(path: str, folder: JobFolder) -> str:
    """A path in the job folder, where that lies now: on another machine, or moved, it is another one than in the record."""
    head, found, inside = path.rpartition(f"/{folder.path.parent.name}/{folder.id}/")
    return str(folder.path / inside) if found and head else path


def collector(
    folder: JobFolder,
    record: JobRecord,
    settings: Settings,
    store: Store,
    emit: Emit,
    spool: Spool,
    *,
    pickles: Policy,
    bandwidth: int = 0,
    after: Callable[[], object] = lambda: None,
    on_changed: Callable[[str], None] = lambda path: None,
) -> tuple[Collector, Callable[[Capture], None]]:
    """A collector that goes on with what the spool holds, and what to do with a capture that the watcher makes now: one
    whose files (sizes and times) are in the store or the spool already is dropped. `after`: called after each commit."""
    earlier = [each.manifest for each in store.of_job(record.name)]
    known = {
        (each.origin.path, frozenset((file.path, file.size, file.mtime) for file in each.files))
        for each in earlier
        if each.origin and each.origin.job == folder.id
    }

    def committed(stored: Stored) -> None:
        if stored.id not in record.checkpoints:
            record.checkpoints.append(stored.id)
            folder.write(record)
        after()

    collector = Collector(
        Uploader(
            Task(
                settings=settings,
                job=folder.id,
                bandwidth=bandwidth,
                pickles=pickles,
                ends_job=record.spec.runner != "sidecar",
            ),
            log=folder.path / "logs" / "uploader.log",
            keep=(folder.lock,),
        ),
        spool,
        emit=emit,
        on_changed=on_changed,
        on_committed=committed,
    )
    for capture in captures.load(spool.path):
        # Who held its files is gone, and the job folder may be somewhere else now.
        root = _here(capture.root, folder) if capture.how == "held" else str(spool.path / capture.id / "files")
        capture = msgspec.structs.replace(capture, root=root, holder=0, descriptors={})
        known.add((capture.path, _files(capture)))
        collector.put(capture)

    def found(capture: Capture) -> None:
        if (capture.path, _files(capture)) in known:
            captures.discard(capture.id, spool.path)
        else:
            collector.put(capture)

    return collector, found


def subject(record: JobRecord, attempt: Attempt) -> Subject:
    """What captures say of an attempt of this job."""
    return Subject(
        job=record.name,
        attempt=attempt.number,
        parents=tuple(each.checkpoint for each in attempt.inputs if each.checkpoint),
        sources=tuple(each.reference for each in attempt.inputs if not each.checkpoint),
        datasets=tuple(
            dict.fromkeys(Dataset(each.name, each.version, each.id, each.digest) for each in attempt.datasets)
        ),
        repository=record.source.get("repository", ""),
        commit=record.source.get("commit", ""),
        changes=record.source.get("changes", ""),
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
