"""One suite for every place that can hold a store."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import StoreUnsupported
from launcher.transfer.bulk import Wanted, download
from launcher.transfer.digest import of_bytes
from launcher.transfer.generic import GenericStore
from launcher.transfer.local import LocalStore
from launcher.transfer.object_store import Exists, Missing, ObjectStore, Ours, Theirs, create
from launcher.transfer.places import open_place
from tests.support import clouds
from tests.support.s3_server import S3Server

CLOUDS = ["s3", "gcs", *(["azure"] if clouds.azurite_installed() else [])]


@pytest.fixture(scope="module")
def azure() -> Iterator[tuple[str, dict[str, Any]]]:
    with clouds.azure() as given:
        yield given


@pytest.fixture(params=["local", "memory", *CLOUDS])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    if request.param == "local":
        yield LocalStore(str(tmp_path / "store"))
    elif request.param == "memory":
        yield GenericStore(f"memory://{tmp_path.name}")
    elif request.param == "gcs":
        with clouds.gcs(request.getfixturevalue("s3_server")) as (url, options):
            yield open_place(f"{url}/a/b", timeout=10, environ={}, options=options)
    elif request.param == "azure":
        url, options = request.getfixturevalue("azure")
        yield open_place(f"{url}/{tmp_path.name}", timeout=10, environ={}, options=options)
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield open_place(f"s3://{server.new_bucket()}/a/b", timeout=10, environ=os.environ)


KEYS = ["a.json", "names/ft_01!checkpoint-2/v00000001.json", "checkpoints/x/mit leer é 漢@=+.txt", "x/a#b%20c&.bin"]


def test_a_created_object_is_read_back_and_cannot_be_created_again(place: ObjectStore) -> None:
    for key in KEYS:
        place.create_once(key, b"first")
        assert place.get(key) == b"first"
        with pytest.raises(Exists):
            place.create_once(key, b"second")
        assert create(place, key, b"first", timeout=5) == Ours(fresh=False)
        assert create(place, key, b"second", timeout=5) == Theirs(b"first")
    assert [entry.key for entry in place.list("")] == sorted(KEYS)
    assert [entry.size for entry in place.list("names/")] == [5]
    assert list(place.leftovers()) == [], "nothing that a writer left"


# Not fsspec's memory, which looks and then writes: among threads its exclusive create is none.
@pytest.mark.parametrize("place", ["local", *CLOUDS], indirect=True)
def test_one_of_16_racing_writers_wins_each_of_50_keys(place: ObjectStore) -> None:
    wins: dict[str, list[int]] = {f"race/{number}": [] for number in range(50)}
    barrier = threading.Barrier(16)

    def writer(me: int) -> None:
        barrier.wait()
        for key in wins:
            if isinstance(create(place, key, f"writer {me}".encode(), timeout=20), Ours):
                wins[key].append(me)

    threads = [threading.Thread(target=writer, args=(me,)) for me in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(winners) == 1 for winners in wins.values()), wins
    assert all(place.get(key) == f"writer {winners[0]}".encode() for key, winners in wins.items())


def test_files_go_up_and_down_with_the_digest_of_their_bytes(place: ObjectStore, tmp_path: Path) -> None:
    for size in (0, 1, 100_000, 8 << 20, (20 << 20) + 3):
        data = os.urandom(size)
        (tmp_path / "up").write_bytes(data)
        moved: list[int] = []
        assert place.upload(str(tmp_path / "up"), "d/file.bin", moved.append).digest == of_bytes(data)
        assert sum(moved) == size
        place.settle("d/")
        target = tmp_path / f"down-{size}"
        wanted = Wanted("d/file.bin", size, str(target))
        (down,) = download(place, [wanted], threads=4, timeout=20, on_bytes=moved.append)
        assert (down.size, down.digest) == (size, of_bytes(data))
        assert target.read_bytes() == data
        again = dataclasses.replace(wanted, digest=down.digest, blocks=down.blocks)
        with open(target, "r+b") as file:
            file.write(b"?" if size else b"")
        assert download(place, [again], threads=4, timeout=20, on_bytes=moved.append) == [down]
        assert target.read_bytes() == data
        assert place.read("d/file.bin", 5, 10) == data[5:15]
        place.delete(["d/never-was", "d/file.bin", "d/nor-this"])
        with pytest.raises(Missing):
            place.get("d/file.bin")
        assert list(place.list("d/")) == []


def test_a_copy_inside_the_place_has_the_same_bytes_and_a_life_of_its_own(place: ObjectStore, tmp_path: Path) -> None:
    for size in (0, 100_000, (20 << 20) + 3):
        data = os.urandom(size)
        (tmp_path / "up").write_bytes(data)
        place.upload(str(tmp_path / "up"), "first/a file.bin", lambda count: None)
        for _ in range(2):  # The second time over what a crash in the middle may have left.
            place.copy("first/a file.bin", "second/deep/file.bin")
        place.settle("second/")
        assert [(each.key, each.size) for each in place.list("second/")] == [("second/deep/file.bin", size)]
        place.delete(["first/a file.bin"])
        assert place.read("second/deep/file.bin", 0, size + 1) == data
    with pytest.raises(Missing):
        place.copy("never/was", "second/other")
    assert [each.key for each in place.list("second/")] == ["second/deep/file.bin"]


def test_the_time_of_an_object_is_the_places_own(place: ObjectStore) -> None:
    """Ages are differences of these times: they never go back, and are known."""
    place.put("one", b"x")
    place.put("two", b"x")
    times = {entry.key: entry.modified for entry in place.list("")}
    assert 0 < times["one"] <= times["two"]


def test_listing_goes_on_after_a_key(place: ObjectStore) -> None:
    for number in range(30):
        place.put(f"m/{number:03d}.json", b"x")
    assert [entry.key for entry in place.list("m/", after="m/026.json")] == ["m/027.json", "m/028.json", "m/029.json"]


def test_a_place_that_overwrites_is_refused_as_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = GenericStore("memory://careless")
    store.prove_exclusive()
    monkeypatch.setattr(store, "create_once", store.put)
    with pytest.raises(StoreUnsupported, match="overwrote"):
        store.prove_exclusive()
