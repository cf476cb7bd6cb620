"""The command line in forks of one process that has imported all of it: what a new process does, for a fiftieth of its time.

What the interpreter does when it starts and ends (locale, closed descriptors, what cannot be written) needs a real process:
`fresh`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cli import PROGRAM, ROOT

TIMEOUT = 60.0
_PROGRAMS = {"launcher.__main__", "launcher.runners.agent", "launcher.inputs.guard", "launcher.inputs.lazy_serving"}


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended; -1: not in time."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


class Warm:
    """`with Warm(folder) as run: run(words, env, cwd)`."""

    def __init__(self, folder: Path) -> None:
        self._out, self._err = folder / "warm.out", folder / "warm.err"
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)

    def __call__(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path, *, stdin: str = "", uid: int = 0
    ) -> Answer:
        """Runs `launcher words…`. `uid`: who it is, where the tests run as root; 0: who runs them."""
        assert self._process.stdin and self._process.stdout
        request = {"words": list(words), "env": dict(env), "cwd": str(cwd), "stdin": stdin, "uid": uid}
        request |= {"out": str(self._out), "err": str(self._err)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Answer(code, _text(self._out.read_bytes()), _text(self._err.read_bytes()))


def fresh(words: Sequence[str], env: Mapping[str, str], cwd: Path, **how: Any) -> Answer:
    """The same by a new process; `how`: of subprocess.run."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run([PROGRAM, *words], env=dict(env), cwd=cwd, timeout=TIMEOUT, check=False, **pipes | how)
    return Answer(done.returncode, _text(done.stdout), _text(done.stderr))


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "backslashreplace")


def _serve() -> None:
    import launcher

    for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
        if module.name not in _PROGRAMS:
            importlib.import_module(module.name)
    for name in ("docker", "fsspec", "obstore", "yaml", "rich.console", "rich.table", "click.shell_completion"):
        importlib.import_module(name)
    gc.freeze()  # So that no fork touches, and so copies, what all of them have.
    for line in sys.stdin.buffer:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
            return
        print(_ended(pid), flush=True)


def _become(request: dict[str, Any]) -> None:
    """In the fork: the program."""
    os.setsid()
    reader, writer = os.pipe()
    os.write(writer, request["stdin"].encode())
    os.close(writer)
    os.dup2(reader, 0)
    for number, path in ((1, request["out"]), (2, request["err"])):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = open(0, closefd=False)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if request["uid"] and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(request["uid"])
        os.setuid(request["uid"])
    sys.argv = ["launcher", *request["words"]]
    from launcher.__main__ import main

    code: object = 1
    try:
        main()
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)  # Taking all of it down would take longer than most commands.


def _ended(pid: int) -> int:
    fd = os.pidfd_open(pid)
    try:
        late = not select.select([fd], [], [], TIMEOUT)[0]
        if late:
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return -1 if late else code if code >= 0 else 128 - code
    finally:
        os.close(fd)


if __name__ == "__main__":
    _serve()
