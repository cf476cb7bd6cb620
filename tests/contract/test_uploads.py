"""Uploads to a real S3 server: checked by it, gone on with after a crash, bounded in memory, refused at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.errors import AccessDenied
from launcher.store.gc import collect
from launcher.store.store import Store
from launcher.transfer import multipart
from launcher.transfer.digest import BLOCK, of_file
from launcher.transfer.multipart import Memory
from launcher.transfer.object_store import ObjectStore, Unfinished
from launcher.transfer.places import open_place
from launcher.transfer.s3 import Uploads
from launcher.transfer.sigv4 import Keys, signed
from tests.support.cli import ROOT
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import REGION, S3Server

MIB = 1 << 20
_UPLOAD = """
import os, sys
from launcher.transfer.places import open_place
place = open_place(sys.argv[1], timeout=120, environ=os.environ)
print(place.upload(sys.argv[2], sys.argv[3], lambda count: None).digest, flush=True)
"""
Open = Callable[[float], ObjectStore]


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def url(s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (s3_server.env() | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.new_bucket()}/in here/store"


@pytest.fixture
def place(url: str) -> ObjectStore:
    return open_place(url, timeout=60, environ=os.environ)


def file_of(folder: Path, size: int) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(os.urandom(size))
    return path


def stored(place: ObjectStore, key: str, size: int) -> bytes:
    found = bytearray()
    place.stream(key, 0, size, found.extend)
    return bytes(found)


def test_the_signature_is_that_of_amazons_own_example() -> None:
    headers = signed(
        "GET",
        "examplebucket.s3.amazonaws.com",
        "/test.txt",
        {},
        {"Range": "bytes=0-9"},
        keys=Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        region="us-east-1",
        payload="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        now=1369353600,
    )
    assert headers["authorization"].endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


@pytest.mark.parametrize("size", [1000, 2 * MIB, BLOCK + 5])
@pytest.mark.parametrize("fault", ["flip-upload", "cut-upload", "503*2", "500-after", "cut-after", "429:1", "close"])
def test_the_server_has_the_bytes_of_the_digest_after_every_fault(
    place: ObjectStore, proxy: FaultProxy, tmp_path: Path, size: int, fault: str
) -> None:
    """An object by one request of the engine, by one of ours, in parts: the server refuses the flipped ones."""
    source = file_of(tmp_path, size)
    rule = proxy.script("PUT", "", fault)
    counted: list[int] = []
    moved = place.upload(str(source), "k/model é.bin", counted.append)
    assert rule.seen[0] == fault.partition("*")[0]
    assert moved.digest == of_file(source)
    assert sum(counted) == size
    assert stored(place, "k/model é.bin", size) == source.read_bytes()
    assert list(place.unfinished("")) == []


@pytest.mark.parametrize("size", [1000, 2 * MIB, BLOCK + 5])
def test_a_server_without_these_checksums_checks_the_md5(
    place: ObjectStore, proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    source = file_of(tmp_path, size)
    proxy.script("POST", "uploads=", "501")
    rule = proxy.on("PUT", "", "flip-upload" if size > BLOCK else "501")
    moved = place.upload(str(source), "k", lambda count: None)
    assert len(rule.seen) == (3 if size > BLOCK else 2)
    assert moved.digest == of_file(source)
    assert stored(place, "k", size) == source.read_bytes()


@pytest.mark.parametrize("fault", ["500-after", "cut-after", "html200", "flip-upload@70%"])
def test_the_last_request_is_settled_where_it_or_its_answer_is_lost_or_damaged(
    place: ObjectStore, proxy: FaultProxy, tmp_path: Path, fault: str
) -> None:
    source = file_of(tmp_path, BLOCK + 1)
    rule = proxy.script("POST", "uploadId=", fault)
    place.upload(str(source), "k", lambda count: None)
    assert len(rule.seen) >= 2
    assert stored(place, "k", BLOCK + 1) == source.read_bytes()


def test_after_a_kill_only_what_is_missing_is_sent(
    url: str, place: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = file_of(tmp_path, 5 * BLOCK + 7)
    stuck = proxy.script("PUT", "partNumber=4&", "no-answer:600*")
    process = subprocess.Popen(
        [sys.executable, "-c", _UPLOAD, url, str(source), "k"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        stuck.wait(1, deadline=120)
        others = [f"partNumber={number}&" for number in (1, 2, 3, 5, 6)]
        deadline = 1200
        while len(arrived(place)) < len(others) and deadline:
            deadline -= 1
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    proxy.rules.clear()
    proxy.passed.clear()
    counted: list[int] = []
    assert place.upload(str(source), "k", counted.append).digest == of_file(source)
    again = [target for method, target in proxy.passed if method == "PUT"]
    print(f"sent again: {len(again)} of 6 parts")
    assert len(again) == 1 and "partNumber=4&" in again[0]
    assert sum(counted) == 5 * BLOCK + 7
    assert stored(place, "k", 5 * BLOCK + 7) == source.read_bytes()


def arrived(place: ObjectStore) -> dict[int, object]:
    (unfinished,) = place.unfinished("")
    return place._own_uploads().parts(unfinished.key, unfinished.id)  # type: ignore[attr-defined,no-any-return]


def test_what_changed_since_the_earlier_try_is_sent_again(
    place: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = file_of(tmp_path, 3 * BLOCK)
    proxy.script("POST", "uploadId=", "403*")
    with pytest.raises(AccessDenied):
        place.upload(str(source), "k", lambda count: None)
    with open(source, "r+b") as file:
        file.seek(BLOCK + 3)
        file.write(b"other")
    proxy.rules.clear()
    proxy.passed.clear()
    place.upload(str(source), "k", lambda count: None)
    assert len([target for method, target in proxy.passed if method == "PUT"]) == 1
    assert stored(place, "k", 3 * BLOCK) == source.read_bytes()


def test_an_abandoned_upload_is_listed_and_aborted_and_its_writer_begins_anew(
    place: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = file_of(tmp_path, 2 * BLOCK)
    proxy.script("PUT", "partNumber=2&", "403*")
    with pytest.raises(AccessDenied):
        place.upload(str(source), "a/k", lambda count: None)
    assert list(place.unfinished("b/")) == []
    (found,) = place.unfinished("a/")
    assert found.key == "a/k" and found.began > 1.7e9
    proxy.rules.clear()

    once = threading.Lock()  # Several threads send parts.

    def abort_in_the_middle(count: int) -> None:
        for each in place.unfinished("a/") if once.acquire(blocking=False) else ():
            aborted.append(each)
            place.abort(each)
            place.abort(each)

    aborted: list[Unfinished] = []
    place.upload(str(source), "a/k", abort_in_the_middle)
    assert aborted == [found]
    assert stored(place, "a/k", 2 * BLOCK) == source.read_bytes()
    assert list(place.unfinished("")) == []


def test_gc_aborts_what_is_older_than_its_horizon(place: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.script("PUT", "partNumber=2&", "403*")
    with pytest.raises(AccessDenied):
        place.upload(str(file_of(tmp_path, BLOCK + 1)), "checkpoints/x/k", lambda count: None)
    store = Store(place, timeout=60)
    young = collect(store, older=3600)
    assert [each.kind for each in young.young] == ["parts"] and young.removed == young.notes == ()
    while not collect(store, older=0).removed:
        time.sleep(0.5)  # The server tells whole seconds.
    assert list(place.unfinished("")) == []


def test_what_will_not_go_better_fails_at_once(place: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    source = file_of(tmp_path, BLOCK + 1)
    rule = proxy.script("*", "", "403*")
    with pytest.raises(AccessDenied, match="credentials"):
        place.upload(str(source), "k", lambda count: None)
    assert len(rule.seen) == 2  # the look for an earlier upload, and the beginning of one


def test_a_wait_that_the_server_asks_for_is_kept(place: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.script("PUT", "", "429:2")
    started = time.monotonic()
    place.upload(str(file_of(tmp_path, 2 * MIB)), "k", lambda count: None)
    assert time.monotonic() - started >= 2


def test_credentials_that_expire_in_the_middle_are_asked_for_again(
    s3_server: S3Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Every request is signed with the keys of its moment: three parts, one of them refused as expired."""
    bucket = s3_server.new_bucket()
    proxy.script("PUT", "partNumber=2&", "expired")
    asked: list[str] = []

    def keys() -> Keys:
        asked.append("keys")
        return Keys(s3_server.access_key, s3_server.secret_key)

    uploads = Uploads(f"{proxy.endpoint}/{bucket}", "", REGION, keys, timeout=60, stalled=30)
    source = file_of(tmp_path, 2 * BLOCK + 1)
    moved = multipart.upload(uploads, Memory(4 * BLOCK), str(source), 2 * BLOCK + 1, "k", lambda count: None)
    assert moved.digest == of_file(source)
    assert (
        len(asked) == 1 + 1 + 4 + 1
    )  # the look for an earlier upload, its beginning, three parts and one again, its end


def test_who_counts_the_bytes_can_end_it(place: ObjectStore, tmp_path: Path) -> None:
    def enough(count: int) -> None:
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        place.upload(str(file_of(tmp_path, 4 * BLOCK)), "k", enough)


def test_memory_is_bounded(s3_server: S3Server, url: str, tmp_path: Path) -> None:
    """Peak resident memory of a process that uploads 320 MiB, with 16 MiB parts and 128 MiB allowed."""
    source = tmp_path / "model.safetensors"
    with open(source, "wb") as file:
        file.truncate(20 * BLOCK)
    code = (
        "import os\nfrom launcher.transfer.places import open_place\n"
        f"place = open_place({url!r}, timeout=60, environ=os.environ, memory=128 << 20)\n"
        f"place.upload({str(source)!r}, 'k', lambda count: None)\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | s3_server.env(),
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    )
    print(f"peak: {int(done.stdout) >> 10} MiB")
    assert int(done.stdout) >> 10 <= 128
