"""Whether a job whose attempt ended is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.job.record import Attempt
from launcher.job.spec import JobSpec


@dataclass(frozen=True)
class Restart:
    """Why there is another attempt, and how many seconds to wait before it."""

    reason: str
    wait: float


def decide(spec: JobSpec, attempts: Sequence[Attempt]) -> Restart | None:
    """The next attempt of a job of which these attempts were made since its start, or None."""
    outcome = attempts[-1].outcome
    if outcome is None or outcome.stopped or outcome.code == 0 or len(attempts) > spec.max_restarts:
        return None
    return Restart(outcome.cause, 0.0)
