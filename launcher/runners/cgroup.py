"""A control group for the job, where the launcher may make one: the kernel then ends all of it at once, whatever it forks.

Below the launcher's own group of the unified hierarchy (cgroup_v2 in the kernel's documentation), which belongs to root, and in a
systemd user session or with `Delegate=yes` to the user. No controller is enabled in it, so it changes nothing but this: memory
and processor time are counted where they were.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_NAME = "launcher-job-"


class Cgroup:
    """A group for one job. `close` removes it, once it is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def around(cls, pid: int) -> Cgroup | None:
        """A new group with this process in it, and so what it starts from now on; None where none can be made."""
        own = _own()
        if own is None:
            return None
        for old in own.glob(f"{_NAME}*"):  # Of launchers that were killed. One that is in use cannot be removed.
            with contextlib.suppress(OSError):
                old.rmdir()
        group = cls(own / f"{_NAME}{pid}")
        try:
            group._path.mkdir()
            (group._path / "cgroup.procs").write_text(str(pid))
            os.stat(group._path / "cgroup.kill")  # Since Linux 5.14.
        except OSError:
            group.close()
            return None
        return group

    def kill(self) -> None:
        """SIGKILL to every process in it."""
        with contextlib.suppress(OSError):
            (self._path / "cgroup.kill").write_text("1")

    def close(self) -> None:
        """Removes it; one with processes that outlived SIGKILL stays until the next start."""
        with contextlib.suppress(OSError):
            self._path.rmdir()


def _own() -> Path | None:
    """The folder of this process's group in the unified hierarchy, where it is mounted and this process may make groups."""
    try:
        with open("/proc/self/cgroup") as file:
            path = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), None)
        with open("/proc/self/mountinfo") as file:
            mounts = (line.split() for line in file)
            place = next((fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"), None)
    except OSError:
        return None
    if path is None or place is None:
        return None
    own = Path(place, path.lstrip("/"))
    return own if os.access(own, os.W_OK) else None
