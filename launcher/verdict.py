"""The truth about how the job's processes ended: whose code it is, which rank was first, its class, its traceback."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from launcher.decoding import decode
from launcher.job.failure import Failure
from launcher.runners.memory import Kills, kills, limit
from launcher.runners.running import Exit
from launcher.text import size

if TYPE_CHECKING:
    from launcher.job.last_words import LastWords

_TAIL = 4 << 20
"""So much of the end of a process's output is read for its last words, in bytes."""


class _Rank(msgspec.Struct):
    """A failed rank as runners/agent.py saw it."""

    rank: int
    pid: int
    code: int
    ended: float
    cut: bool
    """It still ran when torchrun began to end the others after the first failure."""
    log: str
    error: str


class _Seen(msgspec.Struct):
    """The agent's file. `closed`: when torchrun began to end the other ranks (Unix seconds; 0: not known)."""

    closed: float
    ranks: list[_Rank]


@dataclass(frozen=True)
class Verdict:
    """How a job ended. `code` is the first failing rank's, 128+n where signal n ended it."""

    code: int
    signal: int | None
    failure: Failure
    cause: str
    """One sentence, without its full stop."""
    rank: int | None
    """The rank that failed first; None where there are no ranks, or nobody knows."""
    traceback: str


@dataclass(frozen=True)
class Evidence:
    """Where to look when the job is over. Made before it starts, as some of it counts from then."""

    agent: Path
    """What runners/agent.py writes, where torchrun starts the job."""
    log: Path
    ranks: int
    wrapped: bool
    ours: bool
    """The job's processes share this process's cgroup (not so in the docker runner)."""
    offset: int
    """Where this attempt's output begins in the log."""
    before: Kills = field(repr=False)

    @classmethod
    def begin(cls, agent: Path, log: Path, *, ranks: int, wrapped: bool, ours: bool) -> Evidence:
        """The evidence of an attempt that starts now; what an earlier one left is no evidence."""
        agent.unlink(missing_ok=True)
        offset = log.stat().st_size if log.exists() else 0
        return cls(agent, log, ranks, wrapped, ours, offset, kills())

    def judge(self, ended: Exit, *, stopped: bool, redact: Callable[[str], str]) -> Verdict:
        """The verdict, after the job's output has been written whole. `stopped`: a stop was asked for before it ended."""
        if ended.code == 0 and not ended.stalled:
            return Verdict(0, None, "", "The job ended well", None, "")
        from launcher.job.last_words import last_words

        first = self._first(ended.code if stopped else None)
        words = first.words if first else last_words(_tail(self.log, self.offset))
        code, number = (first.code, first.signal) if first else (ended.code, ended.signal)
        killed = self._killed_for_memory(ended, number)
        failure = _class(ended, code, number, words, stopped=stopped, killed=bool(killed))
        cause = _cause(failure, code, number, words, ended, killed)
        if first and self.ranks > 1:
            cause += f" (rank {first.rank} first)"
        elif self.wrapped and not first and ended.signal and not stopped:
            cause += f": it was torchrun's agent that {_name(ended.signal)} ended, not a rank"
        # It stood still, and ended well when it was told to stop: that is no success.
        code = code or 128 + signal.SIGTERM
        return Verdict(code, number, failure, redact(cause), first.rank if first else None, redact(words.traceback))

    def _first(self, code: int | None) -> _Culprit | None:
        """The rank that failed by itself before any other, as far as it can be known; of those with this `code`, if it is given.

        A rank failed when it ended, or when it wrote its traceback (an interpreter can take long to end after that, and
        others end meanwhile because of it). Ranks that only lost their peers come last, and those which torchrun ended are
        not looked at unless they had written their last before that.
        """
        from launcher.job.last_words import last_words

        if not self.wrapped:
            return None
        try:
            seen = decode(_tail(self.agent, 0).encode(), _Seen)
        except ValueError:
            return None  # Its agent was ended itself.
        found = []
        for each in seen.ranks:
            log = self.agent.parent / each.log
            written = os.path.getmtime(log) if each.log and os.path.exists(log) else each.ended
            if each.cut and written > seen.closed:
                continue
            output = _tail(log, 0, root=self.agent.parent) if each.log else _tail(self.log, self.offset)
            words = last_words(each.error or output)
            found.append(_Culprit.of(each, words, min(each.ended, written) if words.traceback else each.ended))
        found = [each for each in found if code is None or each.code == code]
        return min(found, key=lambda each: (each.words.lost_peers, each.when), default=None)

    def _killed_for_memory(self, ended: Exit, number: int | None) -> str:
        """In words, that the kernel killed processes of the job for memory; empty where it did not, or nobody knows."""
        if ended.oom:
            return "the container's limit"
        if not self.ours:
            return ""
        now = kills()
        if count := now.since(self.before):
            bytes_ = limit()
            where = f"the limit of its cgroup is {size(bytes_)}" if bytes_ else "its cgroup has no limit"
            return f"{count} process{'es' if count > 1 else ''}; {where}"
        if now.here is None and number == signal.SIGKILL and now.machine > self.before.machine:
            return "the machine had none left"
        return ""


@dataclass(frozen=True)
class _Culprit:
    rank: int
    code: int
    signal: int | None
    words: LastWords
    when: float

    @classmethod
    def of(cls, rank: _Rank, words: LastWords, when: float) -> _Culprit:
        """Where torchrun ended a rank after its exception, the code is what the exception was about to give."""
        if rank.cut and words.exception and rank.code in (-signal.SIGTERM, -signal.SIGKILL):
            return cls(rank.rank, 1, None, words, when)
        code, number = (rank.code, None) if rank.code >= 0 else (128 - rank.code, -rank.code)
        return cls(rank.rank, code, number, words, when)


def _class(ended: Exit, code: int, number: int | None, words: LastWords, *, stopped: bool, killed: bool) -> Failure:
    if ended.stalled:
        return "hang"
    if stopped:
        return "stopped"
    if killed or words.memory:
        return "oom"
    if words.lost_peers:
        return "rendezvous"
    # Threads of gloo can abort an interpreter that ends by an exception (measured: "terminate called without an active
    # exception"), and destructors of extensions can crash it.
    if words.exception and (code == 1 or number in (signal.SIGABRT, signal.SIGSEGV)):
        return "exception"
    return "signal" if number else "exit"


def _cause(failure: Failure, code: int, number: int | None, words: LastWords, ended: Exit, killed: str) -> str:
    end = f"was ended by {_name(number)}" if number else f"ended with code {code}"
    if failure == "hang":
        return f"The job stood still: {ended.stalled}. It was told to stop and {end}"
    if failure == "oom":
        if killed:
            return f"The kernel killed the job for memory ({killed})"
        return f"The job ran out of {words.memory} memory: {words.summary}"
    if failure == "rendezvous":
        return f"The ranks lost each other: {words.summary}"
    if failure == "exception":
        return f"The job raised {words.summary}" + (f" and {end}" if number else "")
    if failure == "signal" and number == signal.SIGKILL:
        return f"The job {end}, not by the launcher: who sent it is not known"
    thrown = words.traceback.startswith("terminate called after throwing")
    if failure == "exit" and words.summary:
        return f"The job {end}; its last line: {words.summary}"
    return f"The job {end}: {words.summary}" if thrown else f"The job {end}"


def _name(number: int | None) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _tail(path: Path, offset: int, *, root: Path | None = None) -> str:
    """The end of a regular file, but nothing before `offset`; empty for anything else, and for what lies outside of `root`.

    A container can write where these files are: a link there must not show it a file of this machine.
    """
    if root and Path(os.path.realpath(root)) not in Path(os.path.realpath(path)).parents:
        return ""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return ""
            file.seek(max(offset, about.st_size - _TAIL))
            return file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return ""
