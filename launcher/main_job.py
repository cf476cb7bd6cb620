"""The main job, on one page: check, prepare, run (watch beside it), collect, report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

import msgspec

from launcher import report, secrets
from launcher.errors import InputChanged, LauncherError
from launcher.events import Console, Emit, JsonLines, Redactor, to_all
from launcher.inputs import choose, source
from launcher.inputs.cache import NodeCache, leases
from launcher.job.folder import JobFolder
from launcher.job.record import Attempt, InputRecord, JobRecord, Outcome
from launcher.job.spec import JobSpec
from launcher.outputs import elsewhere, recovery
from launcher.outputs.collector import Collector
from launcher.outputs.spool import Spool
from launcher.outputs.uploader import Stored, Task, Uploader
from launcher.outputs.watcher import Subject, Watcher
from launcher.prepare import Checked, Prepared, check, prepare
from launcher.runners.docker import Container
from launcher.runners.process import Process
from launcher.runners.running import Running
from launcher.runners.signals import Signals
from launcher.runners.supervisor import supervise
from launcher.settings import Settings
from launcher.store.retention import AfterCommits
from launcher.store.store import Store


def run(spec: JobSpec, settings: Settings, environ: Mapping[str, str], signals: Signals) -> Outcome:
    """Runs a job to its end and returns how it ended. Raises LauncherError for what is wrong before the job has a folder."""
    redactor = Redactor.of_environment(dict(environ) | spec.env, secrets.values(settings.data_dir))
    console = Console(form=settings.log_format, redactor=redactor)
    store = Store.open(settings, environ)
    recovery.finish_earlier(spec.name, settings, store, console, cancelled=lambda: signals.stop is not None)
    checked = check(spec, settings, environ, store, console)
    signals.check()
    folder, record = JobFolder.create(settings.data_dir, spec, _redacted(spec, redactor))
    events = JsonLines(folder.path / "events.jsonl", redactor)
    emit = to_all(console, events)
    attempt = Attempt(number=1, host=os.uname().nodename, pid=os.getpid(), started=time.time(), device=checked.device)
    record.attempts.append(attempt)
    try:
        prepared = prepare(spec, settings, environ, store, folder, checked, emit, stop=signals.check)
        signals.check()
        attempt.phases["prepare"] = time.time() - attempt.started
        with leases(prepared.leases):
            outcome = _run(spec, settings, store, folder, record, checked, prepared, signals, redactor, emit)
    except LauncherError as error:
        outcome = report.of_error(error)
    attempt.outcome, attempt.ended = outcome, time.time()
    report.finish(store, folder, record, emit)
    events.close()
    folder.close()
    return outcome


def _run(
    spec: JobSpec,
    settings: Settings,
    store: Store,
    folder: JobFolder,
    record: JobRecord,
    checked: Checked,
    prepared: Prepared,
    signals: Signals,
    redactor: Redactor,
    emit: Emit,
) -> Outcome:
    attempt = record.attempts[-1]
    retention = AfterCommits(store, spec.name, folder.id, spec.keep_rules(), emit)

    def committed(stored: Stored) -> None:
        report.committed(stored, record, folder)
        retention()

    subject = _subject(spec, checked, prepared, redactor, record)
    attempt.output, attempt.watch = prepared.output, list(prepared.watch)
    attempt.world_size = spec.accels * spec.nodes if prepared.command.wrapped else None
    record.source = {"repository": subject.repository, "commit": subject.commit}
    uploader = Uploader(
        Task(settings=settings, job=folder.id, bandwidth=spec.bandwidth, pickles=spec.pickles),
        log=folder.path / "logs" / "uploader.log",
        keep=(folder.lock,),
    )
    collector = Collector(
        uploader,
        Spool(prepared.spool, spec.spool, spec.when_full),
        emit=emit,
        on_changed=lambda path: watcher.again(path),
        on_committed=committed,
    )
    watcher = Watcher(
        prepared.output,
        prepared.spool,
        subject,
        world_size=attempt.world_size,
        settle=spec.settle,
        on_capture=collector.put,
        emit=emit,
        also=prepared.watch,
        rungs=prepared.capture,
    )
    sys.setswitchinterval(0.0005)  # The watcher has milliseconds; the default lets another thread run for five.
    watcher.start()
    # Both before the job: whatever it writes, a launcher that is killed later leaves word of it.
    folder.write(record, durable=False)
    folder.owe()
    started = time.time()
    running = start(spec, prepared, checked, folder, uploader)
    attempt.guarantee = running.guarantee
    attempt.inputs = [
        _input(each, running.rung, path, prepared, redactor)
        for each, (_, path) in zip(prepared.mounted, prepared.mounts)
    ]
    folder.write(record)
    report.started(record, emit)
    ended = supervise(running, signals, grace=spec.grace, emit=emit)
    left = running.close()
    collecting = time.time()
    salvage = watcher.finish(unknown_counts=ended.code == 0)
    pending = collector.drain(
        settings.drain_timeout, cancelled=lambda: any(report.is_stop(each) for each in signals.take())
    )
    retention(at_end=True)
    record.skipped = report.skipped(watcher.reported + collector.skipped, salvage)
    attempt.phases |= {"run": collecting - started, "collect": time.time() - collecting}
    if not collector.stored and not pending and spec.runner != "docker":
        ours = (settings.data_dir, settings.cache_dir, prepared.output)
        if hint := elsewhere.look(prepared.work_dir, spec.name, since=started, ignore=ours):
            emit(hint)
    changed = _verify(prepared, running, settings)
    report.give_back(spec, prepared.output, folder)
    if not pending:
        folder.settle()
        report.store_outputs(store, record, prepared.output, emit)
    steps = [each.step for each in collector.stored if each.step is not None]
    return report.outcome(
        record, ended, prepared, stopped_by=signals.stop, pending=pending, left=left, changed=changed,
        last_step_seen=watcher.last_step, last_step_committed=max(steps, default=None),
    )  # fmt: skip


def start(spec: JobSpec, prepared: Prepared, checked: Checked, folder: JobFolder, uploader: Uploader) -> Running:
    """The job, started by the runner that was prepared for."""
    log = folder.path / "logs" / "job.log"
    if prepared.request:
        return Container(checked.client, prepared.request, log=log, ranks=prepared.command.ranks)
    return Process(
        prepared.command.arguments, env=prepared.env, work_dir=prepared.work_dir, protection=prepared.protection,
        log=log, ranks=prepared.command.ranks, grace=spec.grace, single_child=spec.single_child, rewrite=spec.rewrites(),
        spared=lambda: uploader.pid,
    )  # fmt: skip


def _verify(prepared: Prepared, running: Running, settings: Settings) -> InputChanged | None:
    if running.rung not in ("landlock", "permissions", "none"):
        return None
    cache = NodeCache.open(settings)
    try:
        for each in prepared.provided:
            choose.verify(each, cache, running.rung)
    except InputChanged as error:
        return error
    return None


def _subject(spec: JobSpec, checked: Checked, prepared: Prepared, redactor: Redactor, record: JobRecord) -> Subject:
    repository, commit = spec.repository_url, checked.commit
    if not repository:
        repository, commit = source.head(prepared.work_dir)
    record.source = {"repository": redactor.text(repository), "commit": commit}
    return Subject(
        job=spec.name,
        attempt=record.attempts[-1].number,
        parents=tuple(each.chosen.manifest.id for each in prepared.provided if each.chosen.manifest),
        sources=tuple(redactor.text(each.chosen.source) for each in prepared.provided if not each.chosen.manifest),
        repository=redactor.text(repository),
        commit=commit,
        command=tuple(redactor.command(spec.command)),
    )


def _input(provided: choose.Provided, rung: str, path: str, prepared: Prepared, redactor: Redactor) -> InputRecord:
    manifest = provided.chosen.manifest
    return InputRecord(
        reference=redactor.text(provided.chosen.text),
        checkpoint=manifest.id if manifest else None,
        path=path,
        rung=rung,
        size=provided.chosen.size,
        writable=bool(prepared.protection.views),
    )


def _redacted(spec: JobSpec, redactor: Redactor) -> JobSpec:
    return msgspec.structs.replace(
        spec,
        command=tuple(redactor.command(spec.command)),
        checkpoint=tuple(redactor.text(each) for each in spec.checkpoint),
        repository_url=redactor.text(spec.repository_url),
        env={key: redactor.text(value) for key, value in spec.env.items()},
    )
