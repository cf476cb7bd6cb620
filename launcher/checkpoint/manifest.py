"""The manifest: the one object whose exclusive creation commits a checkpoint.

A reader refuses a manifest that breaks a rule, whoever wrote it. Fields that this release does not know are ignored, and
stay in the stored object, which is never written again. A newer `schema` is refused with the version to install.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from launcher import names
from launcher.checkpoint import paths
from launcher.decoding import decode as decode_json
from launcher.errors import LauncherError, ManifestInvalid
from launcher.ids import is_id

SCHEMA = 1
LARGEST = 256 << 20
"""Bytes of a manifest that a reader accepts: about a million files."""
ABORT_LIMIT = 200
"""Bytes: every abort is smaller, and every manifest (which has a digest) is larger."""
_DIGEST = re.compile(r"blake3(-16m)?:[0-9a-f]{64}")
_BLOCK = re.compile(r"[0-9a-f]{64}")
_BLOCK_SIZE = 16 << 20


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file. `path` is relative to the checkpoint's folder; `mtime` in Unix seconds. `blocks`: BLAKE3 digests (hex) of
    its blocks of 16 MiB, where it has more than one; `digest` is then made from them."""

    path: str
    size: int
    digest: str
    mode: int = 0o644
    mtime: float = 0.0
    blocks: tuple[str, ...] = ()
    sha256: str = ""
    """Hex, where the place that it came from named it; it was compared then."""


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the files themselves say. Training facts, then model facts."""

    step: int | None = None
    epoch: float | None = None
    train_loss: float | None = None
    """The last value found in the training log."""
    eval_loss: float | None = None
    best_metric: float | None = None
    best_checkpoint: str | None = None
    architecture: str | None = None
    model_type: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    base_model: str | None = None
    library: str | None = None
    trainer: str | None = None
    """Which of trl's trainers: SFT, DPO, GRPO …"""
    library_version: str | None = None


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the checkpoint can start, and the reason where it cannot."""

    resume: bool = False
    resume_reason: str = ""
    inference: bool = False
    inference_reason: str = ""
    base: str = ""
    """The base model that inference needs beside it: an adapter's."""


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The job that wrote it. `path` is the folder below the output directory (`.` for the root's own)."""

    job: str
    name: str
    path: str = ""
    node: int = 0
    attempt: int = 1


class Dataset(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a dataset. `digest`: of its content alone, wherever and whenever it was pushed."""

    name: str
    version: int | None
    id: str
    digest: str

    @property
    def label(self) -> str:
        """name@vN."""
        return f"{self.name}@v{self.version}" if self.version else self.name


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What it was made from. `parents` are ids of the job's input checkpoints, `command` has no secrets. `changes`: a digest of
    what in the code's folder was not committed; empty: nothing; "unknown"."""

    parents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    repository: str = ""
    commit: str = ""
    command: tuple[str, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    """What the job had beside its input checkpoints."""
    changes: str = ""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A committed checkpoint. Immutable; the version number of its name is handed out apart (names/)."""

    schema: int
    id: str
    name: str
    created: float
    """Unix seconds by the writer's clock."""
    writer: str
    """The launcher version that wrote it."""
    format: str
    """Which library and layout, as `launcher.checkpoint.formats` names it."""
    files: tuple[File, ...]
    size: int
    facts: Facts = Facts()
    ready: Ready = Ready()
    origin: Origin | None = None
    lineage: Lineage = Lineage()
    safety: tuple[str, ...] | None = None
    """What its pickles hold that is not known to be harmless, in words (see `launcher.checkpoint.safety`). Empty: nothing was
    found, which is not "safe". None: an older release wrote it, and nobody has looked."""
    imports: tuple[str, ...] = ()
    """Every name that loading its pickles would import."""
    labels: dict[str, str] = {}


class Abort(msgspec.Struct, frozen=True, kw_only=True):
    """A commit to not exist, created at the manifest's key by gc before it removes the files."""

    schema: int
    id: str
    aborted: float


def encode(manifest: Manifest) -> bytes:
    """The stored form; checks what a reader would check."""
    _check(manifest, manifest.id)
    return msgspec.json.encode(manifest)


def decode(body: bytes, key: str) -> Manifest | Abort:
    """The manifest (or abort) in `body`. Raises ManifestInvalid, which names the rule."""
    try:
        if len(body) > LARGEST:
            raise ManifestInvalid(key=key, cause=f"it has {len(body)} bytes")
        head = decode_json(body, _Head)
        if head.schema > SCHEMA:
            raise ManifestInvalid(
                key=key,
                cause=f"it has schema {head.schema}, and this release reads up to {SCHEMA}",
                hint=f"Install a launcher newer than {head.writer or 'this one'}.",
            )
        if head.aborted is not None:
            return decode_json(body, Abort)
        manifest = decode_json(body, Manifest)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(key=key, cause=str(error)) from error
    _check(manifest, key)
    return manifest


class _Head(msgspec.Struct):
    schema: int
    writer: str = ""
    aborted: Any = None


def _check(manifest: Manifest, key: str) -> None:
    try:
        if not is_id(manifest.id):
            raise ValueError(f"{manifest.id!r} is no id")
        names.check(manifest.name)
        paths.check_all(file.path for file in manifest.files)
        if not manifest.files:
            raise ValueError("it lists no file")
        for file in manifest.files:
            if file.size < 0 or not _DIGEST.fullmatch(file.digest):
                raise ValueError(f"size or digest of {file.path!r} is impossible")
            count = -(-file.size // _BLOCK_SIZE) if file.size > _BLOCK_SIZE else 0
            if len(file.blocks) != count or not all(_BLOCK.fullmatch(block) for block in file.blocks):
                raise ValueError(f"the blocks of {file.path!r} are impossible")
        if sum(file.size for file in manifest.files) != manifest.size:
            raise ValueError("its size is not the sum of its files' sizes")
    except LauncherError as error:
        raise ManifestInvalid(key=key, cause=error.text.rstrip(".")) from error
    except ValueError as error:
        raise ManifestInvalid(key=key, cause=str(error)) from error
