"""Real file systems for a test: made in a file, mounted for as long as a `with`, always unmounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

KINDS = ("ext4", "xfs", "tmpfs")
"""ext4 has hard links, XFS reflinks as well; both on a loop device."""
_PROGRAMS = {"ext4": "mkfs.ext4", "xfs": "mkfs.xfs"}
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class PartMissing(Exception):
    """A Debian package is missing (tests/support/install gets it)."""


class KernelCannot(Exception):
    """This kernel, or this container, has no such file system or does not let us mount it: nothing to install."""


@contextlib.contextmanager
def mounted(kind: str, *, size: int = 600 << 20) -> Iterator[Path]:
    """An empty file system of at most `size` bytes, which take no room until they are written. Raises PartMissing,
    KernelCannot."""
    if os.geteuid() != 0:
        raise KernelCannot("only root may mount")
    folder = Path(tempfile.mkdtemp(prefix=f"launcher-{kind}-"))
    point = folder / "mounted"
    point.mkdir()
    try:
        if kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point)
        else:
            program = shutil.which(_PROGRAMS[kind], path=_PATH)
            if not program:
                raise PartMissing(_PROGRAMS[kind])
            image = folder / "image"
            with open(image, "wb") as file:
                file.truncate(size)
            _run(program, "-q", *(("-m", "reflink=1") if kind == "xfs" else ("-F",)), image)
            _run("mount", "-t", kind, "-o", "loop", image, point)
        try:
            if kind == "ext4":
                (point / "lost+found").rmdir()
            yield point
        finally:
            # Lazily where something still uses it: the mount goes with its last user, and its loop device too.
            if subprocess.run(["umount", point], capture_output=True).returncode:
                subprocess.run(["umount", "-l", point], check=True)
    finally:
        shutil.rmtree(folder)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, env=os.environ | {"PATH": _PATH}, capture_output=True, text=True)
    if done.returncode:
        raise KernelCannot(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
