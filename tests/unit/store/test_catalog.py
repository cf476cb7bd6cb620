"""The catalog says what is in the store now, whatever of it is old, lost or damaged, and however many changes it missed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoint.manifest import Facts
from launcher.errors import AccessDenied
from launcher.ids import first_id, new_id
from launcher.store import catalog, gc, layout, removal, summary
from launcher.store.store import Store
from launcher.transfer.object_store import ObjectStore
from tests.support.commits import commit, manifest, open_store, upload


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{new_id()}"
    yield open_store(url, index=str(tmp_path / "a" / "manifests"))


def node(store: Store, tmp_path: Path, name: str) -> Store:
    """Another node of the same store."""
    return Store(store.place, timeout=60, threads=2, index=str(tmp_path / name / "manifests"))


def truth(store: Store) -> list[tuple[str, int | None]]:
    return [(each.manifest.id, each.version) for each in store.checkpoints()]


def listed(store: Store) -> list[tuple[str, int | None]]:
    return [(each.id, each.version) for each in catalog.refresh(store).summaries()]


def remove_all(store: Store, prefix: str) -> None:
    store.place.delete([entry.key for entry in store.listing(prefix)])


def test_a_summary_says_what_the_manifest_says(store: Store) -> None:
    parents = (new_id(), new_id())
    made = commit(store, "j/a", {"x": b"12345"}, job="j", facts=Facts(step=7), parents=parents)
    (found,) = catalog.refresh(store).summaries()
    assert found.parents == parents
    assert found == summary.of_manifest(made.manifest, 1)
    assert (found.name, found.version, found.size, found.step, found.job) == ("j/a", 1, 5, 7, "j")


@pytest.mark.parametrize("lost", ["nothing", "changes", "segments", "all"])
def test_commits_and_deletes_are_seen_by_every_node(store: Store, tmp_path: Path, lost: str) -> None:
    other = node(store, tmp_path, "b")
    made = [commit(store, f"n{number % 3}", {"x": b"%d" % number}) for number in range(6)]
    assert listed(store) == listed(other) == truth(store)
    if lost != "nothing":
        remove_all(store, {"changes": layout.CHANGES, "segments": layout.SEGMENTS, "all": "catalog/"}[lost])
    removal.delete(other, made[0])
    made.append(commit(other, "n0", {"x": b"more"}))
    assert len(truth(store)) == 6
    assert listed(store) == listed(other) == listed(node(store, tmp_path, "c")) == truth(store)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{}\n", "cut", "flipped", "missing"])
def test_a_damaged_copy_is_made_again(store: Store, tmp_path: Path, damage: bytes | str) -> None:
    for number in range(3):
        commit(store, "n", {"x": b"%d" % number})
    assert listed(store) == truth(store)
    (copy,) = (tmp_path / "a" / "catalog").iterdir()
    good = copy.read_bytes()
    if damage == "missing":
        copy.unlink()
    elif isinstance(damage, bytes):
        copy.write_bytes(damage)
    else:
        copy.write_bytes(good[:-30] if damage == "cut" else good.replace(b'"n",2', b'"n",9'))
    assert listed(store) == truth(store)
    assert copy.read_bytes() == good


def test_a_damaged_segment_is_passed_over(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_COMPACT_FROM", 2)
    for number in range(9):
        commit(store, f"n{number}", {"x": b"%d" % number})
        listed(node(store, tmp_path, "writer"))
    segments = [entry.key for entry in store.listing(layout.SEGMENTS)]
    assert len(segments) == 2, "the newest, and the one before for who reads it now"
    for damage in (b"", store.get(segments[1])[:-5], b"x" * 50):
        store.place.put(segments[1], damage)
        assert listed(node(store, tmp_path, new_id())) == truth(store)
    store.place.delete(segments)
    assert listed(node(store, tmp_path, "last")) == truth(store)


class _NoCatalog:
    """A place whose rules let nobody write below catalog/."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place

    def put(self, key: str, body: bytes) -> None:
        if key.startswith("catalog/"):
            raise AccessDenied(what=key, cause="a rule of the test")
        self._place.put(key, body)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)


def test_who_may_not_write_the_catalog_commits_and_lists(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_COMPACT_FROM", 2)
    for number in range(5):
        commit(store, "n", {"x": b"%d" % number})
    limited = Store(_NoCatalog(store.place), timeout=1, threads=2, index=str(tmp_path / "limited" / "manifests"))
    commit(limited, "n", {"x": b"another"})
    assert listed(limited) == truth(store) == listed(store)
    assert len(listed(limited)) == 6


def test_a_copy_of_a_store_that_was_replaced_is_not_used(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), index=str(tmp_path / "a" / "manifests"))
    commit(store, "old", {"x": b"1"})
    assert len(listed(store)) == 1
    (tmp_path / "store").rename(tmp_path / "moved")
    again = open_store(str(tmp_path / "store"), index=str(tmp_path / "a" / "manifests"))
    assert listed(again) == []
    commit(again, "new", {"x": b"2"})
    assert [each.name for each in catalog.refresh(again).summaries()] == ["new"]


def old_commit(store: Store, name: str, days: float) -> str:
    """A checkpoint whose upload began so many days ago."""
    import time

    identifier = first_id(time.time() - days * 86400)[:-12] + new_id()[-12:]
    store.commit(manifest(name, upload(store, {"x": name.encode()}, identifier), identifier))
    return identifier


def test_what_is_older_than_the_margin(store: Store, tmp_path: Path) -> None:
    first = old_commit(store, "first", 30)
    old_commit(store, "second", 20)
    assert listed(store) == truth(store)
    # Uploads that began long ago and are committed now, and deletes of what is long in the copy.
    late = old_commit(store, "late", 25)
    removal.delete(node(store, tmp_path, "b"), store.resolve(first))
    assert listed(store) == listed(node(store, tmp_path, "c")) == truth(store)
    removal.delete(store, store.resolve(late))
    assert listed(store) == truth(store) and len(truth(store)) == 1


def test_a_change_that_was_written_late_brings_nothing_back(store: Store) -> None:
    """A writer stands still between its commit and its change, and somebody deletes the checkpoint meanwhile."""
    old = old_commit(store, "n", 30)
    assert listed(store) == truth(store)
    found = store.resolve("n")
    removal.delete(store, found)
    for key in [entry.key for entry in store.listing(layout.CHANGES)]:
        if key.endswith("-"):
            assert listed(store) == []
            store.place.delete([key])  # Beyond the margin nobody sees it any more.
    catalog.committed(store, found.manifest, 1)
    assert listed(store) == truth(store) == []
    assert old == found.manifest.id


def test_a_checkpoint_that_is_named_late_has_its_version(store: Store, tmp_path: Path) -> None:
    """Its writer died before the name, long ago; gc names it when it is older than the margin."""
    made = old_commit(store, "n", 30)
    number = layout.version("n", 1)
    body = store.get(number)
    store.place.delete([number, *(entry.key for entry in store.listing(layout.CHANGES))])
    assert listed(node(store, tmp_path, "early")) == [(made, None)] == truth(node(store, tmp_path, "x"))
    old_commit(store, "other", 20)
    early = node(store, tmp_path, "early")
    assert listed(early) == truth(node(store, tmp_path, "y"))
    assert catalog.refresh(early).until > 0, "what was before is older than the margin now"
    store.place.put(number, body)
    gc.collect(store, older=1e9)
    assert listed(early) == truth(node(store, tmp_path, "z")) and (made, 1) in listed(early)


def test_gc_writes_down_what_was_never_told(store: Store, tmp_path: Path) -> None:
    """By a writer whose clock is wrong by years, one that knows no catalog, and a delete by one."""
    ids = [old_commit(store, name, 30) for name in ("told", "untold", "deleted", "late")]
    lines = catalog.refresh(store)
    changes = {entry.key.split(".")[1]: entry.key for entry in store.listing(layout.CHANGES)}
    untold, late = (changes[ids[index].replace("-", "")] for index in (1, 3))
    remove_all(store, layout.CHANGES)
    for key in changes.values():
        if key not in (untold, late):
            store.place.put(key, b"")
    store.place.put(layout.CHANGES + "00000/" + "0" * 32 + "." + late.split(".", 1)[1], b"")
    tomb = ids[2]
    store.place.put(layout.tombstone(tomb), store.get(layout.manifest(tomb)))
    store.place.delete([layout.manifest(tomb)])
    gc.collect(store, older=1e9)
    there, gone = summary.read_changes(entry for entry in store.listing(layout.CHANGES) if catalog._in_time(entry))
    assert there.keys() == set(ids) and gone == {tomb}
    assert len(lines.lines) == 4 and listed(node(store, tmp_path, "b")) == truth(store)
    before = len(store.listing(layout.CHANGES))
    gc.collect(store, older=1e9)
    assert len(store.listing(layout.CHANGES)) == before, "what is written down is not written again"


@pytest.mark.parametrize("name", ["n", "ñandú/ß" * 20, "模型" * 60, "a" * 200, "x y+z=@.-_"])
def test_facts_that_fit_a_key_and_those_that_do_not(store: Store, name: str) -> None:
    made = commit(store, name, {"x": b"1"}, job=name)
    (key,) = (entry.key for entry in store.listing(layout.CHANGES))
    assert len(os.path.basename(key).encode()) <= 255
    assert catalog.refresh(store).summaries() == [summary.of_manifest(made.manifest, 1)]


def test_a_job_is_found_among_names_that_begin_like_it(store: Store) -> None:
    for name, job in (("ft", "ft"), ("ft/a", "ft"), ("ft-2/a", "ft-2"), ("ft2", "ft2"), ("f", "f"), ("ft!", "")):
        if "!" not in name:
            commit(store, name, {"x": name.encode()}, job=job)
    assert [each.manifest.name for each in store.of_job("ft")] == ["ft", "ft/a"]
    assert [each.manifest.name for each in store.of_job("ft-2")] == ["ft-2/a"]
    found = store.of_job("f")[0].manifest
    assert store.resolve(found.id[:23]).manifest == found
