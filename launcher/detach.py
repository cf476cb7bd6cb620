"""A job that goes on without the terminal: a fork of the launcher in a session of its own.

The terminal's process stays until the job is up, passes on what is said meanwhile, and ends: with 0, or with the code of what
did not start. From then on the launcher's own lines go to a file, and the job's output only to its log. A closed terminal ends
neither: the session is another one, and SIGHUP is ignored, in the job too.

Standard library only: it is called before anything that has threads is imported.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path
from typing import NoReturn


class Background:
    """In the process that goes on: tells the one at the terminal that it may end."""

    def __init__(self, told: int) -> None:
        self._told = told

    def up(self, log: Path, text: str) -> None:
        """The job runs: `text` is the last that the terminal shows, `log` takes the launcher's own lines from now on.

        Once; a second call does nothing. A terminal that is gone already is no error.
        """
        if self._told < 0:
            return
        own = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(nothing, 1)
        os.dup2(own, 2)
        os.close(own)
        os.close(nothing)
        try:
            os.write(self._told, text.encode("utf-8", "replace"))
        except OSError:
            pass
        os.close(self._told)
        self._told = -1


def detach() -> Background:
    """Goes on in a process of its own session, where it returns; at the terminal it does not return, but ends this process.

    A stop (Ctrl-C, SIGTERM) that comes before the job is up is passed on: then there is no job. A terminal that is closed before
    changes nothing. To be called by a process with one thread, before it handles signals.
    """
    told, tell = os.pipe()
    said, say = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        os.close(say)
        _stay(pid, told, said)
    os.close(told)
    os.close(said)
    os.set_inheritable(tell, False)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, target in ((nothing, 0), (say, 1), (say, 2)):
        os.dup2(fd, target)
    os.close(nothing)
    os.close(say)
    return Background(tell)


def _stay(pid: int, told: int, said: int) -> NoReturn:
    """At the terminal: shows what is said, until the job is up or the process has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    poll = select.poll()
    poll.register(said, select.POLLIN)
    poll.register(told, select.POLLIN)
    text = b""
    while True:
        ready = dict(poll.poll())
        if said in ready:
            data = os.read(said, 1 << 16)
            if data:
                _show(data, sys.stderr.fileno())
            else:
                poll.unregister(said)
        elif told in ready:
            piece = os.read(told, 1 << 16)
            text += piece
            if not piece:
                break
    if text:
        _show(text + b"\n", sys.stdout.fileno())
        os._exit(0)
    os._exit(_code(os.waitpid(pid, 0)[1]))


def _show(data: bytes, fd: int) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
