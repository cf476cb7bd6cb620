"""Looks at candidates: is it whole, may it be captured, or why not.

Structure decides first (the format's own rules), then open writers (a lease), then quiet, where no file proves that the
writer is done. What was captured before and is being written again is whole only when the library's last files were written
again too: until then the old ones make a torn folder look whole (measured: a restarted Trainer, DCP over its own folder).
"""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.checkpoint import formats, paths
from launcher.checkpoint.judgement import Context, Judgement
from launcher.checkpoint.manifest import Dataset
from launcher.events import Emit, event
from launcher.outputs import candidates
from launcher.outputs import capture as captures
from launcher.outputs.candidates import ROOT, Candidate
from launcher.outputs.capture import Capture, Identity
from launcher.outputs.filesystem import Place
from launcher.outputs.holding import Held, Vanished
from launcher.outputs.keeper import Keeper, Kept
from launcher.outputs.roots import Root
from launcher.text import printable

_RANK = re.compile(r"_(\d+)\.\w+$")
_NUMBER = re.compile(r"\d+")
_PATIENCE = 5
"""Settle times of quiet after which a folder counts as written of which only some files were written again: a script that
saves its tokenizer once and its model often, and not a save between two of its files."""


@dataclass(frozen=True)
class Subject:
    """What every capture of this job says about its origin."""

    job: str
    attempt: int = 1
    node: int = 0
    parents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    repository: str = ""
    commit: str = ""
    changes: str = ""
    command: tuple[str, ...] = ()


class Busy(Exception):
    """Somebody still has a file open for writing, though it may be that his close is not over: a rewritten file's data is
    sent to the disk in it (ext4 and XFS), after the event."""


class Judge:
    """Judges candidates and hands the whole ones to the keeper. `context` and `ended_well` change when the job is over."""

    def __init__(
        self,
        spool: Path,
        subject: Subject,
        keeper: Keeper,
        context: Context,
        *,
        on_capture: Callable[[Capture], None],
        settle: float,
        emit: Emit,
    ) -> None:
        self.patience = _PATIENCE * settle
        self.context = context
        self.ended_well = False
        self.last_step: int | None = None
        self._spool = spool
        self._subject = subject
        self._keeper = keeper
        self._on_capture = on_capture
        self._emit = emit
        self._warned = False

    # ── looks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def closed(self, root: Root, place: Place, candidate: Candidate) -> None:
        """A file that some library writes last was closed: hold all of the folder first, judge it then. Raises Busy."""
        if candidate.leaving:
            return
        try:
            held = Held(candidate.folder, candidates.files(candidate))
        except Vanished:
            return  # On its way out: what becomes of it is told by the events that follow.
        with held:
            judgement = formats.judge(held, self.context)
            if not judgement.whole or not judgement.proven:
                return
            if root.is_leaving(candidate) or self._fuller(root, candidate, held):
                return
            if held.identities != candidate.captured and (writer := held.open_writer()):
                raise Busy(writer)
            if not self._obstacle(root, candidate, held, judgement):
                self._capture(root, place, candidate, held, judgement)

    def flat(self, root: Root, place: Place, candidate: Candidate, file: str) -> None:
        """A file directly in the watched folder was closed: captured at once where its own structure proves it whole and no
        library would write it beside others (those are the root's own checkpoint). Raises Busy."""
        try:
            held = Held(root.path, [file])
        except Vanished:
            return
        with held:
            self._judge_flat(root, place, candidate, held, file)

    def _judge_flat(self, root: Root, place: Place, candidate: Candidate, held: Held, file: str) -> None:
        alone = not formats.is_temporary(file) and not any(format.claims(held) for format in formats.every())
        if alone and formats.holds_tensors(held, file) and candidate.flats.get(file) != held.identities[file]:
            judgement = formats.judge(held, self.context)
            if judgement.whole and held.open_writer():
                raise Busy(file)
            if judgement.whole:
                self._capture_flat(root, place, candidate, held, file, judgement)

    def quiet(self, root: Root, place: Place, candidate: Candidate) -> Judgement | None:
        """Judges a candidate as it lies there, quiet or at the end, and captures it where it is whole. None: nothing new,
        or no checkpoint."""
        if candidate.path == ROOT:
            return self._quiet_root(root, place, candidate)
        found = candidates.files(candidate, root.pulse)
        same = found == candidate.captured and not candidate.lost
        if not found or same or (candidate.leaving and not self._stays(candidate, found)):
            return self._half_deleted(candidate) if found and candidate.leaving and not same else None
        if not candidates.may_hold_tensors(found):
            return None  # Part of the job's outputs.
        try:
            held = Held(candidate.folder, found)
        except Vanished:
            candidate.leaving = True
            return None
        with held:
            judgement = formats.judge(held, self.context)
            if judgement.verdict == "unknown":
                if not any(formats.holds_tensors(held, path) for path in held.identities):
                    return None  # Not a checkpoint: part of the job's outputs.
                if self.ended_well:
                    judgement = Judgement("whole", "unknown")
            if not judgement.whole:
                return judgement
            if not self.context.final and root.is_leaving(candidate):
                return None
            if obstacle := self._obstacle(root, candidate, held, judgement):
                return Judgement("broken", judgement.format, (obstacle,))
            self._capture(root, place, candidate, held, judgement)
            return judgement

    def _quiet_root(self, root: Root, place: Place, candidate: Candidate) -> Judgement | None:
        with Held(root.path, candidates.files(candidate)) as held:
            format = formats.recognise(held)
            claimed = format.claims(held) if format else frozenset()
            result = None
            if format and claimed:
                own = formats.part(held, claimed)
                judgement = format.judge(own, self.context)
                before = {path: each for path, each in (candidate.captured or {}).items() if path in claimed}
                new = candidate.lost or before != {path: held.identities[path] for path in claimed}
                writing = not self.context.final and any(formats.is_temporary(path) for path in held.identities)
                if new and judgement.whole and not writing:
                    found = {path: held.identities[path] for path in claimed}
                    if obstacle := self._written_again(candidate, found, judgement):
                        result = Judgement("broken", format.name, (obstacle,))
                    else:
                        self._of_root(root, place, candidate, sorted(claimed), judgement)
                elif new and any(formats.holds_tensors(own, path) for path in claimed):
                    result = judgement
            for path in held.identities:
                if path in claimed or candidate.flats.get(path) == held.identities[path]:
                    continue
                if not formats.holds_tensors(held, path):
                    continue
                judgement = formats.judge(formats.part(held, [path]), self.context)
                if judgement.verdict == "unknown":
                    judgement = Judgement("whole", "unknown")
                if judgement.whole:
                    self._of_root(root, place, candidate, [path], judgement, flat=path)
                elif self.context.final:
                    result = result or judgement
        return result

    def _of_root(
        self, root: Root, place: Place, candidate: Candidate, files: list[str], judgement: Judgement, flat: str = ""
    ) -> None:
        """Captures some of the root's files, unless somebody writes them. Raises Vanished."""
        with Held(root.path, files) as held:
            if held.open_writer():
                return
            if flat:
                self._capture_flat(root, place, candidate, held, flat, judgement)
            else:
                self._capture(root, place, candidate, held, judgement, in_place=True)

    def _obstacle(self, root: Root, candidate: Candidate, held: Held, judgement: Judgement) -> str | None:
        """Why a folder that is whole by its structure is not to be captured now, in words, or None."""
        if held.identities == candidate.captured and not candidate.lost:
            return "it is captured"
        if writer := held.open_writer():
            if not self.context.final:  # Its close may come without an event: look again.
                candidate.dirty, candidate.changed = True, time.monotonic()
            return f"{writer} is being written"
        return self._begun(root, candidate, held, judgement) or self._written_again(
            candidate, held.identities, judgement
        )

    def _begun(self, root: Root, candidate: Candidate, held: Held, judgement: Judgement) -> str | None:
        """Why a folder that only quiet says to be whole may be the beginning of one, or None.

        A Trainer's model is in its checkpoint seconds before the optimizer is: then it looks like a model alone. Where an
        earlier folder of the same name but for its number had all of these files and more, a longer quiet decides, or that
        the job ended well.
        """
        if judgement.proven or self.ended_well:
            return None
        stem = _NUMBER.sub("", candidate.path)
        more = [each for each in self._fuller(root, candidate, held) if _NUMBER.sub("", each) == stem]
        if not more or (not self.context.final and time.monotonic() - candidate.changed >= self.patience):
            return None
        if not self.context.final:
            candidate.patient = candidate.dirty = True
        return f"it has fewer files than {more[0]}"

    def _written_again(self, candidate: Candidate, found: Mapping[str, Identity], judgement: Judgement) -> str | None:
        """Why what was written before may be between two states now, or None.

        The files that the format's library writes last must be new where others are. Where it has none, or a file is newer
        than they are (a report that a script adds, or the next save's first), a longer quiet decides.
        """
        before = {path: each for path, each in (candidate.captured or {}).items() if path in found}
        stale = [path for path, each in before.items() if found[path] == each]
        candidate.rewritten |= len(stale) < len(before)
        format = formats.by_name(judgement.format)
        last = [path for path in found if format and _ends(path, format.completes) and not self._beyond(path)]
        held_back = [path for path in stale if path in last] if len(stale) < len(before) else []
        if held_back and not (self.ended_well and not judgement.proven):
            return f"it was being written again: {held_back[0]} is still the earlier save's"
        if last:
            end = max(found[path][1] for path in last)
            doubtful = [path for path in found if found[path][1] > end]
        else:
            doubtful = stale if len(stale) < len(before) else []
        if not doubtful or self.ended_well or time.monotonic() - candidate.changed >= self.patience:
            return None
        if self.context.final and candidate.captured is None:
            return None
        if not self.context.final:
            candidate.patient = candidate.dirty = True
        return f"it may be between two saves: {doubtful[0]} is not of the same one as the rest"

    def _fuller(self, root: Root, candidate: Candidate, held: Held) -> list[str]:
        """The siblings that had all of its files and more: it may be half written, or rotation may have begun before its folder
        was watched."""
        parent, names = os.path.dirname(candidate.path), held.identities.keys()
        return [
            each.path
            for each in list(root.candidates.values())
            if each.captured and names < each.captured.keys() and os.path.dirname(each.path) == parent
        ]

    def _beyond(self, path: str) -> bool:
        """Whether the file is of a rank that this job does not have: an earlier job's, which had more."""
        world, rank = self.context.world_size, _RANK.search(path)
        return bool(rank and world and (world == 1 or int(rank[1]) >= world))

    def _stays(self, candidate: Candidate, found: Mapping[str, Identity]) -> bool:
        """Whether a folder of which files were deleted is a checkpoint all the same: it has files that no capture has, and
        rotation, which takes milliseconds, is over. Lightning's `lightning_logs/` loses its older file with each new one."""
        if found.items() <= (candidate.captured or {}).items():
            return False
        if self.context.final:
            return self.ended_well
        if candidate.captured is None:
            return False
        if time.monotonic() - candidate.changed >= self.patience:
            return True
        candidate.patient = candidate.dirty = True
        return False

    def _half_deleted(self, candidate: Candidate) -> Judgement | None:
        if not self.context.final or candidate.captured is not None:
            return None
        return Judgement("broken", "unknown", ("files of it were deleted",))

    # ── capturing ────────────────────────────────────────────────────────────────────────────────────────────────

    def _capture(
        self, root: Root, place: Place, candidate: Candidate, held: Held, judgement: Judgement, in_place: bool = False
    ) -> None:
        """Takes what is held. Raises UnsafePath where a store cannot hold a name, OSError."""
        before, identities = candidate.captured, dict(held.identities)

        def done(kept: Kept | None) -> None:
            if kept:
                self._made(root, candidate.path, kept, judgement)
            else:
                candidate.captured, candidate.lost = before, candidate.lost or before is None
                candidate.dirty, candidate.changed = True, time.monotonic()

        # Where nobody writes any more, a temporary file is what a killed writer left.
        chosen = [path for path in identities if not formats.is_temporary(path)]
        if candidate.path != ROOT:
            paths.check(candidate.path)
        paths.check_all(chosen)
        candidate.captured, candidate.lost, candidate.dirty = (
            identities,
            False,
            candidate.path == ROOT and candidate.dirty,
        )
        self._keeper.keep(held, chosen, place, in_place=in_place or candidate.rewritten, done=done)

    def _capture_flat(
        self, root: Root, place: Place, candidate: Candidate, held: Held, file: str, judgement: Judgement
    ) -> None:
        def done(kept: Kept | None) -> None:
            if kept:
                self._warn_flat(root, file)
                self._made(root, file, kept, judgement)
            else:
                candidate.flats.pop(file, None)
                candidate.dirty, candidate.changed = True, time.monotonic()

        paths.check(file)
        candidate.flats[file] = held.identities[file]
        self._keeper.keep(held, [file], place, in_place=True, done=done)

    def _made(self, root: Root, path: str, kept: Kept, judgement: Judgement) -> None:
        subject = self._subject
        made = Capture(
            id=kept.id,
            job=subject.job,
            name=root.name(path),
            path=root.origin(path),
            root=kept.root,
            how=kept.how,
            format=judgement.format,
            step=None,
            files=kept.files,
            marks=kept.marks,
            holder=os.getpid() if kept.descriptors else 0,
            descriptors=kept.descriptors,
            captured=time.time(),
            attempt=subject.attempt,
            node=subject.node,
            parents=subject.parents,
            sources=subject.sources,
            datasets=subject.datasets,
            repository=subject.repository,
            commit=subject.commit,
            changes=subject.changes,
            command=subject.command,
        )
        format = formats.by_name(judgement.format)
        made = msgspec.structs.replace(made, step=format.facts(made.tree()).step if format else None)
        captures.save(made, self._spool)
        if made.step is not None:
            self.last_step = max(made.step, self.last_step or 0)
        text = f"Captured {made.name} ({made.how})"
        self._emit(
            event("checkpoint-captured", text, "debug", name=made.name, id=made.id, step=made.step, how=made.how)
        )
        self._on_capture(made)

    def _warn_flat(self, root: Root, path: str) -> None:
        if self._warned:
            return
        self._warned = True
        beside = any(name != ROOT for name in root.candidates)
        self._emit(
            event(
                "flat-file",
                f"{printable(path)} was saved as a flat file (legacy mode); it is collected as a checkpoint of its own."
                + (" Beside folders it is ambiguous which files belong together." if beside else "")
                + f"\nSave into a folder instead: torch.save(x, output / {printable(path)!r} / 'model.pt')",
                "warning",
                path=printable(path),
            )
        )


def _ends(path: str, patterns: Iterable[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def age(candidate: Candidate) -> tuple[bool, int]:
    """Oldest folder first, the root last: its own checkpoint is the job's result."""
    return candidate.path == ROOT, candidate.seen.newest
