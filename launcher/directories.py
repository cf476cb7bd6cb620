"""The folders of the contract on this machine: where the job finds its input, and where it writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import AccessDenied, LocalResourceError, UsageError
from launcher.job.folder import JobFolder
from launcher.job.spec import JobSpec
from launcher.runners import docker
from launcher.settings import Settings


def input_dir(spec: JobSpec, settings: Settings, environ: Mapping[str, str]) -> str:
    """The input directory as far as it is known before the job has a folder; empty where it will lie there."""
    if spec.runner == "docker":
        return docker.INPUT
    given = environ.get("FLEXAI_INPUT_CHECKPOINT_DIR", "") or docker.INPUT if spec.runner == "entrypoint" else ""
    return os.path.abspath(settings.input_dir or given) if settings.input_dir or given else ""


def dataset_dir(spec: JobSpec, settings: Settings, environ: Mapping[str, str]) -> str:
    """The same of the datasets' directory."""
    if spec.runner == "docker":
        return docker.DATASETS
    given = environ.get("FLEXAI_INPUT_DIR", "") or docker.DATASETS if spec.runner == "entrypoint" else ""
    return os.path.abspath(settings.dataset_dir or given) if settings.dataset_dir or given else ""


def find(spec: JobSpec, settings: Settings, environ: Mapping[str, str], folder: JobFolder) -> tuple[Path, Path]:
    """The input and output directory on this machine. In a container's entrypoint the contract's default paths, where they
    can be made; else in the job folder, so that two jobs of one machine never share them."""
    given = environ if spec.runner == "entrypoint" else None
    made = _make(
        settings.input_dir, "FLEXAI_INPUT_CHECKPOINT_DIR", docker.INPUT, given, folder.path / "input-checkpoint"
    )
    output = _make(
        settings.output_dir, "FLEXAI_OUTPUT_CHECKPOINT_DIR", docker.OUTPUT, given, folder.path / "output-checkpoint"
    )
    inside = Path(os.path.realpath(made))
    _check_apart(inside, "LAUNCHER_INPUT_DIR", output)
    return inside, output


def find_datasets(
    spec: JobSpec, settings: Settings, environ: Mapping[str, str], folder: JobFolder, others: tuple[Path, Path]
) -> Path:
    """The datasets' directory likewise; `others`: what `find` returned. Where the job has no dataset it is only named: whatever
    a platform has put there stays as it is."""
    inside, output = others
    own = folder.path / "input"
    if not spec.dataset:
        own.mkdir(exist_ok=True)
        return Path(dataset_dir(spec, settings, environ) or own)
    given = environ if spec.runner == "entrypoint" else None
    found = Path(os.path.realpath(_make(settings.dataset_dir, "FLEXAI_INPUT_DIR", docker.DATASETS, given, own)))
    if found == inside or found in inside.parents or inside in found.parents:
        raise UsageError(
            what=f"The directories of input checkpoints ({inside}) and of datasets ({found}) lie in each other.",
            hint="Choose another LAUNCHER_INPUT_DIR or LAUNCHER_DATASET_DIR.",
        )
    _check_apart(found, "LAUNCHER_DATASET_DIR", output)
    return found


def _make(named: str, variable: str, default: str, given: Mapping[str, str] | None, own: Path) -> Path:
    """One of the folders: `named` by a setting, or by what is `given` to an entrypoint, or its default; else `own`."""
    chosen = named or (given.get(variable) if given is not None else None)
    candidates = [chosen] if chosen else [default] if given is not None else []
    path = next((Path(each) for each in candidates if _usable(each)), None)
    if path is None and chosen:
        raise AccessDenied(what=chosen, cause="the folder cannot be made or written")
    if path is None:
        path = own
        path.mkdir(exist_ok=True)
    return path.absolute()


def _check_apart(inside: Path, setting: str, output: Path) -> None:
    output = Path(os.path.realpath(output))
    if inside == output or inside in output.parents:
        raise UsageError(
            what=f"The output directory {output} lies in the input directory {inside}, which is read-only.",
            hint=f"Choose another LAUNCHER_OUTPUT_DIR or {setting}.",
        )


def others(spec: JobSpec, environ: Mapping[str, str], folder: JobFolder) -> Path:
    """Where the job writes what is no checkpoint. In an entrypoint FLEXAI_OUTPUT_DIR, else /output where the image has it; else
    in the job folder."""
    path = folder.path / "output"
    if spec.runner == "entrypoint":
        chosen = environ.get("FLEXAI_OUTPUT_DIR", "")
        if chosen and not _usable(chosen):
            raise AccessDenied(what=chosen, cause="the folder cannot be made or written")
        if chosen or os.access(docker.OTHERS, os.W_OK | os.X_OK):
            return Path(os.path.abspath(chosen or docker.OTHERS))
    path.mkdir(exist_ok=True)
    return path


def _usable(path: str) -> bool:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK | os.X_OK)


def make_empty(path: str) -> None:
    """The mount point. A link at its place (an earlier attempt's) is removed; a folder with content is refused."""
    try:
        if os.path.islink(path):
            os.unlink(path)
        os.makedirs(path, exist_ok=True)
        if os.listdir(path):
            raise LocalResourceError(
                what=f"The input folder {path} is not empty.",
                hint="Choose another folder: -C REF=FOLDER, -D NAME=MOUNT.",
            )
    except OSError as error:
        raise LocalResourceError(what=f"The input folder {path} cannot be made: {error.strerror}.") from error


def give(root: str | Path, uid: int, gid: int) -> None:
    """Makes a user the owner of all that is below a folder; -1 keeps what is."""
    for parent, folders, files in os.walk(root):
        for name in (parent, *(os.path.join(parent, each) for each in (*folders, *files))):
            os.chown(name, uid, gid, follow_symlinks=False)
