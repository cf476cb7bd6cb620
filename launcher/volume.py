"""The main job's first half, for containers that share a volume: `launcher prepare` fills it before the job's own container
starts, whose image knows nothing of the launcher; `collect` is the other half, in a container beside it.

    <volume>/
      input-checkpoint/NAME/   the inputs, whole and without write bits: mounted read-only at /input-checkpoint
      input/NAME/              the datasets, likewise: mounted read-only at /input
      output-checkpoint/       any user may write here; what the job goes on from lies in it: mounted at /output-checkpoint
      launcher.env             variables for the job's container, NAME=VALUE a line
      result.json              the verdict, written by the collector
      jobs/NAME/ID/            the job folder
      cache/                   the downloads, of which the inputs are hard links; $LAUNCHER_CACHE_DIR instead where it is set
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from launcher import attempt as attempts
from launcher import prepare, resume, secrets
from launcher.attempt import Job
from launcher.errors import AccessDenied, LocalResourceError, NoSpace, UsageError
from launcher.events import Console, JsonLines, Redactor, event, to_all
from launcher.health import Health
from launcher.inputs.cache import NodeCache, leases
from launcher.inputs.choose import Provided
from launcher.inputs.entries import remove
from launcher.inputs.view import clone
from launcher.job import folder as folders
from launcher.job.folder import JobFolder
from launcher.job.record import JobRecord, write_atomically
from launcher.job.spec import JobSpec
from launcher.outputs import recovery
from launcher.restoring import Output
from launcher.runners import docker
from launcher.runners.signals import Signals
from launcher.runners.stopping import Stops
from launcher.settings import Settings
from launcher.store.datasets import Datasets
from launcher.store.store import Store
from launcher.text import size

VARIABLES = "launcher.env"
_INPUT, _DATASETS, _OUTPUT = "input-checkpoint", "input", "output-checkpoint"


def output(volume: Path) -> Path:
    """Where the job writes, on the volume."""
    return volume / _OUTPUT


def is_prepared(folder: Path) -> bool:
    """Whether `fill` has filled this folder."""
    return (folder / VARIABLES).is_file()


def job_of(volume: Path) -> JobFolder | None:
    """The volume's job: it has one."""
    return next(folders.every(str(volume)), None)


def settings_of(volume: Path, settings: Settings) -> Settings:
    """The settings with the job folder on the volume: whoever mounts it next finds there what is not stored yet."""
    return msgspec.structs.replace(settings, data_dir=str(volume))


def fill(
    spec: JobSpec, settings: Settings, environ: Mapping[str, str], signals: Signals, volume: Path, *, cache: str = ""
) -> JobRecord:
    """Checks, provides the inputs and the output directory, and writes down what the job's container needs to know.

    `cache`: a node cache that is shared by other jobs; by default the volume has one of its own. On a volume that holds a
    job already (its pod was started again) this is the same job's next attempt, and what the one before left is stored first.
    Raises LauncherError.
    """
    redactor = Redactor.of_environment(dict(environ), secrets.values(settings.data_dir))
    stops = Stops(signals, grace=spec.grace, also=spec.stop_signals())
    console = Console(form=settings.log_format, redactor=redactor, verbose=settings.verbose)
    store = Store.open(settings, environ)
    _make_folders(volume)
    inside = msgspec.structs.replace(settings_of(volume, settings), cache_dir=cache or str(volume / "cache"))
    recovery.finish_earlier(spec.name, inside, store, console, redactor, cancelled=lambda: stops.asked)
    checked = prepare.check(spec, inside, environ, store, console)
    stops.check()
    folder, record = _job_folder(spec, volume, environ, redactor)
    events = JsonLines(folder.path / "events.jsonl", redactor)
    emit = to_all(console, events)
    try:
        known = resume.remember(store, folder, record, emit, given=bool(folders.given_id(environ)))
        health = Health(signals, patience=0)
        job = Job(spec, inside, environ, store, folder, record, checked, stops, health, redactor, emit)
        job = attempts.same_inputs(job)
        attempt = attempts.begin(job, earlier=known)
        attempt.output = str(output(volume))
        nodes = NodeCache.open(inside, emit)
        linkable = lambda: False
        provided = prepare.provide(
            spec, job.checked.chosen, store, folder, nodes, emit, linkable, None, stop=stops.check
        )
        kept = Datasets.open(inside, environ)
        datasets = prepare.provide(
            spec, job.checked.datasets, kept, folder, nodes, emit, linkable, None, stop=stops.check
        )
        with leases(each.lease for each in (*provided, *datasets) if each.lease):
            for each in provided:
                _place(each, volume / _INPUT, linked=not cache)
            for each in datasets:
                _place(each, volume / _DATASETS, linked=not cache)
        attempt.inputs = [
            attempts.input_record(each, os.path.join(docker.INPUT, name), "volume", redactor)
            for each in provided
            for name in each.chosen.names
        ]
        attempt.datasets = [
            attempts.dataset_record(each, os.path.join(docker.DATASETS, each.chosen.names[0]), "volume")
            for each in datasets
        ]
        there = Output(inside, store, folder, record, attempt.output, (), emit, stops.check)
        resumed = resume.restore(spec, record, checked.resume, there)
        if resumed:
            _open_to_all(Path(attempt.output, resumed.path))
        attempt.phases["prepare"] = time.time() - attempt.started
        folder.owe()
        folder.write(record)
        _write_variables(volume, record, settings, alone=len(provided) == 1)
        text = f"{volume} is ready for job {record.name} ({record.id}), attempt {attempt.number}"
        paths = [*(each.path for each in attempt.inputs), *(each.path for each in attempt.datasets)]
        emit(event("volume-ready", text, inputs=paths, resumed=resumed.path))
    finally:
        events.close()
        folder.close()
    return record


def _make_folders(volume: Path) -> None:
    """The folders of the contract. Raises AccessDenied, LocalResourceError."""
    place = volume
    try:
        for place, mode in ((volume / _INPUT, 0o755), (volume / _DATASETS, 0o755), (volume / _OUTPUT, 0o777)):
            place.mkdir(parents=True, exist_ok=True)
            if place.stat().st_uid == os.geteuid():
                place.chmod(mode)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = f"This container runs as user {os.geteuid()}; make the volume writable for it."
            raise AccessDenied(what=str(place), cause=error.strerror, hint=hint) from error
        raise LocalResourceError(what=f"The volume {volume} cannot be used: {error}.") from error


def _job_folder(
    spec: JobSpec, volume: Path, environ: Mapping[str, str], redactor: Redactor
) -> tuple[JobFolder, JobRecord]:
    """The volume's job, locked: the one that is there; else the one with the id that is given, or a new one."""
    found = job_of(volume)
    if found and (name := found.read().name) != spec.name:
        raise UsageError(
            what=f"The volume {volume} belongs to the job {name!r}.",
            hint=f"Take a volume for each job, or the same name: --name {name}",
        )
    kept = attempts.redacted(spec, redactor)
    return JobFolder.create(str(volume), spec, kept, found.id if found else folders.given_id(environ))


def _place(provided: Provided, inside: Path, *, linked: bool) -> None:
    """An input below the input directory, under each of its names, whole by one rename. `linked`: nobody but this job uses
    the cache, so that its files themselves can be taken."""
    for name in provided.chosen.names:
        target, part = inside / name, inside / f".{provided.chosen.names.index(name)}.part"
        for old in (part, target):
            if old.exists():
                remove(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _copy(provided.path, part, linked=linked and provided.lease is not None)
            part.chmod(0o755)  # A folder without write bits cannot be renamed.
            part.rename(target)
            target.chmod(0o555)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise LocalResourceError(what=f"The input {target} cannot be made: {error}.") from error
            status = os.statvfs(inside)
            raise NoSpace(
                what=f"the input {name}", path=inside, need=size(provided.chosen.size),
                free=size(status.f_bavail * status.f_frsize), setting="a larger volume",
            ) from error  # fmt: skip


def _copy(source: str, target: Path, *, linked: bool) -> None:
    shared = True
    for parent, _, files in os.walk(source):
        place = target / os.path.relpath(parent, source)
        place.mkdir(exist_ok=True)
        for name in files:
            made = place / name
            if linked:
                with contextlib.suppress(OSError):
                    os.link(os.path.join(parent, name), made)
                    continue
            shared = clone(os.path.join(parent, name), str(made), shared)
            made.chmod(0o444)
    for parent, _, _ in os.walk(target, topdown=False):
        os.chmod(parent, 0o555)


def _open_to_all(path: Path) -> None:
    """The job may remove and change what was restored for it, whichever user it is."""
    for each in (path, *path.rglob("*")):
        with contextlib.suppress(PermissionError):  # It lay there from before, and is the job's own.
            each.chmod(0o777 if each.is_dir() else 0o666)


def _write_variables(volume: Path, record: JobRecord, settings: Settings, *, alone: bool) -> None:
    """For `docker run --env-file`, a shell's `.`, and whatever reads NAME=VALUE lines: names hold nothing to quote."""
    attempt = record.attempts[-1]
    inside = settings.input_dir or docker.INPUT
    variables = {
        "FLEXAI_INPUT_CHECKPOINT_DIR": inside,
        "FLEXAI_INPUT_DIR": settings.dataset_dir or docker.DATASETS,
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": settings.output_dir or docker.OUTPUT,
        "LAUNCHER_JOB_NAME": record.name,
        "LAUNCHER_JOB_ID": record.id,
        "LAUNCHER_ATTEMPT": str(attempt.number),
    }
    if alone:
        variables["LAUNCHER_INPUT_CHECKPOINT"] = os.path.join(
            inside, os.path.relpath(attempt.inputs[0].path, docker.INPUT)
        )
    if attempt.resumed_path:
        place = variables["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
        variables["LAUNCHER_RESUME_CHECKPOINT"] = os.path.normpath(os.path.join(place, attempt.resumed_path))
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    write_atomically(str(volume / VARIABLES), lines.encode())
