"""Formats that other packages add by the entry point group `launcher.formats`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from launcher.checkpoint.judgement import Context, Format, Judgement
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree

GROUP = "launcher.formats"
_T = TypeVar("_T")


def formats() -> list[Format]:
    """Every format that is installed and loads, by the entry points' names."""
    from importlib.metadata import entry_points

    found: list[Format] = []
    for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        try:
            format = point.load()()
            found.append(_Guarded(format.name, tuple(format.completes), format))
        except Exception as error:  # Whatever a package of others raises, it must not end the launcher.
            warnings.warn(f"The format {point.name!r} ({point.value}) cannot be loaded: {error!r}", RuntimeWarning, 2)
    return found


class _Guarded:
    """A format of others: what it raises is warned about, and it then knows nothing."""

    def __init__(self, name: str, completes: tuple[str, ...], format: Format) -> None:
        self._format = format
        self.name = name
        self.completes = completes

    def recognises(self, tree: Tree) -> bool:
        return self._asked(lambda: bool(self._format.recognises(tree)), False)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        failed = Judgement(
            "broken" if context.final else "unfinished", self.name, (f"the format {self.name!r} failed",)
        )
        return self._asked(lambda: self._format.judge(tree, context), failed)

    def facts(self, tree: Tree) -> Facts:
        return self._asked(lambda: self._format.facts(tree), Facts())

    def ready(self, tree: Tree) -> Ready:
        return self._asked(lambda: self._format.ready(tree), Ready())

    def claims(self, tree: Tree) -> frozenset[str]:
        return self._asked(lambda: self._format.claims(tree), frozenset())

    def _asked(self, question: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return question()
        except Exception as error:
            warnings.warn(f"The format {self.name!r} failed: {error!r}", RuntimeWarning, 3)
            return otherwise
