"""The datasets of a store: kept as checkpoints are, versioned and immutable, in a store of their own below `datasets/`.

What differs: they are of any files, which nobody judges, and a name is also the name of a folder (`/input/<name>`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from launcher import names
from launcher.checkpoint import reference as references
from launcher.checkpoint.manifest import Dataset, Manifest
from launcher.checkpoint.reference import Reference
from launcher.errors import DatasetNotFound, UsageError
from launcher.settings import Settings
from launcher.store import layout
from launcher.store.reading import Checkpoint
from launcher.store.store import Store
from launcher.transfer.digest import of_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

FOLDER = "datasets"
FORMAT = "dataset"
"""The `format` of their manifests."""


class Datasets(Store):
    """A store of datasets."""

    noun = "dataset"
    not_found = DatasetNotFound

    @classmethod
    def open(cls, settings: Settings, environ: Mapping[str, str], *, look_only: bool = False) -> Self:
        """The datasets of the settings' store. Nothing is contacted yet. `look_only`: see `Store`."""
        inside = msgspec.structs.replace(settings, store=f"{settings.store.rstrip('/')}/{FOLDER}")
        return super().open(inside, environ, look_only=look_only)

    @property
    def made(self) -> bool:
        """Whether a dataset was ever pushed here."""
        return self.exists(layout.STORE)

    def resolve(self, reference: Reference | str) -> Checkpoint:
        """The dataset that NAME, NAME@vN, or an id or its beginning means. Raises DatasetNotFound, UsageError."""
        ref = references.parse(reference, self.noun) if isinstance(reference, str) else reference
        if ref.kind not in ("name", "id"):
            raise UsageError(
                what=f"{ref.text} is no dataset: a job takes those of the store, by name.",
                hint="Push it first: launcher dataset push NAME --file SOURCE",
            )
        return super().resolve(ref)


def check_name(name: str) -> str:
    """The name, or a UsageError that says what is wrong with it."""
    name = names.check(name, "dataset name")
    if found := next((each for each in "/=" if each in name), ""):
        raise UsageError(
            what=f"{name!r} is no dataset name: it contains {found!r}.",
            hint="Jobs find it in a folder of this name (-D NAME), or of another (-D NAME=MOUNT). "
            f"Try {name.replace('/', '__').replace('=', '_')}",
        )
    return name


def content(manifest: Manifest) -> str:
    """The digest of the data alone, of each file's path and digest: the same wherever and whenever they were pushed."""
    lines = sorted(f"{file.path}\0{file.digest}\n" for file in manifest.files)
    return of_bytes("".join(lines).encode("utf-8", "surrogateescape"))


def named(found: Checkpoint) -> Dataset:
    """What the lineage of a checkpoint says of a dataset."""
    manifest = found.manifest
    return Dataset(manifest.name, found.version, manifest.id, content(manifest))
