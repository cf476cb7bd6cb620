"""What a pickle would make, as symbols: names that are not imported, calls that are not made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_DEPTH = 16


@dataclass(frozen=True)
class Name:
    """What would be imported. `module` None: the pickle computes the name, or takes it from copyreg's registry."""

    module: str | None
    name: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}" if self.module is not None else self.name


class Call:
    """What would be made by calling `callee`; `state` and `items` (pairs) are what would be put into it."""

    __slots__ = ("arguments", "callee", "items", "state")

    def __init__(self, callee: object, arguments: object) -> None:
        self.callee = callee
        self.arguments = arguments
        self.state: object = None
        self.items: tuple[tuple[object, object], ...] | list[tuple[object, object]] = ()


class Persistent:
    """What the loader gets from elsewhere: for torch ("storage", type, key, location, count)."""

    __slots__ = ("id",)

    def __init__(self, id: object) -> None:
        self.id = id


class Mapping(list[tuple[object, object]]):
    """A dictionary as its pairs: hostile keys are never hashed."""


def get(value: object, key: str) -> Any:
    """What a dictionary, or an object's attributes, hold under a text key; None where absent."""
    pending: list[object] = [value]
    for _ in range(_DEPTH):
        if not pending:
            break
        each = pending.pop()
        if isinstance(each, Call):
            pending += [Mapping(each.items), each.state]
        elif isinstance(each, tuple) and len(each) == 2:  # attributes and slots
            pending += [each[1], each[0]]
        elif isinstance(each, Mapping):
            for name, item in reversed(each):
                if isinstance(name, str) and name == key:
                    return item
    return None
