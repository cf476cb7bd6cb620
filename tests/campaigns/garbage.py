"""Nothing that a file holds makes the judge, the facts or the look at pickles raise.

    python -m tests.campaigns.garbage [--count 50] [--seed 1] [--samples DIR]

Of every file of every sample (see truncation), `count` variants: random bytes changed, and of JSON files values replaced by
others of any kind. What comes out must be a judgement, and facts that can be stored.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec

from launcher.checkpoint import formats, safety
from launcher.checkpoint.judgement import Context
from launcher.checkpoint.tree import Tree
from tests.campaigns import layouts, truncation

_VALUES: tuple[Any, ...] = (
    None, -1, float("inf"), float("nan"), 2**80, "\ud800", "x", "", [], {}, [None], [[1]], {"a": 1}, {"a": {"b": []}}, True,
)  # fmt: skip


def replaced(value: Any, chance: random.Random) -> Any:
    """A JSON value with one of its parts replaced."""
    if chance.random() < 0.25:
        return chance.choice(_VALUES)
    if isinstance(value, dict) and value:
        key = chance.choice(list(value))
        return value | {key: replaced(value[key], chance)}
    if isinstance(value, list) and value:
        index = chance.randrange(len(value))
        return [*value[:index], replaced(value[index], chance), *value[index + 1 :]]
    return chance.choice(_VALUES)


def variant(path: str, data: bytes, chance: random.Random) -> bytes:
    """The content of a file, changed: mostly in its first bytes, where headers are."""
    if path.endswith((".json", "_METADATA")):
        return json.dumps(replaced(json.loads(data), chance)).encode()
    changed = bytearray(data)
    reach = len(changed) if chance.random() < 0.5 else min(len(changed), 600)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(reach)] = chance.randrange(256)
    return bytes(changed)


def campaign(samples: list[tuple[str, Tree, int | None]], count: int, seed: int) -> tuple[int, list[str]]:
    """(variants, what raised, in words)."""
    done, raised = 0, []
    for label, tree, world_size in samples:
        chance = random.Random(f"{seed} {label}")
        for path, size in tree.files.items():
            data = tree.read(path, 0, size)
            for _ in range(count if data else 0):
                changed = truncation.Changed(tree, path, data=variant(path, data, chance))
                done += 1
                try:
                    judgement = formats.judge(changed, Context(world_size))
                    format = formats.by_name(judgement.format)
                    if format:
                        msgspec.json.encode(
                            (format.facts(changed), format.ready(changed), list(format.claims(changed)))
                        )
                    msgspec.json.encode((judgement.reasons, safety.look(changed)))
                except Exception as error:  # what this looks for
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    raised.append(f"{label} {path}: {error!r} ({Path(where.filename).name}:{where.lineno})")
    return done, raised


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=Path)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        layouts.write(Path(folder, "imitated"))
        samples = truncation.of_folder(Path(folder))
        if arguments.samples:
            samples += truncation.of_folder(arguments.samples)
        done, raised = campaign(samples, arguments.count, arguments.seed)
    print(f"{len(samples)} samples, {done} variants: {len(raised)} raised ({time.monotonic() - started:.0f} s)")
    for line in raised[:50]:
        print(" ", line)
    return 1 if raised else 0


if __name__ == "__main__":
    sys.exit(main())
