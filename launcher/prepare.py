"""Everything before the job: all checks first, then the bytes, then the exact thing that will be started."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launcher import device as devices
from launcher import directories, model_folder, requirements, secrets
from launcher.checkpoint import policy
from launcher.checkpoint.manifest import Manifest
from launcher.errors import LauncherError, LocalResourceError, UsageError
from launcher.events import Emit, event, secret_name
from launcher.inputs import choose, mentions, source
from launcher.inputs import datasets as choosing
from launcher.inputs.cache import Held, NodeCache
from launcher.inputs.choose import Chosen, Provided
from launcher.inputs.protection import PREVENTING, RUNGS, Possible, Protection, library_caches, probe
from launcher.inputs.selection import Selection
from launcher.inputs.view import View
from launcher.job.folder import JobFolder
from launcher.job.spec import RESUME, JobSpec
from launcher.outputs import filesystem
from launcher.progress import Progress
from launcher.requirements import Environment
from launcher.runners import docker, handover, identity, torchrun
from launcher.runners.handover import Handed, Handover
from launcher.runners.torchrun import CommandLine
from launcher.secrets import Given
from launcher.settings import Settings
from launcher.store import protection
from launcher.store.datasets import Datasets
from launcher.store.store import Store
from launcher.text import duration
from launcher.text import size as as_size

if TYPE_CHECKING:
    from launcher.inputs.lazy import LazyInput

Rung = TypeVar("Rung", bound=str)


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
    datasets: tuple[Chosen, ...] = ()
    resume: Chosen | None = None
    """The checkpoint that --resume names."""
    repository: source.Repository | None = None
    given: Given = field(default_factory=Given)
    """The job's secrets: given to it, written nowhere."""


@dataclass(frozen=True)
class Prepared:
    """The exact job: what the runner starts and what the watcher watches. Leases keep the inputs in the cache."""

    command: CommandLine
    env: dict[str, str]
    work_dir: str
    output: str
    others: str
    """Where the job writes what is no checkpoint."""
    protection: Protection
    provided: tuple[Provided, ...]
    datasets: tuple[Provided, ...]
    spool: Path
    watch: tuple[str, ...]
    capture: tuple[filesystem.Rung, ...]
    logs: Path
    """Of one attempt: what torchrun keeps of each rank, and its agent's verdict."""
    stop_file: Path
    leases: tuple[Held, ...] = field(default=(), compare=False)
    request: dict[str, Any] | None = None
    """Docker: what the engine is asked for."""
    handed: Handed | None = None
    """The secrets that the job finds in files."""
    environment: Environment | None = None
    """The job's packages, where it asks for any."""

    @property
    def verdict(self) -> Path:
        """Where torchrun's agent says which rank failed."""
        return self.logs / "verdict.json"

    @property
    def mounts(self) -> tuple[tuple[str, str], ...]:
        """(folder on this machine, path at which the job finds it)."""
        return self.protection.mounts

    @property
    def servers(self) -> tuple[int, ...]:
        """Process ids of what serves lazy inputs: children of the launcher, and not the job's."""
        return tuple(each.lazy.pid for each in self.provided if each.lazy)

    @property
    def mounted(self) -> tuple[Provided, ...]:
        """The input checkpoint of each of the first mounts: one with two names is at both. The others are the datasets'."""
        return tuple(each for each in self.provided for _ in each.chosen.names)


def check(
    spec: JobSpec,
    settings: Settings,
    environ: Mapping[str, str],
    store: Store,
    emit: Emit,
    *,
    stop: Callable[[], None] = lambda: None,
) -> Checked:
    """Everything that can be known before anything long starts. Raises the error of what is wrong, and what `stop` raises: it
    is called often while the code's repository is asked."""
    device, extra = devices.choose(spec, environ, emit)
    given = secrets.given(settings.data_dir, spec.secret, spec.secret_file, environ, emit, mask=not spec.no_mask)
    commit, repository = "", None
    if spec.repository_url:
        token = spec.repository_token_secret and secrets.read(settings.data_dir, spec.repository_token_secret, environ)
        repository = source.Repository(spec.repository_url, spec.repository_revision, token)
        commit = source.check(repository, environ, timeout=settings.store_timeout, stop=stop)
    work_dir = os.path.abspath(spec.work_dir or os.getcwd())
    if not os.path.isdir(work_dir):
        raise UsageError(what=f"--work-dir {work_dir}: there is no such folder.")
    python = devices.interpreter(environ)
    client = docker.connect(spec.image) if spec.runner == "docker" else None
    elsewhere = spec.runner == "sidecar" or (spec.runner == "docker" and not spec.command[0].endswith(".py"))
    if not spec.repository_url:
        needed = requirements.find(spec, work_dir)
        if not elsewhere:
            torchrun.check_command(spec.command, work_dir, programs=needed is None)
    if spec.input_mode == "lazy":
        from launcher.inputs import lazy

        lazy.require()
    store.prepare()
    selection = Selection(spec.include, spec.exclude, spec.only)
    chosen = choose.choose(spec.checkpoint, store, settings, environ, selection)
    datasets = (
        choosing.choose(spec.dataset, Datasets.open(settings, environ, look_only=store.look_only))
        if spec.dataset
        else []
    )
    here = spec.runner != "docker"
    mentions.check(spec.command, chosen, directories.input_dir(spec, settings, environ), here=here)
    if datasets:  # Without any, /input may be whatever the job likes.
        inside = directories.dataset_dir(spec, settings, environ)
        mentions.check(spec.command, datasets, inside, here=here, place=mentions.DATASETS)
    going_on = [] if spec.resume in RESUME else choose.choose((spec.resume,), store, settings, environ)
    for each in (*chosen, *going_on):
        findings = choose.findings(each, store, settings)
        policy.refuse(findings, spec.pickles, each.text)
        policy.warn(findings, spec.pickles, each.text, emit)
    resume = going_on[0] if going_on else None
    return Checked(
        tuple(chosen), device, extra, work_dir, commit, python, client, tuple(datasets), resume, repository, given
    )


def prepare(
    spec: JobSpec,
    settings: Settings,
    environ: Mapping[str, str],
    store: Store,
    folder: JobFolder,
    checked: Checked,
    emit: Emit,
    *,
    stop: Callable[[], None],
    trial: bool = False,
) -> Prepared:
    """Provides the inputs and the folders: what all attempts share, see `of_attempt`. What it makes lies in the job folder
    and the node cache; of a `trial` in `folder` alone: inputs are where they would be.

    `stop` is called often during a download, and raises to end it; what has come is kept for the next one.
    """
    cache = NodeCache.open(settings, emit)
    in_container = spec.runner == "docker"
    input_dir, output = directories.find(spec, settings, environ, folder)
    dataset_dir = directories.find_datasets(spec, settings, environ, folder, (input_dir, output))
    ways = _rungs("input-guard", settings.input_guard, RUNGS)
    possible = functools.cache(lambda: probe(ways, folder.path))
    linkable = lambda: in_container or possible().rung in PREVENTING
    work_dir, environment = _code(spec, settings, environ, folder, checked, cache, emit, stop=stop, trial=trial)
    lazily = _lazily(spec, settings, folder, possible, emit)
    if trial:
        provided = [choose.expected(each, cache)[0] for each in checked.chosen]
        datasets = [choose.expected(each, cache)[0] for each in checked.datasets]
    else:
        provided = provide(spec, checked.chosen, store, folder, cache, emit, linkable, lazily, stop=stop)
        kept = Datasets.open(settings, environ) if checked.datasets else store
        datasets = provide(spec, checked.datasets, kept, folder, cache, emit, linkable, None, stop=stop)
    others = directories.others(spec, environ, folder)
    stop_file = folder.path / "logs" / "stop.json"
    env = dict(checked.env) | {
        "FLEXAI_INPUT_CHECKPOINT_DIR": docker.INPUT if in_container else str(input_dir),
        "FLEXAI_INPUT_DIR": docker.DATASETS if in_container else str(dataset_dir),
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": docker.OUTPUT if in_container else str(output),
        "FLEXAI_OUTPUT_DIR": docker.OTHERS if in_container else str(others),
        "LAUNCHER_JOB_NAME": spec.name,
        "LAUNCHER_JOB_ID": folder.id,
        "LAUNCHER_STOP_FILE": f"{docker.LOGS}/{stop_file.name}" if in_container else str(stop_file),
    }
    at = functools.partial(os.path.join, env["FLEXAI_INPUT_CHECKPOINT_DIR"])
    mounts = tuple(
        (at(each.chosen.names[0]) if each.lazy and again else each.path, at(name))
        for each in provided
        for again, name in enumerate(each.chosen.names)
    )
    if len(provided) == 1:
        env["LAUNCHER_INPUT_CHECKPOINT"] = mounts[0][1]
    if spec.kind == "inference":
        env |= _served(spec, folder, provided, [at(each.chosen.names[0]) for each in provided])
    mounts += tuple((each.path, os.path.join(env["FLEXAI_INPUT_DIR"], each.chosen.names[0])) for each in datasets)
    env |= torchrun.environment(spec.accels, os.cpu_count() or 1)
    defaults = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"} | torchrun.patience(spec.grace)
    inherited = {"HOME": "/tmp"} if in_container else dict(environ)
    if not in_container:
        closed = lambda: bool(mounts) and possible().rung not in PREVENTING
        inherited |= identity.lacking(environ, (input_dir, dataset_dir), folder.path / "tmp", closed)
    whole = defaults | inherited | env | spec.env
    if environment:
        path = whole.get("PATH") or (docker.image(checked.client, spec.image)[1] if in_container else os.defpath)
        whole |= environment.variables(path)
    every = (*provided, *datasets)
    hide = {path for each in every for path in each.same_bytes}
    if environment and not in_container:
        hide.add(environment.folder)
    shield = Protection(
        rungs=ways,
        inputs=(str(input_dir), *([str(dataset_dir)] if datasets else [])),
        mounts=mounts,
        hide=tuple(sorted(hide)),
        caches=() if in_container or trial else library_caches(whole, cache.folder),
        lazy={at(each.chosen.names[0]): each.lazy.control for each in provided if each.lazy},
    )
    hidden = checked.given.variables | {name: value for name, value in spec.env.items() if secret_name(name)}
    hidden = {name: value for name, value in hidden.items() if in_container and name.isidentifier()}
    handed = handover.by_files(
        folder.path, hidden, checked.given.files, docker.owner(spec.user) if in_container else None
    )
    whole |= checked.given.variables | (handed.variables if handed else {})
    held: list[Held] = [held for each in every for held in (each.lease, each.lazy) if held]
    held += [environment.lease] if environment and environment.lease else []
    if mounts and spec.input_writable and not trial:
        view = View(folder.path / "view")
        held.append(view)
        shield = _writable(shield, view, possible, docker.owner(spec.user) if in_container else None, emit)
    if not in_container and (any(each.linked for each in every) or any(shield.views.values()) or shield.lazy):
        shield = dataclasses.replace(shield, rungs=(possible().rung,))
    return Prepared(
        command=_command(spec, checked, environment, folder.path / "logs", env),
        env={name: value for name, value in whole.items() if name not in hidden},
        work_dir=work_dir,
        output=str(output),
        others=str(others),
        protection=shield,
        provided=tuple(provided),
        datasets=tuple(datasets),
        spool=folder.path / "spool",
        watch=tuple(os.path.join(work_dir, each) for each in spec.watch),
        capture=_rungs("capture", settings.capture, filesystem.RUNGS),
        logs=folder.path / "logs",
        stop_file=stop_file,
        leases=tuple(held),
        handed=handed,
        environment=environment,
    )


def _code(
    spec: JobSpec,
    settings: Settings,
    environ: Mapping[str, str],
    folder: JobFolder,
    checked: Checked,
    cache: NodeCache,
    emit: Emit,
    *,
    stop: Callable[[], None],
    trial: bool,
) -> tuple[str, Environment | None]:
    """The folder in which the job runs, with the repository's files where it has one, and the packages that it asks for (of a
    trial: where they would be)."""
    work_dir = checked.work_dir
    if checked.repository:
        work_dir = str(folder.path / "source")
        source.fetch(
            checked.repository, checked.commit, Path(work_dir), environ,
            timeout=settings.store_timeout, stop=stop, emit=emit,
        )  # fmt: skip
    needed, environment = requirements.find(spec, work_dir), None
    if checked.repository and spec.runner != "docker":
        torchrun.check_command(spec.command, work_dir, programs=needed is None)
    if needed:
        environment = requirements.provide(
            spec, checked.python, checked.client, needed, environ=environ, secrets=checked.given.variables,
            work_dir=work_dir, job=folder.path, cache=cache, timeout=settings.store_timeout, emit=emit, stop=stop,
            trial=trial,
        )  # fmt: skip
        if spec.runner != "docker" and os.path.exists(environment.folder):
            torchrun.check_command(spec.command, work_dir, path=environment.variables(environ.get("PATH", ""))["PATH"])
    return work_dir, environment


def of_attempt(
    prepared: Prepared, spec: JobSpec, checked: Checked, folder: JobFolder, number: int, resumed: str = ""
) -> Prepared:
    """What `prepare` returned, for one attempt, with a folder of its own for what torchrun keeps. `resumed`: the path below the
    output directory of the checkpoint that it goes on from."""
    logs = folder.path / "logs" / f"attempt-{number}"
    logs.mkdir(parents=True, exist_ok=True)
    in_container = spec.runner == "docker"
    inside = Path(docker.LOGS) if in_container else logs
    own = {"LAUNCHER_ATTEMPT": str(number), "LAUNCHER_VERDICT": str(inside / "verdict.json")}
    if resumed:
        own["LAUNCHER_RESUME_CHECKPOINT"] = os.path.join(prepared.env["FLEXAI_OUTPUT_CHECKPOINT_DIR"], resumed)
    kept = {key: value for key, value in prepared.env.items() if key != "LAUNCHER_RESUME_CHECKPOINT"}
    command = _command(spec, checked, prepared.environment, inside, kept)
    exact = dataclasses.replace(prepared, command=command, env=kept | own, logs=logs)
    if in_container:
        # In the one folder of this machine, beside the output directory, that the container may write: never where job.log is.
        exact = dataclasses.replace(exact, stop_file=logs / prepared.stop_file.name)
        request = _container(spec, folder, exact, gpus=spec.accels if checked.device.startswith("cuda") else 0)
        return dataclasses.replace(exact, request=request)
    for _, target in exact.mounts:
        directories.make_empty(target)
    return exact


def _served(spec: JobSpec, folder: JobFolder, provided: Sequence[Provided], targets: Sequence[str]) -> dict[str, str]:
    """Makes the model's folder for a server, and returns the variables that it gets. In a container it has to listen at every
    address: the engine publishes its port at the one that was asked for."""
    models = folder.path / "models"
    model_folder.make(models, spec.name, provided, targets)
    if spec.runner != "docker":
        return model_folder.variables(spec.name, str(models), targets, spec.host, spec.port)
    host = spec.host if spec.network == "host" else "0.0.0.0"
    return model_folder.variables(spec.name, docker.MODELS, targets, host, spec.port)


def _command(
    spec: JobSpec, checked: Checked, environment: Environment | None, logs: Path, env: Mapping[str, str]
) -> CommandLine:
    in_container = spec.runner == "docker"
    python = docker.PYTHON if in_container else checked.python
    return torchrun.command_line(
        model_folder.expand(spec.command, spec.name, env) if spec.kind == "inference" else spec.command,
        accels=spec.accels,
        launch=spec.launch,
        python=environment.python if environment else python,
        agent=docker.AGENT if in_container else torchrun.AGENT,
        log_dir=str(logs),
    )


def provide(
    spec: JobSpec,
    wanted: Sequence[Chosen],
    store: Store,
    folder: JobFolder,
    cache: NodeCache,
    emit: Emit,
    linkable: Callable[[], bool],
    lazily: Callable[[Manifest, str], LazyInput] | None,
    *,
    stop: Callable[[], None],
) -> list[Provided]:
    """Brings inputs to this machine, verified and leased. `linkable`: see `NodeCache.fetch`; `stop`: see `prepare`."""
    for chosen in wanted:
        if chosen.manifest:  # Before the download: from now on, no retention takes it away.
            try:
                protection.use(store, chosen.manifest.id, folder.id, spec.name)
            except LauncherError as error:
                emit(
                    event("use-unknown", f"The store does not know that {chosen.text} is used: {error.text}", "warning")
                )
    provided = []
    for chosen in wanted:
        if lazily and chosen.remote:
            text = f"Input {chosen.text} is fetched whole before the job: only a stored checkpoint has a digest of each block"
            emit(event("input-eager", text, "warning"))
        with Progress(f"Fetching {chosen.text}", chosen.size, emit, stop) as progress:
            provided.append(choose.provide(chosen, store, cache, progress, linkable, lazily))
        findings = choose.findings_inside(provided[-1])
        policy.refuse(findings, spec.pickles, chosen.text)
        policy.warn(findings, spec.pickles, chosen.text, emit)
        emit(
            event(
                "input-ready",
                f"Input {chosen.names[0]}: {as_size(chosen.size) if chosen.size else provided[-1].path}"
                f" ready in {duration(progress.seconds)}" + (", arrives while it is read" if provided[-1].lazy else ""),
                name=chosen.names[0],
                seconds=round(progress.seconds, 3),
                fetched=progress.done,
            )
        )
    return provided


def _lazily(
    spec: JobSpec, settings: Settings, folder: JobFolder, possible: Callable[[], Possible], emit: Emit
) -> Callable[[Manifest, str], LazyInput] | None:
    """Starts a server for a checkpoint that arrives while it is read; None where that was not asked for. Raises
    LocalResourceError where the job could not have a mount of its own."""
    if spec.input_mode == "eager":
        return None
    from launcher.inputs import lazy  # Sockets and queues, which no other job needs here.

    if possible().rung not in PREVENTING:
        raise LocalResourceError(
            what=f"--input-mode lazy needs a mount in a namespace of the job's own, and here only {possible().rung} holds.",
            hint=f"In a container: --cap-add SYS_ADMIN. {lazy.EAGER}",
        )

    def start(manifest: Manifest, part: str) -> LazyInput:
        task = lazy.Task(settings=settings, manifest=manifest, part=part)
        return lazy.LazyInput(task, log=folder.path / "logs" / "input.log", emit=emit)

    return start


def _writable(
    shield: Protection, view: View, possible: Callable[[], Possible], owner: tuple[int, int] | None, emit: Emit
) -> Protection:
    """The same with a view at every mount: by overlayfs, else (always for a container, which `owner` says) by a copy."""
    no_overlay = "the Docker engine binds folders" if owner else possible().no_overlay
    if not no_overlay:
        emit(event("input-view", "The job may write into its input: a copy-on-write view, dropped after the job"))
        return dataclasses.replace(shield, views={target: view.changes() for _, target in shield.mounts})
    copies = {source: view.copy(source, owner) for source in {source for source, _ in shield.mounts}}
    whole = sum(not shared for _, shared in copies.values())
    how = "reflinks, which take no space" if not whole else "a whole copy, as there are no reflinks here"
    text = f"The job may write into its input: {how}, dropped after the job (no overlayfs: {no_overlay})"
    emit(event("input-view", text, "warning" if whole else "info"))
    mounts = tuple((copies[source][0], target) for source, target in shield.mounts)
    return dataclasses.replace(shield, mounts=mounts, views=dict.fromkeys((target for _, target in mounts), ""))


def _container(spec: JobSpec, folder: JobFolder, prepared: Prepared, *, gpus: int) -> dict[str, Any]:
    user, uid, gid = docker.user_of(spec.user)
    if uid is not None and os.geteuid() == 0:
        for path in (prepared.output, prepared.others, prepared.logs):
            directories.give(path, uid, gid if gid is not None else -1)
    return docker.plan(
        image=spec.image,
        name=docker.container_name(folder.id),
        job_id=folder.id,
        command=prepared.command.arguments,
        env=prepared.env,
        work_dir=prepared.work_dir,
        inputs=prepared.mounts,
        writable=prepared.protection.views,
        output=prepared.output,
        others=prepared.others,
        logs=str(prepared.logs),
        agent=torchrun.AGENT,
        user=user,
        network=spec.network,
        shm_size=spec.shm_size or _half_of_memory(),
        gpus=gpus,
        secrets=prepared.handed if isinstance(prepared.handed, Handover) else None,
        models=str(folder.path / "models") if spec.kind == "inference" else "",
        publish=(spec.host, spec.port) if spec.kind == "inference" else None,
        environment=prepared.environment.folder if prepared.environment else "",
    )


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
