"""Secrets for a container: handed over as files that its first program reads, sets as variables and removes.

A container's variables are shown by the engine to everybody who may ask it (`docker inspect`) and kept on its disk, so none of
them is a secret. The files lie in the job's folder, beside which the secrets are kept anyway, and only for the moment of the
start. The program is the image's own shell.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import LocalResourceError

INSIDE = "/run/launcher/secrets"
START = ("/bin/sh", f"{INSIDE}/start")
_PROGRAM = f"""#!/bin/sh
# Sets each variable from the file of its name, and becomes the command. Nothing of them is in any command line.
for file in {INSIDE}/values/*; do
    value=$(cat "$file" && printf x) || exit 126
    export "${{file##*/}}=${{value%x}}"
    rm -f "$file"
done
unset file value
exec "$@"
"""


@dataclass(frozen=True)
class Handover:
    """`values`: variable to its value. `owner`: uid and gid of the container's user where files can be given to it; -1 where
    only the image knows who that is: then all may read them who get to the folder, which nobody else does."""

    folder: Path
    values: Mapping[str, str] = field(repr=False)
    owner: tuple[int, int]

    @property
    def source(self) -> str:
        """The folder to bind at `INSIDE`. The one above it keeps others of this machine out."""
        return str(self.folder / "handed")

    def give(self) -> None:
        """Before the container's start. Raises LocalResourceError."""
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
        values = Path(self.source) / "values"
        values.mkdir(parents=True)
        _write(Path(self.source) / "start", _PROGRAM, 0o555)
        known = self.owner[0] >= 0
        for name, value in self.values.items():
            _write(values / name, value, 0o400 if known else 0o444)
        values.chmod(0o700 if known else 0o777)
        for path in (values, *values.iterdir()):
            os.chown(path, *self.owner)

    def take_back(self) -> None:
        """Removes what is left of them. Idempotent."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(path: Path, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
        os.fchmod(fd, mode)
