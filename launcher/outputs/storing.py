"""Storing captures: what the uploader's process does. See `uploader` for why, and for what goes over the pipes."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO

import msgspec

from launcher import __version__, errors
from launcher import settings as configuration
from launcher.checkpoint import formats, policy, safety
from launcher.checkpoint.manifest import SCHEMA, Facts, Lineage, Manifest, Origin, Ready
from launcher.checkpoint.policy import Policy
from launcher.errors import LauncherError, UnsafePickle
from launcher.ids import new_id
from launcher.outputs.capture import Capture
from launcher.outputs.uploader import Answer, Failed, Refused, Stored, Superseded, Task
from launcher.runners.tree import LEFTOVER_GRACE, end_job
from launcher.store.store import Aborted, Checkpoint, Store
from launcher.store.upload import Changed, Earlier, upload_files
from launcher.transfer.throttle import Throttle

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_IDLE = 3 << 13
_OF_STORE = (errors.StoreError, errors.CommitUnknown, errors.AccessDenied, errors.NoSpace)
"""What is the store's doing, whatever the capture."""


def store_capture(
    store: Store, capture: Capture, job: str, *, threads: int, throttle: Throttle, earlier: Earlier, pickles: Policy
) -> Checkpoint:
    """Uploads and commits one capture. Idempotent: its id is the checkpoint's, so a second time only finishes the first.

    Raises Changed (the files are others now), FileNotFoundError (they are gone), UnsafePickle, LauncherError.
    """
    tree = capture.tree()
    found = safety.look(tree)
    if found.findings:
        _prove_unchanged(capture)  # Else what was found may be of another file.
    policy.refuse(found.findings, pickles, capture.name)
    format = formats.by_name(capture.format)
    identifier = capture.id
    while True:
        files = upload_files(
            store,
            identifier,
            capture.root,
            capture.files,
            threads=threads,
            on_bytes=throttle.take,
            opened=capture.open,
            unchanged=capture.unchanged,
            earlier=earlier,
        )
        manifest = Manifest(
            schema=SCHEMA,
            id=identifier,
            name=capture.name,
            created=capture.captured,
            writer=__version__,
            format=capture.format,
            files=files,
            size=sum(file.size for file in files),
            facts=format.facts(tree) if format else Facts(),
            ready=format.ready(tree) if format else Ready(),
            origin=Origin(job, capture.job, capture.path, capture.node, capture.attempt),
            lineage=Lineage(
                capture.parents,
                capture.sources,
                capture.repository,
                capture.commit,
                capture.command,
                capture.datasets,
                capture.changes,
            ),
            safety=found.findings,
            imports=found.imports,
        )
        try:
            checkpoint = store.commit(manifest)
        except Aborted:
            identifier = new_id()  # gc took us for dead and removed the files: everything again under another id.
            continue
        earlier.remember(checkpoint.manifest)
        return checkpoint


def _prove_unchanged(capture: Capture) -> None:
    for path in capture.files:
        fd = capture.open(path)
        try:
            if not capture.unchanged(path, os.fstat(fd)):
                raise Changed(path)
        finally:
            os.close(fd)


def main() -> None:
    """Answers captures until its input ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # They are the launcher's to handle; this process ends with its input.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # What a library prints is no answer.
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    if task.yields:
        yield_to_the_job()
    captures: queue.SimpleQueue[Capture] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, captures, task), daemon=True).start()
    store = Store.open(task.settings, configuration.process_environment())
    throttle, earlier = Throttle(task.bandwidth), Earlier()
    while True:
        answer = _answer(store, captures.get(), task, throttle, earlier)
        answers.write(msgspec.json.encode(answer) + b"\n")


def _read(lines: IO[bytes], captures: queue.SimpleQueue[Capture], task: Task) -> None:
    for line in lines:
        if line == b"\n":
            os._exit(0)  # An upload that nobody waits for any more ends here.
        captures.put(msgspec.json.decode(line, type=Capture))
    with contextlib.suppress(OSError):
        os.setpriority(
            os.PRIO_PROCESS, 0, 0
        )  # There is nobody to yield to. This thread only; without a privilege, not even it.
    if task.ends_job:
        end_job(task.job, LEFTOVER_GRACE)
    os._exit(1)


def _answer(store: Store, capture: Capture, task: Task, throttle: Throttle, earlier: Earlier) -> Answer:
    started, saved = time.monotonic(), earlier.saved
    try:
        checkpoint = store_capture(
            store,
            capture,
            task.job,
            threads=task.settings.transfer_threads,
            throttle=throttle,
            earlier=earlier,
            pickles=task.pickles,
        )
    except UnsafePickle as error:
        return Refused(error.text)
    except (Changed, FileNotFoundError) as error:
        path = os.path.basename(str(error.args[-1])) or "a file"
        return Superseded(f"{path} was written again before it was stored")
    except LauncherError as error:
        of_store = isinstance(error, _OF_STORE)
        return Failed(error.text, error.kind, of_store)
    except OSError as error:
        return Failed(f"{error.filename or 'a file'}: {error.strerror}", "local-resource", False)
    manifest = checkpoint.manifest
    saved = earlier.saved - saved
    return Stored(
        id=manifest.id,
        name=manifest.name,
        version=checkpoint.version,
        step=manifest.facts.step,
        size=manifest.size,
        sent=capture.size - saved,
        saved=saved,
        seconds=round(time.monotonic() - started, 3),
        repeated=checkpoint.repeated,
        findings=manifest.safety or () if task.pickles == "warn" else (),
    )


def yield_to_the_job() -> None:
    """The lowest priority of processor and disk, for this thread and every one that it starts. (It is nice already.)

    Where the kernel groups processes by session (sched_autogroup, sched(7)), a nice value counts within the session only,
    and the group has one of its own.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    if call := _IOPRIO_SET.get(os.uname().machine):
        import ctypes

        ctypes.CDLL(None).syscall(call, 1, 0, _IOPRIO_IDLE)  # ioprio_set(IOPRIO_WHO_PROCESS, this thread, …)
