"""The main job, on one page: check, prepare, then attempts: resume, run (watch beside it), collect; report."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO

import msgspec

from launcher import attempt as attempts
from launcher import report, resume, secrets
from launcher.attempt import Job
from launcher.errors import LauncherError, ServerSilent
from launcher.events import Console, Emit, JsonLines, Redactor, silent, to_all
from launcher.health import Health
from launcher.inputs import refused
from launcher.inputs.cache import leases
from launcher.job import folder as folders
from launcher.job import restarts
from launcher.job.folder import JobFolder
from launcher.job.record import JobRecord, Outcome
from launcher.job.spec import JobSpec
from launcher.outputs import backlog, elsewhere, recovery
from launcher.outputs.collector import Collector
from launcher.outputs.spool import Spool
from launcher.outputs.uploader import Stored, Task, Uploader
from launcher.outputs.watcher import Watcher
from launcher.prepare import Checked, Prepared, check, of_attempt, prepare
from launcher.restoring import Output, Resumed
from launcher.result import Result
from launcher.runners.signals import Signals
from launcher.runners.stall import Watched
from launcher.runners.stopping import Stops
from launcher.runners.supervisor import close, supervise
from launcher.settings import Settings
from launcher.store.retention import AfterCommits
from launcher.store.store import Store
from launcher.verdict import Evidence


def run(
    spec: JobSpec,
    settings: Settings,
    environ: Mapping[str, str],
    signals: Signals,
    also: Callable[[JobFolder], Emit] = lambda folder: silent,
    stream: IO[str] | None = None,
) -> Result:
    """Runs a job to its end and returns how it ended. `also`: makes one more sink of the job's events, when it has its folder;
    `stream`: where the launcher's own lines go, if not to stderr. Raises LauncherError for what is wrong before that."""
    kept = secrets.values(settings.data_dir, spec.secret_sources(), environ)
    redactor = Redactor.of_environment(dict(environ) | spec.env, kept)
    console = Console(stream, form=settings.log_format, redactor=redactor, verbose=settings.verbose)
    stops = Stops(signals, grace=spec.grace, also=spec.stop_signals(), limit=spec.time_limit)
    health = Health(signals, patience=5 * settings.store_timeout, emit=console)
    with health.served(spec):
        store = Store.open(settings, environ)
        recovery.finish_earlier(spec.name, settings, store, console, redactor, cancelled=lambda: stops.asked)
        checked = check(spec, settings, environ, store, console, stop=stops.check)
        stops.check()
        folder, record = _open(spec, settings, environ, checked, redactor)
        events = JsonLines(folder.path / "events.jsonl", redactor)
        health.record = record
        health.emit = to_all(console, events, health, attempts.noting(record, folder), also(folder))
        _attempts(Job(spec, settings, environ, store, folder, record, checked, stops, health, redactor, health.emit))
        health.phase = "ended"
        result = report.finish(store, folder, record, health.emit, stops, copies=[settings.result_file])
        health.emit = console
        events.close()
        folder.close()
        return result


def _open(
    spec: JobSpec, settings: Settings, environ: Mapping[str, str], checked: Checked, redactor: Redactor
) -> tuple[JobFolder, JobRecord]:
    """A new job's folder, or the one of the job that is started again."""
    where = "" if spec.repository_url else checked.work_dir
    kept = msgspec.structs.replace(attempts.redacted(spec, redactor), work_dir=where)
    identifier = folders.given_id(environ)
    if not identifier and spec.runner == "entrypoint":
        identifier = folders.interrupted(settings.data_dir, kept)
    return JobFolder.create(settings.data_dir, spec, kept, identifier)


def _attempts(job: Job) -> Outcome:
    """One attempt after the other, until none is to follow or a stop is asked for. Inputs are prepared once, and stay."""
    known = resume.remember(job.store, job.folder, job.record, job.emit, given=bool(folders.given_id(job.environ)))
    job = attempts.same_inputs(job)
    started = len(job.record.attempts)
    prepared: Prepared | None = None
    with contextlib.ExitStack() as held:
        while True:
            attempt = attempts.begin(job, earlier=known)
            try:
                if prepared is None:
                    job.record.change("building", "Inputs and code are brought here.")
                    job.folder.note(job.record)
                    prepared = prepare(
                        job.spec, job.settings, job.environ, job.store, job.folder, job.checked, job.emit,
                        stop=job.stops.check,
                    )  # fmt: skip
                    held.enter_context(leases(prepared.leases))
                output = Output(
                    job.settings, job.store, job.folder, job.record, prepared.output, prepared.watch, job.emit,
                    job.stops.check,
                )  # fmt: skip
                resumed = resume.restore(job.spec, job.record, job.checked.resume, output)
                exact = of_attempt(prepared, job.spec, job.checked, job.folder, attempt.number, resumed.path)
                job.stops.check()
                attempt.phases["prepare"] = time.time() - attempt.started
                attempt.outcome = _run(job, exact, resumed)
            except LauncherError as error:
                attempt.outcome = report.of_error(error, job.redactor.text)
            attempt.ended = time.time()
            restart = None if job.stops.asked else restarts.decide(job.spec, job.record.attempts[started:])
            if restart is None or not attempts.pause(job, restart):
                return attempt.outcome


def _run(job: Job, prepared: Prepared, resumed: Resumed) -> Outcome:
    """One attempt: the job runs, and what it writes is captured and stored."""
    spec, settings, store, folder = job.spec, job.settings, job.store, job.folder
    record, stops, health, emit = job.record, job.stops, job.health, job.emit
    attempt = record.attempts[-1]
    retention = AfterCommits(store, spec.name, folder.id, spec.keep_rules(), emit)

    def committed(stored: Stored) -> None:
        report.committed(stored, record, folder)
        retention()

    attempt.output, attempt.watch = prepared.output, list(prepared.watch)
    attempt.world_size = spec.accels * spec.nodes if prepared.command.wrapped else None
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
        attempts.subject(job, prepared, resumed),
        world_size=attempt.world_size,
        settle=spec.settle,
        on_capture=collector.put,
        emit=emit,
        also=prepared.watch,
        rungs=prepared.capture,
    )
    attempts.put_again(prepared.spool, collector)
    sys.setswitchinterval(0.0005)  # The watcher has milliseconds; the default lets another thread run for five.
    watcher.start()
    # All before the job: whatever it writes, a launcher that is killed later leaves word of it, and of what it was made from.
    attempt.inputs = attempts.inputs(prepared, "", job.redactor)
    attempt.datasets = attempts.datasets(prepared, "")
    folder.write(record, durable=False)
    folder.owe()
    if folders.given_id(job.environ):
        resume.keep_elsewhere(store, record)
    evidence = Evidence.begin(
        prepared.verdict, folder.path / "logs" / "job.log", ranks=prepared.command.ranks,
        wrapped=prepared.command.wrapped, ours=not prepared.request,
    )  # fmt: skip
    stops.watch(prepared.stop_file)
    started = time.time()
    try:
        running = attempts.start(spec, prepared, job.checked, folder, uploader)
    except LauncherError:
        watcher.finish(unknown_counts=False)
        if not collector.drain(settings.drain_timeout, cancelled=stops.patience()):
            folder.settle()
        raise
    attempt.guarantee = running.guarantee
    attempt.inputs = attempts.inputs(prepared, running.rung, job.redactor)
    attempt.datasets = attempts.datasets(prepared, running.rung)
    record.change("in progress", "The command runs.")
    folder.write(record)
    report.started(record, emit)
    health.watch(watcher, collector)
    if spec.stall_timeout:
        running = Watched(
            running, timeout=spec.stall_timeout, grace=spec.grace, ranks=prepared.command.ranks, log=evidence.log,
            output=prepared.output, emit=emit,
        )  # fmt: skip
    answering = None
    if spec.kind == "inference":
        running = answering = attempts.answering(
            job, running, prepared, changed=lambda: report.answers(record, folder, emit)
        )
    ended = supervise(
        running,
        stops,
        reserve=lambda: backlog.reserve(collector.stored, collector.held, spec.grace),
        on_stop=uploader.hurry,
        emit=emit,
    )
    stop = stops.request  # One that comes from now on finds no job to stop.
    ended, left = close(running, ended)
    attempt.inputs = attempts.inputs(prepared, running.rung, job.redactor)  # Again: a lazy one may have failed.
    verdict = evidence.judge(ended, stopped=stop is not None, redact=job.redactor.text)
    collecting, health.phase = time.time(), "collect"
    attempt.command_ended = collecting
    record.change(record.states[-1].state, f"{verdict.cause}: what it wrote is stored.")
    folder.note(record)
    salvage = watcher.finish(unknown_counts=ended.code == 0)
    over = stops.patience()
    backlog.announce(collector.stored, collector.held, stops.left, emit)
    pending = collector.drain(settings.drain_timeout, cancelled=over)
    stops.within(lambda: retention(at_end=True))
    record.skipped = report.skipped(watcher.reported + collector.skipped, salvage)
    attempt.phases |= {"run": collecting - started, "collect": time.time() - collecting}
    if not collector.stored and not pending and not resumed and spec.runner != "docker":
        ours = (settings.data_dir, settings.cache_dir, prepared.output)
        if hint := elsewhere.look(prepared.work_dir, spec.name, since=started, ignore=ours):
            emit(hint)
    if ended.code and prepared.mounts and not spec.input_writable:
        if hint := refused.look(evidence.log, attempt.log_start, [target for _, target in prepared.mounts]):
            emit(hint)
    changed: LauncherError | None = attempts.verify(prepared, running, settings)
    if answering and answering.trouble and not stop:
        changed = changed or ServerSilent(cause=f"it ended, and {answering.trouble}", job=spec.name)
    report.give_back(spec, prepared.output, folder)
    if not pending:
        folder.settle()
        stops.within(lambda: report.store_outputs(store, record, prepared.output, emit, prepared.others))
    steps = [step for step in (resumed.step, *(each.step for each in collector.stored)) if step is not None]
    return report.outcome(
        record, ended, verdict, spool=prepared.spool, stop=stop, pending=pending, left=left, changed=changed,
        last_step_seen=watcher.last_step, last_step_committed=max(steps, default=None),
    )  # fmt: skip
