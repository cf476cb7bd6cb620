"""The node cache against a model: random fetches, releases, evictions and kills by several processes.

    python -m tests.campaigns.cache_model [--count 1000] [--seed 1]

Four processes hold leases on five small checkpoints. After every operation the cache must hold exactly the entries that the
model says, with exactly those held that a live process has fetched and not released, and every held one whole.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from launcher import push
from launcher.inputs.cache import NodeCache
from launcher.store.store import Store
from launcher.transfer.local import LocalStore

ACTORS, CHECKPOINTS = 4, 5
_ACTOR = """
import sys
from launcher.inputs.cache import NodeCache
from launcher.store.store import Store
from launcher.transfer.local import LocalStore
store, cache, leases = Store(LocalStore(sys.argv[1]), timeout=20), NodeCache(sys.argv[2], threads=2), {}
for line in sys.stdin:
    word, identifier = line.split()
    if word == "fetch":
        leases.setdefault(identifier, []).append(cache.fetch(store, store.manifest(identifier), lambda count: None)[1])
    else:
        leases[identifier].pop().release()
    print("done", flush=True)
"""


class Actor:
    """A process that fetches and releases; `held` is what it should hold, as often as it should."""

    def __init__(self, store: Store, cache: Path) -> None:
        self.command = [sys.executable, "-c", _ACTOR, store.url, str(cache)]
        self.held: Counter[str] = Counter()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, word: str, identifier: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word} {identifier}\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        assert self.process.stdout and self.process.stdout.readline() == "done\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.held.clear()

    def kill(self) -> None:
        self.close()
        self.process = self._start()


def campaign(folder: Path, count: int, seed: int) -> str:
    """Runs it, and returns its figures in a line. Raises AssertionError at the first violation."""
    chance = random.Random(seed)
    store = Store(LocalStore(str(folder / "store")), timeout=20)
    for number in range(CHECKPOINTS):
        (folder / f"model-{number}").mkdir()
        for part in range(3):
            (folder / f"model-{number}" / f"part-{part}").write_bytes(chance.randbytes(20_000))
    identifiers = []
    for number in range(CHECKPOINTS):
        model = str(folder / f"model-{number}")
        made = push.push(store, f"m{number}", model, threads=2, force=False, emit=lambda event: None)
        identifiers.append(made.manifest.id)
    cache = NodeCache(str(folder / "cache"))
    actors = [Actor(store, folder / "cache") for _ in range(ACTORS)]
    there: set[str] = set()
    done: Counter[str] = Counter()
    try:
        for step in range(count):
            actor, identifier = chance.choice(actors), chance.choice(identifiers)
            word = chance.choices(("fetch", "release", "prune", "kill", "kill while fetching"), (45, 25, 20, 5, 5))[0]
            if word == "release" and not actor.held[identifier]:
                word = "fetch"
            if word in ("fetch", "release"):
                actor.ask(word, identifier)
                actor.wait()
                actor.held[identifier] += 1 if word == "fetch" else -1
                there.add(identifier)
            elif word == "prune":
                held = {each for actor in actors for each in +actor.held}
                gone = {each.id for each in cache.prune(chance.choice((0, 60_000, 150_000)))}
                assert not gone & held, f"step {step}: {gone & held} went and is held"
                assert gone <= there
                there -= gone
            elif word == "kill":
                actor.kill()
            else:
                actor.ask("fetch", identifier)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    actor.process.wait(chance.uniform(0, 0.01))
                actor.kill()
                if cache.entry(identifier).exists():
                    there.add(identifier)  # Either is right; what is there must be whole, which is checked below.
            done[word] += 1
            _check(cache, there, actors, f"step {step}, {word}")
    finally:
        for actor in actors:
            actor.close()
    cache.prune(0)
    left = [path for path in (folder / "cache").rglob("*") if path.is_file() and "partial" not in path.parts]
    assert [path for path in left if path.parent.name != "entries"] == [], left
    return f"{count} operations ({', '.join(f'{number} {word}' for word, number in done.items())}): 0 differences"


def _check(cache: NodeCache, there: set[str], actors: list[Actor], when: str) -> None:
    found = {each.id: each for each in cache.entries()}
    assert found.keys() == there, f"{when}: {found.keys() ^ there}"
    held = {identifier for actor in actors for identifier in +actor.held}
    assert {each.id for each in found.values() if each.held} == held, f"{when}: held"
    for each in found.values():
        assert cache.damage(each) == [], f"{when}: {each.id}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        print(campaign(Path(folder), given.count, given.seed))


if __name__ == "__main__":
    main()
