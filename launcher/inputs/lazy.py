"""`--input-mode lazy`: the job starts at once, and its input arrives while it is read.

A server process (`lazy_serving`) fetches the checkpoint into the node cache and answers for a FUSE file system. The guard makes
the mount, in the job's own mount namespace, and passes its descriptor over a socket to the server: so no mount of this machine
is ever there to be cleaned up, an ordinary user needs no setuid program, and the mount ends with the job's last process, whatever
ends that. Here is the launcher's end, and what both say: the server gets one JSON object, and answers with one a line.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.checkpoint.manifest import Manifest
from launcher.errors import LocalResourceError, MountFailed
from launcher.events import Emit, event
from launcher.settings import Settings
from launcher.text import duration

_START = """import sys
sys.path[:] = sys.argv[2:]
from launcher.inputs.lazy_serving import main
main(int(sys.argv[1]))"""
_DEVICE = "/dev/fuse"
_TICK = 0.1
_END = 5.0
"""Seconds that the server gets to end by itself, when the job and its mount are gone."""
EAGER = "Use --input-mode eager, which needs nothing of it."


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the server provides. `manifest` names the files that are taken, `part` which selection that is."""

    settings: Settings
    manifest: Manifest
    part: str = ""


class Serving(msgspec.Struct, frozen=True, tag=True):
    """It has the cache's entry to itself, and waits for mounts."""


class Whole(msgspec.Struct, frozen=True, tag=True):
    """The cache has the whole checkpoint. `seconds`: since it was serving; None: it was never needed, and has ended."""

    seconds: float | None


class Waiting(msgspec.Struct, frozen=True, tag=True):
    """Another launcher is fetching the same checkpoint."""

    text: str


class Unreadable(msgspec.Struct, frozen=True, tag=True):
    """Reads of a file got EIO, or will."""

    path: str
    cause: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot serve at all."""

    cause: str
    hint: str = ""


Answer = Serving | Whole | Waiting | Unreadable | Failed
_ANSWER = msgspec.json.Decoder(Answer)
"""Made at import: see `launcher.decoding`."""


def require() -> None:
    """Raises LocalResourceError where this machine has not what a lazy input needs."""
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        raise LocalResourceError(
            what=f"--input-mode lazy needs libfuse 3 and its Python binding: {error}.",
            hint=f"Install launcher[lazy], and libfuse3-3 (Debian, Ubuntu) or fuse3-libs (Fedora, RHEL). {EAGER}",
        ) from error
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise LocalResourceError(
            what=f"--input-mode lazy needs {_DEVICE}, which cannot be opened here: {error.strerror}.",
            hint=f"In a container: --device {_DEVICE} --cap-add SYS_ADMIN. {EAGER}",
        ) from error


class LazyInput:
    """The launcher's end of a server: a Held, released when the job is over."""

    def __init__(self, task: Task, *, log: Path, emit: Emit) -> None:
        """Starts it. `log` takes what its libraries print."""
        self._name = task.manifest.name
        self._emit = emit
        self._first: queue.SimpleQueue[Serving | Whole | Failed] = queue.SimpleQueue()
        self._serves = False
        self._ends = socket.socketpair()
        self.problem = ""
        """Why a read failed, the first time."""
        ours, theirs = self._ends
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, str(theirs.fileno()), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,  # What the terminal sends to the launcher is the launcher's to decide.
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self.control = ours.fileno()
        """The descriptor over which the guard passes the mount's."""
        assert self._process.stdin
        with contextlib.suppress(OSError), self._process.stdin as pipe:
            pipe.write(msgspec.json.encode(task) + b"\n")
        threading.Thread(target=self._listen, name="lazy", daemon=True).start()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def wait(self, tick: Callable[[], None]) -> bool:
        """Waits until the server is ready for mounts; False where the cache has the whole checkpoint meanwhile, and the server
        has ended. `tick` is called every 0.1 s, and may raise. Raises MountFailed."""
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    first = self._first.get(timeout=_TICK)
                    break
                tick()
        except BaseException:
            self.release()
            raise
        if isinstance(first, Serving):
            self._serves = True
            return True
        self.release()
        if isinstance(first, Failed):
            raise MountFailed(path="the input directory", cause=first.cause, hint=first.hint)
        return False

    def release(self) -> None:
        """Ends the server: what has come stays in the cache for the next job."""
        ours = self._ends[0]
        if ours.fileno() < 0:
            return
        ours.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END)

    def _listen(self) -> None:
        """Tells what the server says, in a thread."""
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self._hear(_ANSWER.decode(line))
        self._first.put(Failed("the server of the lazy input ended", EAGER))
        if self._ends[0].fileno() >= 0 and not self.problem:
            self._note(
                "the server of the lazy input ended before the job: what was not read yet cannot be read any more"
            )

    def _hear(self, answer: Answer) -> None:
        if isinstance(answer, Unreadable):
            self._note(f"{answer.path}: {answer.cause}")
        elif isinstance(answer, Waiting):
            self._emit(event("cache-waiting", answer.text))
        else:
            self._first.put(answer)
            if isinstance(answer, Failed) and self._serves:
                self._note(answer.cause)
            if isinstance(answer, Whole) and answer.seconds is not None:
                text = f"Input {self._name}: all of it is here, verified, after {duration(answer.seconds)}"
                self._emit(event("input-whole", text, seconds=round(answer.seconds, 3)))

    def _note(self, problem: str) -> None:
        if not self.problem:
            self.problem = problem
            self._emit(event("input-unreadable", f"Input {self._name}: {problem}", "warning"))
