"""Whether a folder is a whole checkpoint: the verdict, with its reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree

Verdict = Literal["whole", "unfinished", "broken", "unknown"]


@dataclass(frozen=True)
class Context:
    """What is known beside the files. `world_size`: processes of the job, where known. `final`: nobody writes any more,
    so that what is missing will not come and left-over temporary files mean nothing."""

    world_size: int | None = None
    final: bool = True


@dataclass(frozen=True)
class Judgement:
    """A verdict and its reasons, in words, the evidence in them.

    whole: everything that the library would read is there. `proven`: the writer's own last file says so; where not, a
    quiet time must confirm it. unfinished: what is missing may still come. broken: waiting cannot help. unknown: no
    format knows it.
    """

    verdict: Verdict
    format: str
    reasons: tuple[str, ...] = ()
    proven: bool = False

    @property
    def whole(self) -> bool:
        return self.verdict == "whole"


class Format(Protocol):
    """One library's layout. Add one as one file in `formats/` and a line in its list."""

    @property
    def name(self) -> str:
        """Stable name, stored in manifests."""

    @property
    def completes(self) -> tuple[str, ...]:
        """Shell patterns of the file names whose closing may make the checkpoint whole."""

    def recognises(self, tree: Tree) -> bool:
        """Whether this library wrote the folder, whole or not."""

    def judge(self, tree: Tree, context: Context) -> Judgement:
        """Only called where `recognises`. Never executes a pickle, never reads more than a file's headers."""

    def facts(self, tree: Tree) -> Facts:
        """What the files say; never raises, absent is None."""

    def ready(self, tree: Tree) -> Ready:
        """What it can start."""

    def claims(self, tree: Tree) -> frozenset[str]:
        """Of the files beside each other in the root of the output directory, those that are part of this checkpoint."""


def judged(name: str, reasons: Iterable[str], context: Context, *, proven: bool) -> Judgement:
    """Whole where there is no reason against it; else unfinished, or broken where nothing more will come."""
    reasons = tuple(dict.fromkeys(reasons))
    if not reasons:
        return Judgement("whole", name, (), proven)
    return Judgement("broken" if context.final else "unfinished", name, reasons)
