"""The states of a job, in FlexAI's words, and each change with its time and reason.

| State | Here |
|---|---|
| `pending` | the checks have passed, and the job has its folder |
| `scheduling` | an attempt is assigned to a machine and a device |
| `building` | inputs and code are brought to the machine |
| `in progress` | the command runs; after it has ended, what it wrote is stored |
| `enqueued` | it waits for its next attempt |
| `stop in progress` | a stop was asked for |
| `succeeded` | the command ended with code 0, and everything whole is stored |
| `failed` | it ended with another code, or the launcher could not run it |
| `stopped` | it ended because a stop was asked for |
| `rejected` | the machine could not take it: no space, no mount, no engine |
| `lost` | not FlexAI's: its launcher is gone, and nobody goes on with it |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from launcher.job.record import Outcome

State = Literal[
    "pending", "scheduling", "building", "in progress", "enqueued", "stop in progress", "succeeded", "failed", "stopped",
    "rejected", "lost",
]  # fmt: skip
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "stopped", "rejected"})
_REFUSED = frozenset({"local-resource", "no-space", "mount-failed", "engine-unavailable", "too-few-accelerators"})
"""Errors by their `kind` that say that this machine could not take the job."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A job came into a state."""

    state: State
    time: float
    """Unix seconds."""
    reason: str


def at_end(outcome: Outcome) -> State:
    """The state of a job that ended so."""
    if outcome.stopped or outcome.kind == "preempted":
        return "stopped"
    if outcome.code == 0:
        return "succeeded"
    return "rejected" if outcome.origin == "launcher" and outcome.kind in _REFUSED else "failed"
