"""`--input-writable`: the job changes a view of its input, never the input; the changes die with the job.

A copy-on-write view by overlayfs where the job gets a mount namespace: nothing is copied before it is written. Else a copy in
the job folder, by reflinks where its file system has them (nothing is copied either), or byte by byte with a warning.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from launcher.errors import LocalResourceError, NoSpace
from launcher.inputs.entries import remove
from launcher.reflink import make_reflink
from launcher.text import size as as_size


class View:
    """The folder of a job's changes or copies. `release` removes it."""

    def __init__(self, folder: Path) -> None:
        """What a launcher that was killed left in `folder` is removed."""
        remove(folder)
        folder.mkdir(mode=0o755)
        self._folder = folder
        self._count = 0

    def release(self) -> None:
        remove(self._folder)

    def changes(self) -> str:
        """A new place for the changes to one input: the guard mounts the overlay."""
        place = self._new()
        for part in ("upper", "work"):
            (place / part).mkdir(mode=0o755, parents=True)
        return str(place)

    def copy(self, source: str, owner: tuple[int, int] | None) -> tuple[str, bool]:
        """A copy of an input that its owner (uid, gid; None: the caller) may write, and whether it took no space.

        Raises NoSpace, LocalResourceError.
        """
        place = self._new()
        try:
            return str(place), _copy(source, str(place), owner)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise LocalResourceError(what=f"No writable copy of {source} can be made: {error}.") from error
            need = sum(file.stat().st_size for file in Path(source).rglob("*") if file.is_file())
            raise NoSpace(
                what=f"a writable copy of {source}",
                path=self._folder,
                need=as_size(need),
                free=as_size(shutil.disk_usage(self._folder).free),
                setting="LAUNCHER_DATA_DIR",
            ) from error

    def _new(self) -> Path:
        self._count += 1
        return self._folder / str(self._count)


def _copy(source: str, target: str, owner: tuple[int, int] | None) -> bool:
    shared = True
    for parent, folders, names in os.walk(source):
        place = os.path.normpath(os.path.join(target, os.path.relpath(parent, source)))
        os.mkdir(place, 0o755)
        made = [place]
        for name in [*names, *(each for each in folders if os.path.islink(os.path.join(parent, each)))]:
            path = os.path.join(parent, name)
            made.append(os.path.join(place, name))
            if os.path.islink(path):
                os.symlink(os.readlink(path), made[-1])
            elif os.path.isfile(path):
                shared = clone(path, made[-1], shared)
                os.chmod(made[-1], os.stat(path).st_mode & 0o777 | 0o600)
            else:
                made.pop()
        for path in made if owner else []:
            os.chown(path, *owner, follow_symlinks=False)  # type: ignore[misc]
    return shared


def clone(source: str, target: str, reflink: bool = True) -> bool:
    """Makes the new file `target` a copy of a file: by a reflink where asked and possible (True), else byte by byte.

    Raises OSError.
    """
    with open(source, "rb", buffering=0) as origin, open(target, "xb", buffering=0) as made:
        if reflink:
            try:
                make_reflink(origin.fileno(), made.fileno())
                return True
            except OSError:
                pass
        while os.sendfile(made.fileno(), origin.fileno(), None, 1 << 30):
            pass
    return False
