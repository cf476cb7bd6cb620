"""What a runner gives back: a job that is alive, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Exit:
    """How the job ended: its own code, or 128+n with the signal's number n. `oom`: the kernel killed it for memory. `killed`: we
    did, at the end of its time or when asked again. `survivors`: processes that outlived SIGKILL, in words. `stalled`: it was
    ended because it stood still; the words say for how long, and where its processes waited."""

    code: int
    signal: int | None = None
    oom: bool = False
    killed: bool = False
    survivors: tuple[str, ...] = ()
    stalled: str = ""


class Running(Protocol):
    """A started job. Used by one thread, the supervisor's."""

    fd: int
    """Readable when `poll` may have something to say. What the main process left behind it does not tell of: see `poll`."""

    rung: str
    guarantee: str

    def poll(self) -> Exit | None:
        """How it ended, or None while it runs, which it does until everything that it started has ended (see `Tree`). Never
        blocks. To be called twice a second, beside each time that `fd` is readable or a SIGCHLD came."""

    def signal(self, number: int) -> None:
        """Passes a signal to the job, to its whole process group unless it was started with `single_child`; no error when it
        has ended meanwhile."""

    def members(self) -> list[int]:
        """Process ids of the job's tree on this machine that live; without the uploader, and empty for a container."""

    def cpu_seconds(self) -> float | None:
        """Processor time that the job's living processes have used; None where it cannot be known."""

    def waiting(self) -> list[str]:
        """What each of its processes waits in, in words."""

    def kill(self) -> None:
        """Ends all of it at once. May be called again. What outlives it, `close` does not wait for."""

    def close(self) -> list[str]:
        """After the end: finishes its logs, frees everything. Idempotent. Returns in words what outlived the job's main
        process and had to be ended, and what could not be."""
