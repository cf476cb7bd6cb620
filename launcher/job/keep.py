"""Which of a job's checkpoints to keep: `last=3,every=500,best=eval_loss:min,days=30`."""

from __future__ import annotations

import difflib
import re

import msgspec

METRICS = ("eval_loss", "train_loss", "best_metric")
"""Facts of a checkpoint that can be compared; a test holds that each is one."""
_RULES = ("last", "every", "best", "days")


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """Rules that add up: a checkpoint is kept when any of them keeps it. None: no such rule."""

    last: int | None = None
    """The newest so many, by commit."""
    every: int | None = None
    """Those whose step is a multiple of this."""
    best: str | None = None
    """The one with the best of METRICS …"""
    largest: bool = False
    """… which is the largest value, not the smallest."""
    days: float | None = None
    """Those committed within so many days."""


def parse(text: str) -> Keep:
    """The rules in `text`. Raises ValueError with every mistake, one a line."""
    values: dict[str, object] = {}
    mistakes = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        rule, equals, value = (each.strip() for each in part.partition("="))
        if rule not in _RULES:
            near = difflib.get_close_matches(rule, _RULES, n=1)
            mistakes.append(f"there is no rule {rule!r}; " + (f"did you mean {near[0]}?" if near else _allowed()))
        elif rule in values:
            mistakes.append(f"the rule {rule} is given twice")
        else:
            try:
                values |= _value(rule, value if equals else "")
            except ValueError as error:
                mistakes.append(str(error))
    if not values and not mistakes:
        mistakes.append(f"no rule is given; {_allowed()}")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return msgspec.convert(values, Keep)


def _value(rule: str, value: str) -> dict[str, object]:
    if rule == "best":
        metric, _, order = value.partition(":")
        if metric not in METRICS or order not in ("min", "max"):
            raise ValueError(f"best={value} is not METRIC:min or METRIC:max with a METRIC of {', '.join(METRICS)}")
        return {"best": metric, "largest": order == "max"}
    if rule == "days":
        if not re.fullmatch(r"\d{1,6}(\.\d+)?", value) or not float(value):
            raise ValueError(f"days={value} is no number of days")
        return {"days": float(value)}
    if not re.fullmatch(r"[1-9]\d{0,8}", value):
        raise ValueError(f"{rule}={value} is no whole number above 0")
    return {rule: int(value)}


def _allowed() -> str:
    return "rules are last=N, every=STEPS, best=METRIC:min|max and days=N, separated by commas"
