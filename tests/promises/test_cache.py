"""The node cache: one download for all, resumed, verified, never evicted under a live job, under its limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import push
from launcher.errors import NoSpace
from launcher.inputs.cache import NodeCache, changes
from launcher.store.store import Checkpoint, Store
from launcher.transfer.digest import BLOCK
from launcher.transfer.local import LocalStore
from tests.campaigns import cache_model
from tests.campaigns.cache import campaign, make, start
from tests.conftest import REQUIRE_ALL
from tests.support.cli import Launcher


def nothing(count: int) -> None:
    """An OnBytes."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(LocalStore(str(tmp_path / "store")), timeout=20)


def pushed(store: Store, folder: Path, name: str, size: int) -> Checkpoint:
    (folder / name).mkdir()
    (folder / name / "data.bin").write_bytes(os.urandom(size))
    return push.push(store, name, str(folder / name), threads=2, force=False, emit=lambda event: None)


def test_eight_processes_that_ask_at_once_download_once(tmp_path: Path) -> None:
    store, checkpoint = make(tmp_path, 1)
    processes = [start(store, tmp_path / "cache", checkpoint.manifest.id) for _ in range(8)]
    moved = [int(process.communicate(timeout=120)[0]) for process in processes]
    print(f"8 processes, bytes moved by each: {moved}; the checkpoint has {checkpoint.manifest.size}")
    assert sorted(moved) == [0] * 7 + [checkpoint.manifest.size]


def test_a_killed_downloader_is_taken_over(tmp_path: Path) -> None:
    """A slice of tests/campaigns/cache.py."""
    line = campaign(tmp_path, 8, 2)
    print(line)
    assert line.startswith("8 kills")


def test_the_cache_is_what_a_model_of_it_says(tmp_path: Path) -> None:
    """A slice of tests/campaigns/cache_model.py."""
    line = cache_model.campaign(tmp_path, 60, 2)
    print(line)
    assert line.startswith("60 operations")


@pytest.mark.parametrize("lie", ["retval=0", "error=ENOSYS"])
def test_where_flock_lies_the_rename_decides_and_nothing_is_evicted(tmp_path: Path, lie: str) -> None:
    """flock that gives every lock to everybody, and one that the file system does not have, made by strace."""
    store, checkpoint = make(tmp_path, 1)
    identifier = checkpoint.manifest.id
    strace = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=flock", "-e", f"inject=flock:{lie}"]
    if not shutil.which("strace"):
        pytest.fail("strace is missing") if REQUIRE_ALL else pytest.skip("strace is missing")
    processes = [start(store, tmp_path / "cache", identifier, before=strace) for _ in range(4)]
    moved = [int(process.communicate(timeout=240)[0]) for process in processes]
    print(f"flock {lie}: 4 processes, bytes moved by each: {moved}")
    assert all(process.returncode == 0 for process in processes) and max(moved) == checkpoint.manifest.size
    cache = NodeCache(str(tmp_path / "cache"))
    assert changes(str(cache.entry(identifier)), checkpoint.manifest) == []
    assert list((tmp_path / "cache" / "partial").iterdir()) == []
    code = "import sys\nfrom launcher.inputs.cache import NodeCache\nprint(NodeCache(sys.argv[1]).prune(0))"
    said = subprocess.run([*strace, sys.executable, "-c", code, str(cache.folder)], capture_output=True, text=True)
    assert said.stdout == "[]\n", said.stderr
    (entry,) = cache.entries()
    assert cache.prune(0) == [entry]  # with locks again


def test_a_download_goes_on_with_the_blocks_that_are_right(store: Store, tmp_path: Path) -> None:
    manifest = pushed(store, tmp_path, "base", 5 * BLOCK + 7).manifest
    cache = NodeCache(str(tmp_path / "cache"), threads=1)

    class Stop(Exception):
        pass

    total = 0

    def until_three_blocks(count: int) -> None:
        nonlocal total
        total += count
        if total > 3 * BLOCK:
            raise Stop

    with pytest.raises(Stop):
        cache.fetch(store, manifest, until_three_blocks)
    partial = tmp_path / "cache" / "partial" / manifest.id / "data.bin"
    with open(partial, "r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"damage")
    read: list[tuple[int, int]] = []
    stream = store.place.stream
    store.place.stream = lambda key, start, length, sink: (  # type: ignore[method-assign]
        read.append((start, length)),
        stream(key, start, length, sink),
    )[1]
    path, lease = cache.fetch(store, manifest, nothing)
    lease.release()
    assert read == [(BLOCK, BLOCK), (3 * BLOCK, BLOCK), (4 * BLOCK, BLOCK), (5 * BLOCK, 7)]
    assert (path / "data.bin").read_bytes() == (tmp_path / "base" / "data.bin").read_bytes()


def test_the_least_recently_used_goes_first_and_never_what_is_held(store: Store, tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"), limit=3_000_000)
    manifests = [pushed(store, tmp_path, name, 1_000_000).manifest for name in "abcd"]
    leases = {}
    for manifest in manifests[:3]:
        _, leases[manifest.name] = cache.fetch(store, manifest, nothing)
        time.sleep(0.02)
    leases.pop("b").release()
    leases.pop("c").release()
    cache.fetch(store, manifests[1], nothing)[1].release()  # b is used again: c is the oldest that is free
    cache.fetch(store, manifests[3], nothing)[1].release()
    assert {each.about.name for each in cache.entries()} == {"a", "b", "d"}
    assert [each.about.name for each in cache.entries() if each.held] == ["a"]
    assert [each.about.name for each in cache.prune(0)] == ["b", "d"]
    leases.pop("a").release()
    assert [each.about.name for each in cache.prune(0.5)] == []
    assert [each.about.name for each in cache.prune(0)] == ["a"]
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_lease_dies_with_its_process_and_not_before(store: Store, tmp_path: Path) -> None:
    manifest = pushed(store, tmp_path, "base", 1000).manifest
    code = (
        "import sys, time\nfrom launcher.inputs.cache import NodeCache\nfrom launcher.store.store import Store\n"
        "from launcher.transfer.local import LocalStore\nstore = Store(LocalStore(sys.argv[1]), timeout=20)\n"
        "held = NodeCache(sys.argv[2]).fetch(store, store.manifest(sys.argv[3]), lambda count: None)\n"
        "print('held', flush=True)\ntime.sleep(300)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, store.url, str(tmp_path / "cache"), manifest.id], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        cache = NodeCache(str(tmp_path / "cache"))
        assert cache.prune(0) == []
    finally:
        holder.kill()
        holder.wait()
    assert len(cache.prune(0)) == 1


def test_what_cannot_fit_is_refused_before_a_byte_is_moved(store: Store, tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"))
    manifest = pushed(store, tmp_path, "small", 1000).manifest
    cache.fetch(store, manifest, nothing)[1].release()
    with pytest.raises(NoSpace, match="1048576"):
        cache.make_room(1 << 60, "checkpoint huge")


def test_the_command_line_lists_verifies_and_prunes(launcher: Launcher, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(name)
        launcher("checkpoint", "push", name, "--file", tmp_path / name)
        launcher("training", "run", "j", "-C", name, "--", "true")
    assert [(each["name"], each["size"], each["held"]) for each in launcher.json("cache", "list")] == [
        ("one", 3, False),
        ("two", 3, False),
    ]
    assert "one" in launcher("cache", "list") and "IN USE" in launcher("cache", "list")
    assert launcher("cache", "verify").count("whole") == 2
    damaged = next((launcher.home / "cache" / "checkpoints").glob("*/notes.txt"))
    damaged.chmod(0o644)
    damaged.write_text("???")
    assert "notes.txt has other content: removed" in launcher("cache", "verify", code=65)
    assert "Would remove 1 checkpoint(s)" in launcher("cache", "prune", "--all", "--dry-run")
    assert "Removed 1 checkpoint(s), 3 B." in launcher("cache", "prune", "--all")
    assert "The cache is empty" in launcher("cache", "list")
    assert "is no size" in launcher("cache", "prune", "--limit", "much", code=64)
    launcher.env["LAUNCHER_CACHE_LIMIT"] = "much"
    assert "LAUNCHER_CACHE_LIMIT" in launcher("cache", "list", code=78)
