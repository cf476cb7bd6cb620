"""gc, deletes and retention: paused writers, readers beside, and kill -9 of each.

    python -m tests.campaigns.gc [--count 200] [--kills 60] [--seed 1] [--store URL]

Pauses: writers are stopped (SIGSTOP) at random moments of their uploads and commits, gc runs with a horizon of one second,
and they go on. Each must commit, or be told that it was aborted and commit under another id; no manifest may be left over
deleted files. Meanwhile readers fetch what is newest while retention deletes: whole, or not found. Kills: delete, gc and
retention are killed (SIGKILL) at random moments; then one gc, and the whole store must be sound. Exit code 1 on any violation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from launcher.errors import CheckpointNotFound, DigestMismatch, InvalidDataError
from launcher.ids import new_id
from launcher.job import keep
from launcher.store import layout, removal, retention
from launcher.store.check import check
from launcher.store.gc import collect
from launcher.store.store import Aborted, Store
from tests.support.cli import ROOT
from tests.support.commits import commit, fetched, manifest, open_store, upload

HORIZON = 1.0
"""Seconds."""
EVERYTHING = -1.0
"""A horizon that also takes what was written now: a store's times may be whole seconds."""


def files() -> dict[str, bytes]:
    return {f"part-{number}": os.urandom(20_000) for number in range(4)}


def write(url: str, name: str) -> None:
    """A writer: commits until its standard input ends; prints [id, version, times it was aborted] of each."""
    store = open_store(url)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        content, aborted = files(), 0
        while True:
            identifier = new_id()
            wanted = manifest(name, upload(store, content, identifier), identifier, job=name)
            try:
                made = store.commit(wanted)
            except Aborted:
                aborted += 1
                continue
            break
        print(json.dumps([identifier, made.version, aborted]), flush=True)


class Reader(threading.Thread):
    """Fetches the newest of a name again and again, while older ones are deleted; counts how that ended."""

    def __init__(self, url: str, name: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._store, self._name, self._stop_asked = open_store(url), name, stop
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            while not self._stop_asked.is_set():
                try:
                    every = self._store.version_numbers(self._name)
                    fetched(self._store, f"{self._name}@v{random.choice(every)}" if every else self._name, folder)
                    self.counts["whole"] += 1
                except CheckpointNotFound:
                    self.counts["not found"] += 1
                except (DigestMismatch, InvalidDataError) as error:
                    self.counts[f"WRONG: {error}"] += 1
                time.sleep(0.02)


def pauses(url: str, count: int, seed: int, writers: int = 4) -> tuple[str, bool]:
    """`count` pauses, and the line of figures with whether all was well."""
    chance = random.Random(seed)
    store = open_store(url)
    store.prepare()
    command = [sys.executable, "-m", "tests.campaigns.gc", "--store", url, "--write"]
    with tempfile.TemporaryDirectory() as logs:
        processes = []
        for number in range(writers):
            with open(f"{logs}/{number}", "wb") as log:
                words = [*command, f"w{number}"]
                processes.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, cwd=ROOT))
        stop = threading.Event()
        readers = [Reader(url, f"w{number}", stop) for number in range(2)]
        for reader in readers:
            reader.start()
        paused = collected = 0
        try:
            _wait(lambda: all(os.path.getsize(f"{logs}/{number}") for number in range(writers)))
            while paused < count:
                for process in processes:
                    time.sleep(chance.random() * 0.05)
                    process.send_signal(signal.SIGSTOP)
                    paused += 1
                time.sleep(HORIZON + 0.2)
                collected += len(collect(store, older=HORIZON).removed)
                for number in range(2):  # Retention beside the readers.
                    retention.apply(store, f"w{number}", keep.parse("last=2"))
                for process in processes:
                    process.send_signal(signal.SIGCONT)
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
                assert process.stdin
                process.stdin.close()
            codes = [process.wait(timeout=120) for process in processes]
            stop.set()
            for reader in readers:
                reader.join(timeout=120)
        told = [
            json.loads(line) for number in range(writers) for line in Path(logs, str(number)).read_text().splitlines()
        ]
    time.sleep(HORIZON + 0.2)
    collected += len(collect(store, older=HORIZON).removed)
    found = check(Store(store.place, timeout=60), read_data=True)
    aborted = sum(times for _, _, times in told)
    living = {each.manifest.id for each in store.checkpoints()}
    deleted = {layout.identifier(entry.key) for entry in store.listing(layout.TOMBSTONES)}
    lost = [identifier for identifier, _, _ in told if identifier not in living | deleted]
    reads = sum((reader.counts for reader in readers), Counter[str]())
    wrong = {key: value for key, value in reads.items() if key.startswith("WRONG")}
    well = not (found.damage or lost or wrong or any(codes)) and found.checkpoints == len(living)
    figures = (
        f"{paused} pauses of {writers} writers: {len(told)} commits told, {aborted} aborted and started over, {collected} "
        f"uploads collected, {len(lost)} lost, {len(found.damage)} objects wrong of {found.checkpoints} checkpoints; readers "
        f"beside {len(deleted)} deletes: {reads['whole']} whole, {reads['not found']} not found, {sum(wrong.values())} wrong"
    )
    return "\n  ".join([figures, *map(str, found.damage), *wrong, *lost]), well


def victim(url: str, what: str, seed: int) -> None:
    """One operation, on a word from standard input; prints when it is ready and when it is done."""
    store = open_store(url)
    store.prepare()
    found = store.checkpoints()
    print("ready", flush=True)
    sys.stdin.readline()
    if what == "delete":
        for each in random.Random(seed).sample(found, 2):
            removal.delete(store, each)
    elif what == "gc":
        collect(store, older=EVERYTHING)
    else:
        retention.apply(store, "j", keep.parse("last=3"))
    print("done", flush=True)


def kills(url: str, count: int, seed: int) -> tuple[str, bool]:
    """`count` kills, and the line of figures with whether all was well."""
    chance = random.Random(seed)
    store = open_store(url)
    cut, bad, took = Counter[str](), [], {"delete": 0.05, "gc": 0.05, "retention": 0.1}
    for number in range(count):
        what = ("delete", "gc", "retention")[number % 3]
        for step in range(6):
            commit(store, f"j/{step}", files(), job="j")
        for _ in range(4):
            upload(store, files(), new_id())
        time.sleep(0.01)
        before = {each.manifest.id for each in store.checkpoints()}
        command = [sys.executable, "-m", "tests.campaigns.gc", "--store", url, "--seed", str(number), "--victim", what]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdin and process.stdout
        ready = process.stdout.readline()
        assert ready == "ready\n", (number, ready, process.wait())
        started = time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(chance.random() * took[what])
        process.kill()
        done = "done" in process.stdout.read()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        if done:  # Too late: it takes less than that.
            took[what] = max(0.005, 0.8 * (time.monotonic() - started))
        else:
            took[what] *= 1.1
            cut[what] += 1
        collect(store, older=EVERYTHING)
        found = check(Store(store.place, timeout=60), read_data=True)
        after = {each.manifest.id for each in store.checkpoints()}
        deleted = {layout.identifier(entry.key) for entry in store.listing(layout.TOMBSTONES)}
        again = collect(store, older=EVERYTHING)
        if (
            found.damage
            or found.notes
            or again.removed
            or before - after - deleted
            or (what == "gc" and before != after)
        ):
            bad.append(f"{what} {number}: {found.damage} {found.notes} {again.removed} {before - after - deleted}")
    done = ", ".join(f"{cut[what]} of {what}" for what in took)
    figures = f"{count} kills ({done} in the middle): after one gc {count - len(bad)} of {count} stores sound"
    return "\n  ".join([figures, *bad]), not bad


def _wait(condition: object, deadline: float = 120) -> None:
    assert callable(condition)
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "no writer wrote anything"
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="pauses")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", help="default: a temporary folder")
    parser.add_argument("--write", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--victim", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.store, arguments.write)
        return 0
    if arguments.victim:
        victim(arguments.store, arguments.victim, arguments.seed)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.store or folder
        results = [
            pauses(f"{base}/pauses", arguments.count, arguments.seed),
            kills(f"{base}/kills", arguments.kills, arguments.seed),
        ]
    for text, _ in results:
        print(text)
    return 0 if all(well for _, well in results) else 1


if __name__ == "__main__":
    sys.exit(main())
