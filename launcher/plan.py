"""What a job would be: everything checked and made out as for its start, nothing started, fetched or written.

The exact job is made by the functions that make it for the start (`prepare`), in a folder that is gone afterwards; its paths are
shown as they would be. Only what needs the bytes of an input or of the job is left out, and named in `unchecked`.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher import names, secrets
from launcher.attempt import redacted
from launcher.errors import AccessDenied, LocalResourceError, MountFailed, NoSpace
from launcher.events import Emit, Redactor, secret_name
from launcher.inputs import choose, protection
from launcher.inputs.cache import NodeCache
from launcher.inputs.choose import Chosen
from launcher.job import folder as folders
from launcher.job.folder import JobFolder
from launcher.job.spec import JobSpec
from launcher.prepare import Checked, Prepared, check, of_attempt, prepare
from launcher.runners.handover import Handover
from launcher.settings import Settings, existing
from launcher.store.store import Store
from launcher.text import size
from launcher.transfer.local import LocalStore

_ID = "ID"
"""Stands for the id that the job would get."""
_HIDDEN = "***"


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of this machine, and where the job finds it."""

    source: str
    target: str
    read_only: bool


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """An input: sizes in bytes."""

    reference: str
    checkpoint: str | None
    """Its id in the store; None for what is not in it."""
    source: str
    """Where it would come from."""
    size: int
    fetch: int
    """What would have to come from there, at most: 0 where it is in the node cache, or a folder of this machine."""
    kind: Literal["checkpoint", "dataset", "resume"] = "checkpoint"
    """resume: the checkpoint that --resume names."""


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A place that takes what comes: bytes."""

    path: str
    use: str
    need: int
    free: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it would be started."""

    name: str
    """The job's."""
    kind: str
    """training, fine-tuning or inference."""
    runner: str
    """process or docker."""
    device: str
    """In words."""
    store: str
    """Where its checkpoints would be stored."""
    command: list[str]
    """As it would be executed."""
    work_dir: str
    """Where it would run: of a container, what is bound at its working directory."""
    image: str
    """Of the docker runner."""
    env: dict[str, str]
    """Variables that the job gets beyond those of this process; for a container all of them. Secret values are ***."""
    inherits: int
    """How many variables it has from this process."""
    secrets: dict[str, str]
    """Variables that are secrets or name a file with one, to the secrets' names."""
    inputs: list[Input]
    """`reference`, `kind` (checkpoint, dataset, resume), `checkpoint` (its id), `source`, `size`, `fetch`: bytes to come."""
    mounts: list[Mount]
    """`source` on this machine, `target` as the job sees it, `read_only`."""
    guard: str
    """What would keep the input from being changed: a rung."""
    output: str
    """Where checkpoints would be collected from, on this machine."""
    others: str
    """Where the job's other outputs would be."""
    repository: str
    """Of the code; empty: it is in the folder in which the job would run."""
    commit: str
    """Of the repository."""
    packages: str
    """The folder with the packages that the job asks for, on this machine; empty: it asks for none."""
    packages_here: bool
    """Whether they are there already; else they would be installed."""
    disk: list[Disk]
    """`path`, `use`, and bytes: `need` and `free`."""
    unchecked: list[str]
    """What cannot be known before the start."""


def plan(spec: JobSpec, settings: Settings, environ: Mapping[str, str], emit: Emit) -> Plan:
    """Raises what the start would raise, as far as it can be known without the bytes: LauncherError."""
    kept = secrets.values(settings.data_dir, spec.secret_sources(), environ)
    redactor = Redactor.of_environment(dict(environ) | spec.env, kept)
    store = Store.open(settings, environ, look_only=True)
    _check_place(settings, store)
    checked = check(spec, settings, environ, store, emit)
    _check_running(spec, settings)
    _check_port(spec)
    cache = NodeCache.open(settings)
    inputs = _inputs(checked, store, cache, redactor)
    disk = _disk(settings, cache, sum(each.fetch for each in inputs))
    with tempfile.TemporaryDirectory(prefix="launcher-plan-") as scratch:
        folder = JobFolder(Path(os.path.realpath(scratch), _ID))
        (folder.path / "logs").mkdir(parents=True)
        inside = msgspec.structs.replace(
            settings,
            input_dir=os.path.join(scratch, "in") if settings.input_dir else "",
            output_dir=os.path.join(scratch, "out") if settings.output_dir else "",
            dataset_dir=os.path.join(scratch, "data") if settings.dataset_dir else "",
        )
        prepared = prepare(spec, inside, environ, store, folder, checked, emit, stop=lambda: None, trial=True)
        rung = "engine" if spec.runner == "docker" else _rung(prepared, folder)
        exact = of_attempt(prepared, spec, checked, folder, 1)
        real = {
            str(folder.path): os.path.join(settings.data_dir, "jobs", names.key(spec.name), _ID),
            inside.input_dir: settings.input_dir,
            inside.output_dir: settings.output_dir,
            inside.dataset_dir: settings.dataset_dir,
        }
        found = _made(spec, environ, checked, exact, redactor, rung, inputs, disk, store)
        return msgspec.convert(_placed(msgspec.to_builtins(found), real), Plan)


def _made(
    spec: JobSpec,
    environ: Mapping[str, str],
    checked: Checked,
    exact: Prepared,
    redactor: Redactor,
    rung: str,
    inputs: list[Input],
    disk: list[Disk],
    store: Store,
) -> Plan:
    request: dict[str, Any] = exact.request or {}
    given = request.get("environment", {}) if request else exact.env
    own = given if request else {key: value for key, value in given.items() if environ.get(key) != value}
    hidden = {*checked.given.variables, *(exact.handed.values if isinstance(exact.handed, Handover) else ())}
    env = {
        key: _HIDDEN if key in hidden or secret_name(key) else redactor.text(value)
        for key, value in (dict.fromkeys(hidden, _HIDDEN) | dict(own)).items()
    }
    mounts = [Mount(source=source, target=target, read_only=not spec.input_writable) for source, target in exact.mounts]
    if request:
        mounts = [
            Mount(source=each["Source"], target=each["Target"], read_only=each["ReadOnly"])
            for each in request["mounts"]
        ]
    return Plan(
        name=spec.name,
        kind=spec.kind,
        runner=spec.runner,
        device=checked.device,
        store=redactor.text(store.url),
        command=redactor.command(request["command"] if request else exact.command.arguments),
        work_dir=exact.work_dir,
        image=spec.image,
        env=dict(sorted(env.items())),
        inherits=0 if request else len(given) - len(own),
        secrets=spec.secret | spec.secret_file,
        inputs=inputs,
        mounts=mounts,
        guard=rung,
        output=exact.output,
        others=exact.others,
        repository=redacted(spec, redactor).repository_url,
        commit=checked.commit,
        packages=exact.environment.folder if exact.environment else "",
        packages_here=exact.environment is not None and os.path.exists(exact.environment.folder),
        disk=disk,
        unchecked=_unchecked(spec, checked, exact),
    )


def _inputs(checked: Checked, store: Store, cache: NodeCache, redactor: Redactor) -> list[Input]:
    kinds: list[tuple[Literal["checkpoint", "dataset", "resume"], tuple[Chosen, ...]]] = [
        ("checkpoint", checked.chosen),
        ("dataset", checked.datasets),
        ("resume", (checked.resume,) if checked.resume else ()),
    ]
    return [
        Input(
            reference=redactor.text(each.text),
            checkpoint=each.manifest.id if each.manifest else None,
            source=redactor.text(store.url if each.manifest else each.folder or each.source),
            size=each.size,
            fetch=choose.expected(each, cache)[1],
            kind=kind,
        )
        for kind, chosen in kinds
        for each in chosen
    ]


def _unchecked(spec: JobSpec, checked: Checked, exact: Prepared) -> list[str]:
    found = []
    if exact.environment and not os.path.exists(exact.environment.folder):
        found.append("Whether the packages can be installed, and the command if it comes with them.")
    if any(each.remote and each.remote.archive for each in checked.chosen):
        found.append("What is in an archive, before it is unpacked.")
    if any(each.remote and not each.remote.archive for each in checked.chosen):
        found.append("The digests of what is not in a store, before it has come.")
    if spec.runner == "docker":
        found.append("Whether the command is in the image, and whether its user may write.")
    if spec.input_writable:
        found.append("The space for the job's view of its input: changes, or a copy where there is no overlayfs.")
    return found


def _rung(prepared: Prepared, folder: JobFolder) -> str:
    """Raises MountFailed where nothing that is allowed would protect the input."""
    if not prepared.mounts:
        return ""
    asked = prepared.protection.rungs
    if rung := protection.probe(asked, folder.path).rung:
        return rung
    raise MountFailed(
        path="the input directory",
        cause=f"no rung holds of {', '.join(asked)}",
        hint="LAUNCHER_INPUT_GUARD says which are allowed; `launcher doctor` which would hold here.",
    )


def _check_place(settings: Settings, store: Store) -> None:
    """Job folder, cache and local store can be made and written."""
    wanted = [(settings.data_dir, "LAUNCHER_DATA_DIR"), (settings.cache_dir, "LAUNCHER_CACHE_DIR")]
    wanted += [(store.place.root, "LAUNCHER_STORE")] if isinstance(store.place, LocalStore) else []
    for path, variable in wanted:
        there = _nearest(path)
        if not there.is_dir():
            raise LocalResourceError(
                what=f"{path} cannot be made: {there} is no folder.", hint=f"Choose another by {variable}."
            )
        if not os.access(there, os.W_OK | os.X_OK):
            hint = f"Choose a folder that you may write by {variable}."
            raise AccessDenied(what=str(there), cause="it cannot be written", hint=hint)


def _check_running(spec: JobSpec, settings: Settings) -> None:
    for each in folders.of_name(settings.data_dir, spec.name):
        if each.running():
            raise folders.already_runs(each, spec.name, spec.kind)


def _check_port(spec: JobSpec) -> None:
    address = spec.health_address()
    if not address or not address[1]:
        return
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise LocalResourceError(
                what=f"--health-port {spec.health_port} cannot be had: {error.strerror}.", hint="Choose another port."
            ) from error


def _disk(settings: Settings, cache: NodeCache, need: int) -> list[Disk]:
    """Raises NoSpace where the inputs would not fit, whatever the cache gave up for them."""
    there = _nearest(settings.cache_dir)
    free = shutil.disk_usage(there).free
    if need > free + cache.occupied():
        raise NoSpace(
            what="the inputs", path=settings.cache_dir, need=size(need), free=size(free), setting="LAUNCHER_CACHE_DIR"
        )
    data = shutil.disk_usage(_nearest(settings.data_dir)).free
    return [
        Disk(path=settings.cache_dir, use="inputs", need=need, free=free),
        Disk(path=settings.data_dir, use="outputs, and checkpoints until they are stored", need=0, free=data),
    ]


def _nearest(path: str | Path) -> Path:
    """The path, or what of it is there."""
    return existing(Path(os.path.abspath(path)))


def _placed(value: Any, real: Mapping[str, str]) -> Any:
    """The same with paths of the scratch folder as they would be."""
    if isinstance(value, str):
        for scratch, path in real.items():
            value = value.replace(scratch, path) if scratch else value
        return value
    if isinstance(value, dict):
        return {key: _placed(each, real) for key, each in value.items()}
    return [_placed(each, real) for each in value] if isinstance(value, list) else value
