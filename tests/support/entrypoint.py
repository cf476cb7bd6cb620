"""`launcher entrypoint` in the places where it runs: as an ordinary child, and as PID 1 of a namespace of its own."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.cli import PROGRAM

PLACES = {"child": [], "PID 1": ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]}
BLOCKED = ["env", "--block-signal=TERM,INT,HUP"]
"""As the images' ENTRYPOINT starts it."""


def environment(**more: str) -> dict[str, str]:
    """This one without what would ask for the main job."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LAUNCHER_", "FLEXAI_"))}
    return kept | more


class Entrypoint:
    """A running `launcher entrypoint`."""

    def __init__(self, process: subprocess.Popen[bytes], pid: int) -> None:
        self.process, self.pid = process, pid

    def line(self, seconds: float = 60) -> str:
        """The next line of the command's output; empty at its end."""
        assert self.process.stdout
        fd, line = self.process.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            assert select.select([fd], [], [], seconds)[0], "no line in time"
            if not (byte := os.read(fd, 1)):
                break
            line += byte
        return line.decode().strip()

    def send(self, number: int) -> None:
        """A signal to the launcher alone."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, 128+n for a signal."""
        code = self.process.wait(60)
        return code if code >= 0 else 128 - code


@contextlib.contextmanager
def entrypoint(
    *words: str | Path, place: str = "child", env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[Entrypoint]:
    """Starts it with `words` after `entrypoint`, and kills it and its tree at the end, if they live."""
    command = [*PLACES[place], *BLOCKED, PROGRAM, "entrypoint", *map(str, words)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} | options
    process = subprocess.Popen(command, env=dict(env or environment()), **streams)
    try:
        pid = process.pid
        if place != "child":
            pid = until(lambda: children(process.pid))[0]
        yield Entrypoint(process, pid)
    finally:
        for each in reversed([process.pid, *tree(process.pid)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, 9)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


def run(words: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    given: dict[str, Any] = {"env": environment(), "capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run([PROGRAM, "entrypoint", *map(str, words)], **given)


def children(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid and fields[0] not in "ZX":
                    found.append(int(entry))
    return found


def tree(pid: int) -> list[int]:
    """Every living process below one."""
    found = children(pid)
    return [*found, *(below for each in found for below in tree(each))]


def state(pid: int) -> str:
    """The state letter of a process (proc(5)), empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def until(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Waits for something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return result
