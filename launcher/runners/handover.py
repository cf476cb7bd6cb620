"""Secrets in files: for a job that wants them so, and for a container, which gets all of them so.

A container's variables are shown by the engine to everybody who may ask it (`docker inspect`) and kept on its disk, so none of
them is a secret. Its first program, the image's own shell, reads them from files, sets them and removes the files; what the job
is to have as a file it puts into a file system in memory that only this container has. The files to be read lie in the job's
folder, beside which the secrets are kept anyway, and only for the moment of the start.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.errors import LocalResourceError

INSIDE = "/run/launcher/secrets"
FILES = "/run/launcher/files"
START = ("/bin/sh", f"{INSIDE}/start")
_PROGRAM = f"""#!/bin/sh
# Sets each variable from the file of its name, and becomes the command. Nothing of them is in any command line.
for file in {INSIDE}/values/*; do
    [ -e "$file" ] || continue
    value=$(cat "$file" && printf x) || exit 126
    export "${{file##*/}}=${{value%x}}"
    rm -f "$file"
done
for file in {INSIDE}/files/*; do
    [ -e "$file" ] || continue
    (umask 077 && cat "$file" > "{FILES}/${{file##*/}}" && chmod 400 "{FILES}/${{file##*/}}") || exit 126
    rm -f "$file"
done
unset file value
exec "$@"
"""
_MEMORY = "/dev/shm"


class Handed(Protocol):
    """Secrets in files, which are there from before the job's start until its end."""

    @property
    def variables(self) -> dict[str, str]:
        """The job's variables that say where the files are."""

    def give(self) -> None:
        """Before the job's start. Raises LocalResourceError."""

    def take_back(self) -> None:
        """Removes what is left of them. Idempotent."""


def place(job: Path) -> Path:
    """The folder for the files of a job that runs on this machine, by its job folder: in memory where that can be had."""
    memory = os.path.ismount(_MEMORY) and os.access(_MEMORY, os.W_OK | os.X_OK)
    return Path(_MEMORY, f"launcher-{job.name}") if memory else job / "secrets"


def by_files(
    job: Path, variables: Mapping[str, str], files: Mapping[str, bytes], owner: tuple[int, int] | None
) -> Handed | None:
    """How the job of this folder gets its secrets by files, if it does. `variables`: those that a container's engine is not
    told; `owner`: of the container's files, see `Handover`, and None for a job on this machine."""
    if owner and (variables or files):
        return Handover(job / "secrets", variables, owner, files)
    return SecretFiles(place(job), files) if files else None


def forget(job: Path) -> None:
    """Removes the secrets that a launcher which was killed left behind."""
    for folder in {place(job), *job.glob("secrets*")}:
        shutil.rmtree(folder, ignore_errors=True)


def no_core_dumps() -> None:
    """From now on neither this process nor what it starts leaves its memory behind when it crashes, unless it asks for that: a
    limit of 1 byte, which holds for programs that take core dumps as well (core(5); the kernel ignores 0 for them)."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))


@dataclass(frozen=True)
class SecretFiles:
    """A folder that is the caller's alone, with a file for each variable. `values`: variable to what its file holds."""

    folder: Path
    values: Mapping[str, bytes] = field(repr=False)

    @property
    def variables(self) -> dict[str, str]:
        return {name: str(self.folder / name) for name in self.values}

    def give(self) -> None:
        self.take_back()
        try:
            self.folder.mkdir(mode=0o700)
            for name, value in self.values.items():
                _write(self.folder / name, value, 0o400)
        except OSError as error:
            self.take_back()
            raise LocalResourceError(what=f"The secrets cannot be put into {self.folder}: {error.strerror}.") from error

    def take_back(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Handover:
    """`values`: variable to its value. `files`: variable to what its file holds. `owner`: uid and gid of the container's user
    where files can be given to it; -1 where only the image knows who that is: then all may read them who get to the folder,
    which nobody else does."""

    folder: Path
    values: Mapping[str, str] = field(repr=False)
    owner: tuple[int, int]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def variables(self) -> dict[str, str]:
        return {name: f"{FILES}/{name}" for name in self.files}

    @property
    def memory(self) -> int:
        """Bytes that the files take in the container, with room for whole pages."""
        return sum(len(value) + 8192 for value in self.files.values())

    @property
    def source(self) -> str:
        """The folder to bind at `INSIDE`. The one above it keeps others of this machine out."""
        return str(self.folder / "handed")

    def give(self) -> None:
        self.take_back()
        try:
            self._give()
        except OSError as error:
            self.take_back()
            raise LocalResourceError(
                what=f"The secrets cannot be handed to the container by {self.folder}: {error.strerror}."
            ) from error

    def _give(self) -> None:
        self.folder.mkdir(mode=0o700)
        source, known = Path(self.source), self.owner[0] >= 0
        source.mkdir()
        _write(source / "start", _PROGRAM.encode(), 0o555)
        values = {name: value.encode() for name, value in self.values.items()}
        for folder, contents in ((source / "values", values), (source / "files", self.files)):
            folder.mkdir()
            for name, value in contents.items():
                _write(folder / name, value, 0o400 if known else 0o444)
            folder.chmod(0o700 if known else 0o777)
            for path in (folder, *folder.iterdir()):
                os.chown(path, *self.owner)

    def take_back(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, mode)
