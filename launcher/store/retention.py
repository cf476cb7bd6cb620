"""Deleting what a job's `--keep` rules do not keep, after its commits.

A domain of errors of its own: what goes wrong here is a warning, and never fails the job or an upload. The rules can only
add to what is always kept: the newest, the best, the root's own, what is pinned, and what anything was started from.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import LauncherError
from launcher.events import Emit, event
from launcher.job.keep import Keep
from launcher.store import catalog, protection, removal
from launcher.store.reading import Checkpoint
from launcher.store.store import Store

_DAY = 86400.0
_SHARE = 0.1
"""The share of a running job's time that retention may take: it lists the store."""


@dataclass(frozen=True)
class Verdict:
    """What the rules say of one checkpoint: `keep` holds the reasons to keep it; none means delete."""

    checkpoint: Checkpoint
    keep: tuple[str, ...]


def judge(
    found: Sequence[Checkpoint], keep: Keep, *, protected: Mapping[str, Sequence[str]], now: float
) -> list[Verdict]:
    """The verdict on each checkpoint of one job, oldest commit first.

    `protected`: why checkpoints have to stay whatever the rules say, by id; `now`: Unix seconds by the store's clock.
    Newest means committed last (by the store's clock, then by id), never the highest step: a job that was started again
    may count from the beginning. The newest save is another one where recovery committed an older one later.
    """
    ordered = sorted(found, key=lambda each: (each.committed, each.manifest.id))
    reasons: dict[str, list[str]] = {each.manifest.id: list(protected.get(each.manifest.id, ())) for each in ordered}

    def because(each: Checkpoint | None, reason: str) -> None:
        if each:
            reasons[each.manifest.id].append(reason)

    because(ordered[-1] if ordered else None, "the newest commit")
    because(max(ordered, key=lambda each: each.manifest.created, default=None), "the newest save")
    roots = [each for each in ordered if each.manifest.origin and each.manifest.origin.path == "."]
    because(roots[-1] if roots else None, "the job's own result")
    because(_best_of_trainer(ordered), "the best, says its trainer")
    if keep.last:
        for each in ordered[-keep.last :]:
            because(each, f"last={keep.last}")
    if keep.best:
        valued = [(value, each) for each in ordered if (value := getattr(each.manifest.facts, keep.best)) is not None]
        valued.sort(key=lambda pair: (-pair[0] if keep.largest else pair[0], -pair[1].committed))
        because(valued[0][1] if valued else None, f"best={keep.best}")
    for each in ordered:
        step = each.manifest.facts.step
        if keep.every and step is not None and step % keep.every == 0:
            because(each, f"every={keep.every}")
        if keep.days and now - each.committed < keep.days * _DAY:
            because(each, f"days={keep.days:g}")
    return [Verdict(each, tuple(dict.fromkeys(reasons[each.manifest.id]))) for each in ordered]


def _best_of_trainer(ordered: Sequence[Checkpoint]) -> Checkpoint | None:
    """The checkpoint that the newest state of the job's trainer calls its best, newest version."""
    named = [each.manifest.facts.best_checkpoint for each in ordered if each.manifest.facts.best_checkpoint]
    if not named:
        return None
    folder = named[-1].rstrip("/").rpartition("/")[2]
    same = [each for each in ordered if each.manifest.name.rpartition("/")[2] == folder]
    return same[-1] if same else None


def plan(
    store: Store, job: str, keep: Keep, *, run: str | None = None, protected: Collection[str] = ()
) -> list[Verdict]:
    """What the rules say of every checkpoint of the jobs named `job` (of the one with the id `run`, if given)."""
    own = [each for each in store.of_job(job) if each.manifest.origin and run in (None, each.manifest.origin.job)]
    reasons = protection.reasons(store, catalog.refresh(store).summaries())
    for identifier in protected:
        reasons.setdefault(identifier, []).append("in use by this job")
    return judge(own, keep, protected=reasons, now=store.now() if keep.days else 0.0)


def apply(
    store: Store, job: str, keep: Keep, *, run: str | None = None, protected: Collection[str] = ()
) -> list[Checkpoint]:
    """Deletes what `plan` does not keep and returns it. Raises LauncherError; what was deleted until then stays so.

    A checkpoint that somebody pinned or began to use since the plan was made is left. Crash-safe: a delete that was cut
    off is finished by gc.
    """
    deleted = []
    for verdict in plan(store, job, keep, run=run, protected=protected):
        if verdict.keep or protection.needed_now(store, verdict.checkpoint):
            continue
        removal.delete(store, verdict.checkpoint, reason="retention")
        deleted.append(verdict.checkpoint)
    return deleted


class AfterCommits:
    """Applies the rules of a running job: after commits, as long as that takes little of its time, and at its end."""

    def __init__(self, store: Store, job: str, run: str, keep: Keep | None, emit: Emit) -> None:
        self._store, self._job, self._run, self._keep, self._emit = store, job, run, keep, emit
        self._next = 0.0

    def __call__(self, *, at_end: bool = False) -> None:
        """Never raises LauncherError: what fails is a warning, and is tried again after the next commit."""
        started = time.monotonic()
        if not self._keep or (started < self._next and not at_end):
            return
        try:
            deleted = apply(self._store, self._job, self._keep, run=self._run)
        except LauncherError as error:
            self._emit(event("retention-failed", f"--keep was not applied: {error.text}", "warning", error=error.kind))
        else:
            if deleted:
                names = ", ".join(each.label for each in deleted[:5]) + (", …" if len(deleted) > 5 else "")
                ids = [each.manifest.id for each in deleted]
                text = f"Deleted {len(deleted)} checkpoint(s) that --keep does not keep: {names}"
                self._emit(event("checkpoints-deleted", text, ids=ids))
        ended = time.monotonic()
        self._next = ended + (ended - started) / _SHARE
