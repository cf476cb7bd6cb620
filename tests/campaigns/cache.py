"""Two launchers on one node cache, one of them killed at a random moment of its download.

    python -m tests.campaigns.cache [--count 200] [--seed 1]

Each round: a checkpoint of 28 files (24 small ones, 4 of several blocks) in a store, an empty cache, two processes that ask
for it at the same time, and kill -9 of the one that downloads, at a moment drawn from its whole life. Then the other one, or
a third, has the checkpoint whole, with every byte verified; nothing is left locked, and nothing is left
behind when the cache is pruned.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import push
from launcher.inputs.cache import NodeCache, changes
from launcher.store.store import Checkpoint, Store
from launcher.transfer.digest import BLOCK
from launcher.transfer.local import LocalStore

THREADS = 4
_FETCH = f"""
import sys, time
from launcher.inputs.cache import NodeCache
from launcher.store.store import Store
from launcher.transfer.local import LocalStore
store = Store(LocalStore(sys.argv[1]), timeout=20)
moved = 0
def on_bytes(count):
    global moved
    moved += count
    time.sleep(count / 1e8)
print("asked", file=sys.stderr, flush=True)
path, lease = NodeCache(sys.argv[2], threads={THREADS}).fetch(store, store.manifest(sys.argv[3]), on_bytes)
print(moved, flush=True)
"""


def make(folder: Path, seed: int) -> tuple[Store, Checkpoint]:
    """A store with one checkpoint of 28 files, 140 MB."""
    model = folder / "model"
    model.mkdir(parents=True)
    source = random.Random(seed)
    for number in range(24):
        (model / f"small-{number}").write_bytes(source.randbytes(100_000 + number))
    for number in range(4):
        (model / f"large-{number}").write_bytes(source.randbytes(2 * BLOCK + 12_345 * number))
    store = Store(LocalStore(str(folder / "store")), timeout=20)
    return store, push.push(store, "base", str(model), threads=4, force=False, emit=lambda event: None)


def start(store: Store, cache: Path, identifier: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A process that has asked for the checkpoint; `before`: words before its command line."""
    command = [*before, sys.executable, "-c", _FETCH, store.url, str(cache), identifier]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr and process.stderr.readline() == "asked\n"
    return process


def campaign(folder: Path, count: int, seed: int) -> str:
    """Runs it, and returns its figures in a line. Raises AssertionError at the first violation."""
    store, checkpoint = make(folder, seed)
    manifest = checkpoint.manifest
    moments = random.Random(seed)
    probe = start(store, folder / "probe", manifest.id)
    started = time.monotonic()
    probe.communicate(timeout=120)
    life = time.monotonic() - started
    taken_over = 0
    for number in range(count):
        cache = folder / f"cache-{number}"
        first = start(store, cache, manifest.id)
        second = start(store, cache, manifest.id)
        time.sleep(moments.uniform(0, life))
        os.kill(first.pid, signal.SIGKILL)
        said, _ = first.communicate(timeout=60)
        told, _ = second.communicate(timeout=120)
        assert second.returncode == 0, f"round {number}: the other process failed"
        assert int(said or told) == manifest.size, f"round {number}: {said or told} of {manifest.size} bytes"
        taken_over += not said
        assert changes(str(NodeCache(str(cache)).entry(manifest.id)), manifest) == [], f"round {number}: wrong bytes"
        (entry,) = NodeCache(str(cache)).entries()
        assert not entry.held, f"round {number}: still locked"
        assert NodeCache(str(cache)).prune(0) == [entry]
        assert [path for path in cache.rglob("*") if path.is_file()] == [], f"round {number}: something is left"
    return f"{count} kills, {taken_over} in the middle, all taken over; 0 wrong bytes, 0 locks left, 0 files left"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(campaign(Path(folder), given.count, given.seed))


if __name__ == "__main__":
    main()
