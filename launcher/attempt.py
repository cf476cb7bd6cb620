"""What one attempt of a job is made of: what starts it, what its checkpoints say of it, what the record keeps of it."""

from __future__ import annotations

import dataclasses
import os
import select
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher import model_folder
from launcher.errors import CheckpointNotFound, DatasetNotFound, InputChanged
from launcher.events import Emit, Event, Redactor, event
from launcher.health import Health
from launcher.inputs import choose
from launcher.inputs import datasets as choosing
from launcher.inputs import source as sources
from launcher.inputs.cache import NodeCache
from launcher.inputs.choose import Chosen
from launcher.inputs.selection import Selection
from launcher.job.folder import JobFolder
from launcher.job.record import Attempt, DatasetRecord, InputRecord, JobRecord, Outcome, Server
from launcher.job.restarts import Restart
from launcher.job.spec import JobSpec
from launcher.outputs import capture as captures
from launcher.outputs.collector import Collector
from launcher.outputs.uploader import Uploader
from launcher.outputs.watcher import Subject
from launcher.prepare import Checked, Prepared
from launcher.restoring import Resumed
from launcher.runners import handover
from launcher.runners.answering import Answering
from launcher.runners.docker import Container
from launcher.runners.process import Process
from launcher.runners.running import Running
from launcher.runners.stopping import TICK, Stops
from launcher.settings import Settings
from launcher.store.datasets import Datasets
from launcher.store.store import Store
from launcher.text import duration

_LOST = "The launcher was killed, or its machine was lost."


@dataclass(frozen=True)
class Job:
    """What all attempts of a job share."""

    spec: JobSpec
    settings: Settings
    environ: Mapping[str, str]
    store: Store
    folder: JobFolder
    record: JobRecord
    checked: Checked
    stops: Stops
    health: Health
    redactor: Redactor
    emit: Emit


def same_inputs(job: Job) -> Job:
    """A job that is started again gets the inputs and the code that it had, whatever their names mean by now."""
    had = {each.reference: each.checkpoint for attempt in job.record.attempts for each in attempt.inputs}
    selection = Selection(job.spec.include, job.spec.exclude, job.spec.only)
    chosen = _as_before(
        job, "Input", job.checked.chosen, lambda each: had.get(job.redactor.text(each.text)),
        lambda identifier: choose.choose((identifier,), job.store, job.settings, job.environ, selection),
    )  # fmt: skip
    given = {_wanted(each.reference): each.id for attempt in job.record.attempts for each in attempt.datasets}
    datasets = _as_before(
        job, "Dataset", job.checked.datasets, lambda each: given.get(_wanted(each.text)),
        lambda identifier: choosing.choose((identifier,), Datasets.open(job.settings, job.environ)),
    )  # fmt: skip
    source = job.record.source
    same = job.spec.repository_url and source.get("repository") == job.redactor.text(job.spec.repository_url)
    same = same and source.get("revision") == job.spec.repository_revision
    commit = source["commit"] if same else job.checked.commit
    checked = dataclasses.replace(job.checked, chosen=chosen, commit=commit, datasets=datasets)
    return dataclasses.replace(job, checked=checked)


def _wanted(text: str) -> str:
    """Of NAME=MOUNT the name: another mount is no other dataset."""
    return text.partition("=")[0]


def _as_before(
    job: Job,
    what: str,
    wanted: Iterable[Chosen],
    had: Callable[[Chosen], str | None],
    find: Callable[[str], Sequence[Chosen]],
) -> tuple[Chosen, ...]:
    """`wanted`, but of each that the job had before (`had`: its id then) the same one, as `find` gives it."""
    chosen = []
    for each in wanted:
        identifier, named = had(each), each.manifest
        if identifier and named and named.id != identifier:
            try:
                (found,) = find(identifier)
                each = dataclasses.replace(found, text=each.text, names=each.names)
            except (CheckpointNotFound, DatasetNotFound):
                text = f"{what} {each.text} was {identifier}, which was deleted: {named.id} is taken"
                job.emit(event("input-changed", text, "warning"))
        chosen.append(each)
    return tuple(chosen)


def begin(job: Job, *, earlier: int) -> Attempt:
    """The next attempt, in the record. `earlier`: the highest number of an attempt that is known from elsewhere."""
    record = job.record
    if record.attempts and record.attempts[-1].outcome is None:
        record.attempts[-1].outcome = Outcome(
            code=137, origin="platform", cause=_LOST, failure="signal", kind="lost", retryable=True
        )
        record.change("failed", _LOST)
    number = max([earlier, *(each.number for each in record.attempts)]) + 1
    attempt = Attempt(
        number=number, host=os.uname().nodename, pid=os.getpid(), started=time.time(), device=job.checked.device
    )
    record.attempts.append(attempt)
    record.change("scheduling", f"Attempt {number}: {attempt.host}, device {attempt.device}.")
    job.health.phase = "prepare"
    log = job.folder.path / "logs" / "job.log"
    attempt.log_start = log.stat().st_size if log.exists() else 0
    if number > 1:
        job.emit(event("attempt-started", f"Job {record.name}: attempt {number}", attempt=number, id=record.id))
        with open(log, "ab", buffering=0) as file:
            file.write(f"launcher: attempt {number}\n".encode())
    return attempt


def start(spec: JobSpec, prepared: Prepared, checked: Checked, folder: JobFolder, uploader: Uploader) -> Running:
    """The job, started by the runner that was prepared for."""
    log = folder.path / "logs" / "job.log"
    if checked.given:
        handover.no_core_dumps()
    if prepared.request:
        return Container(
            checked.client, prepared.request, log=log, ranks=prepared.command.ranks, rank_logs=prepared.logs,
            secrets=prepared.handed, mask=checked.given.mask,
        )  # fmt: skip
    return Process(
        prepared.command.arguments, env=prepared.env, work_dir=prepared.work_dir, protection=prepared.protection,
        log=log, ranks=prepared.command.ranks, rank_logs=prepared.logs, grace=spec.grace,
        single_child=spec.single_child, rewrite=spec.rewrites(),
        spared=lambda: (*filter(None, [uploader.pid]), *prepared.servers), secrets=prepared.handed, mask=checked.given.mask,
    )  # fmt: skip


def noting(record: JobRecord, folder: JobFolder) -> Emit:
    """An `Emit` that keeps in the record when the job was told to stop, and when it was killed."""

    def note(event: Event) -> None:
        if event.kind in ("stop-requested", "killed"):
            record.change("stop in progress", f"{event.text}.")
            folder.note(record)

    return note


def answering(job: Job, running: Running, prepared: Prepared, changed: Callable[[], None]) -> Answering:
    """An inference job's server, asked whether it answers; the record's attempt has the state, and `changed` is called for
    each new one."""
    spec, attempt = job.spec, job.record.attempts[-1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(spec.host, spec.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{spec.port}"
    attempt.server = Server(
        url=url, health=url + (spec.health or "/health"), since=time.time(),
        chat=model_folder.has_chat_template(prepared.provided),
    )  # fmt: skip
    changed()
    return Answering(
        running, attempt.server, timeout=spec.ready_timeout, grace=spec.grace, any_page=not spec.health, emit=job.emit,
        changed=changed,
    )  # fmt: skip


def put_again(spool: Path, collector: Collector) -> None:
    """What an earlier attempt captured and could not store yet."""
    for capture in captures.load(spool):
        collector.put(capture)


def pause(job: Job, restart: Restart) -> bool:
    """Says why there is another attempt, and waits for its time. False where a stop is asked for meanwhile: the last
    attempt's outcome says so then."""
    last = job.record.attempts[-1]
    assert last.outcome
    text = f"Attempt {last.number}: {last.outcome.cause} Trying again: {restart.reason}"
    text += f", in {duration(restart.wait)}" if restart.wait else ""
    job.record.change("enqueued", job.redactor.text(text))
    job.folder.write(job.record)
    job.emit(event("attempt-ended", text, "warning", attempt=last.number, code=last.outcome.code, wait=restart.wait))
    deadline = time.monotonic() + restart.wait
    while not job.stops.asked and (left := deadline - time.monotonic()) > 0:
        select.select([job.stops.fd], [], [], min(left, TICK))
        job.stops.take()
    if not job.stops.request:
        return True
    cause = f"Stopped by {job.stops.request.reason} before attempt {last.number + 1}. {last.outcome.cause}"
    last.outcome = msgspec.structs.replace(last.outcome, cause=cause, stopped=True, retryable=True)
    return False


def verify(prepared: Prepared, running: Running, settings: Settings) -> InputChanged | None:
    """Whether the job changed its input, where nothing kept it from all of that."""
    if running.rung not in ("landlock", "permissions", "none"):
        return None
    cache = NodeCache.open(settings)
    try:
        for each in (*prepared.provided, *prepared.datasets):
            choose.verify(each, cache, running.rung)
    except InputChanged as error:
        return error
    return None


def subject(job: Job, prepared: Prepared, resumed: Resumed) -> Subject:
    """What every checkpoint of this attempt says about its origin; the record gets the source."""
    spec, redactor = job.spec, job.redactor
    code = sources.State(spec.repository_url, job.checked.commit)
    if not spec.repository_url:
        code = sources.state(prepared.work_dir, job.environ)
    repository = redactor.text(code.repository)
    job.record.source = {
        "repository": repository, "revision": spec.repository_revision, "commit": code.commit, "changes": code.changes,
    }  # fmt: skip
    chosen = [each.chosen for each in prepared.provided]
    return Subject(
        job=spec.name,
        attempt=job.record.attempts[-1].number,
        parents=(*(each.manifest.id for each in chosen if each.manifest), *resumed.parents),
        sources=tuple(
            redactor.text(each) for each in (*(e.source for e in chosen if not e.manifest), *resumed.sources)
        ),
        datasets=tuple(dict.fromkeys(each.chosen.dataset for each in prepared.datasets if each.chosen.dataset)),
        repository=repository,
        commit=code.commit,
        changes=code.changes,
        command=tuple(redactor.command(spec.command)),
    )


def inputs(prepared: Prepared, rung: str, redactor: Redactor) -> list[InputRecord]:
    """The inputs as the job saw them, for the record."""
    writable = bool(prepared.protection.views)
    return [
        input_record(each, path, rung, redactor, writable=writable)
        for each, (_, path) in zip(prepared.mounted, prepared.mounts)
    ]


def input_record(
    provided: choose.Provided, path: str, rung: str, redactor: Redactor, *, writable: bool = False
) -> InputRecord:
    """One input as the job sees it, for the record."""
    chosen = provided.chosen
    return InputRecord(
        reference=redactor.text(chosen.text),
        checkpoint=chosen.manifest.id if chosen.manifest else None,
        path=path,
        rung=rung,
        size=chosen.size,
        writable=writable,
        lazy=provided.lazy is not None,
        problem=redactor.text(provided.lazy.problem) if provided.lazy else "",
    )


def datasets(prepared: Prepared, rung: str) -> list[DatasetRecord]:
    """The datasets as the job saw them, for the record."""
    writable = bool(prepared.protection.views)
    mounts = prepared.mounts[len(prepared.mounted) :]
    return [dataset_record(each, path, rung, writable=writable) for each, (_, path) in zip(prepared.datasets, mounts)]


def dataset_record(provided: choose.Provided, path: str, rung: str, *, writable: bool = False) -> DatasetRecord:
    """One dataset as the job sees it, for the record."""
    chosen, found = provided.chosen, provided.chosen.dataset
    assert found
    return DatasetRecord(
        reference=chosen.text, name=found.name, version=found.version, id=found.id, digest=found.digest, path=path,
        rung=rung, size=chosen.size, writable=writable,
    )  # fmt: skip


def redacted(spec: JobSpec, redactor: Redactor) -> JobSpec:
    """The spec as a record keeps it: without a secret."""
    return msgspec.structs.replace(
        spec,
        command=tuple(redactor.command(spec.command)),
        checkpoint=tuple(redactor.text(each) for each in spec.checkpoint),
        resume=redactor.text(spec.resume),
        repository_url=redactor.text(spec.repository_url),
        env={key: redactor.text(value) for key, value in spec.env.items()},
    )
