"""Transfers under every fault at once (a slice of tests/campaigns/transfers.py), and onto a disk that becomes full."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import push
from launcher.errors import NoSpace
from launcher.inputs.cache import NodeCache, changes
from launcher.store.store import Store
from launcher.transfer.bulk import Wanted, download
from launcher.transfer.digest import BLOCK
from launcher.transfer.local import LocalStore
from launcher.transfer.places import open_place
from tests.campaigns.transfers import campaign
from tests.support.cli import ROOT
from tests.support.s3_server import S3Server


def test_no_wrong_byte_is_accepted_and_no_transfer_fails(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)  # and back to what it was, afterwards
    print(campaign(s3_server, tmp_path, 30, 3, stall=4, workers=8))


def test_the_memory_of_a_download_is_bounded(s3_server: S3Server, tmp_path: Path) -> None:
    """Peak resident memory of a process that downloads 320 MiB and 200 small files with 64 requests at once."""
    source = tmp_path / "model"
    source.mkdir()
    with open(source / "large", "wb") as file:
        file.truncate(20 * BLOCK)
    for number in range(200):
        (source / f"small-{number}").write_bytes(os.urandom(64 << 10))
    code = (
        "import os, sys\nfrom launcher.transfer.places import open_place\nfrom launcher.transfer.bulk import Wanted, download\n"
        "place = open_place(sys.argv[1], timeout=60, environ=os.environ)\n"
        "names = [(each.name, each.stat().st_size) for each in os.scandir(sys.argv[2])]\n"
        "if sys.argv[3] == 'up':\n    [place.upload(f'{sys.argv[2]}/{name}', name, print) for name, size in names]\n"
        "else:\n    wanted = [Wanted(name, size, f'{sys.argv[3]}/{name}') for name, size in names]\n"
        "    download(place, wanted, threads=64, timeout=60, on_bytes=lambda count: None)\n"
        "    print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    (tmp_path / "down").mkdir()
    url = f"s3://{s3_server.new_bucket()}/store"
    for way in ("up", str(tmp_path / "down")):
        command = [sys.executable, "-c", code, url, str(source), way]
        env = os.environ | s3_server.env()
        done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True, timeout=240)
    print(f"peak: {int(done.stdout) >> 10} MiB")
    assert int(done.stdout) >> 10 <= 128


def test_every_file_is_synced_after_its_last_byte_and_read_only_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = LocalStore(str(tmp_path / "store"))
    sizes = {f"f{number:03d}": 1000 + number for number in range(300)} | {"empty": 0, "large": 2 * BLOCK + 1}
    for name, size in sizes.items():
        (tmp_path / "source").write_bytes(os.urandom(size))
        place.upload(str(tmp_path / "source"), name, lambda count: None)
    synced: dict[int, tuple[int, int]] = {}
    sync = os.fsync

    def watched(fd: int) -> None:
        sync(fd)
        status = os.fstat(fd)
        synced[status.st_ino] = status.st_mtime_ns, status.st_mode & 0o777

    monkeypatch.setattr(os, "fsync", watched)
    (tmp_path / "down").mkdir()
    wanted = [Wanted(name, size, str(tmp_path / "down" / name)) for name, size in sizes.items()]
    download(place, wanted, threads=8, timeout=20, on_bytes=lambda count: None)
    for each in wanted:
        status = os.stat(each.destination)
        assert synced[status.st_ino] == (status.st_mtime_ns, 0o644), "written to or closed before its sync"
        assert status.st_mode & 0o777 == 0o444 and status.st_size == each.size
    print(f"{len(synced)} files, each synced before it was made read-only")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("kind", ["local", "s3"])
@pytest.mark.parametrize("length", [1 << 20, BLOCK + 5])
def test_a_disk_that_becomes_full_ends_it_at_once_and_what_came_is_kept(
    request: pytest.FixtureRequest,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    length: int,
) -> None:
    """Somebody else fills the disk when 8 MiB have come. Nothing is mounted; with space again, it goes on."""
    url = str(tmp_path / "store")
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.new_bucket()}/store"
    store = Store(open_place(url, timeout=60, environ=os.environ), timeout=60)
    (tmp_path / "model").mkdir()
    for number in range((32 << 20) // length):
        (tmp_path / "model" / f"part-{number}").write_bytes(os.urandom(length))
    pushed = push.push(store, "base", str(tmp_path / "model"), threads=2, force=True, emit=lambda event: None).manifest
    came = 0
    others = small_disk / "others"

    def fill(count: int) -> None:
        nonlocal came
        came += count
        if came >= 8 << 20 and not others.exists():
            with open(others, "wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()

    cache = NodeCache(str(small_disk / "cache"), threads=1)
    started = time.monotonic()
    with pytest.raises(NoSpace, match="LAUNCHER_CACHE_DIR"):
        cache.fetch(store, pushed, fill)
    print(f"refused after {time.monotonic() - started:.1f} s, of 60 s in which a failing network is tried again")
    assert not cache.entry(pushed.id).exists() and cache.entries() == []
    others.unlink()
    path, lease = cache.fetch(store, pushed, lambda count: None)
    assert changes(str(path), pushed) == []
    lease.release()
