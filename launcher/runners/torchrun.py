"""The user's command as the command that is executed: under torchrun where it is a Python script, else as typed."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.errors import CommandNotExecutable, CommandNotFound, UsageError

AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent.py")
_LAUNCHERS = frozenset({"torchrun", "accelerate", "deepspeed", "mpirun", "mpiexec", "srun", "horovodrun", "composer"})
_LAUNCHER_MODULES = frozenset(
    {"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed"}
)


@dataclass(frozen=True)
class CommandLine:
    """`arguments` to execute. `ranks`: processes whose output is marked with their rank (1: none is)."""

    arguments: tuple[str, ...]
    ranks: int
    wrapped: bool
    """Whether torchrun starts it."""


def command_line(
    command: Sequence[str],
    *,
    accels: int,
    launch: Literal["auto", "torchrun", "exec"],
    python: str,
    agent: str = AGENT,
    log_dir: str,
) -> CommandLine:
    """`script.py args` and `-m module args` get N processes by torchrun; `python script.py` too, with that interpreter.

    Anything else is executed once, as typed, and so is what starts processes of its own (torchrun, accelerate, deepspeed …):
    nothing is wrapped twice. `launch` overrides. Raises UsageError where torchrun is asked for something it cannot start.
    """
    interpreter, target = _python_target(command, python)
    if launch == "torchrun" and target is None:
        raise UsageError(
            what=f"torchrun starts Python scripts and modules, not {command[0]!r}.", hint="Use --launch exec."
        )
    if target is None or launch == "exec":
        if command[0].endswith(".py") or command[0] == "-m":
            return CommandLine((python, *command), 1, False)
        return CommandLine(tuple(command), 1, False)
    # Without the address, torchrun hangs for minutes where this machine's own name does not resolve (measured: a container
    # without a network, 549 s).
    torchrun = [interpreter, agent, "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={accels}"]
    if accels > 1:
        torchrun += ["--log-dir", log_dir, "--redirects", "3"]
    return CommandLine((*torchrun, *target), accels, True)


def _python_target(command: Sequence[str], python: str) -> tuple[str, list[str] | None]:
    first = os.path.basename(command[0])
    if first in _LAUNCHERS:
        return python, None
    rest = list(command)
    interpreter = python
    if first in ("python", "python3") or (first.startswith("python3.") and first[8:].isdigit()):
        interpreter, rest = command[0], rest[1:]
        if rest[:1] == ["-u"]:
            rest = rest[1:]
    if rest[:1] == ["-m"] and len(rest) > 1:
        if rest[1] in _LAUNCHER_MODULES:
            return python, None
        return interpreter, ["--module", *rest[1:]]
    if rest and rest[0].endswith(".py"):
        return interpreter, rest
    return python, None


def check_command(command: Sequence[str], work_dir: str, *, programs: bool = True, path: str | None = None) -> None:
    """The script or program exists, before anything long starts. `programs`: whether those on PATH (`path`, else the launcher's
    own) are there by now. Raises CommandNotFound, CommandNotExecutable."""
    first = command[0]
    rest = command[1:]
    if not first.endswith(".py") and first != "-m" and os.path.basename(first) not in ("env",):
        if "/" in first:
            program = os.path.join(work_dir, first)
            if not os.path.exists(program):
                raise CommandNotFound(command=first, hint=f"There is no {program}.")
            if os.path.isdir(program) or not os.access(program, os.X_OK):
                raise CommandNotExecutable(
                    command=first, cause="it is a folder" if os.path.isdir(program) else "chmod +x it"
                )
        elif programs and not shutil.which(first, path=path):
            raise CommandNotFound(command=first, hint="It is not on PATH.")
    script = first if first.endswith(".py") else next((word for word in rest[:2] if word.endswith(".py")), None)
    if script and (first.endswith(".py") or os.path.basename(first).startswith("python")):
        if not os.path.exists(os.path.join(work_dir, script)):
            where = f"There is no {os.path.join(work_dir, script)}; the command runs in {work_dir}."
            raise CommandNotFound(command=script, hint=where)


def patience(grace: float) -> dict[str, str]:
    """For a torchrun that the job starts itself: it kills its workers 30 s after a stop unless it is told otherwise (from torch
    2.12 on). The one that we start does not at all, see `agent`."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace))}


def environment(accels: int, cores: int) -> dict[str, str]:
    """Variables that torchrun would set worse: it gives every process one thread and prints a warning about it."""
    return {
        "OMP_NUM_THREADS": str(max(1, cores // accels)),
    }
