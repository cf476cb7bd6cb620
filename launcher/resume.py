"""Which checkpoint a job goes on from.

The job's own are asked for in the order of attempts and captures, newest first: those in the store, and those that are whole on
this machine and not stored yet. One from which two attempts in a row failed is passed over, at most BACK of them: then the fault
is not theirs, and the newest is taken again. `restoring` brings it into the output directory.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterable, Sequence

import msgspec

from launcher.checkpoint.manifest import Manifest
from launcher.decoding import decode
from launcher.errors import LauncherError, StoreError
from launcher.events import Emit, event
from launcher.inputs.choose import Chosen
from launcher.job.folder import JobFolder
from launcher.job.record import Attempt, JobRecord
from launcher.job.spec import JobSpec
from launcher.outputs import capture as captures
from launcher.restoring import Candidate, Output, Resumed
from launcher.store import layout, protection
from launcher.store.store import Store
from launcher.transfer.object_store import Missing

BACK = 2
"""Checkpoints that are passed over, at most, because attempts failed from them."""
_FROM_OUTSIDE = frozenset({signal.SIGHUP.name, signal.SIGINT.name, signal.SIGTERM.name, signal.SIGKILL.name})
"""Signals that say nothing about the checkpoint: somebody ended the job."""


def remember(store: Store, folder: JobFolder, record: JobRecord, emit: Emit, *, given: bool) -> int:
    """Takes into the record what the store knows of a job whose id was `given`, perhaps from another machine: attempts and
    checkpoints. Returns the highest number of an attempt that wrote a checkpoint."""
    if not given:
        return 0
    try:
        stored = decode(store.get(f"{layout.job(record.id)}record.json"), JobRecord)
    except (Missing, ValueError, StoreError):
        stored = None
    if stored and stored.name == record.name:
        ours = {each.number for each in record.attempts}
        record.attempts += [each for each in stored.attempts if each.number not in ours]
        record.attempts.sort(key=lambda each: each.number)
        record.created = min(record.created, stored.created)
        record.states += [each for each in stored.states if each not in record.states]
        record.states.sort(key=lambda each: each.time)
    own = _committed(store, record, emit)
    record.checkpoints = list(dict.fromkeys((*(each.id for each in own), *record.checkpoints)))
    folder.write(record)
    return max((each.origin.attempt for each in own if each.origin), default=0)


def keep_elsewhere(store: Store, record: JobRecord) -> None:
    """Puts the record into the store, so that a start on another machine knows of this attempt."""
    with contextlib.suppress(LauncherError, OSError):
        store.place.put(f"{layout.job(record.id)}record.json", msgspec.json.encode(record))


def restore(spec: JobSpec, record: JobRecord, named: Chosen | None, output: Output) -> Resumed:
    """Puts what the last attempt of `record` goes on from into the output directory. `named`: the checkpoint of --resume.

    Raises StoreError where the store is needed and cannot be read, LocalResourceError, NoSpace.
    """
    attempt, earlier = record.attempts[-1], record.attempts[:-1]
    if spec.resume == "never" or (spec.resume == "auto" and not earlier and not record.checkpoints):
        return Resumed()
    own = _own(output)
    for candidate in _in_order(own, earlier, output.emit):
        if path := output.bring(candidate):
            return _note(attempt, Resumed(path, candidate.id, candidate.step))
    if not own and (named or spec.resume == "same-job"):
        return _note(attempt, _of_others(spec, named, output))
    if earlier:
        text = "no checkpoint to go on from" if not own else "the job failed twice from its only checkpoint"
        output.emit(
            event("resume-none", f"Attempt {attempt.number} begins at the beginning: {text}", attempt=attempt.number)
        )
        output.put_aside(None, everything=bool(own))
    return Resumed()


def _note(attempt: Attempt, resumed: Resumed) -> Resumed:
    attempt.resumed, attempt.resumed_path, attempt.resumed_step = resumed.checkpoint, resumed.path, resumed.step
    return resumed


def _own(output: Output) -> list[Candidate]:
    """The job's own checkpoints that it could go on from, newest first."""
    pending = [Candidate.of_capture(each) for each in captures.load(output.spool)]
    committed = [Candidate.of_manifest(each) for each in _committed(output.store, output.record, output.emit)]
    return _resumable({each.id: each for each in (*pending, *committed)}.values())


def _resumable(found: Iterable[Candidate]) -> list[Candidate]:
    """Newest first: those that surely can be gone on from; where there is none, those of which only the script knows."""
    ordered = sorted(found, key=lambda each: each.order, reverse=True)
    return [each for each in ordered if each.resumable] or [each for each in ordered if each.resumable is None]


def _committed(store: Store, record: JobRecord, emit: Emit) -> list[Manifest]:
    """What this job (its id, not only its name) committed; by this machine's copies where the store cannot be asked."""
    try:
        found = [each.manifest for each in store.of_job(record.name)]
    except StoreError as error:
        emit(event("resume-blind", f"The store cannot be asked for the job's checkpoints: {error.text}", "warning"))
        found = []
        for identifier in record.checkpoints:
            with contextlib.suppress(LauncherError, Missing):
                found.append(store.known(identifier))
    return [each for each in found if each.origin and each.origin.job == record.id]


def _in_order(own: Sequence[Candidate], earlier: Sequence[Attempt], emit: Emit) -> Sequence[Candidate]:
    """Those of the job's own checkpoints that are to be tried, and in which order; says which are not, and why."""
    failing = {
        one.resumed
        for one, other in itertools.pairwise(earlier)
        if one.resumed and one.resumed == other.resumed and _failed(one) and _failed(other)
    }
    passed = list(itertools.takewhile(lambda each: each.id in failing, own))
    if not passed:
        return own
    labels = ", ".join(each.label for each in passed)
    if len(passed) > BACK:
        emit(event("resume-no-use", f"Going back did not help ({labels}): from the newest again", "warning"))
        return own
    emit(event("resume-back", f"{labels}: passed over, as two attempts in a row failed from it", "warning"))
    return own[len(passed) :]


def _failed(attempt: Attempt) -> bool:
    """Whether the job itself failed, so that the checkpoint may be the cause: not a stop, not a lost machine."""
    outcome = attempt.outcome
    if outcome is None or outcome.code == 0 or outcome.stopped or outcome.origin != "job":
        return False
    return outcome.signal not in _FROM_OUTSIDE


def _of_others(spec: JobSpec, named: Chosen | None, output: Output) -> Resumed:
    """From what is not the job's own: the checkpoint that is named, or the newest of the job of this name that wrote last."""
    if named and not named.manifest:
        return output.bring_from_outside(named)
    if named and named.manifest:
        found = [Candidate.of_manifest(named.manifest)]
        folder = named.names[0] if spec.resume.endswith(f"={named.names[0]}") else ""
        if found[0].resumable is False:
            text = f"{named.text} has what inference needs, not what a training goes on from: "
            output.emit(event("resume-doubtful", text + named.manifest.ready.resume_reason, "warning"))
    else:
        of_name = sorted((each.manifest for each in output.store.of_job(spec.name)), key=lambda each: each.id)
        last = of_name[-1].origin if of_name else None
        found, folder = (
            _resumable(Candidate.of_manifest(each) for each in of_name if _job(each) == (last and last.job)),
            "",
        )
    for candidate in found:
        protection.use(output.store, candidate.id, output.folder.id, spec.name)
        if path := output.bring(candidate, folder):
            return Resumed(path, candidate.id, candidate.step, parents=(candidate.id,))
    return Resumed()


def _job(manifest: Manifest) -> str:
    return manifest.origin.job if manifest.origin else ""
