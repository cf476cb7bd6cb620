"""What every command prints with --json, as types: docs/json.md is made from them, and tests hold the output to them.

Keys are only ever added. A key that is not described here fails the test.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from launcher.checkpoint.manifest import Facts, File, Lineage, Origin, Ready
from launcher.comparison import Difference
from launcher.doctor import Finding
from launcher.job.listing import Row
from launcher.job.record import JobRecord, Server
from launcher.plan import Plan
from launcher.storages import Storage


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """One with no key but those of its fields."""


class Error(Document):
    """What any command prints instead, on stdout, when it fails; the exit code is the process's too."""

    error: str
    """The stable kind of the error: see errors.md."""
    message: str
    hint: str
    """What to do about it."""
    exit_code: int


class Metadata(Document):
    """Of a checkpoint."""

    name: str
    id: str
    version: int | None
    """Null where its name has given it none (yet)."""
    created: float
    """Unix seconds."""
    pinned: bool = False
    """Only where it was asked: `list` and `inspect`."""
    tags: list[str] = []
    """`inspect` only."""


class Spec(Document):
    """Where a checkpoint came from."""

    fromLocalFiles: list[str]
    storageProvider: str | None
    sourcePath: str | None
    origin: Origin | None
    """Null where it was pushed."""
    lineage: Lineage


class Safety(Document):
    """What loading the pickles of a checkpoint would import."""

    findings: list[str] | None
    """What no known library writes; null where nobody has looked."""
    imports: list[str] | None


class Trained(Document):
    """What FlexAI shows of a checkpoint."""

    name: str
    """Of a job's: its folder."""
    node: int | None
    step: int | None
    trainLoss: float | None
    evalLoss: float | None
    model: str | None
    version: str | None
    """Of the library that wrote it."""
    inferenceReady: bool


class Status(Document):
    """What a checkpoint holds."""

    status: Literal["available"]
    format: str
    """Which library and layout: see formats.md."""
    size: int
    """Bytes."""
    metadata: Trained
    facts: Facts
    ready: Ready
    safety: Safety
    files: list[File]


class Checkpoint(Document):
    """A checkpoint of the store, in FlexAI's shape."""

    kind: Literal["checkpoint"]
    metadata: Metadata
    spec: Spec
    status: Status


class OriginName(Document):
    """The job that wrote a checkpoint."""

    name: str


class ListedSpec(Document):
    """Where a listed checkpoint came from."""

    origin: OriginName | None
    """Null where it was pushed."""


class ListedFacts(Document):
    """What a list shows of what was trained."""

    step: int | None
    inferenceReady: bool


class ListedReady(Document):
    """What a listed checkpoint can start."""

    resume: bool
    inference: bool


class ListedStatus(Document):
    """What a listed checkpoint holds."""

    status: Literal["available"]
    format: str
    size: int
    metadata: ListedFacts
    ready: ListedReady


class Listed(Document):
    """A checkpoint in a list: what the catalog knows of it; `inspect` shows the rest."""

    kind: Literal["checkpoint"]
    metadata: Metadata
    spec: ListedSpec
    status: ListedStatus


class Tag(Document):
    """A tag, where it points or pointed."""

    name: str
    tag: str
    number: int
    """How often it has moved."""
    id: str | None
    """Null: it was taken away."""
    version: int | None
    moved: float
    """Unix seconds."""


class Tagged(Document):
    """A tag that was moved."""

    tagged: Tag
    before: Tag | None


class Untagged(Document):
    """A tag that was taken away."""

    untagged: Tag


class Here(Document):
    """A checkpoint's folder on this machine."""

    path: str
    id: str | None
    kept_until: float | None
    """Unix seconds, until when the cache keeps it whatever room is needed; null: it is not in the cache."""


class Fetched(Document):
    """A job's other outputs, packed."""

    path: str
    files: int
    size: int


class Served(Document):
    """A server of this machine."""

    id: str
    name: str
    state: str
    checkpoint: str
    server: Server | None
    """Null until it was started."""
    created: float


class Pushed(Checkpoint):
    """A checkpoint that was pushed."""

    repeated: bool
    """It is the newest version as it was: nothing had changed."""


class Verified(Document):
    """What a look at the files found."""

    format: str
    verdict: Literal["whole", "unfinished", "broken", "unknown"]
    whole: bool
    reasons: list[str]
    facts: Facts
    ready: Ready
    safety: Safety


class Ancestor(Document):
    """A checkpoint in a lineage, the one that was asked for first. What is not in the store has no more than five keys."""

    id: str
    state: str
    """available, deleted or unknown."""
    name: str | None
    version: int | None
    parents: list[str]
    """Ids."""
    created: float = 0.0
    format: str = ""
    size: int = 0
    step: int | None = None
    origin: Origin | None = None
    lineage: Lineage = Lineage()


class Compared(Difference, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How B differs from A. Keys: of `files` paths with sizes, of `config` FILE:KEY, of `tensors` names with [dtype, shape]."""

    same: bool
    """Every file is the same."""


class Short(Document):
    """A checkpoint, in short."""

    id: str
    name: str
    version: int | None
    size: int


class Kept(Short):
    """A checkpoint that stays."""

    because: list[str]


class Deleted(Document):
    """What was deleted."""

    deleted: list[Short]


class Pinned(Document):
    """What was pinned."""

    pinned: Short


class Unpinned(Document):
    """What was unpinned."""

    unpinned: Short


class Pruned(Document):
    """What rules deleted, and left."""

    dry_run: bool
    deleted: list[Short]
    kept: list[Kept]


class Leftover(Document):
    """Something that a crash left in the store."""

    kind: str
    what: str
    objects: int
    size: int
    age: float
    """Seconds."""


class Cleared(Document):
    """What gc removed."""

    dry_run: bool
    bytes: int
    removed: list[Leftover]
    young: list[Leftover]
    """What may still be in the making, and stays."""
    notes: list[str]


class Damage(Document):
    """An object of the store that is not what it should be."""

    key: str
    cause: str


class Sound(Document):
    """What a check of the store found."""

    sound: bool
    checkpoints: int
    files: int
    datasets: int
    damage: list[Damage]
    notes: list[str]


class DatasetMetadata(Document):
    """Of a dataset."""

    name: str
    id: str
    version: int | None
    created: float = 0.0
    """Absent while it is pushed."""


class DatasetSpec(Document):
    """Where a dataset came from."""

    sources: list[str]


class DatasetStatus(Document):
    """What a dataset holds; while it is pushed, and after a push that was cut off, no more than `status` and `cause`."""

    status: Literal["available", "uploading", "syncing", "error"]
    size: int = 0
    file_count: int = 0
    digest: str = ""
    """Of all its paths and bytes: two with the same one are the same."""
    files: list[File] = []
    """`inspect` only."""
    cause: str = ""


class Dataset(Document):
    """A dataset, in FlexAI's shape."""

    kind: Literal["dataset"]
    metadata: DatasetMetadata
    spec: DatasetSpec
    status: DatasetStatus


class DatasetPushed(Dataset):
    """A dataset that was pushed."""

    repeated: bool
    """It is the newest version as it was: nothing had changed."""


class DatasetVerified(Document):
    """Whether the store has all of a dataset."""

    name: str
    """With its version."""
    id: str
    whole: bool
    reasons: list[str]


class DatasetsDeleted(Document):
    """The versions of datasets that were deleted."""

    deleted: list[DatasetMetadata]


class Job(JobRecord, forbid_unknown_fields=True, kw_only=True):
    """A job of this machine: all of its record."""

    state: str
    """One of the states of jobs.md."""
    reason: str
    folder: str
    """Its job folder."""


class Cached(Document):
    """An entry of the node cache."""

    id: str
    kind: str
    """checkpoint, dataset or environment."""
    name: str
    source: str
    size: int
    files: int
    used: float
    """When it was used last: Unix seconds."""
    held: bool
    """A running job uses it."""
    kept_until: float | None
    """Unix seconds, until when `checkpoint path` keeps it."""


class CheckedEntry(Cached):
    """An entry of the node cache that was read."""

    damage: list[str]
    """Why it was removed; empty: it is whole."""


class Secret(Document):
    """A secret: its name alone."""

    name: str


class Stored(Document):
    """A checkpoint that a recovery stored."""

    id: str
    name: str
    version: int | None
    step: int | None
    size: int
    sent: int
    """Bytes that went to the store."""
    saved: int
    """Bytes that were there already."""
    seconds: float
    repeated: bool
    findings: list[str]


class Pending(Document):
    """A whole checkpoint that could not be stored."""

    id: str
    name: str
    size: int
    cause: str


class Recovered(Document):
    """What became of what a job had left."""

    job: str
    id: str
    running: str
    """Who runs it, where nothing was done because it still runs."""
    stored: list[Stored]
    pending: list[Pending]


class Setting(Document):
    """A setting."""

    value: Any
    origin: str
    """The flag, variable or file that it came from, or `default`."""


DOCUMENTS: dict[str, Any] = {
    "training list": list[Row],
    "training run": Plan,
    "training fetch": Fetched,
    "training inspect": Job,
    "training checkpoints": list[Checkpoint],
    "checkpoint push": Pushed,
    "checkpoint list": list[Listed],
    "checkpoint path": Here,
    "checkpoint tag": Tagged,
    "checkpoint untag": Untagged,
    "checkpoint tags": list[Tag],
    "checkpoint inspect": Checkpoint,
    "checkpoint verify": Verified,
    "checkpoint log": list[Ancestor],
    "checkpoint diff": Compared,
    "checkpoint delete": Deleted,
    "checkpoint pin": Pinned,
    "checkpoint unpin": Unpinned,
    "checkpoint prune": Pruned,
    "checkpoint gc": Cleared,
    "checkpoint check": Sound,
    "dataset push": DatasetPushed,
    "dataset list": list[Dataset],
    "dataset inspect": Dataset,
    "dataset verify": DatasetVerified,
    "dataset delete": DatasetsDeleted,
    "inference list": list[Served],
    "inference inspect": Job,
    "inference wait": Server,
    "cache list": list[Cached],
    "cache prune": list[Cached],
    "cache verify": list[CheckedEntry],
    "storage list": list[Storage],
    "storage inspect": Storage,
    "secret list": list[Secret],
    "recover": list[Recovered],
    "doctor": list[Finding],
    "config show": dict[str, Setting],
}
"""Command to the type of what it prints (`run` only with --dry-run); `fine-tuning` prints what `training` does."""
