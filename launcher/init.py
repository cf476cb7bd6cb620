"""The plain init: `launcher entrypoint -- command…` with nothing to provide and nothing to collect, as PID 1 or not.

It is what dumb-init and tini are: it forwards signals, reaps orphans, lends the terminal, waits for the whole tree and exits
with the command's own code. The command keeps stdin, stdout and stderr as they are. It shares the process tree with the main
job and nothing else: standard library only, because starting Python is half of what it costs.

It is taken by a rule that can be foretold (`request`): where the environment, the command line or the file system names
anything that the main job would do, the main job runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from launcher.runners import signals
from launcher.runners.terminal import Terminal
from launcher.runners.tree import TICK, Tree, become_subreaper

_OPTIONS = ("--grace", "--rewrite", "--single-child")
_VARIABLES = frozenset(
    {
        "LAUNCHER_GRACE", "LAUNCHER_REWRITE", "LAUNCHER_SINGLE_CHILD", "LAUNCHER_LOG_FORMAT", "LAUNCHER_VERBOSE",
        "LAUNCHER_DEVICE",
    }
)  # fmt: skip
"""Those of its own options, and what says how a job would be run, not that one is (images set the device)."""
_FOLDERS = {
    "FLEXAI_INPUT_CHECKPOINT_DIR": "/input-checkpoint",
    "FLEXAI_OUTPUT_CHECKPOINT_DIR": "/output-checkpoint",
}
_DATASETS = {"FLEXAI_INPUT_DIR": "/input"}
_DATA = "/var/lib/launcher"


class Request:
    """What the plain init is to do."""

    def __init__(self, command: Sequence[str], *, grace: float, single_child: bool, rewrite: Mapping[int, int]) -> None:
        self.command, self.grace, self.single_child, self.rewrite = command, grace, single_child, rewrite


def request(words: Sequence[str], environ: Mapping[str, str]) -> Request | None:
    """The plain init's part of `entrypoint`'s words, or None where the main job is to run, or to say what is wrong.

    The init is plain when LAUNCHER_STORE is `none`; and when nothing at all asks for the main job: no option but those of
    signals, no other LAUNCHER_* or FLEXAI_* variable (the device apart), no configuration file, nothing mounted at the input,
    output or data folder, and a command that torchrun would not start (`script.py`, `-m module`).
    """
    if "--" not in words:
        return None
    cut = words.index("--")
    command = words[cut + 1 :]
    given = _given(words[:cut], environ)
    if given is None or not command or environ.get("LAUNCHER_SECRET") or environ.get("LAUNCHER_SECRET_FILE"):
        return None
    if environ.get("LAUNCHER_STORE") != "none" and not _nothing_to_do(command, environ):
        return None
    try:
        grace, rewrite = 30.0, {}
        if given["--grace"]:
            from launcher.settings import parse_seconds

            grace = parse_seconds(given["--grace"][-1])
        if given["--rewrite"]:
            from launcher.job.rewrite import parse

            rewrite = parse(given["--rewrite"])
    except ValueError:
        return None
    single = given["--single-child"]
    return Request(command, grace=grace, single_child=bool(single), rewrite=rewrite)


def _given(options: Sequence[str], environ: Mapping[str, str]) -> dict[str, list[str]] | None:
    """The values of the plain init's options, else of their variables; None where there are others."""
    found: dict[str, list[str]] = {option: [] for option in _OPTIONS}
    rest = list(options)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option not in found or (option == "--single-child" and equals):
            return None
        if option != "--single-child" and not equals:
            if not rest:
                return None
            value = rest.pop(0)
        found[option].append(value or "true")
    for option, values in found.items():
        variable = environ.get("LAUNCHER_" + option[2:].replace("-", "_").upper(), "")
        if variable and not values:
            values += [part.strip() for part in variable.split(",") if part.strip()]
    if found["--single-child"] and found["--single-child"][-1].lower() in ("false", "0"):
        found["--single-child"] = []
    return found


def _nothing_to_do(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    for name, value in environ.items():
        if name.startswith(("LAUNCHER_", "FLEXAI_")) and value and name not in _VARIABLES:
            return False
    program = os.path.basename(command[0])
    rest = command[1:] if program.startswith("python") else command
    rest = rest[1:] if rest[:1] == ["-u"] else rest
    if rest[:1] == ["-m"] or (rest and rest[0].endswith(".py")):
        return False
    folder = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
    if os.path.exists(os.path.join(folder, "launcher", "config.yaml")):
        return False
    return not _mounted(*_FOLDERS.values(), _DATA)


def _mounted(*folders: str) -> bool:
    """Whether something is mounted at one of the folders (proc_pid_mountinfo(5), field 5)."""
    try:
        with open("/proc/self/mountinfo") as file:
            return any(line.split()[4] in folders for line in file)
    except OSError:
        return False


def run(asked: Request, environ: Mapping[str, str]) -> int:
    """Runs the command to its end and returns its own code, 128+n where it died of signal n; 126 or 127 where it cannot be
    executed. For a process that holds its signals (`signals.hold`)."""
    become_subreaper()
    terminal = Terminal.ours()
    before = os.getpgrp()
    pid, problem = _start(asked.command, _environment(environ), terminal)
    if problem:
        os.waitpid(pid, 0)
        _say(f"error: {asked.command[0]}: {'not found' if problem in (2, 20) else os.strerror(problem)}.")
        return 127 if problem in (2, 20) else 126
    tree = Tree(pid, lambda: _collect(pid), grace=asked.grace, single_child=asked.single_child, rewrite=asked.rewrite)
    while (code := tree.poll()) is None:
        if terminal and tree.code is None and _stopped(pid):
            terminal.suspend(pid)
        number = signals.wait(TICK if tree.code is not None else 60.0)
        if number not in (None, signal.SIGCHLD):
            tree.signal(number)
    if terminal:
        terminal.lend(before)
    if tree.left:
        _say(f"What the command left behind was ended: {', '.join(tree.left[:5])}.")
    output = _FOLDERS["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
    if os.path.isdir(output) and os.access(output, os.R_OK) and os.listdir(output):
        _say(
            f"{output} has files, and nothing was collected: LAUNCHER_STORE=URL, or a volume mounted there, asks for it."
        )
    return code


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The command's: the contract's variables are set where an image has the folders."""
    there = {name: path for name, path in (_FOLDERS | _DATASETS).items() if os.path.isdir(path)}
    return there | dict(environ)


def _start(command: Sequence[str], environ: Mapping[str, str], terminal: Terminal | None) -> tuple[int, int]:
    """Starts the command as the leader of a process group of its own: in the foreground of the terminal, where there is one
    to lend, else in a session of its own. Returns its process id, and the errno where it could not be executed."""
    reader, writer = os.pipe()  # Both are closed by exec
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            if terminal:
                os.setpgid(0, 0)
                terminal.lend(os.getpid())
            else:
                os.setsid()
            if parent != 1:
                from launcher.inputs import kernel

                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
            signals.release()
            os.execvpe(command[0], list(command), dict(environ))
        except OSError as error:
            os.write(writer, bytes([error.errno or 1]))
        finally:
            os._exit(127)
    os.close(writer)
    answer = os.read(reader, 1)
    os.close(reader)
    return pid, answer[0] if answer else 0


def _collect(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _stopped(pid: int) -> bool:
    """Whether it was stopped at the terminal since the last call."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
    return found is not None and found.si_status in signals.SUSPENDING


def _say(text: str) -> None:
    sys.stderr.write(f"launcher: {text}\n")
    sys.stderr.flush()
