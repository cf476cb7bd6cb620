"""Prints the number of every signal that it gets, one a line, after `ready`; `python print_signals.py [END]`: ends with 0 at
the signal END. In `LANGUAGES` the same for shells."""

from __future__ import annotations

import os
import signal
import sys

_TRAPS = """
for n in {numbers}; do trap "echo $n" $n; done
echo ready
while :; do sleep 0.05; done
"""


def languages(numbers: list[int]) -> dict[str, list[str]]:
    """A command for each shell and for Python. (Shells run a trap between two commands.)"""
    traps = _TRAPS.format(numbers=" ".join(map(str, numbers)))
    return {
        "dash": ["dash", "-c", traps],
        "bash": ["bash", "-c", traps],
        # By its name alone `python` with a script would be torchrun's, and so the main job's.
        "python": ["env", sys.executable, os.path.abspath(__file__)],
    }


def main() -> None:
    end = int(sys.argv[1]) if len(sys.argv) > 1 else 0

    def handler(number: int, frame: object) -> None:
        os.write(1, f"{number}\n".encode())
        if number == end:
            os._exit(0)

    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, handler)
    os.write(1, b"ready\n")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
