"""Signals that reach the job as other ones: `--rewrite TERM:INT`. Standard library only: the plain init reads it too."""

from __future__ import annotations

import signal
from collections.abc import Iterable

_NEVER = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD)
"""The first two cannot be caught, the third tells of our own children."""


def parse(pairs: Iterable[str]) -> dict[int, int]:
    """`FROM:TO` pairs, each a name with or without SIG or a number, as numbers; TO may be 0: the signal is dropped.

    Raises ValueError that says what would be right.
    """
    found = {}
    for pair in pairs:
        source, colon, target = pair.partition(":")
        if not colon:
            raise ValueError(f"{pair!r}: write FROM:TO, such as TERM:INT, 15:2, or HUP:0 to drop a signal")
        number = _number(source, pair)
        if number in (0, *_NEVER):
            raise ValueError(f"{pair!r}: {source} never reaches the launcher as a signal for the job")
        found[number] = _number(target, pair)
    return found


def _number(text: str, pair: str) -> int:
    name = text.strip().upper()
    names = {each.name: int(each) for each in signal.Signals}
    number = int(name) if name.isdigit() else names.get(name if name.startswith("SIG") else f"SIG{name}")
    if number is None or (number and number not in signal.valid_signals()):
        raise ValueError(f"{pair!r}: {text!r} is no signal (`kill -l` lists them)")
    return number
