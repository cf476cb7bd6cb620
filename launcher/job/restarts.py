"""Whether a job that has failed is started again, and when. Pure: what it decides depends on its arguments alone.

| Class | Retried by default | Why |
|---|---|---|
| rendezvous, signal, hang | yes | a peer, the network, the machine: the next attempt may meet none of it |
| exception, exit | until two in a row end the same way at the same step | a mistake comes again, a rare fault does not |
| oom | no | it would need as much again |
| stopped | no | somebody wanted it |
| launcher | where its error says that trying again can help | |

Two that went on from the same checkpoint prove nothing about the job: the next goes on from the one before it (resume.py).
`--retry-on` and `--no-retry-on` overrule the table, by exit code or by class; a code weighs more than a class.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.job.failure import Failure

if typing.TYPE_CHECKING:
    from launcher.job.record import Attempt, Outcome
    from launcher.job.spec import JobSpec

FIRST_WAIT = 1.0
"""Seconds before the first restart; each further one waits twice as long, with up to half of it taken off by chance."""
LONGEST_WAIT = 60.0

CLASSES = tuple(each for each in typing.get_args(Failure) if each not in ("", "stopped"))
"""What --retry-on can name: a stop is never retried."""

_NEVER = frozenset({"collection-incomplete", "commit-unknown", "preempted"})
"""Errors of the launcher where trying again helps, but not by running the job again."""


@dataclass(frozen=True)
class Restart:
    """The job is started again, `wait` seconds from now. `reason`: why, in words."""

    reason: str
    wait: float


def decide(spec: JobSpec, attempts: Sequence[Attempt]) -> Restart | None:
    """What follows the last of `attempts`, which are those since the launcher was started, oldest first; None: the end."""
    restarts = len(attempts) - 1
    last = attempts[-1].outcome
    if last is None or restarts >= spec.max_restarts:
        return None
    reason = worth(spec, attempts)
    if not reason:
        return None
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(restarts, 16))
    import random

    chance = random.Random(f"{attempts[-1].host} {attempts[-1].started}").random()
    return Restart(f"{reason} (restart {restarts + 1} of {spec.max_restarts})", wait * (1 - chance / 2))


def worth(spec: JobSpec, attempts: Sequence[Attempt]) -> str:
    """Why another attempt could end better than the last, whatever --max-restarts says; empty where none would."""
    last = attempts[-1].outcome
    if last is None or last.code == 0 or last.stopped or last.failure == "stopped":
        return ""
    asked = _asked(spec, last)
    if asked is not None:
        return asked
    if last.failure in ("rendezvous", "signal", "hang"):
        return f"{last.failure}: another attempt may not meet it"
    if last.failure in ("exception", "exit"):
        before = attempts[-2] if len(attempts) > 1 else None
        if before is None or before.outcome is None or _way(before.outcome) != _way(last):
            return f"{last.failure}: the first time that it ended like this at this step"
        if before.resumed and before.resumed == attempts[-1].resumed:
            return f"{last.failure}: from an earlier checkpoint, as it ended like this twice from the same"
    if last.failure == "launcher" and last.retryable and last.kind not in _NEVER:
        return f"{last.kind}: trying again can help"
    return ""


def mistakes(retry_on: str, no_retry_on: str) -> list[str]:
    """What is wrong with the two lists, a line each."""
    found = []
    lists = []
    for flag, text in (("--retry-on", retry_on), ("--no-retry-on", no_retry_on)):
        try:
            lists.append(_parse(text))
        except ValueError as error:
            found.append(f"{flag}: {error}")
    if len(lists) == 2:
        found += [f"--retry-on and --no-retry-on both name {each}" for each in sorted(map(str, lists[0] & lists[1]))]
    return found


def _asked(spec: JobSpec, last: Outcome) -> str | None:
    """The answer of the two lists: a reason, empty for no, None where neither names it."""
    yes, no = _parse(spec.retry_on), _parse(spec.no_retry_on)
    for each, words in ((last.code, f"exit code {last.code}"), (last.failure, last.failure)):
        if each in no:
            return ""
        if each in yes:
            return f"{words}: --retry-on says so"
    return None


def _parse(text: str) -> frozenset[int | str]:
    """`1,134,64-78,oom` as exit codes and classes. Raises ValueError with the first mistake."""
    found: set[int | str] = set()
    for part in filter(None, (each.strip() for each in text.split(","))):
        match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part)
        if part in CLASSES:
            found.add(part)
        elif match and 0 < int(match[1]) <= int(match[2] or match[1]) <= 255:
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        else:
            raise ValueError(f"{part!r} is no exit code (1 to 255, or 64-78) and no class ({', '.join(CLASSES)})")
    return frozenset(found)


def _way(outcome: Outcome) -> tuple[object, ...]:
    """How it ended, and at which step: the last of which something was written, or from which it went on."""
    steps = (outcome.last_step_seen, outcome.last_step_committed)
    return outcome.failure, outcome.code, max((each for each in steps if each is not None), default=None)
