"""How a job ended: the outcome, the closing block, and what is kept of it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher import result as results
from launcher import secrets
from launcher.checkpoint import paths
from launcher.checkpoint.judgement import Judgement
from launcher.checkpoint.manifest import Manifest
from launcher.directories import give
from launcher.errors import CollectionIncomplete, LauncherError, StoreError, UnsafePath
from launcher.events import Emit, Redactor, event
from launcher.job import restarts, states
from launcher.job.failure import Failure
from launcher.job.folder import JobFolder
from launcher.job.record import DatasetRecord, InputRecord, JobRecord, Outcome, Server
from launcher.job.spec import JobSpec
from launcher.outputs.capture import Capture
from launcher.outputs.uploader import Stored
from launcher.runners.running import Exit
from launcher.runners.stopping import Stop, Stops
from launcher.settings import Settings
from launcher.store import layout
from launcher.store.store import Store
from launcher.text import duration, printable, size
from launcher.transfer.object_store import Missing
from launcher.transfer.retry import call
from launcher.verdict import Verdict


def of_error(error: LauncherError, redact: Callable[[str], str] = str) -> Outcome:
    """The outcome of a job that the launcher could not run; `redact` takes secrets out of what it says."""
    return Outcome(
        code=error.exit_code,
        origin="job" if error.exit_code in (126, 127) else "launcher",
        cause=redact(error.text),
        failure="exit" if error.exit_code in (126, 127) else "launcher",
        kind=error.kind,
        retryable=error.retryable,
        hint=redact(error.hint),
    )


@contextlib.contextmanager
def early(settings: Settings, environ: Mapping[str, str]) -> Iterator[None]:
    """For errors that no job's record can tell, as there is none yet or the launcher has a bug: what ends the block is written as
    a result where one is looked for (LAUNCHER_RESULT_FILE, the termination log), and raised on."""
    try:
        yield
    except Exception as error:
        known = error if isinstance(error, LauncherError) else LauncherError(what=f"A bug of the launcher: {error!r}.")
        redactor = Redactor.of_environment(dict(environ), secrets.values(settings.data_dir))
        result = results.Result(**redactor.value(msgspec.structs.asdict(of_error(known))), ended=time.time())
        with contextlib.suppress(OSError):  # What is raised on is more important, and says the same.
            results.write(result, settings.result_file)
        raise


def outcome(
    record: JobRecord,
    ended: Exit,
    verdict: Verdict,
    *,
    spool: Path,
    stop: Stop | None,
    pending: list[tuple[Capture, str]],
    left: list[str],
    changed: LauncherError | None,
    last_step_seen: int | None,
    last_step_committed: int | None,
) -> Outcome:
    """How the attempt ended. A job's failure is never masked, and a job's success never hides a lost checkpoint."""
    bytes_left = sum(capture.size for capture, _ in pending)
    common: dict[str, Any] = {
        "stopped": stop is not None,
        "last_step_seen": last_step_seen,
        "last_step_committed": last_step_committed,
        "bytes_not_stored": bytes_left,
    }
    if verdict.code == 0 and (pending or changed):
        error = changed
        if pending:
            error = CollectionIncomplete(
                count=len(pending), job=record.name, size=size(bytes_left), cause=pending[0][1], where=spool
            )
        assert error
        result = msgspec.structs.replace(of_error(error), **common)
    else:
        cause = f"{verdict.cause}."
        if stop:
            cause = f"Stopped by {stop.reason}. {cause} {_in_time(stop, ended)}"
        if ended.survivors:
            cause += f" These outlived SIGKILL: {', '.join(ended.survivors[:5])}."
        if left:
            cause += f" It left processes behind, which were ended: {', '.join(left[:5])}."
        known = signal.Signals(verdict.signal) if verdict.signal in set(signal.Signals) else None
        hints = [
            _HINTS.get(verdict.failure, "").format(job=record.name),
            "Some checkpoints are not stored yet." if pending else "",
        ]
        result = Outcome(
            code=verdict.code, origin="job", cause=cause, failure=verdict.failure,
            kind="signal" if known else "exit", signal=known.name if known else None,
            rank=verdict.rank, node="" if verdict.rank is None else record.attempts[-1].host,
            traceback=verdict.traceback, hint=" ".join(filter(None, hints)), **common,
        )  # fmt: skip
        attempts = [*record.attempts[:-1], msgspec.structs.replace(record.attempts[-1], outcome=result)]
        result = msgspec.structs.replace(
            result, retryable=stop is not None or bool(restarts.worth(record.spec, attempts))
        )
    return msgspec.structs.replace(result, next=_next(record, result))


_HINTS: dict[Failure, str] = {
    "oom": "Smaller batches, or more memory; --retry-on oom tries again all the same.",
    "rendezvous": "Look at what the other ranks did: launcher training logs {job} --rank R.",
    "hang": "The log ends where it stood still; --stall-timeout says how long that may be.",
}


def _next(record: JobRecord, result: Outcome) -> str:
    """The command to go on with."""
    if result.bytes_not_stored:
        return f"launcher recover {shlex.quote(record.name)}"
    if result.code == 0 and record.checkpoints:
        return f"launcher {record.spec.kind} run NEW_NAME -C {shlex.quote(f'job:{record.name}')} -- …"
    if result.code == 0 or (result.failure == "launcher" and not result.retryable):
        return ""
    if record.spec.runner == "entrypoint":
        return f"start the container again with LAUNCHER_JOB_ID={record.id}"
    return f"launcher {record.spec.kind} retry {shlex.quote(record.name)}"


def _in_time(stop: Stop, ended: Exit) -> str:
    """The grace, given and used."""
    how = "It was killed" if ended.killed else "It ended in time"
    return f"{how} (grace {duration(stop.deadline - stop.at)}, used {duration(time.time() - stop.at)})."


def started(record: JobRecord, emit: Emit) -> None:
    """Says what is running, where its input is, and what protects it."""
    attempt = record.attempts[-1]
    command = " ".join(record.spec.command)
    lines = [f"Job {record.name} ({record.id}) runs: {printable(command)}"]
    provided: list[InputRecord | DatasetRecord] = [*attempt.inputs, *attempt.datasets]
    for each in provided:
        what = "Input" if isinstance(each, InputRecord) else "Dataset"
        how = "a view that it may change; the input itself is read-only by" if each.writable else "read-only by"
        lines.append(f"{what} {each.reference} at {each.path}, {how}: {each.rung}")
    if provided and attempt.guarantee:
        lines.append(f"({attempt.guarantee})")
    level = "warning" if any(each.rung == "none" for each in provided) else "info"
    emit(event("job-started", "\n".join(lines), level, id=record.id, device=attempt.device))  # type: ignore[arg-type]


def answers(record: JobRecord, folder: JobFolder, emit: Emit) -> None:
    """The server's state is another one: keeps it, and says how to call one that is ready."""
    server = record.attempts[-1].server
    assert server
    if server.state in ("ready", "silent"):
        record.change("in progress", f"The server is {server.state}.")
    folder.write(record, durable=False)
    if server.state == "ready":
        text = f"Job {record.name} answers at {server.url}" + (f", model {server.model}" if server.model else "")
        if server.answered == server.since:
            text += f"\nCall it: {call_of(server)}\nStop it: launcher inference stop {shlex.quote(record.name)}"
        emit(event("server-ready", text, id=record.id, url=server.url, model=server.model))


def call_of(server: Server) -> str:
    """A command that asks the server something."""
    if not server.model:
        return f"curl {server.url}/"
    body: dict[str, Any] = {"model": server.model}
    if server.chat:
        body |= {"messages": [{"role": "user", "content": "Hello"}]}
    else:
        body |= {"prompt": "Hello"}
    path = "chat/completions" if server.chat else "completions"
    text = shlex.quote(json.dumps(body | {"max_tokens": 50}, ensure_ascii=False))
    return f"curl {server.url}/v1/{path} --json {text}"


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
    """Makes sure that outputs belong to somebody who can remove them. Where root starts a container: to root, and not to the
    container's user. Where root is in one: to the owners of the folders that were mounted as output and data directory."""
    if os.geteuid() != 0:
        return
    if spec.runner == "docker":
        for root in (output, folder.path / "output", folder.path / "logs"):
            give(root, 0, os.getegid())
        return
    jobs = folder.path.parents[1]
    for root, owner in ((Path(output), os.stat(output)), (jobs, os.stat(jobs.parent))):
        if owner.st_uid:
            with contextlib.suppress(PermissionError):  # This root has no CAP_CHOWN.
                give(root, owner.st_uid, owner.st_gid)


def store_outputs(store: Store, record: JobRecord, output: str, emit: Emit, others: str = "") -> None:
    """Keeps the files of the output directory that are no part of a checkpoint (evaluations, TensorBoard …), and those of the
    directory for such files, if there is one."""
    known: set[str] = set()
    for manifest in _manifests(store, record):
        if manifest.origin:
            folder = manifest.origin.path
            prefix = "" if folder == "." or not os.path.isdir(os.path.join(output, folder)) else f"{folder}/"
            known.update(prefix + file.path for file in manifest.files)
    aside = tuple(f"{each['name']}/" for each in record.skipped if each["kind"] == "salvage")
    aside += tuple(f"{each.resumed_path}/" for each in record.attempts if each.resumed_path)
    kept, total = 0, 0
    taken = dict(plain_files(others)) if others else {}
    beside = {
        name: path for name, path in plain_files(output) if name not in known and not f"{name}/".startswith(aside)
    }
    # Both are fetched as one tree: what has a name twice is told apart by its directory's.
    files = taken | {name if name not in taken else f"output-checkpoint/{name}": path for name, path in beside.items()}
    for relative, path in files.items():
        try:
            paths.check(relative)
            key = f"{layout.outputs(record.id)}{relative}"
            call(lambda path=path, key=key: store.place.upload(path, key, lambda count: None), store.timeout)  # type: ignore[misc]
        except UnsafePath as error:
            emit(event("output-skipped", f"Not stored: {printable(error.text)}", "warning"))
            continue
        except (LauncherError, OSError) as error:
            emit(event("output-pending", f"Not stored: {printable(relative)}: {error}", "warning"))
            return
        kept, total = kept + 1, total + os.path.getsize(path)
    if kept:
        emit(event("outputs-stored", f"Stored {kept} other file(s) of the job ({size(total)})"))


def plain_files(folder: str) -> Iterator[tuple[str, str]]:
    """Every regular file below a folder but the launcher's own: its path there, and its whole path."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if each != ".launcher")
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not os.path.islink(path) and os.path.isfile(path):
                yield os.path.relpath(path, folder), path


def finish(
    store: Store, folder: JobFolder, record: JobRecord, emit: Emit, stops: Stops, *, copies: Iterable[str] = ()
) -> results.Result:
    """Writes record and result (the latter also to `copies`), prints the closing block, and keeps record, events and log with
    the store, while there is time for it."""
    result = results.of_job(record)
    record.change(states.at_end(result), result.cause)
    try:
        folder.write(record)
        results.write(result, str(folder.path / "result.json"), *copies)
    except OSError as error:
        emit(event("record-failed", f"The job's record cannot be written: {error}", "warning"))
    emit(event("job-ended", closing(store, record), "info" if result.code == 0 else "error", code=result.code))
    if not stops.within(lambda: _store(store, folder, record, emit), to_the_end=True):
        emit(event("record-pending", "The job's record is only on this machine: there was no more time", "warning"))
    return result


def _store(store: Store, folder: JobFolder, record: JobRecord, emit: Emit) -> None:
    try:
        prefix = layout.job(record.id)
        store.place.put(f"{prefix}record.json", msgspec.json.encode(record))
        for name, key in (("events.jsonl", "events.jsonl"), ("logs/job.log", "logs/job.log")):
            path = folder.path / name
            if path.exists() and path.stat().st_size:
                store.place.upload(str(path), prefix + key, lambda count: None)
    except (LauncherError, OSError, StoreError) as error:
        emit(event("record-pending", f"The job's record is only on this machine: {error}", "warning"))


def closing(store: Store, record: JobRecord) -> str:
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
    if rows or record.spec.kind != "inference":
        lines.append(f"Collected: {len(rows)} checkpoint(s), {size(total)}" if rows else "Collected: no checkpoint")
    if attempt.bytes_saved:
        lines[-1] += f" ({size(attempt.bytes_sent)} sent, {size(attempt.bytes_saved)} were in the store already)"
    lines += rows if len(rows) <= 12 else [*rows[:5], f"  … {len(rows) - 10} more", *rows[-5:]]
    for reference, problem in {each.reference: each.problem for each in attempt.inputs if each.problem}.items():
        lines.append(f"Input {reference} could not be read whole: {printable(problem)}")
    for each in record.skipped[:8]:
        lines.append(f"Not collected: {printable(str(each['name']))}: {each['reason']}")
    if any(each["kind"] == "salvage" for each in record.skipped):
        lines.append(f"What is incomplete is kept in {attempt.output}")
    if result.hint:
        lines.append(result.hint)
    if result.code:
        lines.append(f"Log: launcher {record.spec.kind} logs {record.name}")
    elif rows:
        lines.append(f"List: launcher {record.spec.kind} checkpoints {record.name}")
    if result.next:
        lines.append(f"Next: {result.next}")
    return "\n".join(lines)


def _manifests(store: Store, record: JobRecord) -> Iterator[Manifest]:
    """What the job committed; a store that is gone meanwhile is no reason not to end."""
    for identifier in record.checkpoints:
        with contextlib.suppress(LauncherError, Missing):
            yield store.known(identifier)
