"""The job's process tree: who belongs to it, how signals reach it, and when it is over.

The launcher is its root: as PID 1, or as a child subreaper, it inherits every orphan below it. Standard library only, because
the plain init (`launcher/init.py`) starts with this and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from launcher.runners.signals import SUSPENDING

LEFTOVER_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for processes that outlive the job's main process."""
IDLE = 3.0
"""Seconds after which a process that outlived the main process, and did nothing, counts as forgotten."""
TICK = 0.25
"""How often, in seconds, to call `Tree.poll` once the main process has ended."""
_SUBREAPER = 36
_WORK = 6
"""Clock ticks of processor time (10 ms each) within `IDLE` that count as work, 2 % of a core: two ranks that wait for each
other in gloo use half of it (measured), who writes to a disk is in an uninterruptible wait meanwhile."""
_DYING = 1.0
"""Seconds that processes get to die of SIGKILL; one in an uninterruptible wait does not."""


class Tree:
    """A job that was started as the leader of a process group of its own, and everything below it. Main thread only.

    The job is over when its main process has ended *and* everything else has: a rank that outlives torchrun's agent, or what
    a shell left in the background, may still be saving. As long as it works it is left alone, for up to `grace` seconds; what
    does nothing for `IDLE` seconds was forgotten, and is ended (SIGTERM, `LEFTOVER_GRACE`, SIGKILL).
    """

    def __init__(
        self,
        pid: int,
        wait: Callable[[], int | None],
        *,
        grace: float,
        single_child: bool = False,
        rewrite: Mapping[int, int] | None = None,
        spared: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """`wait` collects the main process without blocking: its code, or −n for signal n, or None while it runs. `spared`:
        the children of the launcher that are not the job's (the uploader, servers of lazy inputs). `single_child`: signals
        reach the main process alone."""
        self.pid = pid
        self.code: int | None = None
        """The main process's code as the shell counts: 128+n for signal n. None while it runs."""
        self.left: list[str] = []
        """What outlived the main process and had to be ended, in words."""
        self._wait, self._spared, self._grace = wait, spared, grace
        self._single_child, self._rewrite = single_child, dict(rewrite or {})
        self._stopped: set[int] = set()
        self._ended = self._asked = self._killed = self._worked = 0.0
        self._work = 0

    def poll(self) -> int | None:
        """The code, once all is over; None before. Reaps every orphan. Never blocks."""
        if self.code is None:
            code = self._wait()
            reap(*([self.pid] if code is None else []), *self._spared())
            if code is None:
                return None
            self.code = code if code >= 0 else 128 - code
            self._ended = self._worked = time.monotonic()
        else:
            reap(*self._spared())
        return self.code if self._over() else None

    def members(self) -> list[int]:
        """Living process ids of the job's tree."""
        return descendants(self._spared())

    def signal(self, number: int) -> None:
        """Passes a signal on: to the whole process group by default, to the main process alone with `single_child`, and to
        all that is left once the main process has ended. No error where nobody is there any more.

        Job control: TSTP, TTIN and TTOU stop the whole tree (by SIGSTOP, because in a session of its own it would ignore
        them) and then this process too; CONT continues what was stopped.
        """
        target = self._rewrite.get(number, number)
        if number in SUSPENDING and target == number:
            self._stopped |= {self.pid} if self._single_child else set(self.members())
            _send(self._stopped, signal.SIGSTOP)
        elif target == signal.SIGCONT and self._stopped:
            _send(self._stopped, target)
            self._stopped.clear()
        elif target:
            self._deliver(target)
        if number in SUSPENDING:
            os.kill(os.getpid(), signal.SIGSTOP)  # Without effect on PID 1, which nobody could continue.

    def _deliver(self, number: int) -> None:
        if self.code is not None:
            _send(self.members(), number)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (os.kill if self._single_child else os.killpg)(self.pid, number)

    def kill(self) -> None:
        """Ends all of it at once. May be called again, for what it starts meanwhile."""
        self._killed = self._killed or time.monotonic()
        for pid in self.members():
            _kill(pid)

    def _over(self) -> bool:
        """After the main process's end: whether nothing is left, or nothing that could be ended."""
        if not _children():
            return True
        found = _processes(self._spared())
        if not found:
            return True
        now = time.monotonic()
        if self._killed:
            self.kill()
            return now > self._killed + _DYING
        if not self._asked:
            work = sum(ticks for _, ticks in found.values())
            if abs(work - self._work) >= _WORK or any(state == "D" for state, _ in found.values()):
                self._work, self._worked = work, now
            if now > self._worked + IDLE or now > self._ended + self._grace:
                self._asked = now
                self.left = [f"{name(pid)} ({pid})" for pid in found]
                _send(found, signal.SIGTERM, signal.SIGCONT)
        elif now > self._asked + LEFTOVER_GRACE:
            self.kill()
        return False


def become_subreaper() -> None:
    """Orphans below this process become its children (prctl(2), PR_SET_CHILD_SUBREAPER). PID 1 has them already."""
    if os.getpid() != 1:
        from launcher.inputs import kernel

        kernel.prctl(_SUBREAPER, 1)


def reap(*keep: int) -> None:
    """Collects dead children but those of `keep`, for which somebody else waits."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        if found.si_pid in keep:
            break
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found.si_pid, os.WNOHANG)
    # One that is kept hides those that died after it.
    for pid, (parent, state, _) in _all_processes().items():
        if parent == os.getpid() and state == "Z" and pid not in keep:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_job(job: str, grace: float) -> list[str]:
    """Ends what is left of a job whose launcher is gone, by the LAUNCHER_JOB_ID that its processes inherited, with
    LAUNCHER_ATTEMPT: whoever starts the launcher under an id of his own has only the first. SIGTERM to each of them, and
    SIGKILL after `grace` seconds. Returns when none is left, or 2 s after the SIGKILL (a process in an uninterruptible wait
    cannot be waited for).

    Returns what that was, in words. (The kernel ends the job's own process with its launcher, but not what that started.)
    """
    mark = f"LAUNCHER_JOB_ID={job}".encode()

    def living() -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                    inherited = file.read().split(b"\0")
                    if mark in inherited and any(each.startswith(b"LAUNCHER_ATTEMPT=") for each in inherited):
                        found.append(int(entry))
        return found

    words = [f"{name(pid)} ({pid})" for pid in living()]
    deadline = time.monotonic() + grace
    sent: set[int] = set()
    while pids := living():
        late = time.monotonic() > deadline
        _send((pid for pid in pids if pid not in sent or late), signal.SIGKILL if late else signal.SIGTERM)
        sent.update(pids)
        reap()
        if time.monotonic() > deadline + 2:
            return words
        time.sleep(0.005)
    reap()
    return words


def descendants(spared: Collection[int] = ()) -> list[int]:
    """Process ids below this process that are not zombies, from /proc; without the spared children and what is below them."""
    return list(_processes(spared))


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command's name: state, parent, … (proc_pid_stat(5)). Raises OSError."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def name(pid: int) -> str:
    """The command name of a process."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _kill(pid: int) -> None:
    """SIGKILL to a process, if it is below this one: the descriptor stays with the process that is looked at, whoever gets its
    id when it ends meanwhile."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        fd = os.pidfd_open(pid)
        try:
            if _is_below(pid):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def _is_below(pid: int) -> bool:
    """Whether a process is a descendant of this one."""
    me = os.getpid()
    while pid not in (0, me):
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == me


def _send(pids: Iterable[int], *numbers: int) -> None:
    for pid in pids:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def _children() -> bool:
    """Whether this process has any child, which every living descendant's chain of parents ends in."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _processes(spared: Collection[int]) -> dict[int, tuple[str, int]]:
    """State and used processor time, in clock ticks, of every descendant that is not a zombie."""
    every = _all_processes()
    me = os.getpid()
    for pid in spared:
        every.pop(pid, None)
    found = {}
    for pid, (_, state, ticks) in every.items():
        ancestor, depth = pid, 0
        while ancestor in every and depth < 10_000:
            ancestor = every[ancestor][0]
            depth += 1
            if ancestor == me:
                if state not in "ZX":
                    found[pid] = state, ticks
                break
    return found


def _all_processes() -> dict[int, tuple[int, str, int]]:
    """Parent, state and used processor time of every process, as proc(5) has them."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                fields = stat(int(entry))
                found[int(entry)] = int(fields[1]), fields[0], int(fields[11]) + int(fields[12])
    return found
