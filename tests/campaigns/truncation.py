"""No broken checkpoint is judged whole: every file of every format cut, removed, zeroed, doubled.

    python -m tests.campaigns.truncation [--cuts 100] [--seed 1] [--samples DIR]

Samples are what the libraries themselves write: by the scripts of tests/libraries, or in `--samples` (one folder a sample, or
folders of them) where they were written before; and what `writers` makes with torch, safetensors and gguf in the layouts that no
script writes. Each sample must be judged whole. Each change of one file must make it not whole, unless `UNTOLD` says why a
loader would not notice. Prints a table; a broken one judged whole, or a whole one judged broken, makes the exit code 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint import formats
from launcher.checkpoint.judgement import Context
from launcher.checkpoint.tree import Folder, Tree
from tests.campaigns import layouts
from tests.support.cli import ROOT

UNTOLD: tuple[tuple[str, str, str], ...] = (
    ("cut doubled", "*.md *.txt *.jinja *.py", "a text says nothing about its end"),
    ("removed", "*.md *.jinja *.py *commit_success.txt *merges.txt", "no loader of tensors reads it"),
    (
        "removed",
        "*tokenizer.json *tokenizer_config.json *special_tokens_map.json *vocab.json",
        "a model without a tokenizer is one",
    ),
    ("removed", "generation_config.json", "optional for from_pretrained"),
    ("removed", "scheduler.bin sampler.bin", "whether the script had one, no file tells"),
    ("removed", "latest", "DeepSpeed's folders are whole without it"),
    ("removed cut doubled zeroed", "*_sharding *array_metadatas/*", "Orbax restores without it when given shardings"),
    ("doubled", "*/d/*", "Orbax reads by offset"),
    ("removed", "*/d/*", "which data an Orbax manifest names is packed with zstd"),
)
"""(changes, patterns of paths, why a loader cannot tell)."""
REPLACED = (
    ("transformers-trainer", "trainer_state.json", "save_only_model without it is what save_model writes"),
    ("transformers-pretrained", "training_args.bin", "save_pretrained writes none"),
    ("transformers-pretrained", "config.json", "weights alone are the format safetensors or torch-save"),
)
"""(format, file, why the rest is another whole checkpoint when that file is removed)."""
WITH_FOLDERS_ONLY = ("megatron",)


@dataclass
class Row:
    """Figures of one format."""

    samples: int = 0
    files: int = 0
    changes: int = 0
    untold: int = 0
    wrong: int = 0
    refused: int = 0


class Changed:
    """A tree with one file changed: cut to `size`, or with other `data`, or gone."""

    def __init__(self, tree: Tree, path: str, *, size: int | None = None, data: bytes | None = None) -> None:
        self._tree, self._path, self._data = tree, path, data
        files = dict(tree.files)
        if data is not None:
            files[path] = len(data)
        elif size is not None:
            files[path] = size
        else:
            del files[path]
        self.files: Mapping[str, int] = files

    def read(self, path: str, start: int, length: int) -> bytes:
        if path != self._path:
            return self._tree.read(path, start, length)
        if self._data is not None:
            return self._data[start : start + length]
        return self._tree.read(path, start, max(min(length, self.files[path] - start), 0))


def changes(tree: Tree, path: str, cuts: int, chance: random.Random) -> Iterator[tuple[str, Changed]]:
    """(kind, changed tree): `cuts` cuts at random places and at nothing, removed, zeroed, doubled."""
    size = tree.files[path]
    data = tree.read(path, 0, size)
    meaning = size  # but white space at a JSON file's end, and a tar archive's padding, mean nothing
    if path.endswith((".json", ".nemo")):
        meaning = len(data.rstrip(b"\0" if path.endswith(".nemo") else None))
    places = [0, *(chance.randrange(meaning) for _ in range(cuts - 1))] if meaning else []
    for place in places[:cuts]:
        yield "cut", Changed(tree, path, size=place)
    yield "removed", Changed(tree, path)
    if any(data):
        yield "zeroed", Changed(tree, path, data=bytes(size))
        yield "doubled", Changed(tree, path, data=data + data)


def told(format: str, kind: str, path: str) -> bool:
    """Whether a loader would notice this change of this file."""
    for kinds, patterns, _ in UNTOLD:
        if kind in kinds.split() and any(fnmatch.fnmatch(path, pattern) for pattern in patterns.split()):
            return False
    return not (kind == "removed" and any((format, path) == (name, file) for name, file, _ in REPLACED))


def one(tree: Tree, world_size: int | None, cuts: int, chance: random.Random, row: Row) -> list[str]:
    """Judges a sample and every change of it. Returns what was judged wrong, in words."""
    context = Context(world_size=world_size)
    judgement = formats.judge(tree, context)
    row.samples += 1
    row.files += len(tree.files)
    if not judgement.whole:
        row.refused += 1
        return [f"whole judged {judgement.verdict}: {'; '.join(judgement.reasons[:2])}"]
    wrong = []
    for path in tree.files:
        for kind, changed in changes(tree, path, cuts, chance):
            row.changes += 1
            if not told(judgement.format, kind, path):
                row.untold += 1
            elif changed.files and formats.judge(changed, context).whole:
                row.wrong += 1
                wrong.append(f"{path} {kind} ({changed.files.get(path)} of {tree.files[path]} bytes) judged whole")
    return wrong


def found(folder: Path) -> list[tuple[str, Tree]]:
    """The checkpoints in an output directory: its root's own files, its flat files, and the outermost folders that hold files."""
    result: list[tuple[str, Tree]] = []
    root = Folder(str(folder), {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()})
    format = formats.recognise(root)
    claimed = format.claims(root) if format else frozenset()
    if claimed:
        result.append((".", formats.part(root, claimed)))
    flat = [path for path in root.files if path not in claimed and formats.holds_tensors(root, path)]
    result += [(path, formats.part(root, [path])) for path in flat]
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (
            any(path.is_file() and path.name != "README.md" for path in below.iterdir())
            or formats.judge(Folder.scan(str(below))).format in WITH_FOLDERS_ONLY
        ):
            result.append((below.name, Folder.scan(str(below))))
        else:
            result += [(f"{below.name}/{name}", tree) for name, tree in found(below)]
    return result


def campaign(samples: list[tuple[str, Tree, int | None]], cuts: int, seed: int) -> tuple[dict[str, Row], list[str]]:
    """Figures by format, and what was judged wrong. `samples`: (label, tree, world size)."""
    rows: dict[str, Row] = {}
    wrong = []
    for label, tree, world_size in samples:
        row = rows.setdefault(formats.judge(tree, Context(world_size)).format, Row())
        chance = random.Random(f"{seed} {label}")
        wrong += [f"{label}: {each}" for each in one(tree, world_size, cuts, chance, row)]
    return rows, wrong


def of_folder(folder: Path) -> list[tuple[str, Tree, int | None]]:
    """Samples that libraries wrote, one output directory each. The world's size is how many ranks' random states there are."""
    result: list[tuple[str, Tree, int | None]] = []
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        if "cut" in run.name.split("_"):
            continue  # kept broken on purpose
        for name, tree in found(run):
            patterns = ("rng_state_?.pth", "random_states_?.pkl")
            ranks = max(sum(fnmatch.fnmatch(path, pattern) for path in tree.files) for pattern in patterns)
            result.append((f"{run.name}/{name}", tree, ranks or None))
    return result


def write_samples(target: Path) -> None:
    """Runs every script of tests/libraries, where there are some, each into a folder of its own."""
    for script in sorted((ROOT / "tests/libraries").glob("[a-z]*.py")):
        if script.stem in ("load", "tiny", "together"):
            continue  # what the scripts share
        subprocess.run([sys.executable, script, target / script.stem], check=True, capture_output=True, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=Path)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        written = arguments.samples or Path(folder, "written")
        if arguments.samples is None:
            written.mkdir()
            write_samples(written)
        layouts.write(Path(folder, "layouts", "imitated"))
        samples = of_folder(written) + of_folder(Path(folder, "layouts"))
        rows, wrong = campaign(samples, arguments.cuts, arguments.seed)
    print("| format | samples | files | changes | of these untold | broken judged whole | whole judged broken |")
    print("|---|---|---|---|---|---|---|")
    for name, row in sorted(rows.items()):
        print(f"| {name} | {row.samples} | {row.files} | {row.changes} | {row.untold} | {row.wrong} | {row.refused} |")
    print(
        f"{sum(row.changes for row in rows.values())} changes, {len(wrong)} wrong ({time.monotonic() - started:.0f} s)"
    )
    for line in wrong[:100]:
        print(" ", line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
