"""Paths of the input that the command names: one that is not there is said before anything is downloaded or started.

Libraries take a path that does not exist for a name on the Hub, and train another model than the one that was meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.errors import NotFoundError, UsageError
from launcher.inputs import datasets
from launcher.inputs.choose import Chosen
from launcher.settings import nearest

CONTRACT = "/input-checkpoint"
"""Where containers have their input, unless the variable says otherwise."""


@dataclass(frozen=True)
class Place:
    """A directory of the contract: its path in containers, the variables of the job and of the launcher that name it, and what
    one thing in it and all of them are called."""

    contract: str
    variable: str
    setting: str
    what: str
    every: str
    flag: str


CHECKPOINTS = Place(CONTRACT, "FLEXAI_INPUT_CHECKPOINT_DIR", "LAUNCHER_INPUT_DIR", "input", "the input", "-C REF")
DATASETS = Place(datasets.CONTRACT, "FLEXAI_INPUT_DIR", "LAUNCHER_DATASET_DIR", "dataset", "the datasets", "-D NAME")
_PATTERN = re.compile(r"[*?\[{]")


def check(
    command: Sequence[str], chosen: Sequence[Chosen], root: str, *, here: bool, place: Place = CHECKPOINTS
) -> None:
    """Looks at every argument that is a path below the input directory, alone or behind the first `=` of an option.

    `root`: the input directory as the job will see it; empty where it gets one of its own, whose path nobody can know yet.
    `here`: the job sees this machine's files; what is there already is then no mistake, whoever put it there.
    What shells and other languages make of an argument is not guessed: `sh -c '…'` is not looked into. Raises NotFoundError,
    UsageError.
    """
    for word in command:
        for text in (word, word.partition("=")[2]):
            path = os.path.normpath(text) if text.startswith("/") else ""
            base = next((each for each in (root, place.contract) if each and path.startswith(f"{each}/")), "")
            if not base or (os.path.exists(path) if here else not chosen):
                continue
            if base != root:
                raise UsageError(
                    what=f"The command names {text}, but here the job's {place.what} is at ${place.variable}.",
                    hint=f"Let the script read that variable, or set {place.setting}={place.contract}.",
                )
            _find(text, path[len(base) + 1 :], chosen, place)


def _find(text: str, inside: str, chosen: Sequence[Chosen], place: Place) -> None:
    inputs = {name: each for each in chosen for name in each.names}
    name = next((each for each in inputs if f"{inside}/".startswith(f"{each}/")), "")
    if not name:
        if _among(inside, inputs) is not None:
            return
        raise _missing(text, place.every, inputs, inside, place)
    if (rest := inside[len(name) + 1 :]) and (files := _files(inputs[name])) is not None:
        level = _among(rest, files)
        if level is None:
            raise _missing(text, f"the {place.what} {name!r}", files, rest, place)


def _among(path: str, files: Iterable[str]) -> str | None:
    """The path as far as it is no pattern, where that is one of the files or a folder of theirs; else None."""
    parts = path.split("/")
    plain = next((index for index, part in enumerate(parts) if _PATTERN.search(part)), len(parts))
    start = "/".join(parts[:plain])
    return start if not start or any(each == start or each.startswith(f"{start}/") for each in files) else None


def _files(chosen: Chosen) -> list[str] | None:
    """The paths of an input's files; None where only unpacking it will tell."""
    if chosen.manifest:
        return [file.path for file in chosen.manifest.files]
    if chosen.remote:
        return None if chosen.remote.archive else [entry.key for entry in chosen.remote.entries]
    assert chosen.folder
    found = []
    for parent, folders, files in os.walk(chosen.folder):
        found += [os.path.relpath(os.path.join(parent, each), chosen.folder) for each in (*folders, *files)]
    return found


def _missing(text: str, where: str, there: Iterable[str], path: str, place: Place) -> NotFoundError:
    """Says what there is at the deepest folder of the path that exists."""
    files = list(there)
    folder, _, last = path.rpartition("/")
    while folder and not any(each.startswith(f"{folder}/") for each in files):
        folder, _, last = folder.rpartition("/")
    prefix = f"{folder}/" if folder else ""
    names = sorted({each[len(prefix) :].partition("/")[0] for each in files if each.startswith(prefix)})
    shown = [*nearest(last, names), *(each for each in names if each not in nearest(last, names))][:8]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return NotFoundError(
        what=f"The command names {text}, which is not in {where}.",
        hint=f"In {prefix or 'it'}: {', '.join(shown)}{more}."
        if shown
        else f"No {place.what} is chosen: {place.flag}.",
    )
