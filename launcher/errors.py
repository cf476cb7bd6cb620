"""What can go wrong, drawn as a tree.

    LauncherError                    70   a bug of ours
    ├── UsageError                   64   the command line or the job file
    ├── SettingsError                78   an environment variable or the configuration file
    ├── NotFoundError                66
    │   ├── CheckpointNotFound
    │   ├── DatasetNotFound
    │   ├── JobNotFound
    │   └── SourceNotFound                a path or URL that should hold a checkpoint
    ├── InvalidDataError             65
    │   ├── ManifestInvalid
    │   ├── RecordDamaged                 what this machine keeps of a job
    │   ├── ObjectDamaged                 a name's version, a tombstone or a pin of the store
    │   ├── DigestMismatch
    │   ├── UnsafePath
    │   ├── ArchiveRefused                damaged, or with members that no checkpoint has
    │   ├── FormatBroken                  a checkpoint that its own library could not load
    │   ├── NotReady                      it cannot be served as it is
    │   ├── RequirementsFailed            packages that the job's code names cannot be installed
    │   ├── UnsafePickle                  loading it may run code, and --pickles deny was asked for
    │   └── InputChanged                  the job wrote into its read-only input
    ├── StoreError                   69
    │   ├── StoreUnavailable              retryable
    │   │   └── RepositoryUnavailable     the code's repository, or an index of packages
    │   └── StoreUnsupported              it cannot create an object only if it is absent
    ├── CommitUnknown                74   neither proven nor refuted: nothing may be cleaned up
    ├── CollectionIncomplete         74   whole checkpoints left unstored
    ├── LocalResourceError           73
    │   ├── NoSpace
    │   ├── MountFailed
    │   ├── LockTimeout
    │   ├── EngineUnavailable             the container engine
    │   ├── TooFewAccelerators
    │   ├── PortTaken
    │   └── ServerSilent                  a server does not answer, or ended before it ever did
    ├── AccessDenied                 77
    ├── TagMoved                     75   by somebody else at the same time; retryable
    ├── Preempted                    75   stopped before the job started; retryable
    ├── StillRunning                 75   it was waited for, and has not ended; retryable
    └── CommandNotFound             127   and CommandNotExecutable, 126: the job itself could not start

A class carries its exit code (sysexits.h where one fits), whether trying again can help, and the templates of its
message and hint; an instance carries the facts. `kind` is the class's stable name for machines: append, never rename.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, ClassVar


class LauncherError(Exception):
    """A failure of the launcher itself: everything more specific is below."""

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False
    message: ClassVar[str] = "{what}"
    default_hint: ClassVar[str] = ""

    def __init__(self, *, hint: str | None = None, **facts: object) -> None:
        self.facts = facts
        self.text = self.message.format(**facts)
        self.hint = self.default_hint.format(**facts) if hint is None else hint
        super().__init__(self.text)

    @staticmethod
    def again(kind: str, text: str, hint: str) -> LauncherError:
        """The error of a kind as another process raised it; its facts stay there."""
        error = LauncherError.__new__(next((each for each in tree() if each.kind == kind), LauncherError))
        error.facts, error.text, error.hint = {}, text, hint
        Exception.__init__(error, text)
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        return LauncherError.again, (self.kind, self.text, self.hint)

    def __str__(self) -> str:
        return f"{self.text}\n{self.hint}" if self.hint else self.text


class UsageError(LauncherError):
    """The command line or the job file asks for something that cannot be."""

    kind = "usage"
    exit_code = 64
    default_hint = "The command with --help shows its arguments and options, with examples."


class SettingsError(LauncherError):
    """A variable or a line of the configuration file is wrong; the message names where it came from."""

    kind = "settings"
    exit_code = 78
    default_hint = "`launcher config show` lists every setting, its value and where that came from."


class NotFoundError(LauncherError):
    """Something that was named does not exist."""

    kind = "not-found"
    exit_code = 66
    default_hint = "Check how it is written."


class CheckpointNotFound(NotFoundError):
    """No checkpoint has this name, version or id."""

    kind = "checkpoint-not-found"
    message = "No checkpoint {ref!r} in the store {store}."
    default_hint = "`launcher checkpoint list` shows what is there."


class DatasetNotFound(NotFoundError):
    """No dataset has this name, version or id."""

    kind = "dataset-not-found"
    message = "No dataset {ref!r} in the store {store}."
    default_hint = "`launcher dataset list` shows what is there."


class JobNotFound(NotFoundError):
    """No job has this name."""

    kind = "job-not-found"
    message = "No job {name!r} is known here."
    default_hint = "`launcher training list` shows the jobs of this machine."


class SourceNotFound(NotFoundError):
    """A path or URL given as a checkpoint holds no file."""

    kind = "source-not-found"
    message = "{source}: {cause}"
    default_hint = "Check the path or URL, and that it can be read from here."


class InvalidDataError(LauncherError):
    """Bytes that are not what they should be."""

    kind = "invalid-data"
    exit_code = 65
    default_hint = "Nothing of it is used. Choose another version (NAME@vN) or source."


class ManifestInvalid(InvalidDataError):
    """A manifest breaks a rule of its format, whoever wrote it."""

    kind = "manifest-invalid"
    message = "The manifest {key} is not valid: {cause}."
    default_hint = "Nothing was read from it. `launcher checkpoint list` shows the other checkpoints."


class ObjectDamaged(InvalidDataError):
    """A small object of the store (a name's version, a tombstone, a pin) is not what the launcher wrote."""

    kind = "object-damaged"
    message = "The object {key} of the store is damaged: {cause}."
    default_hint = "`launcher checkpoint check` names everything that is damaged; other versions (NAME@vN) can be read."


class RecordDamaged(InvalidDataError):
    """What this machine keeps of a job is not what the launcher wrote."""

    kind = "record-damaged"
    message = "The record {path} of job {job!r} is damaged: {cause}."
    default_hint = "`launcher training delete {job}` removes the job's folder here; its checkpoints stay in the store."


class DigestMismatch(InvalidDataError):
    """Bytes read differ from the digest in the manifest."""

    kind = "digest-mismatch"
    message = "{path} of {what} {id} is damaged: {cause}."
    default_hint = "`launcher {what} verify {id} --read-data` reads all of it again; choose another version meanwhile."


class UnsafePath(InvalidDataError):
    """A path inside a checkpoint would leave its folder or cannot be stored everywhere."""

    kind = "unsafe-path"
    message = "The path {path!r} cannot be part of a checkpoint: {cause}."
    default_hint = "Rename it where it comes from, or leave it out."


class ArchiveRefused(InvalidDataError):
    """An archive is damaged, or has members that no checkpoint has: links, devices, doubles, a bomb."""

    kind = "archive-refused"
    message = "The archive {source} cannot be unpacked: {cause}."
    default_hint = "Nothing of it is used. If it is trusted, unpack it yourself and give the folder."


class FormatBroken(InvalidDataError):
    """The files say themselves that they are no whole checkpoint."""

    kind = "format-broken"
    message = "{source} is not a whole checkpoint: {cause}."
    default_hint = "`launcher checkpoint verify` says what is missing; save it again, or choose another one."


class NotReady(InvalidDataError):
    """A checkpoint that an inference server cannot load as it is."""

    kind = "not-ready"
    message = "{ref} is not ready for inference: {cause}."
    default_hint = "`launcher training checkpoints JOB` shows which are (INFERENCE READY)."


class RequirementsFailed(InvalidDataError):
    """The packages of a requirements file cannot be installed."""

    kind = "requirements-failed"
    message = "The requirements of {path} cannot be installed: {cause}."


class UnsafePickle(InvalidDataError):
    """The pickles of a checkpoint hold what is not known to be harmless, and --pickles deny refuses that."""

    kind = "unsafe-pickle"
    message = "{name} is refused by --pickles deny: {cause}."
    default_hint = (
        "`launcher checkpoint verify` lists what it would import. Where you trust its writer: --pickles warn, or allow."
    )


class InputChanged(InvalidDataError):
    """The job changed an input that no rung of isolation could protect."""

    kind = "input-changed"
    message = "The job changed its input {what} {name!r}: {cause}."
    default_hint = "The copy in the node cache was dropped. Write to FLEXAI_OUTPUT_CHECKPOINT_DIR instead."


class StoreError(LauncherError):
    """The store answered with a failure that is not worth another try."""

    kind = "store"
    exit_code = 69
    message = "The store {store} failed: {cause}."
    default_hint = "Check LAUNCHER_STORE; `launcher doctor` tries what a store must do."


class StoreUnavailable(StoreError):
    """The store did not answer, or asked for patience for longer than we have."""

    kind = "store-unavailable"
    retryable = True
    message = "The store {store} cannot be reached: {cause}."
    default_hint = (
        "Check LAUNCHER_STORE, the endpoint (AWS_ENDPOINT_URL) and the network, then run the same command again."
    )


class RepositoryUnavailable(StoreUnavailable):
    """What the job's code or its packages come from did not answer."""

    kind = "repository-unavailable"
    message = "{what}: {cause}."
    default_hint = "Check the address and the network, then run the same command again."


class StoreUnsupported(StoreError):
    """A place that cannot create an object only if it is absent can hold inputs but is no store."""

    kind = "store-unsupported"
    message = "{store} cannot be a store: {cause}."
    default_hint = "Use a folder, S3 or its kin, GCS or Azure. It can still be given as an input (-C URL)."


class CommitUnknown(LauncherError):
    """An exclusive create was neither proven nor refuted, so nothing that belongs to it may be cleaned up."""

    kind = "commit-unknown"
    exit_code = 74
    retryable = True
    message = "Whether {key} was written to {store} is not known: {cause}."
    default_hint = "Nothing was removed. `launcher recover` asks the store again and finishes."


class CollectionIncomplete(LauncherError):
    """The job is over and whole checkpoints are not in the store."""

    kind = "collection-incomplete"
    exit_code = 74
    retryable = True
    message = "{count} whole checkpoint(s) of job {job!r} are not stored yet ({size}): {cause}."
    default_hint = "They lie in {where}. Finish with: launcher recover {job}"


class LocalResourceError(LauncherError):
    """This machine lacks something."""

    kind = "local-resource"
    exit_code = 73
    default_hint = "`launcher doctor` checks this machine; `launcher config show` says which folders are used."


class NoSpace(LocalResourceError):
    """A file system is, or would be, full."""

    kind = "no-space"
    message = "No space for {what} in {path}: {need} needed, {free} free."
    default_hint = "Free some space there, or choose another place with {setting}."


class MountFailed(LocalResourceError):
    """The input could not be put where the job expects it."""

    kind = "mount-failed"
    message = "The input checkpoint could not be provided at {path}: {cause}."
    default_hint = "`launcher doctor` shows which mounts work here; LAUNCHER_INPUT_GUARD chooses another way."


class LockTimeout(LocalResourceError):
    """Another process holds what this one needs."""

    kind = "lock-timeout"
    message = "{what} is held by another launcher (waited {seconds:.0f} s)."
    default_hint = "Wait until it has ended, then run the same command again."


class EngineUnavailable(LocalResourceError):
    """No container engine answers, or it refused."""

    kind = "engine-unavailable"
    message = "The Docker engine {cause}."
    default_hint = "Start it (`systemctl start docker`), set DOCKER_HOST, or use --runner process."


class TooFewAccelerators(LocalResourceError):
    """Fewer accelerators than the job asks for."""

    kind = "too-few-accelerators"
    message = "{asked} accelerators asked for, {found} found ({detail})."
    default_hint = "Ask for {found} with --accels {found}, or run on the CPU with --device cpu."


class PortTaken(LocalResourceError):
    """Another process listens at the port that was asked for."""

    kind = "port-taken"
    message = "{host}:{port} cannot be had: {cause}."
    default_hint = "Choose another one with --port; without it, a free one is taken."


class ServerSilent(LocalResourceError):
    """An inference job's server does not answer, or ended without an error before it ever did."""

    kind = "server-silent"
    message = "Server {job}: {cause}."
    default_hint = "Its log says what it does: launcher inference logs {job}"


class AccessDenied(LauncherError):
    """Credentials are missing or not enough, here or at the store."""

    kind = "access-denied"
    exit_code = 77
    message = "Access to {what} was refused: {cause}."
    default_hint = "Check who you are here, the owner and mode of the folder, or the credentials."


class TagMoved(LauncherError):
    """Somebody else moved the tag at the same time, and was first."""

    kind = "tag-moved"
    exit_code = 75
    retryable = True
    message = "{tag} was moved to {place} by somebody else at the same time; nothing was changed."
    default_hint = "Look where it is now (launcher checkpoint tags --history), and move it if it is still wrong."


class Preempted(LauncherError):
    """A stop came before the job had started."""

    kind = "preempted"
    exit_code = 75
    retryable = True
    message = "Stopped by {signal} before the job started; nothing was run."
    default_hint = "Run the same command again."


class StillRunning(LauncherError):
    """The job that was waited for has not ended within that time."""

    kind = "still-running"
    exit_code = 75
    retryable = True
    message = "Job {name} has not ended within {seconds:g} s: it is {state}."
    default_hint = "Wait longer (--timeout), or look at it: launcher training logs {name} -f"


class CommandNotFound(LauncherError):
    """The job's program does not exist."""

    kind = "command-not-found"
    exit_code = 127
    message = "{command}: not found."
    default_hint = "Check how it is written, PATH, and the first line (#!) where it is a script."


class CommandNotExecutable(LauncherError):
    """The job's program exists and cannot be executed."""

    kind = "command-not-executable"
    exit_code = 126
    message = "{command}: cannot be executed: {cause}."
    default_hint = "Check its mode (chmod +x) and its first line (#!)."


def of_os(error: OSError, what: str = "") -> LauncherError:
    """The error of a failed call of the system, which says what it failed for. `what`: where the call does not."""
    what = what or str(error.filename or "Standard output or a file")
    cause = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LocalResourceError(what=f"{what}: {cause}.", hint="Free some space there, or choose another place.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(what=what, cause=cause)
    return LocalResourceError(what=f"{what}: {cause}.")


def tree(root: type[LauncherError] = LauncherError) -> Iterator[type[LauncherError]]:
    """Every error class, depth first: documentation and tests are made from it."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)
