"""After a crash: everything that was complete on disk and is not committed yet is committed, exactly once."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.checkpoint.safety import Policy
from launcher.events import Emit
from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture
from launcher.outputs.collector import Collector
from launcher.outputs.watcher import Subject, Watcher
from launcher.store.store import Checkpoint, Store


def recover(
    store: Store,
    spool: Path,
    output: str,
    job_id: str,
    subject: Subject,
    *,
    committed: set[str],
    threads: int,
    pickles: Policy = "warn",
    emit: Emit,
) -> tuple[list[Checkpoint], list[tuple[Capture, str]]]:
    """Stores what the spool holds, then what lies whole in the output directory and was never captured.

    `committed`: ids that the job's record knows as stored. A capture's id is its checkpoint's id, so storing one twice only
    finishes the first; a folder whose files are all in the store already (same sizes and digests) is not stored again.
    Returns what was committed now, and what could not be, with the reason.
    """
    found = [each for each in store.of_job(subject.job) if each.manifest.origin and each.manifest.origin.job == job_id]
    known = {
        (each.manifest.origin.path, frozenset((file.path, file.size, file.mtime) for file in each.manifest.files))
        for each in found
        if each.manifest.origin
    }
    collector = Collector(
        store,
        spool,
        job_id,
        threads=threads,
        pickles=pickles,
        emit=emit,
        on_changed=lambda path: None,
        on_committed=lambda checkpoint: None,
    )
    for capture in captures.load(spool):
        known.add((capture.path, _files(capture)))
        collector.put(capture)

    def fresh(capture: Capture) -> None:
        if (capture.path, _files(capture)) in known:
            captures.discard(capture.id, spool)
        else:
            collector.put(capture)

    if os.path.isdir(output):
        watcher = Watcher(output, spool, subject, world_size=None, settle=0, on_capture=fresh, emit=emit)
        watcher.adopt()
        watcher.finish(unknown_counts=False)
    pending = collector.drain(86400.0)
    return [each for each in collector.committed if each.manifest.id not in committed], pending


def _files(capture: Capture) -> frozenset[tuple[str, int, float]]:
    root = capture.root
    result = []
    for path, (size, _, _) in capture.files.items():
        try:
            result.append((path, size, os.stat(os.path.join(root, path)).st_mtime))
        except FileNotFoundError:
            result.append((path, size, -1.0))
    return frozenset(result)
