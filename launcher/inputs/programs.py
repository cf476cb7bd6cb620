"""Other people's programs (git, an installer), run so that they can be stopped, and watched while they work."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from launcher.events import Emit, event
from launcher.text import printable
from launcher.transfer import retry

Stop = Callable[[], None]
"""Called often; raises to end what is going on."""

_TICK = 0.1
_PATIENCE = 2.0
"""Seconds from SIGTERM to SIGKILL."""
_KEPT = 200
"""The last lines that are kept."""
_FIRST, _EACH = 3.0, 10.0
"""Seconds before the first line of progress and between two."""


@dataclass(frozen=True)
class Done:
    """How a program ended. `output`: its stdout; `said`: the last lines of its stderr."""

    code: int
    output: str
    said: tuple[str, ...]


class Silent(Exception):
    """A program printed nothing for so long that it was ended."""


def run(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    stop: Stop,
    silence: float,
    cwd: str | None = None,
    fds: Collection[int] = (),
    on_line: Callable[[str], None] = lambda line: None,
) -> Done:
    """Runs a program to its end, without a terminal and in a session of its own, so that it can ask nobody anything.

    `on_line` gets each line of its stderr (a carriage return ends one too), `fds` are inherited. It is ended with its children
    when `stop` raises, and when it has printed nothing for `silence` seconds (Silent). Raises FileNotFoundError, OSError.
    """
    process = subprocess.Popen(
        arguments, env=dict(env), cwd=cwd, pass_fds=tuple(fds), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout and process.stderr
    output, said, rest = bytearray(), deque[str](maxlen=_KEPT), b""
    heard = time.monotonic()
    with process.stdout, process.stderr, selectors.DefaultSelector() as ready:
        for stream in (process.stdout, process.stderr):
            ready.register(stream, selectors.EVENT_READ)
        try:
            while ready.get_map():
                stop()
                for key, _ in ready.select(_TICK):
                    data = os.read(key.fd, 1 << 16)
                    heard = time.monotonic()
                    if not data:
                        ready.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        output += data
                    else:
                        *lines, rest = re.split(rb"[\r\n]+", rest + data)
                        for line in lines:
                            text = printable(line.decode("utf-8", "replace"))
                            said.append(text)
                            on_line(text)
                if time.monotonic() - heard > silence:
                    raise Silent
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if rest:
        said.append(printable(rest.decode("utf-8", "replace")))
    return Done(code, output.decode("utf-8", "surrogateescape"), tuple(filter(str.strip, said)))


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return


def patiently(work: Callable[[], Done], timeout: float, stop: Stop) -> Done:
    """Does it by the one retry policy: again for `timeout` seconds while it raises StoreUnavailable. `stop` ends the waits."""

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            stop()
            time.sleep(min(left, _TICK))

    return retry.call(work, timeout, sleep=sleep)


class Told:
    """`on_line` of a long work: every few seconds an event with the line that it came to."""

    def __init__(self, what: str, emit: Emit) -> None:
        self._what, self._emit = what, emit
        self._next = time.monotonic() + _FIRST

    def __call__(self, line: str) -> None:
        if time.monotonic() >= self._next and line.strip():
            self._next = time.monotonic() + _EACH
            self._emit(event("working", f"{self._what}: {line.strip()}"))
