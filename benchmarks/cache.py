"""How fast an input is there: a warm one, and one from a store on the same disk.

    python -m benchmarks.cache [--rounds 10] [--size 1024]

Warm: a checkpoint of 1,000 files and 100 GB (sparse) in the node cache, from the question for it to the end of the guard
program that mounts it (with `true` as the job). From a local store: reflinks on XFS and hard links on ext4, each in a loop
image, against a copy on the same file system, interleaved: placed with every file proven unchanged since this node stored it
(the usual case), and with the verification that reads every byte (what is not known here). `--size` in MiB, in files of 64
MiB; 0 leaves this part out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launcher import push
from launcher.inputs import share
from launcher.inputs.cache import NodeCache, fetch_files
from launcher.inputs.entries import About, remove
from launcher.inputs.protection import Protection, program
from launcher.store import stamps
from launcher.store.store import Store
from launcher.transfer.local import LocalStore, stamp
from tests.support.filesystems import mounted


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def warm(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name))
        store, manifest = _stored(folder, 1, 1)
        cache = NodeCache(str(folder / "cache"))

        def sparse(partial: Path) -> About:
            for number in range(1000):
                with open(partial / f"{number}", "wb") as file:
                    file.truncate(100_000_000)
            return About("base", "made here", ())

        cache._entries.make(manifest.id, sparse, lambda: None).release()
        target = folder / "input" / "base"
        target.mkdir(parents=True)

        def asked() -> None:
            path, lease = cache.fetch(store, manifest, lambda count: None)
            lease.release()
            mounts = ((str(path), str(target)),)
            protection = Protection(("bind", "userns"), str(target.parent), mounts, hide=(str(path.parent),))
            reader, writer = os.pipe()
            subprocess.run([*program(protection.plan(writer)), "true"], pass_fds=[writer], check=True)
            os.close(writer)
            os.close(reader)

        fetched = [
            seconds(lambda: cache.fetch(store, manifest, lambda count: None)[1].release()) for _ in range(rounds)
        ]
        whole = [seconds(asked) for _ in range(rounds)]
        bare = [seconds(lambda: subprocess.run([*program("{}")[:3], "-c", "pass"], check=True)) for _ in range(rounds)]
        _say("warm, 1,000 files, 100 GB: found in the cache", fetched)
        _say("warm: found, mounted read-only, job started", whole)
        _say("  of which a bare Python that does nothing", bare)
        remove(folder / "cache")


def local(rounds: int, size: int) -> None:
    for kind, way in (("xfs", "reflink"), ("ext4", "link")):
        with mounted(kind, size=(3 * size + 512) << 20) as disk:
            store, manifest = _stored(disk, max(size // 64, 1), 64)
            source = share.folder(store.place, manifest)
            assert source
            found: dict[str, list[float]] = {
                what: [] for what in ("copied", "shared, unchanged", "copied, verified", "shared, read and verified")
            }
            for number in range(rounds):
                target = disk / f"target-{number}"
                for what in found:
                    subprocess.run(["sync", "-f", disk], check=True)
                    target.mkdir()
                    found[what].append(seconds(lambda: _bring(store, manifest, source, target, what, way)))  # noqa: B023
                    remove(target)
            for what, times in found.items():
                _say(f"{way} on {kind}, {manifest.size >> 20} MiB: {what}", times)
            for one in ("copied", "copied, verified"):
                for other in ("shared, unchanged", "shared, read and verified"):
                    ratio = statistics.median(found[one]) / statistics.median(found[other])
                    print(f"{way} on {kind}: {other} is {ratio:.1f} times as fast as {one}")


def _bring(store: Store, manifest, source: Path, target: Path, what: str, way) -> None:  # type: ignore[no-untyped-def]
    if what == "copied, verified":  # as from any store: each block verified while it comes, and synced
        fetch_files(store, manifest, target, threads=4, on_bytes=lambda count: None)
    elif what == "copied":
        subprocess.run(["cp", "-r", "--reflink=never", f"{source}/.", target], check=True)
        subprocess.run(["sync", "-f", target], check=True)
    else:
        # A link changes the store's files' own times: in every round but the first their stamps are taken anew.
        known = {file.path: stamp((source / file.path).stat()) for file in manifest.files}
        known = stamps.known(store.index, manifest.id) if way == "reflink" else known
        unproven, _ = share.share(source, manifest, target, way, known)
        assert not unproven
        if what.endswith("verified"):
            share.verify(manifest.files, target, manifest.id, threads=4, on_bytes=lambda count: None)


def _stored(folder: Path, files: int, size: int):  # type: ignore[no-untyped-def]
    """A store in `folder` with a checkpoint of `files` files of `size` MiB."""
    model = folder / "model"
    model.mkdir()
    for number in range(files):
        with open(model / f"part-{number}", "wb") as file:
            for _ in range(size):
                file.write(os.urandom(1 << 20))
    store = Store(LocalStore(str(folder / "store")), timeout=60, index=str(folder / "index"))
    made = push.push(store, "base", str(model), threads=4, force=False, emit=lambda event: None)
    remove(model)
    return store, made.manifest


def _say(what: str, times: list[float]) -> None:
    ms = sorted(1000 * each for each in times)
    print(f"{what}: median {statistics.median(ms):.1f} ms (min {ms[0]:.1f}, max {ms[-1]:.1f}, {len(ms)} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, default=1024)
    given = parser.parse_args()
    warm(given.rounds)
    if given.size:
        local(given.rounds, given.size)


if __name__ == "__main__":
    main()
