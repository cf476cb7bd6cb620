"""No safetensors file is called whole that the library refuses: mutated headers, the library as oracle.

    python -m tests.campaigns.headers [--count 100000] [--seed 1]

Lengths up to 2^64-1, changed and repeated bytes, cut and grown files, other JSON values in the place of dtypes, shapes and
offsets. The library's own `safe_open` says whether it would load the file; a file that it refuses and we call whole makes the
exit code 1, and so does a judgement over 50 ms of processor time or 200 MB of memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.formats import safetensors
from launcher.checkpoint.tree import Folder

_LENGTHS = (0, 1, 7, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 100_000_000, 100_000_001)
_VALUES: tuple[object, ...] = (
    -1, 0, 1, 2**31, 2**63, 2**64, 2**70, 1.5, "F32", "F16", "BOOL", "F4", "", None, True, [], {}, [0, 0], [1, 0], [-1, 4],
    [[1]], [2**62, 4], ["0", "4"], [0, 2**64 - 1], {"dtype": "F32"}, "\x00", "nonsense",
)  # fmt: skip
_BYTES = b'0123456789{}[]",:FIUB-e.\\ \n\x00\xff'


@dataclass
class Figures:
    """What a campaign counts. `slowest`: seconds of processor time of one judgement; `memory`: bytes it added at most."""

    count: int = 0
    wrong: int = 0
    stricter: int = 0
    whole: int = 0
    slowest: float = 0.0
    memory: int = 0


def original() -> tuple[dict[str, object], bytes]:
    """A header of three tensors and its data."""
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]},
        "a.bias": {"dtype": "F16", "shape": [4], "data_offsets": [48, 56]},
        "empty": {"dtype": "I64", "shape": [0], "data_offsets": [56, 56]},
        "scalar": {"dtype": "BF16", "shape": [], "data_offsets": [56, 58]},
    }
    return header, bytes(range(58))


def mutated(chance: random.Random) -> bytes:
    """One file: mutated as JSON, as bytes, in its length, or in its size."""
    header, data = original()
    header = json.loads(json.dumps(header))
    kind = chance.randrange(5)
    if kind in (0, 4):
        name = chance.choice(list(header))
        info = header[name]
        assert isinstance(info, dict)
        choice = chance.random()
        if choice < 0.7 and info:
            info[chance.choice(list(info))] = chance.choice(_VALUES)
        elif choice < 0.8:
            del info[chance.choice(list(info))]
        elif choice < 0.9:
            header[name] = chance.choice(_VALUES)
        else:
            info["more"] = chance.choice(_VALUES)
    text = bytearray(json.dumps(header).encode())
    length = len(text)
    if kind in (1, 4):
        for _ in range(chance.randint(1, 3)):
            text[chance.randrange(len(text))] = chance.choice(_BYTES)
    if kind == 2:
        length = chance.choice([*_LENGTHS, length - 1, length + 1, length + len(data), chance.getrandbits(64)])
    content = struct.pack("<Q", length) + bytes(text) + data
    if kind == 3:
        place = chance.randrange(len(content))
        content = content[:place] if chance.random() < 0.7 else content + content[:place]
    return content


def campaign(count: int, seed: int) -> Figures:
    """Judges `count` mutated files beside the library."""
    from safetensors import SafetensorError, safe_open

    figures, chance = Figures(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        for _ in range(count):
            content = mutated(chance)
            path.write_bytes(content)
            tree = Folder(folder, {path.name: len(content)})
            before, started = _memory(), time.process_time()
            ours = safetensors.mistake(tree, path.name) is None
            figures.slowest = max(figures.slowest, time.process_time() - started)
            figures.memory = max(figures.memory, _memory() - before)
            try:
                with safe_open(path, "numpy") as file:
                    list(file.keys())
                theirs = True
            except (SafetensorError, OSError, ValueError, OverflowError):
                theirs = False
            figures.count += 1
            figures.whole += ours
            figures.wrong += ours and not theirs
            figures.stricter += theirs and not ours
    return figures


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    found = campaign(arguments.count, arguments.seed)
    print(
        f"{found.count} mutated headers: {found.wrong} called whole that the library refuses, {found.stricter} refused that it "
        f"loads, {found.whole} called whole; slowest {found.slowest * 1000:.1f} ms, memory {found.memory / 1e6:.1f} MB "
        f"({time.monotonic() - started:.0f} s)"
    )
    return 1 if found.wrong or found.slowest > 0.05 or found.memory > 200e6 else 0


if __name__ == "__main__":
    sys.exit(main())
