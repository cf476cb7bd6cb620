"""gc: what a crash left goes, what lives stays, and who is only slow starts over."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import StoreUnsupported
from launcher.ids import new_id
from launcher.store import layout, protection, removal
from launcher.store.check import check
from launcher.store.gc import collect
from launcher.store.store import Aborted, Store
from launcher.transfer.object_store import Entry, Missing
from tests.support.commits import commit, manifest, open_store, upload


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    yield open_store(str(tmp_path / "store") if request.param == "local" else f"memory://{new_id()}")


def keys(store: Store, prefix: str) -> list[str]:
    return [entry.key for entry in store.listing(prefix)]


def test_files_without_a_manifest_go_when_they_are_old(store: Store) -> None:
    whole = commit(store, "n", {"x": b"1"})
    orphan = new_id()
    upload(store, {"a": b"123", "b/c": b"45"}, orphan)
    young = collect(store, older=3600)
    assert not young.removed and [(each.kind, each.what) for each in young.young] == [("upload", orphan)]
    time.sleep(0.01)
    seen = collect(store, older=0, dry_run=True)
    assert [(each.what, each.objects, each.size) for each in seen.removed] == [(orphan, 2, 5)] and seen.size == 5
    assert len(keys(store, layout.files(orphan))) == 2, "a dry run removes nothing"
    assert collect(store, older=0).size == 5
    assert keys(store, layout.FILES) == [layout.files(whole.manifest.id) + "x"]
    assert not collect(store, older=0).removed
    assert check(store, read_data=True).damage == ()


def test_a_slow_writer_finds_the_abort_and_starts_over(store: Store) -> None:
    slow = new_id()
    wanted = manifest("n", upload(store, {"x": b"1"}, slow), slow)
    time.sleep(0.01)
    collect(store, older=0)
    with pytest.raises(Aborted):
        store.commit(wanted)
    upload(store, {"x": b"1"}, slow)  # It was in the middle of its upload.
    with pytest.raises(Aborted):
        store.commit(wanted)
    assert store.checkpoints() == [] and keys(store, layout.FILES) == []
    assert commit(store, "n", {"x": b"1"}).version == 1


def test_a_writer_that_was_faster_keeps_its_checkpoint(store: Store) -> None:
    """gc has listed the files, then the writer commits, then gc decides."""
    made = commit(store, "n", {"x": b"1"})
    listing = store.listing
    store.listing = lambda prefix: [] if prefix == layout.MANIFESTS else listing(prefix)  # type: ignore[method-assign]
    time.sleep(0.01)
    assert not collect(store, older=0).removed
    del store.listing  # type: ignore[method-assign]
    assert store.resolve("n").manifest == made.manifest and not check(store, read_data=True).damage


@pytest.mark.parametrize("after", ["tombstone", "manifest", "files"])
def test_a_delete_that_was_cut_off_is_finished(store: Store, after: str) -> None:
    commit(store, "n", {"x": b"0"})
    doomed = commit(store, "n", {"x": b"1", "y": b"2"})
    protection.pin(store, doomed)
    identifier = doomed.manifest.id
    removal.delete(store, doomed)
    # Put back what would still be there.
    if after != "files":
        upload(store, {"x": b"1", "y": b"2"}, identifier)
    if after == "tombstone":
        from launcher.checkpoint.manifest import encode

        store.place.put(layout.manifest(identifier), encode(doomed.manifest))
    protection.pin(store, doomed)
    assert [each.kind for each in collect(store, older=3600).removed] == ["delete"], "whatever its age"
    assert keys(store, layout.PINS) == [] and len(keys(store, layout.FILES)) == 1
    with pytest.raises(Missing):
        store.manifest(identifier)
    assert check(store, read_data=True).damage == () and not collect(store, older=0).removed


def test_a_commit_without_a_name_gets_one(store: Store) -> None:
    made = commit(store, "n", {"x": b"0"})
    store.place.delete([layout.version("n", 1)])
    store = Store(store.place, timeout=60)
    time.sleep(0.01)
    assert [each.kind for each in collect(store, older=0).removed] == ["name"]
    assert store.resolve("n").version == 1 and store.resolve("n").manifest == made.manifest
    assert check(store, read_data=True).damage == () and not collect(store, older=0).removed


def test_temporary_objects_go_when_they_are_old(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    commit(store, "n", {"x": b"0"})
    left = tmp_path / "store/manifests/.tmp-1"
    left.write_bytes(b"123")
    store.place.put(f"{layout.CLOCK}{new_id()}", b"now")
    assert len(collect(store, older=3600).young) == 2
    os.utime(left, (1, 1))
    assert [(each.kind, each.size) for each in collect(store, older=3600).removed] == [("temporary", 3)]
    assert not left.exists()


def test_ages_are_by_the_stores_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T14: this machine's clock a day ahead or behind changes nothing."""
    store = open_store(str(tmp_path / "store"))
    store.prepare()
    upload(store, {"a": b"123"}, new_id())
    real = time.time
    for wrong in (-86400, -3600, 3600, 86400):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: real() + wrong)
        assert not collect(store, older=600).removed
    for entry in store.listing(layout.FILES):
        path = tmp_path / "store" / entry.key
        os.utime(path, (real() - 700, real() - 700))
    for wrong in (-86400, -3600, 3600, 86400):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: real() + wrong)
        assert len(collect(store, older=600, dry_run=True).removed) == 1


def test_a_store_that_tells_no_times_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.prepare()
    upload(store, {"a": b"123"}, new_id())
    listed = store.place.list
    monkeypatch.setattr(
        store.place, "list", lambda prefix, after="": (Entry(e.key, e.size, 0.0) for e in listed(prefix, after))
    )
    with pytest.raises(StoreUnsupported, match="when an object was written"):
        collect(store, older=0)


def test_strange_keys_are_never_taken_for_ids(store: Store) -> None:
    made = commit(store, "n", {"x": b"0"})
    for key in ("deleted/.json", "deleted/x.json", "deleted/a/b.json", "checkpoints/readme", "manifests/note.txt"):
        store.place.put(key, b"?")
    with pytest.raises(ValueError):
        removal.finish(store, "")
    time.sleep(0.01)
    assert not collect(store, older=0).removed
    assert store.resolve("n").manifest == made.manifest
    assert {"deleted/x.json", "checkpoints/readme", "manifests/note.txt"} <= {
        each.key for each in check(store, read_data=False).damage
    }
