"""A store with many checkpoints: how long it takes to list them, to find one, and to complete a name.

    python -m tests.campaigns.catalog [--count 100000] [--versions 1000] [--rounds 5] [--seed 1] [--store URL] [--built]

Writes the objects of such a store directly, many at a time: jobs of 50 checkpoints over two years, and one name with so many
versions. Without --store in an S3 server of its own (SeaweedFS); --built: it is there from an earlier call of the same day with
the same numbers. Then it runs the command line as a person does and prints the medians of the rounds, start of Python and all,
against the bar. What is listed must be what was written, after every step: also with the node's index cut, damaged or of another
moment, with the store's summaries gone, and after a commit and a delete by another node.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher import __version__
from launcher.checkpoint import manifest as manifests
from launcher.checkpoint.manifest import SCHEMA, Facts, File, Lineage, Manifest, Origin, Ready
from launcher.ids import first_id
from launcher.store import catalog, layout, summary
from launcher.store.reading import VersionBody
from launcher.store.store import Store
from launcher.transfer.digest import of_bytes
from launcher.transfer.places import open_place
from tests.support.cli import PROGRAM, Launcher
from tests.support.commits import commit
from tests.support.s3_server import serve

POPULAR = "popular"
_PER_JOB = 50
_SPAN = 2 * 365 * 86400.0
_THREADS = 24


@dataclass(frozen=True)
class Figure:
    """One measurement, medians in seconds from start to end and of the processor; the bar is for the first."""

    what: str
    seconds: float
    cpu: float
    bar: float | None = None

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{self.bar:g} s{'' if self.seconds <= self.bar else ': **not met**'}"
        return f"| {self.what} | {self.seconds:.2f} s | {self.cpu:.2f} s | {bar} |"


def written(count: int, versions: int, seed: int) -> Iterator[tuple[Manifest, int]]:
    """The checkpoints of the store, in the order of time."""
    chance = random.Random(seed)
    now = time.time() // 86400 * 86400 - catalog.MARGIN  # The same checkpoints all day long.
    popular = set(chance.sample(range(count), versions))
    number = {POPULAR: 0}
    parent = ""
    for index in range(count):
        created = now - _SPAN * (count - index) / count
        identifier = _uuid(created, chance)
        job, step = f"ft_{index // _PER_JOB:05d}", 500 * (index % _PER_JOB + 1)
        name = POPULAR if index in popular else f"{job}/checkpoint-{step}"
        number[name] = number.get(name, 0) + 1
        parent = identifier if name == POPULAR else parent
        files = tuple(
            File(f"model-{part:05d}.safetensors", 10_000_000, f"blake3:{chance.getrandbits(256):064x}", mtime=created)
            for part in range(4)
        )
        yield (
            Manifest(
                schema=SCHEMA,
                id=identifier,
                name=name,
                created=created,
                writer=__version__,
                format="trainer",
                files=files,
                size=sum(file.size for file in files),
                facts=Facts(step=step, train_loss=1 / step, architecture="MistralForCausalLM"),
                lineage=Lineage(parents=(parent,) if name != POPULAR and parent else ()),
                ready=Ready(resume=True, inference=index % 2 == 0),
                origin=None if name == POPULAR else Origin(f"run-{index // _PER_JOB}", job, f"checkpoint-{step}"),
            ),
            number[name],
        )


def _uuid(created: float, chance: random.Random) -> str:
    return (
        first_id(created)[:15]
        + f"{chance.getrandbits(12):03x}-{0x8000 | chance.getrandbits(14):04x}-"
        + (f"{chance.getrandbits(48):012x}")
    )


def build(store: Store, made: list[tuple[Manifest, int]], seed: int) -> None:
    """Writes what the launcher would have written, without the files."""
    store.prepare()
    chance = random.Random(seed)
    events = [_uuid(manifest.created + 1, chance) for manifest, _ in made]

    def one(each: tuple[tuple[Manifest, int], str]) -> None:
        (manifest, version), event = each
        body = manifests.encode(manifest)
        store.place.put(layout.manifest(manifest.id), body)
        named = VersionBody(manifest.id, manifest.name, of_bytes(body), version)
        store.place.put(layout.version(manifest.name, version), msgspec.json.encode(named))
        store.place.put(summary.change(summary.of_manifest(manifest, version), event), b"")

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(one, zip(made, events)):
            pass


def measured(
    launcher: Launcher,
    what: str,
    *words: str,
    bar: float | None = None,
    rounds: int = 1,
    before: str = "",
    complete: str = "",
) -> Figure:
    """The medians of so many runs; `before` each the folder is removed. `complete`: a line to complete, instead of words."""
    env = dict(launcher.env)
    if complete:
        env |= {"_LAUNCHER_COMPLETE": "zsh_complete", "COMP_WORDS": complete, "COMP_CWORD": str(complete.count(" "))}
    walls, cpus = [], []
    for _ in range(rounds):
        if before:
            shutil.rmtree(before, ignore_errors=True)
        started = time.perf_counter()
        command = ["launcher", *words]
        null = os.open(os.devnull, os.O_RDWR)
        files = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        _, status, usage = os.wait4(os.posix_spawn(PROGRAM, command, env, file_actions=files), 0)
        os.close(null)
        walls.append(time.perf_counter() - started)
        cpus.append(usage.ru_utime + usage.ru_stime)
        assert status == 0, f"launcher {' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}"
    return Figure(what, statistics.median(walls), statistics.median(cpus), bar)


def check(launcher: Launcher, made: dict[str, tuple[str, int]], what: str) -> None:
    """Asserts that the command lists exactly these checkpoints."""
    found = {each["metadata"]["id"]: (each["metadata"]["name"], each["metadata"]["version"])
             for each in launcher.json("checkpoint", "list")}  # fmt: skip
    assert found == made, f"{what}: {len(found)} checkpoints are listed, {len(made)} are there, or their names differ"


def campaign(
    store: Store, url: str, made: list[tuple[Manifest, int]], folder: Path, rounds: int, seed: int
) -> Iterator[Figure]:
    """Measures, and asserts after every step that what is listed is what is there."""
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    launcher = Launcher(folder, LAUNCHER_STORE=url, **credentials)
    there = {manifest.id: (manifest.name, version) for manifest, version in made}
    cache, chance = str(folder / "cache"), random.Random(seed)
    index = Path(catalog.path(cache, store.url))
    one, _ = made[len(made) // 3]

    seventh = next(each.id for each, version in made if (each.name, version) == (POPULAR, 7))
    for what, ref in (
        ("a name", one.name),
        (f"a name with {sum(name == POPULAR for name, _ in there.values())} versions", POPULAR),
        ("a version of that name", f"{POPULAR}@v7"),
        ("an id of that name", seventh),
        ("the beginning of an id", one.id[:23]),
        ("the newest of a job", f"job:{one.name.partition('/')[0]}"),
    ):
        words = ("checkpoint", "inspect", ref, "--json")
        yield measured(launcher, f"resolve {what}, no index", *words, bar=0.25, rounds=rounds, before=cache)

    every, some = ("checkpoint", "list"), ("checkpoint", "list", "--limit", "100")
    yield measured(launcher, "list, nothing compacted, a new node (it leaves a segment)", *some, bar=10)
    check(launcher, there, "without segments")
    yield measured(launcher, "list, a new node", *some, bar=1, rounds=rounds, before=cache)
    yield measured(launcher, "the same, all lines", *every, bar=1, rounds=rounds, before=cache)
    check(launcher, there, "a new node")
    yield measured(launcher, "list, warm", *some, bar=0.3, rounds=rounds)
    yield measured(launcher, "the same, all lines", *every, rounds=rounds)
    yield measured(launcher, "the same, by name", *every, "--name", f"{one.name[:8]}*", bar=0.3, rounds=rounds)
    yield measured(
        launcher, "a job's checkpoints", "training", "checkpoints", one.name.partition("/")[0], rounds=rounds
    )
    for what, line in (("a name", one.name[:-2]), ("a name that many begin with", "ft_00"), ("any name", "")):
        line = f"launcher checkpoint inspect {line}"
        yield measured(launcher, f"complete {what}", bar=0.2, rounds=rounds, complete=line)

    good = index.read_bytes()
    for damage in ("cut", "flipped", "of another moment", "gone"):
        if damage == "gone":
            index.unlink()
        elif damage == "of another moment":
            index.write_bytes(good)
        else:
            at = chance.randrange(len(good))
            index.write_bytes(good[:at] if damage == "cut" else good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        if damage == "cut":
            new = commit(store, "after", {"x": b"1"}).manifest
            there[new.id] = (new.name, 1)
            gone = chance.choice([each.id for each, _ in made if each.name != POPULAR])
            yield measured(launcher, "delete one", "checkpoint", "delete", gone, "--yes")
            del there[gone]
        check(launcher, there, f"the index {damage}")

    store.place.delete([entry.key for entry in store.listing(layout.SEGMENTS)])
    yield measured(launcher, "list, the summaries gone, a new node", *some, bar=10, before=cache)
    check(launcher, there, "the summaries gone")


@contextlib.contextmanager
def place(url: str | None) -> Iterator[str]:
    """The URL of a store on a server of its own, unless one is given."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as server:
        os.environ.update(server.env())
        yield f"s3://{server.new_bucket()}/store"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store")
    parser.add_argument("--built", action="store_true")
    arguments = parser.parse_args()
    with place(arguments.store) as url, tempfile.TemporaryDirectory() as folder:
        made = list(written(arguments.count, arguments.versions, arguments.seed))
        store = Store(open_place(url, timeout=60, environ=os.environ), timeout=60, threads=_THREADS)
        started = time.perf_counter()
        if not arguments.built:
            build(store, made, arguments.seed)
            print(f"{len(made)} checkpoints written in {time.perf_counter() - started:.0f} s", flush=True)
        print("| what | from start to end | processor | bar |\n|---|---|---|---|")
        for figure in campaign(store, url, made, Path(folder), arguments.rounds, arguments.seed):
            print(figure, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
