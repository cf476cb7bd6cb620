"""Which datasets the job gets, and where each will be: `-D NAME[@vN][=MOUNT]`."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.checkpoint import paths
from launcher.errors import UnsafePath, UsageError
from launcher.inputs.choose import Chosen
from launcher.store.datasets import Datasets, named

CONTRACT = "/input"
"""Below which containers have their datasets, unless the variable says otherwise."""


def choose(texts: Iterable[str], store: Datasets) -> list[Chosen]:
    """Resolves every NAME[@vN], or id, and its MOUNT, by default the dataset's name. Raises DatasetNotFound, UsageError."""
    chosen: dict[str, Chosen] = {}
    for text in texts:
        ref, equals, mount = text.partition("=")  # No dataset's name holds one.
        if equals:
            _check_mount(text, mount)
        found = store.resolve(ref)
        mount = mount or found.manifest.name
        if mount in chosen:
            raise UsageError(
                what=f"-D {text} and -D {chosen[mount].text} would be at the same place ({mount}).",
                hint="Give one another folder: -D NAME=MOUNT.",
            )
        chosen[mount] = Chosen(text, (mount,), manifest=found.manifest, dataset=named(found))
    return list(chosen.values())


def _check_mount(text: str, mount: str) -> None:
    try:
        paths.check(mount)
        cause = "it contains a slash" if "/" in mount else ""
    except UnsafePath as error:
        cause = str(error.facts["cause"])
    if cause:
        raise UsageError(
            what=f"-D {text}: {mount!r} cannot be a folder's name: {cause}.",
            hint="MOUNT is one folder of the input directory: -D medical=train is at /input/train.",
        )
