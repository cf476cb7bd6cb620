"""From a store on the same disk a checkpoint is there without a byte read where nothing was written to it since; else it is read.

The figures are printed: bytes that the processes read (rchar of /proc/self/io), which no load of the machine changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import push
from launcher.errors import DigestMismatch
from launcher.inputs.cache import NodeCache, changes
from launcher.store import layout
from launcher.store.store import Store
from launcher.transfer.local import LocalStore
from tests.support.filesystems import KernelCannot, mounted

SIZE = 24 << 20


@pytest.fixture(params=["xfs", "ext4"])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    try:
        with mounted(request.param) as folder:
            yield folder
    except KernelCannot as reason:
        pytest.skip(str(reason))


@pytest.fixture
def store(disk: Path) -> Store:
    return Store(LocalStore(str(disk / "store")), timeout=60, index=str(disk / "cache" / "manifests"))


def stored(store: Store, disk: Path, name: str = "base") -> str:
    model = disk / f"model-{name}"
    model.mkdir()
    for number in range(2):
        (model / f"part-{number}").write_bytes(os.urandom(SIZE // 2))
    return push.push(store, name, str(model), threads=2, force=True, emit=lambda event: None).manifest.id


def read() -> int:
    """Bytes that this process has read until now."""
    return int(Path("/proc/self/io").read_text().partition("rchar: ")[2].split()[0])


def fetched(store: Store, disk: Path, identifier: str) -> tuple[Path, int]:
    """Where the checkpoint is in a new cache, and bytes read to bring it there."""
    manifest = store.manifest(identifier)
    before = read()
    path, lease = NodeCache(str(disk / f"cache-{os.urandom(4).hex()}"), threads=2).fetch(
        store, manifest, lambda count: None, lambda: True
    )
    lease.release()
    return path, read() - before


def test_what_was_stored_here_and_not_written_to_since_is_not_read_again(store: Store, disk: Path) -> None:
    identifier = stored(store, disk)
    path, count = fetched(store, disk, identifier)
    print(f"stored here, then shared: {count} of {SIZE} bytes read")
    assert count < SIZE / 100
    assert changes(str(path), store.manifest(identifier)) == []


def test_what_is_not_known_here_is_read_once(store: Store, disk: Path) -> None:
    identifier = stored(store, disk)
    stamps = disk / "cache" / "manifests" / f"{identifier}.stamps"
    stamps.unlink()
    counts = [fetched(store, disk, identifier)[1] for _ in range(2)]
    print(f"stored elsewhere, then shared twice: {counts[0]} and {counts[1]} of {SIZE} bytes read")
    assert counts[0] >= SIZE
    if disk_has_reflinks(disk):
        assert counts[1] < SIZE / 100
    assert stamps.exists()


@pytest.mark.parametrize("how", ["in place", "in place, its time put back", "another file of this name", "shorter"])
def test_a_file_that_was_written_to_is_read_and_refused(store: Store, disk: Path, how: str) -> None:
    identifier = stored(store, disk)
    file = disk / "store" / layout.files(identifier) / "part-1"
    before = file.stat()
    if how == "another file of this name":
        other = disk / "other"
        other.write_bytes(os.urandom(before.st_size))
        other.chmod(0o444)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(file)
    else:
        with open(file, "r+b") as opened:
            if how == "shorter":
                opened.truncate(before.st_size - 1)
            else:
                opened.seek(1000)
                byte = opened.read(1)
                opened.seek(1000)
                opened.write(bytes([byte[0] ^ 1]))
        if "put back" in how:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DigestMismatch, match="part-1"):
        fetched(store, disk, identifier)


def disk_has_reflinks(disk: Path) -> bool:
    return "xfs" in str(disk)
