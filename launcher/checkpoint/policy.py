"""What to do about what the pickles of a checkpoint hold (`safety` finds it)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from launcher.errors import UnsafePickle
from launcher.events import Emit, event

Policy = Literal["allow", "warn", "deny"]
"""What to do about findings: nothing, say so once for each checkpoint, or refuse the checkpoint."""


def refuse(findings: Iterable[str], policy: Policy, name: str) -> None:
    """Raises UnsafePickle where something was found and the policy is deny."""
    listed = list(findings)
    if listed and policy == "deny":
        raise UnsafePickle(name=name, cause=_in_short(listed))


def warn(findings: Iterable[str], policy: Policy, name: str, emit: Emit) -> None:
    """Says by the checkpoint's name what was found, unless the policy is allow. Once for each checkpoint is the caller's part."""
    listed = list(findings)
    if listed and policy != "allow":
        text = f"{name}: loading its pickles may run code: {_in_short(listed)}"
        emit(event("unsafe-pickle", text, "warning", findings=listed))


def _in_short(findings: list[str]) -> str:
    return "; ".join(findings[:3]) + (f"; and {len(findings) - 3} more" if len(findings) > 3 else "")
