"""A checkpoint comes into the output directory under its own name, as the library that wrote it looks for it.

What lies there whole and unchanged is used as it is. Else it is made beside its place, by reflinks where the file systems have
them, by copies where not, and put there by one rename: from the node cache, from a store on this machine, or from a capture that
is not stored yet. Never by hard links: a script that writes into its checkpoint would write into the cache or the store.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint import formats
from launcher.checkpoint.manifest import Manifest, Ready
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import CheckpointNotFound, DigestMismatch, LauncherError, LocalResourceError, NoSpace
from launcher.events import Emit, event
from launcher.inputs import choose, share
from launcher.inputs.cache import NodeCache
from launcher.inputs.choose import Chosen
from launcher.inputs.view import clone
from launcher.job.folder import JobFolder
from launcher.job.record import JobRecord
from launcher.outputs import capture as captures
from launcher.outputs import salvage
from launcher.outputs.capture import Capture
from launcher.outputs.filesystem import SPOOL
from launcher.progress import Progress
from launcher.settings import Settings
from launcher.store.store import Store
from launcher.text import printable
from launcher.text import size as as_size
from launcher.transfer import digest as digests

_UNTOLD = frozenset({"torch-save", "numpy", "unknown"})
"""Formats that do not tell what a job could go on from: the script that wrote them knows."""
_STAGE = "resume"
_CLOCKS = 60.0
"""Seconds by which a file server's clock may be behind this machine's, when a file's age tells whose it is."""


@dataclass(frozen=True)
class Resumed:
    """What an attempt goes on from; false where it begins at its beginning. `path`: below the output directory."""

    path: str = ""
    checkpoint: str = ""
    step: int | None = None
    parents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """For the lineage, where it is not the job's own: ids, or URLs and paths."""

    def __bool__(self) -> bool:
        return bool(self.path)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that a job could go on from: committed (`manifest`), or captured and not stored yet (`capture`)."""

    id: str
    label: str
    path: str
    """Below the output directory, or absolute below a further watched folder; `.` for the root's own."""
    step: int | None
    order: tuple[int, str]
    """Attempt and id: the larger, the newer."""
    resumable: bool | None
    """None: only the script can tell."""
    files: dict[str, tuple[int, float]]
    """Size, and mtime in Unix seconds as os.stat gives it."""
    manifest: Manifest | None = None
    capture: Capture | None = None

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Candidate:
        origin = manifest.origin
        return cls(
            manifest.id,
            manifest.name,
            origin.path if origin else ".",
            manifest.facts.step,
            (origin.attempt if origin else 0, manifest.id),
            resumable(manifest.format, manifest.ready, (each.path for each in manifest.files)),
            {each.path: (each.size, each.mtime) for each in manifest.files},
            manifest=manifest,
        )

    @classmethod
    def of_capture(cls, capture: Capture) -> Candidate:
        format = formats.by_name(capture.format)
        ready = format.ready(capture.tree()) if format else Ready()
        return cls(
            capture.id,
            capture.name,
            capture.path,
            capture.step,
            (capture.attempt, capture.id),
            resumable(capture.format, ready, capture.files),
            {path: (size, _seconds(mtime)) for path, (size, mtime, _) in capture.files.items()},
            capture=capture,
        )

    @property
    def flat(self) -> bool:
        """Whether it is one file of the folder that it is in, not a folder."""
        return self.path != "." and list(self.files) == [os.path.basename(self.path)]


def resumable(format: str, ready: Ready, paths: Iterable[str]) -> bool | None:
    """Whether a job can go on from it; None where only its script can tell: its format does not, or a file that the format
    does not know is an optimizer's by its name."""
    if ready.resume:
        return True
    return None if format in _UNTOLD or any("optim" in path.lower() for path in paths) else False


@dataclass(frozen=True)
class Output:
    """The output directory (and what is watched beside it) of the last attempt in `record`. `stop` is called during a
    download, and raises to end it."""

    settings: Settings
    store: Store
    folder: JobFolder
    record: JobRecord
    path: str
    watch: tuple[str, ...]
    emit: Emit
    stop: Callable[[], None]

    @property
    def spool(self) -> Path:
        """What is captured and not stored yet."""
        return self.folder.path / "spool"

    def bring(self, candidate: Candidate, name: str = "") -> str:
        """Has the checkpoint at its place, and nothing beside it that would mislead. `name`: a folder of the output directory
        in place of its own.

        Returns the path below the output directory (absolute in another watched folder); empty, with a warning, where the
        checkpoint is damaged or gone. Raises StoreError, LocalResourceError, NoSpace.
        """
        root, path = self._place(candidate, name)
        try:
            how = "as it lies there" if self._lies(root, path, candidate) else self._restore(root, path, candidate)
        except (DigestMismatch, CheckpointNotFound) as error:
            text = f"{candidate.label} cannot be gone on from: {error.text}"
            self.emit(event("resume-failed", text, "warning", checkpoint=candidate.id))
            return ""
        except OSError as error:
            raise self._unusable(error) from error
        self.put_aside(root, path)
        number = self.record.attempts[-1].number
        step = "" if candidate.step is None else f" (step {candidate.step})"
        text = f"Attempt {number} goes on from {candidate.label}{step}: {how}"
        self.emit(event("resumed", text, attempt=number, checkpoint=candidate.id, step=candidate.step, how=how))
        return path if root == self.path else os.path.join(root, path)

    def bring_from_outside(self, chosen: Chosen) -> Resumed:
        """The same for what is not in the store: a path, an archive, a URL."""
        path = chosen.names[0].rpartition("/")[2]
        cache = NodeCache.open(self.settings, self.emit)
        with Progress(f"Fetching {chosen.text}", chosen.size, self.emit, self.stop) as progress:
            provided = choose.provide(chosen, self.store, cache, progress)
        try:
            stage = self._stage(self.path)
            found = Folder.scan(provided.path).files
            for each in found:
                _duplicate(Path(provided.path, each), stage / each, os.stat(Path(provided.path, each)))
            self._swap(stage, self.path, path, found, alone=False)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            if provided.lease:
                provided.lease.release()
        self.put_aside(self.path, path)
        self.emit(event("resumed", f"The job goes on from {chosen.text}", path=path))
        return Resumed(path, chosen.source, sources=(chosen.source,))

    def put_aside(self, root: str | None, path: str = "", *, everything: bool = False) -> None:
        """Moves what would mislead the job into the job folder's salvage. `root` and `path`: what it goes on from (no root: it
        begins at the beginning, and `everything` that is a checkpoint goes)."""
        attempt = self.record.attempts[-1]
        place = self.folder.path / "salvage" / f"attempt-{attempt.number}"
        since = min([self.record.created, *(each.started for each in self.record.attempts)]) - _CLOCKS
        spared = {os.path.realpath(each.root) for each in captures.load(self.spool)}
        for each in (self.path, *self.watch):
            if not os.path.isdir(each):
                continue
            chosen = None if root is None else path if each == root else ""
            try:
                moved = salvage.put_aside(
                    each, place, chosen=chosen, since=since, world_size=attempt.world_size, spared=spared,
                    everything=everything, resumable=_folder_resumable,
                )  # fmt: skip
            except OSError as error:
                raise self._unusable(error) from error
            for aside in moved:
                text = f"Moved aside: {printable(aside.path)} ({printable(aside.reason)}), to {printable(aside.place)}"
                self.emit(event("put-aside", text, "warning", path=aside.path, place=aside.place, reason=aside.reason))

    # ── one checkpoint ───────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, candidate: Candidate, name: str) -> tuple[str, str]:
        """The watched folder and the path in it: where it was written, or, where that is not watched here, its last part below
        the output directory."""
        if name:
            return self.path, name
        if not os.path.isabs(candidate.path):
            if candidate.path != "." or not candidate.manifest or self._is_own(candidate.manifest):
                return self.path, candidate.path
            return self.path, candidate.label.rpartition("/")[2]
        for root in self.watch:
            real = os.path.realpath(root)
            if candidate.path == real or candidate.path.startswith(f"{real}/"):
                return root, os.path.relpath(candidate.path, real)
        return self.path, os.path.basename(candidate.path)

    def _is_own(self, manifest: Manifest) -> bool:
        return manifest.origin is not None and manifest.origin.name == self.record.name

    def _lies(self, root: str, path: str, candidate: Candidate) -> bool:
        """Whether the very files are at their place already. Sizes and times tell; where the machine was started anew, or
        another one wrote them, what the disk has is read and compared."""
        base = _base(root, path, candidate)
        if os.path.islink(base) or not os.path.isdir(base):
            return False
        names = list(candidate.files) if candidate.flat or path == "." else list(Folder.scan(base).files)
        found = {}
        for name in names:
            try:
                status = os.lstat(os.path.join(base, name))
            except FileNotFoundError:
                return False
            if not stat.S_ISREG(status.st_mode):
                return False
            found[name] = (status.st_size, status.st_mtime)
        if found != candidate.files:
            return False
        newest = max(mtime for _, mtime in found.values())
        elsewhere = {each.host for each in self.record.attempts[-2:]} != {os.uname().nodename}
        if candidate.manifest and (elsewhere or newest < _boot()):
            return all(digests.of_file(Path(base, each.path)) == each.digest for each in candidate.manifest.files)
        return True

    def _restore(self, root: str, path: str, candidate: Candidate) -> str:
        """Makes it anew at its place. Returns how, in words."""
        stage = self._stage(root)
        if candidate.capture:
            for name in candidate.files:
                fd = candidate.capture.open(name)
                try:
                    _duplicate(Path(f"/proc/self/fd/{fd}"), stage / name, os.fstat(fd))
                finally:
                    os.close(fd)
            how = "from its capture, which is not stored yet"
        else:
            assert candidate.manifest
            how = self._copy(candidate.manifest, stage)
        self._swap(stage, root, path, candidate.files, alone=candidate.flat)
        return how

    def _copy(self, manifest: Manifest, stage: Path) -> str:
        """The files of a stored checkpoint, verified, with their times and modes."""
        cache = NodeCache.open(self.settings, self.emit)
        store = share.folder(self.store.place, manifest)
        here = store is not None and not cache.entry(manifest.id).exists()
        with Progress(f"Restoring {manifest.name}", manifest.size, self.emit, self.stop) as progress:
            if here and store:
                shared = self._duplicates(store, manifest, stage, progress)
                share.verify(
                    manifest.files, stage, "checkpoint", manifest.id,
                    threads=self.settings.transfer_threads, on_bytes=progress,
                )  # fmt: skip
            else:
                found, lease = cache.fetch(self.store, manifest, progress)
                try:
                    shared = self._duplicates(found, manifest, stage, progress)
                finally:
                    lease.release()
        return f"{'a reflink' if shared else 'a copy'} from the {'store on this machine' if here else 'node cache'}"

    def _duplicates(self, source: Path, manifest: Manifest, stage: Path, progress: Progress) -> bool:
        shared = True
        for file in manifest.files:
            try:
                status = os.stat(source / file.path)
            except FileNotFoundError as error:
                raise DigestMismatch(
                    path=file.path, what="checkpoint", id=manifest.id, cause="it is missing"
                ) from error
            shared &= _duplicate(source / file.path, stage / file.path, status, file.mode, file.mtime)
            progress(0)
        return shared

    def _stage(self, root: str) -> Path:
        """An empty folder on the watched folder's file system that is not watched."""
        _check_inside(root, SPOOL)
        stage = Path(root, SPOOL, _STAGE)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        return stage

    def _swap(self, stage: Path, root: str, path: str, files: Iterable[str], *, alone: bool) -> None:
        """Puts what was made at its place; what is there already goes aside first."""
        aside = self.folder.path / "salvage" / f"attempt-{self.record.attempts[-1].number}"
        _check_inside(root, os.path.dirname(path))
        pairs = [(stage, path)]
        if alone or path == ".":
            parent = "" if path == "." else os.path.dirname(path)
            pairs = [(stage / each, os.path.join(parent, each)) for each in files]
        for made, target in pairs:
            for each in salvage.clear(root, target, aside):
                text = f"Moved aside: {printable(each.path)} ({each.reason}), to {printable(each.place)}"
                self.emit(event("put-aside", text, "warning", path=each.path, place=each.place, reason=each.reason))
            os.makedirs(os.path.dirname(os.path.join(root, target)), exist_ok=True)
            os.rename(made, os.path.join(root, target))

    def _unusable(self, error: OSError) -> LauncherError:
        output = self.path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = as_size(shutil.disk_usage(output).free)
            return NoSpace(
                what="the checkpoint to go on from",
                path=output,
                need="its size",
                free=free,
                setting="LAUNCHER_OUTPUT_DIR",
            )
        return LocalResourceError(what=f"A checkpoint to go on from cannot be put into {output}: {error}.")


def _base(root: str, path: str, candidate: Candidate) -> str:
    """The folder below which the candidate's files have their paths."""
    place = os.path.normpath(os.path.join(root, path))
    return os.path.dirname(place) if candidate.flat else place


def _duplicate(source: Path, target: Path, status: os.stat_result, mode: int = 0, mtime: float = 0.0) -> bool:
    """A copy with mode and mtime (the source's, where none is given) that its owner may write. True: by a reflink."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shared = clone(str(source), str(target))
    os.chmod(target, stat.S_IMODE(mode or status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
    os.utime(target, ns=(status.st_atime_ns, _nanoseconds(mtime) if mtime else status.st_mtime_ns))
    return shared


def _seconds(nanoseconds: int) -> float:
    """A time as os.stat gives it in seconds."""
    return nanoseconds // 10**9 + 1e-9 * (nanoseconds % 10**9)


def _nanoseconds(seconds: float) -> int:
    """A time that os.stat gives as just these seconds again."""
    whole = int(seconds)
    return whole * 10**9 + round((seconds - whole) * 1e9)


def _folder_resumable(format: str, tree: Tree) -> bool | None:
    known = formats.by_name(format)
    return resumable(format, known.ready(tree) if known else Ready(), tree.files)


def _check_inside(root: str, path: str) -> None:
    """Raises OSError where a part of the path is a link that the job made: what is written there could be anywhere."""
    real = os.path.realpath(root)
    if os.path.realpath(os.path.join(real, path)) != os.path.normpath(os.path.join(real, path)):
        raise OSError(errno.ELOOP, "a link is in the way", os.path.join(root, path))


def _boot() -> float:
    """When this machine was started, in Unix seconds."""
    with open("/proc/stat") as file:
        return float(next(line.split()[1] for line in file if line.startswith("btime ")))
