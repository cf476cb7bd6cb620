"""The main job's second half, alone: collects what a job writes that somebody else runs, in another container or before.

It sees the output directory and nothing of the job's processes. So the end of the job is told to it: by SIGTERM, which the
kubelet sends to a native sidecar once the other containers have ended; by a file that appears; or by quiet. After SIGTERM it
watches on until the files are quiet, because in other arrangements the job is told to stop at the same moment.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher import attempt as attempts
from launcher import report, secrets, volume
from launcher.errors import CollectionIncomplete, UsageError
from launcher.events import Console, JsonLines, Redactor, event, to_all
from launcher.health import Health
from launcher.job import folder as folders
from launcher.job.folder import JobFolder
from launcher.job.record import Attempt, JobRecord, Outcome
from launcher.job.spec import JobSpec
from launcher.outputs import recovery
from launcher.outputs.spool import Spool
from launcher.outputs.watcher import LONGEST_PAUSE, Watcher
from launcher.runners.signals import Signals
from launcher.runners.stopping import Stops
from launcher.settings import Settings
from launcher.store.retention import AfterCommits
from launcher.store.store import Store
from launcher.text import duration, size

_TICK = 0.2


@dataclass(frozen=True)
class Until:
    """What tells that the job has ended, besides SIGTERM."""

    file: str = ""
    """A path that then exists; the number in it, if any, is the job's exit code."""
    quiet: float = 0.0
    """Seconds in which nothing is written any more, after the first checkpoint; 0: not by this."""


def collect(
    spec: JobSpec,
    settings: Settings,
    environ: Mapping[str, str],
    signals: Signals,
    source: Path,
    *,
    watch: bool,
    until: Until = Until(),
) -> Outcome:
    """Collects from a volume that `launcher prepare` has filled, or from any output directory, and returns the verdict.

    `watch`: until the job has ended; else one pass over what is there. Started again after a kill, it goes on where it was:
    what the spool holds keeps its ids, and what is in the store already is not stored again. Raises LauncherError.
    """
    redactor = Redactor.of_environment(dict(environ), secrets.values(settings.data_dir))
    console = Console(form=settings.log_format, redactor=redactor, verbose=settings.verbose)
    prepared = volume.is_prepared(source)
    settings = volume.settings_of(source, settings) if prepared else settings
    output = volume.output(source) if prepared else source
    if not output.is_dir():
        raise UsageError(what=f"{output}: there is no such folder.")
    stops = Stops(signals, grace=spec.grace, also=spec.stop_signals())
    store = Store.open(settings, environ)
    store.prepare()
    folder, record = _job_folder(spec, settings, output, redactor)
    events = JsonLines(folder.path / "events.jsonl", redactor)
    health = Health(signals, patience=5 * settings.store_timeout)
    health.record, health.emit = record, to_all(console, events, health)
    attempt = record.attempts[-1]
    attempt.host, attempt.pid, attempt.output, attempt.outcome = os.uname().nodename, os.getpid(), str(output), None
    record.change("in progress", "What the job writes is collected.")
    folder.write(record)
    folder.owe()
    try:
        with health.served(spec):
            outcome = _collect(spec, settings, store, folder, record, stops, health, watch, until)
            attempt.outcome, attempt.ended, health.phase = outcome, time.time(), "ended"
            copies = [settings.result_file, str(source / "result.json") if prepared else ""]
            report.finish(store, folder, record, health.emit, stops, copies=copies)
    finally:
        events.close()
        folder.close()
    return outcome


def _job_folder(spec: JobSpec, settings: Settings, output: Path, redactor: Redactor) -> tuple[JobFolder, JobRecord]:
    """The newest job of this name if it writes there, else a new one; locked."""
    for folder in reversed(list(folders.of_name(settings.data_dir, spec.name))):
        record = folder.read()
        if record.spec.runner != "sidecar" or not record.attempts:
            break
        if os.path.realpath(record.attempts[-1].output) != os.path.realpath(output):
            break
        if not folder.take(folders.UPLOADER_GRACE):
            raise UsageError(what=f"Job {spec.name} is being collected already, by {folder.holder()}.")
        return folder, record
    folder, record = JobFolder.create(settings.data_dir, spec, attempts.redacted(spec, redactor))
    record.attempts.append(Attempt(number=1, host="", pid=0, started=time.time(), output=str(output)))
    return folder, record


def _collect(
    spec: JobSpec,
    settings: Settings,
    store: Store,
    folder: JobFolder,
    record: JobRecord,
    stops: Stops,
    health: Health,
    watch: bool,
    until: Until,
) -> Outcome:
    attempt, emit = record.attempts[-1], health.emit
    retention = AfterCommits(store, spec.name, folder.id, spec.keep_rules(), emit)
    spool = Spool(folder.path / "spool", spec.spool, spec.when_full)
    collector, found = recovery.collector(
        folder, record, settings, store, emit, spool, pickles=spec.pickles, bandwidth=spec.bandwidth, after=retention,
        on_changed=lambda path: watcher.again(path),
    )  # fmt: skip
    watcher = Watcher(
        attempt.output,
        spool.path,
        recovery.subject(record, attempt),
        world_size=attempt.world_size,
        settle=spec.settle,
        on_capture=found,
        emit=emit,
    )
    cause, code = "Looked at once.", None
    started = time.monotonic()
    if watch:
        watcher.start(new=True)
        health.watch(watcher, collector)
        emit(event("collecting", f"Collecting job {record.name} ({record.id}) from {attempt.output}"))
        cause, code = _wait(stops, watcher, until)
        health.phase = "collect"
        emit(event("job-over", f"{cause} Storing what is left", cause=cause))
        deadline = time.monotonic() + min(settings.drain_timeout, stops.left)
        _until_quiet(stops, watcher, spec.settle, deadline)
    else:
        watcher.adopt()
        deadline = time.monotonic() + settings.drain_timeout
    ended = time.monotonic()
    salvage = watcher.finish(unknown_counts=code == 0)
    pending = collector.drain(max(deadline - time.monotonic(), 0.0), cancelled=stops.patience())
    stops.within(lambda: retention(at_end=True))
    record.skipped = report.skipped(watcher.reported + collector.skipped, salvage)
    attempt.phases |= {"watch": ended - started, "collect": time.monotonic() - ended}
    steps = [each.step for each in collector.stored if each.step is not None]
    facts: dict[str, Any] = {
        "last_step_seen": watcher.last_step,
        "last_step_committed": max(steps, default=None),
        "bytes_not_stored": sum(capture.size for capture, _ in pending),
    }
    if pending:
        left = CollectionIncomplete(
            count=len(pending), job=record.name, size=size(facts["bytes_not_stored"]), cause=pending[0][1],
            where=spool.path, hint="Finish with the same command again, which goes on from here.",
        )  # fmt: skip
        return msgspec.structs.replace(report.of_error(left), **facts)
    folder.settle()
    stops.within(lambda: report.store_outputs(store, record, attempt.output, emit))
    return Outcome(
        code=0, origin="launcher", cause=f"{cause} Everything whole is stored.", kind="collected",
        signal=_signal(stops), **facts,
    )  # fmt: skip


def _wait(stops: Stops, watcher: Watcher, until: Until) -> tuple[str, int | None]:
    """Waits for the end of the job: how it was noticed, and the job's exit code where it is known."""
    poll = select.poll()
    poll.register(stops.fd, select.POLLIN)
    while True:
        if stops.asked and stops.request:
            return f"Stopped by {stops.request.reason}.", None
        if until.file and os.path.exists(until.file):
            code = _number(until.file)
            return f"{until.file} is there." if code is None else f"The job ended with code {code}.", code
        quiet = watcher.quiet()
        if until.quiet and quiet is not None and quiet >= until.quiet:
            return f"Nothing was written for {duration(quiet)}.", None
        stops.take()
        poll.poll((_TICK if until.file or until.quiet else LONGEST_PAUSE) * 1000)


def _until_quiet(stops: Stops, watcher: Watcher, settle: float, deadline: float) -> None:
    """Lets a job that is told to stop at the same moment finish its files: at most for half of what is left of the time."""
    deadline -= (deadline - time.monotonic()) / 2
    over = stops.patience()
    while (quiet := watcher.quiet()) is not None and quiet < settle and time.monotonic() < deadline:
        if over():
            return
        time.sleep(_TICK)


def _signal(stops: Stops) -> str | None:
    number = stops.request.signal if stops.request else None
    return signal.Signals(number).name if number else None


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text().strip())
    except (OSError, ValueError):
        return None
