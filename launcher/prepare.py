"""Everything before the job: all checks first, then the bytes, then the exact thing that will be started."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from launcher.checkpoint import formats, safety
from launcher.errors import AccessDenied, LocalResourceError, TooFewAccelerators, UsageError
from launcher.events import Emit, event
from launcher.inputs import choose, source
from launcher.inputs.cache import Lease, NodeCache
from launcher.inputs.choose import Chosen, Provided
from launcher.job.folder import JobFolder
from launcher.job.spec import JobSpec
from launcher.outputs import filesystem
from launcher.progress import Progress
from launcher.runners import docker, torchrun
from launcher.runners.accelerators import detect
from launcher.runners.torchrun import CommandLine
from launcher.settings import Settings
from launcher.store.store import Store
from launcher.text import duration
from launcher.text import size as as_size

Rung = TypeVar("Rung", bound=str)
RUNGS = ("bind", "userns", "landlock", "permissions", "none")


@dataclass(frozen=True)
class Checked:
    """What is known after the checks: nothing has been downloaded or made yet but the store's own first object."""

    chosen: tuple[Chosen, ...]
    device: str
    env: dict[str, str]
    work_dir: str
    commit: str
    python: str
    client: Any = None


@dataclass(frozen=True)
class Prepared:
    """The exact job: what the runner starts and what the watcher watches. Leases keep the inputs in the cache."""

    command: CommandLine
    env: dict[str, str]
    work_dir: str
    output: str
    mounts: tuple[tuple[str, str], ...]
    hide: tuple[str, ...]
    rungs: tuple[str, ...]
    provided: tuple[Provided, ...]
    spool: Path
    watch: tuple[str, ...]
    capture: tuple[filesystem.Rung, ...]
    verdict: Path
    leases: tuple[Lease, ...] = field(default=(), compare=False)
    request: dict[str, Any] | None = None
    """Docker: what the engine is asked for."""


def check(spec: JobSpec, settings: Settings, environ: Mapping[str, str], store: Store, emit: Emit) -> Checked:
    """Everything that can be known before anything long starts. Raises the error of what is wrong."""
    device, extra = _device(spec, environ, emit)
    commit = ""
    if spec.repository_url:
        commit = source.check(spec.repository_url, spec.repository_revision, dict(environ))
    work_dir = os.path.abspath(spec.work_dir or os.getcwd())
    if not os.path.isdir(work_dir):
        raise UsageError(what=f"--work-dir {work_dir}: there is no such folder.")
    python = _python(environ)
    client = docker.connect(spec.image) if spec.runner == "docker" else None
    if not spec.repository_url and (spec.runner != "docker" or spec.command[0].endswith(".py")):
        torchrun.check_command(spec.command, work_dir)
    store.prepare()
    chosen = choose.choose(spec.checkpoint, store, settings, environ)
    for each in chosen:
        findings = choose.findings(each, store, settings)
        safety.refuse(findings, spec.pickles, each.text)
        safety.warn(findings, spec.pickles, each.text, emit)
    return Checked(tuple(chosen), device, extra, work_dir, commit, python, client)


def prepare(
    spec: JobSpec,
    settings: Settings,
    environ: Mapping[str, str],
    store: Store,
    folder: JobFolder,
    checked: Checked,
    emit: Emit,
) -> Prepared:
    """Provides the inputs and the folders. What it makes lies in the job folder and the node cache."""
    cache = NodeCache(settings.cache_dir, threads=settings.transfer_threads)
    provided = []
    for chosen in checked.chosen:
        with Progress(f"Fetching {chosen.text}", chosen.size, emit) as progress:
            provided.append(choose.provide(chosen, store, cache, progress.add))
        emit(
            event(
                "input-ready",
                f"Input {chosen.names[0]}: {as_size(chosen.size) if chosen.size else provided[-1].path}"
                f" ready in {duration(progress.seconds)}",
                name=chosen.names[0],
                seconds=round(progress.seconds, 3),
            )
        )
    work_dir = checked.work_dir
    if spec.repository_url:
        work_dir = str(folder.path / "source")
        source.fetch(spec.repository_url, checked.commit, Path(work_dir), dict(environ))
        if spec.runner != "docker":
            torchrun.check_command(spec.command, work_dir)
    formats.load()
    verdict = folder.path / "logs" / "verdict.json"
    in_container = spec.runner == "docker"
    input_dir, output = _folders(spec, settings, environ, folder)
    env = dict(checked.env) | {
        "FLEXAI_INPUT_CHECKPOINT_DIR": docker.INPUT if in_container else str(input_dir),
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": docker.OUTPUT if in_container else str(output),
        "LAUNCHER_JOB_NAME": spec.name,
        "LAUNCHER_JOB_ID": folder.id,
        "LAUNCHER_VERDICT": f"{docker.LOGS}/verdict.json" if in_container else str(verdict),
    }
    mounts = []
    for each in provided:
        for name in each.chosen.names:
            target = os.path.join(env["FLEXAI_INPUT_CHECKPOINT_DIR"], name)
            if not in_container:
                _empty_folder(target)
            mounts.append((each.path, target))
    if len(provided) == 1:
        env["LAUNCHER_INPUT_CHECKPOINT"] = mounts[0][1]
    env |= torchrun.environment(spec.accels, os.cpu_count() or 1)
    line = torchrun.command_line(
        spec.command,
        accels=spec.accels,
        launch=spec.launch,
        python=docker.PYTHON if in_container else checked.python,
        agent=docker.AGENT if in_container else torchrun.AGENT,
        log_dir=docker.LOGS if in_container else str(folder.path / "logs"),
    )
    hide = {str(cache.folder / "checkpoints")} if any(each.lease for each in provided) else set()
    hide |= {each.path for each in provided if each.chosen.folder}
    inherited = {key: value for key, value in environ.items() if key != "LAUNCHER_VERDICT"}
    prepared = Prepared(
        command=line,
        env={"PYTHONUNBUFFERED": "1"} | inherited | env | spec.env,
        work_dir=work_dir,
        output=str(output),
        mounts=tuple(mounts),
        hide=tuple(sorted(hide)),
        rungs=_rungs("input-guard", settings.input_guard, RUNGS),
        provided=tuple(provided),
        spool=folder.path / "spool",
        watch=tuple(os.path.join(work_dir, each) for each in spec.watch),
        capture=_rungs("capture", settings.capture, filesystem.RUNGS),
        verdict=verdict,
        leases=tuple(each.lease for each in provided if each.lease),
    )
    if not in_container:
        return prepared
    inside = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1"} | env | spec.env
    request = _container(spec, folder, prepared, inside, gpus=spec.accels if checked.device.startswith("cuda") else 0)
    return dataclasses.replace(prepared, env=inside, hide=(), rungs=("engine",), request=request)


def _container(
    spec: JobSpec, folder: JobFolder, prepared: Prepared, env: dict[str, str], *, gpus: int
) -> dict[str, Any]:
    user, uid, gid = docker.user_of(spec.user)
    if uid is not None and os.geteuid() == 0:
        for path in (prepared.output, folder.path / "logs"):
            os.chown(path, uid, gid if gid is not None else -1)
    return docker.plan(
        image=spec.image,
        name=f"launcher-{folder.id}",
        job_id=folder.id,
        command=prepared.command.arguments,
        env=env,
        work_dir=prepared.work_dir,
        inputs=prepared.mounts,
        output=prepared.output,
        folder=str(folder.path),
        agent=torchrun.AGENT,
        user=user,
        network=spec.network,
        shm_size=spec.shm_size or _half_of_memory(),
        gpus=gpus,
    )


def _device(spec: JobSpec, environ: Mapping[str, str], emit: Emit) -> tuple[str, dict[str, str]]:
    """The device in words, and the variables that keep a job on the CPU where that was chosen."""
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if spec.device == "cpu":
        return "cpu", on_cpu
    wrapped = torchrun.command_line(
        spec.command, accels=spec.accels, launch=spec.launch, python="python", log_dir=""
    ).wrapped
    if spec.device == "auto" and not wrapped and spec.accels == 1:
        return "the command's own choice", {}
    found = detect(environ)
    if spec.device != "auto" and found.kind != spec.device:
        raise TooFewAccelerators(asked=spec.accels, found=0, detail=f"--device {spec.device}; {found.detail}")
    if found.count == 0 and spec.runner != "entrypoint":
        processes = "1 process" if spec.accels == 1 else f"{spec.accels} gloo processes"
        emit(event("cpu-fallback", f"No accelerator here ({found.detail}): running {processes} on the CPU"))
        # Without it, a Trainer under torchrun on a machine without accelerators trains every rank on its own (measured).
        return "cpu (no accelerator)", {"ACCELERATE_USE_CPU": "true"}
    if found.count < spec.accels:
        hint = "Set LAUNCHER_DEVICE=cpu to run on the CPU." if found.count == 0 else None
        raise TooFewAccelerators(asked=spec.accels, found=found.count, detail=found.detail, hint=hint)
    return f"{found.kind} × {spec.accels}", {}


def _python(environ: Mapping[str, str]) -> str:
    """The job's own interpreter: the active virtual environment's, else ours if torch is there, else the one on PATH."""
    if environ.get("VIRTUAL_ENV"):
        candidate = os.path.join(environ["VIRTUAL_ENV"], "bin", "python")
        if os.access(candidate, os.X_OK):
            return candidate
    if importlib.util.find_spec("torch"):
        return sys.executable
    return shutil.which("python3", path=environ.get("PATH")) or sys.executable


def _folders(spec: JobSpec, settings: Settings, environ: Mapping[str, str], folder: JobFolder) -> tuple[Path, Path]:
    """The input and output directory on this machine. In a container's entrypoint the contract's default paths, where they
    can be made; else in the job folder, so that two jobs of one machine never share them."""
    entrypoint = spec.runner == "entrypoint"
    made = []
    for named, variable, default, own in (
        (settings.input_dir, "FLEXAI_INPUT_CHECKPOINT_DIR", docker.INPUT, "input-checkpoint"),
        (settings.output_dir, "FLEXAI_OUTPUT_CHECKPOINT_DIR", docker.OUTPUT, "output-checkpoint"),
    ):
        chosen = named or (environ.get(variable) if entrypoint else None)
        candidates = [chosen] if chosen else [default] if entrypoint else []
        path = next((Path(each) for each in candidates if _usable(each)), None)
        if path is None and chosen:
            raise AccessDenied(what=chosen, cause="the folder cannot be made or written")
        if path is None:
            path = folder.path / own
            path.mkdir(exist_ok=True)
        made.append(path.absolute())
    return made[0], made[1]


def _usable(path: str) -> bool:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK | os.X_OK)


def _empty_folder(path: str) -> None:
    """The mount point. A link at its place (an earlier attempt's) is removed; a folder with content is refused."""
    try:
        if os.path.islink(path):
            os.unlink(path)
        os.makedirs(path, exist_ok=True)
        if os.listdir(path):
            raise LocalResourceError(
                what=f"The input folder {path} is not empty.", hint="Choose another folder: -C REF=FOLDER."
            )
    except OSError as error:
        raise LocalResourceError(what=f"The input folder {path} cannot be made: {error.strerror}.") from error


def _rungs(key: str, asked: str, known: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """The ways that a setting lists, in its order; all of them for auto."""
    if asked == "auto":
        return known
    words = [part.strip() for part in asked.split(",")]
    for word in words:
        if word not in known:
            raise UsageError(what=f"--{key} {word}: choose from {', '.join(known)}, or auto.")
    return tuple(each for word in words for each in known if each == word)


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
