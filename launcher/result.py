"""The verdict as a document, for schedulers, scripts and people: result.json, the termination message.

Schedulers rewrite exit codes and lose output; this is where the truth stays. It is written before the launcher exits.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from launcher.job.record import JobRecord, Outcome, write_atomically

TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096
"""Bytes that Kubernetes reads of it."""
_CAUSE_LIMIT = 1500
"""Of those, for the cause and for the hint, each at most so many."""


class Result(Outcome, frozen=True, kw_only=True):
    """The verdict on a job's last attempt, with whose it is. Fields are only ever added."""

    job: str = ""
    """The job's name; empty where the launcher failed before the job had one."""
    id: str = ""
    """The job's id: started again with it as LAUNCHER_JOB_ID, the job goes on."""
    attempt: int = 0
    """The number of the last attempt, 1 for the first; 0: it did not come to one."""
    started: float | None = None
    """Unix seconds: when the last attempt began."""
    ended: float = 0.0
    """Unix seconds."""
    checkpoints: int = 0
    """How many checkpoints of the job are in the store."""


def of_job(record: JobRecord) -> Result:
    """The result of a job whose last attempt has an outcome."""
    attempt = record.attempts[-1]
    assert attempt.outcome
    return Result(
        **msgspec.structs.asdict(attempt.outcome),
        job=record.name,
        id=record.id,
        attempt=attempt.number,
        started=attempt.started,
        ended=attempt.ended or time.time(),
        checkpoints=len(record.checkpoints),
    )


def write(result: Result, *paths: str) -> None:
    """Puts it at each of the paths by one rename, then where Kubernetes looks. Raises OSError, when the rest is written."""
    body = msgspec.json.format(msgspec.json.encode(result), indent=1)
    failed = None
    for path in filter(None, paths):
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, body)
        except OSError as error:
            failed = error
    if os.path.exists(TERMINATION_LOG):
        try:
            _overwrite(TERMINATION_LOG, message(result))
        except OSError as error:
            failed = failed or error
    if failed:
        raise failed


def message(result: Result) -> bytes:
    """The verdict for people in at most 4,096 bytes of UTF-8: code, cause, how to go on; then the end of the traceback."""
    failure = f", {result.failure}" if result.failure not in ("", result.origin) else ""
    again = "retryable" if result.retryable else "not retryable"
    lines = [f"exit code {result.code} ({result.origin}{failure}, {again}): {_cut(result.cause, _CAUSE_LIMIT)}"]
    if result.last_step_seen is not None or result.last_step_committed is not None:
        lines.append(f"last step seen {result.last_step_seen}, stored {result.last_step_committed}")
    if result.bytes_not_stored:
        lines.append(f"{result.bytes_not_stored} bytes are not stored")
    lines += [_cut(each, _CAUSE_LIMIT // 2) for each in (result.hint, result.next and f"next: {result.next}") if each]
    text = "\n".join(lines).encode("utf-8", "replace")
    left = TERMINATION_LIMIT - len(text) - 1
    trace = result.traceback.encode("utf-8", "replace")
    if trace and left > 200:
        text += b"\n" + trace[-left:]
    return text.decode("utf-8", "ignore").encode()[:TERMINATION_LIMIT]


def _cut(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"


def _overwrite(path: str, data: bytes) -> None:
    """For a file that is a mount of its own and cannot be replaced: one write, and only then the old rest is cut off."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
