"""What the kernel counts of processes that it killed for memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

_MOUNT = "/sys/fs/cgroup"


@dataclass(frozen=True)
class Kills:
    """Processes killed for memory so far: `here`, of this process's own cgroup (None: it cannot be read), and on the whole
    machine. The job's processes are in that cgroup too, but those of the docker runner, for which the engine answers."""

    here: int | None
    machine: int

    def since(self, before: Kills) -> int:
        """How many of the cgroup since `before`; 0 where it cannot be known."""
        return 0 if self.here is None or before.here is None else self.here - before.here


def kills() -> Kills:
    """The counts now: `oom_kill` of memory.events (cgroup 2), or memory.oom_control (1), and of /proc/vmstat.

    They count what any killer killed, also the whole machine's (Documentation/admin-guide/cgroup-v2.rst).
    """
    here = None
    for path in _candidates():
        with contextlib.suppress(OSError):
            here = _count(path)
            break
    machine = 0
    with contextlib.suppress(OSError):
        machine = _count("/proc/vmstat")
    return Kills(here, machine)


def limit() -> int | None:
    """The memory limit of this process's own cgroup in bytes; None: it has none, or it cannot be read."""
    for path in _candidates():
        name = "memory.max" if path.endswith("events") else "memory.limit_in_bytes"
        with contextlib.suppress(OSError, ValueError), open(path.rpartition("/")[0] + "/" + name) as file:
            found = int(file.read())
            return found if found < 1 << 60 else None
    return None


def _candidates() -> list[str]:
    """Files that may hold the count, the best first: of the cgroup by its path, and of the mount's root, which in a
    container is the container's cgroup."""
    found = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file.read().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                found += [f"{_MOUNT}/memory{each}/memory.oom_control" for each in (path.rstrip("/"), "")]
            elif not controllers:
                found += [f"{_MOUNT}{each}/memory.events" for each in (path.rstrip("/"), "")]
    return found


def _count(path: str) -> int:
    with open(path) as file:
        for line in file:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
