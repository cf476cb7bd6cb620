"""How a job ended: the outcome, the closing block, and what is kept of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import msgspec

from launcher.checkpoint import paths
from launcher.checkpoint.judgement import Judgement
from launcher.checkpoint.manifest import Manifest
from launcher.errors import CollectionIncomplete, InputChanged, LauncherError, StoreError, UnsafePath
from launcher.events import Emit, event
from launcher.job.folder import JobFolder
from launcher.job.record import JobRecord, Outcome, write_atomically
from launcher.job.spec import JobSpec
from launcher.outputs.capture import Capture
from launcher.outputs.uploader import Stored
from launcher.prepare import Prepared
from launcher.runners.running import Exit
from launcher.runners.signals import STOPS
from launcher.store import layout
from launcher.store.store import Store
from launcher.text import duration, printable, size
from launcher.transfer.object_store import Missing
from launcher.transfer.retry import call

_TERMINATION_LOG = "/dev/termination-log"
_TERMINATION_LIMIT = 4096


def of_error(error: LauncherError) -> Outcome:
    """The outcome of a job that the launcher could not run."""
    return Outcome(
        code=error.exit_code,
        origin="job" if error.exit_code in (126, 127) else "launcher",
        cause=error.text,
        kind=error.kind,
        retryable=error.retryable,
        hint=error.hint,
    )


def outcome(
    record: JobRecord,
    ended: Exit,
    prepared: Prepared,
    *,
    stopped_by: int | None,
    pending: list[tuple[Capture, str]],
    left: list[str],
    changed: InputChanged | None,
    last_step_seen: int | None,
    last_step_committed: int | None,
) -> Outcome:
    """The verdict. A job's failure is never masked, and a job's success never hides a lost checkpoint."""
    bytes_left = sum(capture.size for capture, _ in pending)
    common: dict[str, Any] = {
        "stopped": stopped_by is not None,
        "last_step_seen": last_step_seen,
        "last_step_committed": last_step_committed,
        "bytes_not_stored": bytes_left,
    }
    hint = f"Finish storing with: launcher recover {record.name}" if pending else ""
    if ended.code != 0 or (not pending and not changed):
        rank, message = _verdict(prepared)
        name = signal.Signals(ended.signal).name if ended.signal in set(signal.Signals) else None
        if ended.code == 0:
            cause = "The job ended well."
        elif name:
            cause = f"The job was ended by {name}" + (" (out of memory)" if ended.oom else "")
        else:
            cause = f"The job ended with code {ended.code}"
        if rank is not None and ended.code != 0:
            cause += f" (rank {rank} first{': ' + message if message else ''})"
        if stopped_by:
            cause = f"Stopped by {signal.Signals(stopped_by).name}. {cause}"
        cause = cause if cause.endswith(".") else f"{cause}."
        if left:
            cause += f" It left processes behind, which were ended: {', '.join(left[:5])}."
        return Outcome(
            code=ended.code, origin="job", cause=cause, kind="signal" if name else "exit", signal=name, rank=rank,
            retryable=bool(stopped_by or ended.oom), hint=hint, **common,
        )  # fmt: skip
    error: LauncherError
    if pending:
        error = CollectionIncomplete(
            count=len(pending), job=record.name, size=size(bytes_left), cause=pending[0][1], where=prepared.spool
        )
    else:
        assert changed
        error = changed
    return msgspec.structs.replace(of_error(error), **common)


def _verdict(prepared: Prepared) -> tuple[int | None, str]:
    try:
        found = json.loads(prepared.verdict.read_bytes())
        message = str(found.get("message") or "")
        last = message.strip().splitlines()[-1] if message.strip() else ""
        if last.startswith(("To enable traceback", "Signal ")):
            last = ""
        return int(found["rank"]), last[:300]
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def is_stop(number: int) -> bool:
    """Whether a signal asks for a stop."""
    return number in STOPS


def started(record: JobRecord, emit: Emit) -> None:
    """Says what is running, where its input is, and what protects it."""
    attempt = record.attempts[-1]
    command = " ".join(record.spec.command)
    lines = [f"Job {record.name} ({record.id}) runs: {printable(command)}"]
    for each in attempt.inputs:
        how = "a view that it may change; the input itself is read-only by" if each.writable else "read-only by"
        lines.append(f"Input {each.reference} at {each.path}, {how}: {each.rung}")
    if attempt.inputs and attempt.guarantee:
        lines.append(f"({attempt.guarantee})")
    level = "warning" if any(each.rung == "none" for each in attempt.inputs) else "info"
    emit(event("job-started", "\n".join(lines), level, id=record.id, device=attempt.device))  # type: ignore[arg-type]


def committed(stored: Stored, record: JobRecord, folder: JobFolder) -> None:
    """Notes in the record what was stored."""
    attempt = record.attempts[-1]
    attempt.bytes_sent += stored.sent
    attempt.bytes_saved += stored.saved
    if not stored.repeated and stored.id not in record.checkpoints:
        record.checkpoints.append(stored.id)
    folder.write(record)


def skipped(reported: list[tuple[str, str]], salvage: list[tuple[str, Judgement]]) -> list[dict[str, Any]]:
    """What was seen and not collected, for the record."""
    result: list[dict[str, Any]] = [{"name": name, "reason": reason, "kind": "skipped"} for name, reason in reported]
    for path, judgement in salvage:
        reason = "; ".join(judgement.reasons[:3])
        result.append({"name": path, "reason": reason, "kind": "salvage", "format": judgement.format})
    return result


def give_back(spec: JobSpec, output: str, folder: JobFolder) -> None:
    """Makes the caller the owner of what a container's user wrote."""
    if spec.runner != "docker" or os.geteuid() != 0:
        return
    for root in (output, str(folder.path / "logs")):
        for parent, folders, files in os.walk(root):
            for name in (parent, *(os.path.join(parent, each) for each in (*folders, *files))):
                os.chown(name, os.geteuid(), os.getegid(), follow_symlinks=False)


def store_outputs(store: Store, record: JobRecord, output: str, emit: Emit) -> None:
    """Keeps the files of the output directory that are no part of a checkpoint (evaluations, TensorBoard …)."""
    known: set[str] = set()
    for manifest in _manifests(store, record):
        if manifest.origin:
            folder = manifest.origin.path
            prefix = "" if folder == "." or not os.path.isdir(os.path.join(output, folder)) else f"{folder}/"
            known.update(prefix + file.path for file in manifest.files)
    aside = tuple(f"{each['name']}/" for each in record.skipped if each["kind"] == "salvage")
    kept, total = 0, 0
    for parent, folders, files in os.walk(output):
        folders[:] = [each for each in folders if each != ".launcher"]
        for name in files:
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, output)
            if (
                relative in known
                or f"{relative}/".startswith(aside)
                or os.path.islink(path)
                or not os.path.isfile(path)
            ):
                continue
            try:
                paths.check(relative)
                key = f"{layout.job(record.id)}outputs/{relative}"
                call(lambda path=path, key=key: store.place.upload(path, key, lambda count: None), store.timeout)  # type: ignore[misc]
            except UnsafePath as error:
                emit(event("output-skipped", f"Not stored: {printable(error.text)}", "warning"))
                continue
            except (LauncherError, OSError) as error:
                emit(event("output-pending", f"Not stored: {printable(relative)}: {error}", "warning"))
                return
            kept, total = kept + 1, total + os.path.getsize(path)
    if kept:
        emit(event("outputs-stored", f"Stored {kept} other file(s) of the output directory ({size(total)})"))


def finish(store: Store, folder: JobFolder, record: JobRecord, emit: Emit) -> None:
    """Writes record and result, prints the closing block, and keeps record, events and log with the store."""
    attempt = record.attempts[-1]
    result = attempt.outcome
    assert result
    try:
        folder.write(record)
        write_atomically(str(folder.path / "result.json"), msgspec.json.encode(result))
    except OSError as error:
        emit(event("record-failed", f"The job's record cannot be written: {error}", "warning"))
    emit(event("job-ended", closing(store, folder, record), "info" if result.code == 0 else "error", code=result.code))
    _termination_message(result)
    try:
        prefix = layout.job(record.id)
        store.place.put(f"{prefix}record.json", msgspec.json.encode(record))
        for name, key in (("events.jsonl", "events.jsonl"), ("logs/job.log", "logs/job.log")):
            path = folder.path / name
            if path.exists() and path.stat().st_size:
                store.place.upload(str(path), prefix + key, lambda count: None)
    except (LauncherError, OSError, StoreError) as error:
        emit(event("record-pending", f"The job's record is only on this machine: {error}", "warning"))


def closing(store: Store, folder: JobFolder, record: JobRecord) -> str:
    """The block that a person reads at the end."""
    attempt = record.attempts[-1]
    result = attempt.outcome
    assert result
    lines = [
        f"Job {record.name}: {result.cause} Exit code {result.code}"
        + ("." if result.origin == "job" else " (launcher's).")
    ]
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in attempt.phases.items())
    if phases:
        lines.append(f"Time: {phases}")
    total = 0
    rows = []
    for manifest in _manifests(store, record):
        total += manifest.size
        step = f"step {manifest.facts.step}" if manifest.facts.step is not None else manifest.format
        rows.append(f"  {manifest.name}  {step}, {size(manifest.size)}")
    lines.append(f"Collected: {len(rows)} checkpoint(s), {size(total)}" if rows else "Collected: no checkpoint")
    if attempt.bytes_saved:
        lines[-1] += f" ({size(attempt.bytes_sent)} sent, {size(attempt.bytes_saved)} were in the store already)"
    lines += rows if len(rows) <= 12 else [*rows[:5], f"  … {len(rows) - 10} more", *rows[-5:]]
    for reference, problem in {each.reference: each.problem for each in attempt.inputs if each.problem}.items():
        lines.append(f"Input {reference} could not be read: {printable(problem)}")
    for each in record.skipped[:8]:
        lines.append(f"Not collected: {printable(str(each['name']))}: {each['reason']}")
    if any(each["kind"] == "salvage" for each in record.skipped):
        lines.append(f"What is incomplete is kept in {folder.path}/output-checkpoint")
    if result.hint:
        lines.append(result.hint)
    elif rows:
        lines.append(
            f"Next: launcher training checkpoints {record.name}  ·  launcher training run NAME -C job:{record.name} -- …"
        )
    elif result.code:
        lines.append(f"Log: launcher training logs {record.name}")
    return "\n".join(lines)


def _manifests(store: Store, record: JobRecord) -> Iterator[Manifest]:
    """What the job committed; a store that is gone meanwhile is no reason not to end."""
    for identifier in record.checkpoints:
        with contextlib.suppress(LauncherError, Missing):
            yield store.known(identifier)


def _termination_message(result: Outcome) -> None:
    """The verdict where Kubernetes looks for it: at most 4,096 bytes of valid UTF-8, code and origin first."""
    if not os.path.exists(_TERMINATION_LOG):
        return
    text = f"exit code {result.code} ({result.origin}): {result.cause}\n{result.hint}"
    data = text.encode("utf-8", "replace")[:_TERMINATION_LIMIT].decode("utf-8", "ignore").encode()
    try:
        with open(_TERMINATION_LOG, "wb") as file:
            file.write(data)
    except OSError:
        pass  # Not ours to write; result.json says the same.
