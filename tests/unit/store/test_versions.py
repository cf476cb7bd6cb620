"""Versions: the same again makes none, deleted numbers stay taken, and one damaged object hides no other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import CheckpointNotFound, InvalidDataError, StoreError
from launcher.ids import new_id
from launcher.store import layout, removal
from launcher.store.check import check
from launcher.store.store import Store
from launcher.transfer.object_store import Missing
from tests.support.commits import commit, manifest, open_store, upload


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{new_id()}"
    yield open_store(url, index=str(tmp_path / "index"))


def test_the_same_again_makes_no_version_and_leaves_no_file(store: Store) -> None:
    first = commit(store, "j/a", {"x": b"1", "d/y": b"2"}, job="j")
    again = commit(store, "j/a", {"x": b"1", "d/y": b"2"}, job="j")
    assert again.repeated and again.manifest == first.manifest and again.version == 1
    assert len(store.listing(layout.FILES)) == 2
    assert commit(store, "j/a", {"x": b"1", "d/y": b"3"}, job="j").version == 2
    back = commit(store, "j/a", {"x": b"1", "d/y": b"2"}, job="j")
    assert back.version == 3 and not back.repeated, "only the newest version counts"


def test_another_job_or_another_mode_is_another_version(store: Store) -> None:
    commit(store, "j", {"x": b"1"}, job="j")
    assert commit(store, "j", {"x": b"1"}, job="j", run="run-2").version == 2
    assert commit(store, "p", {"x": b"1"}).version == 1
    assert commit(store, "p", {"x": b"1"}, parents=(new_id(),)).version == 2
    identifier = new_id()
    (file,) = upload(store, {"x": b"1"}, identifier)
    import msgspec

    changed = msgspec.structs.replace(file, mode=0o755)
    assert store.commit(manifest("j", (changed,), identifier, job="j", run="run-2")).version == 3


def test_a_commit_that_was_made_and_named_is_finished_once(store: Store) -> None:
    identifier = new_id()
    files = upload(store, {"x": b"1"}, identifier)
    wanted = manifest("n", files, identifier)
    assert [store.commit(wanted).version for _ in range(3)] == [1, 1, 1]
    # Between manifest and name, gc and the writer both name it: still once.
    store.place.delete([layout.version("n", 1)])
    body = store.get(layout.manifest(identifier))
    assert store.name(wanted, body, [], again=True) == 1
    assert store.name(wanted, body, [], again=False) == 1
    assert len(store.listing(layout.NAMES)) == 1


def test_deleted_versions_are_gone_everywhere_and_their_numbers_stay_taken(store: Store, tmp_path: Path) -> None:
    elsewhere = Store(store.place, timeout=60, index=str(tmp_path / "other node"))
    made = [commit(store, "j/a", {"x": str(number).encode()}, job="j") for number in range(9)]
    assert elsewhere.resolve("j/a").version == 9 and len(elsewhere.of_job("j")) == 9
    for each in made[2:]:
        removal.delete(store, each)
    for node in (store, elsewhere):
        assert node.resolve("j/a").version == 2, "more deleted in a row than are asked for one by one"
        assert [each.version for each in node.of_job("j")] == [1, 2] == [each.version for each in node.checkpoints()]
        for reference in ("j/a@v9", made[8].manifest.id):
            with pytest.raises(CheckpointNotFound):
                node.resolve(reference)
        assert node.known(made[8].manifest.id) == made[8].manifest or node is elsewhere
    assert commit(store, "j/a", {"x": b"8"}, job="j").version == 10
    assert check(store, read_data=True).damage == ()


def test_what_was_deleted_does_not_come_back_by_committing_it_again(store: Store) -> None:
    """`recover` after a crash between commit and its note, with a delete in between."""
    identifier = new_id()
    wanted = manifest("n", upload(store, {"x": b"1"}, identifier), identifier)
    removal.delete(store, store.commit(wanted))
    upload(store, {"x": b"1"}, identifier)
    assert store.commit(wanted).repeated
    assert store.checkpoints() == [] and store.listing(layout.FILES) == []


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"[]", b"{", b'{"checkpoint":"x","name":"j/a"}', None])
@pytest.mark.parametrize("what", ["manifest", "version"])
def test_a_damaged_object_hides_no_other_and_is_named(store: Store, what: str, damage: bytes | None) -> None:
    one = commit(store, "j/a", {"x": b"1"}, job="j")
    two = commit(store, "j/a", {"x": b"2"}, job="j")
    commit(store, "other", {"x": b"3"})
    key = layout.manifest(two.manifest.id) if what == "manifest" else layout.version("j/a", 2)
    # None: exchanged for that of version 1.
    other = layout.manifest(one.manifest.id) if what == "manifest" else layout.version("j/a", 1)
    store.place.put(key, store.get(other) if damage is None else damage)
    store = Store(store.place, timeout=60)
    names = {each.label for each in store.checkpoints()}
    assert {"j/a@v1", "other@v1"} <= names and "j/a@v2" not in names
    assert store.resolve("j/a@v1").manifest == one.manifest and store.resolve("other").version == 1
    if damage is not None:
        with pytest.raises((InvalidDataError, StoreError)):
            store.resolve("j/a")  # Not silently an older one.
    assert key in {each.key for each in check(store, read_data=False).damage}
    assert commit(store, "j/a", {"x": b"4"}, job="j").version == 3


def test_a_flipped_bit_of_a_manifest_is_refused_by_readers(store: Store) -> None:
    found = commit(store, "n", {"x": b"1"})
    body = store.get(layout.manifest(found.manifest.id))
    store.place.put(layout.manifest(found.manifest.id), body.replace(b'"writer":"test"', b'"writer":"tesu"'))
    with pytest.raises(InvalidDataError, match="digest"):
        Store(store.place, timeout=60).resolve("n")


def test_a_store_that_lists_a_missing_manifest_says_so(store: Store) -> None:
    found = commit(store, "n", {"x": b"1"})
    store.place.delete([layout.manifest(found.manifest.id)])
    with pytest.raises(Missing):
        store.manifest(found.manifest.id)
    named = {each.key for each in check(store, read_data=False).damage}
    assert named == {layout.manifest(found.manifest.id), layout.version("n", 1)}


def test_the_clock_is_the_stores(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.prepare()
    before = os.stat(tmp_path / "store").st_mtime
    assert store.now() >= before - 1 and store.listing(layout.CLOCK) == []


def test_the_version_of_an_id_is_found_among_many_by_few_reads(store: Store) -> None:
    made = [commit(store, "n", {"x": b"%d" % number}) for number in range(60)]
    late = new_id()
    made += [commit(store, "n", {"x": b"%d" % number}) for number in range(60, 63)]
    store.commit(manifest("n", upload(store, {"x": b"late"}, late), late))
    for position in (0, 30, 59, 62):
        other = Store(store.place, timeout=60)
        assert other.resolve(made[position].manifest.id).version == position + 1
        assert len(other._bodies) <= 10, "overtaken by three, and found by halves all the same"
    assert Store(store.place, timeout=60).resolve(late).version == 64
