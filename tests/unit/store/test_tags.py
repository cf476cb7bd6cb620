"""Tags move from one version of a name to another: one winner, whole history, and what they name stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher.errors import CheckpointNotFound, InvalidDataError, NotFoundError, TagMoved, UsageError
from launcher.ids import new_id
from launcher.job import keep
from launcher.store import layout, protection, removal, retention, tags
from launcher.store.check import check
from launcher.store.store import Checkpoint, Store
from tests.support.commits import commit, open_store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{new_id()}"
    yield open_store(url)


@pytest.fixture
def versions(store: Store) -> list[Checkpoint]:
    return [commit(store, "team/base", {"x": b"%d" % number}) for number in range(3)]


def test_a_tag_moves_and_its_history_stays(store: Store, versions: list[Checkpoint]) -> None:
    one, two, _ = versions
    assert tags.move(store, one, "best")[1] is None
    assert store.resolve("team/base@best").version == 1
    moved, before = tags.move(store, two, "best")
    assert (before.version if before else None, moved.version) == (1, 2)
    assert tags.move(store, two, "best") == (moved, moved), "where it is already, nothing is written"
    assert store.resolve("team/base@best").manifest == two.manifest
    assert tags.remove(store, "team/base", "best") == moved
    with pytest.raises(CheckpointNotFound):
        store.resolve("team/base@best")
    with pytest.raises(NotFoundError):
        tags.remove(store, "team/base", "best")
    tags.move(store, one, "best")
    assert [each.version for each in tags.every(store, history=True)] == [1, 2, None, 1]
    assert [each.version for each in tags.every(store, "team/base")] == [1]
    assert tags.every(store, "team") == [] and store.resolve("team/base").version == 3
    assert check(store, read_data=True).damage == ()


def test_of_many_who_move_it_at_once_each_is_told_the_truth(store: Store) -> None:
    made = [commit(store, "n", {"x": b"%d" % number}) for number in range(16)]
    barrier = threading.Barrier(len(made))

    def move(each: Checkpoint) -> int | None:
        barrier.wait()
        try:
            return tags.move(store, each, "best")[0].number
        except TagMoved:
            return None

    for _ in range(5):
        with ThreadPoolExecutor(len(made)) as pool:
            told = dict(zip([each.version for each in made], pool.map(move, made)))
        found = {each.version: each.number for each in tags.every(store, history=True)}
        numbers = [each.number for each in tags.every(store, history=True)]
        assert numbers == list(range(1, len(numbers) + 1))
        won = {version: number for version, number in told.items() if number}
        assert won and max(won.values()) == numbers[-1]
        assert {version for version, number in won.items() if number == numbers[-1]} == {
            tags.every(store)[0].version
        }, found


def test_two_who_move_it_to_the_same_place_both_win(store: Store, versions: list[Checkpoint]) -> None:
    first, _ = tags.move(store, versions[0], "best")
    other = tags._append(store, None, "team/base", "best", versions[0].manifest.id, 1)
    assert other == first
    with pytest.raises(TagMoved, match="version 1"):
        tags._append(store, None, "team/base", "best", versions[1].manifest.id, 2)


@pytest.mark.parametrize("tag", ["", "v3", "v", "a b", "a/b", "-x", ".x", "a@b", "ä", "x" * 65, "a\n"])
def test_what_is_no_tag(store: Store, versions: list[Checkpoint], tag: str) -> None:
    if tag == "v":
        tags.move(store, versions[0], tag)
        return
    with pytest.raises(UsageError):
        tags.move(store, versions[0], tag)


def test_a_name_that_looks_like_a_tag_stays_reachable(store: Store, versions: list[Checkpoint]) -> None:
    commit(store, "team/base@best", {"x": b"another"})
    with pytest.raises(UsageError, match="name of a checkpoint"):
        tags.move(store, versions[0], "best")
    assert store.resolve("team/base@best").manifest.name == "team/base@best"
    tags.move(store, versions[0], "worst")
    commit(store, "team/base@worst", {"x": b"pushed later"})
    assert store.resolve("team/base@worst").manifest == versions[0].manifest
    assert store.resolve("team/base@worst@v1").manifest.name == "team/base@worst"


def test_what_is_tagged_stays(store: Store) -> None:
    made = [commit(store, f"j/{number}", {"x": b"%d" % number}, job="j") for number in range(4)]
    tags.move(store, made[0], "good")
    assert protection.reasons(store, [])[made[0].manifest.id] == ["tagged good"]
    assert protection.needed_now(store, made[0]) and not protection.needed_now(store, made[1])
    retention.apply(store, "j", keep.parse("last=1"))
    assert [each.manifest.name for each in store.checkpoints()] == ["j/0", "j/3"]
    tags.remove(store, "j/0", "good")
    retention.apply(store, "j", keep.parse("last=1"))
    assert [each.manifest.name for each in store.checkpoints()] == ["j/3"]


def test_a_tag_of_what_was_deleted_says_so(store: Store, versions: list[Checkpoint]) -> None:
    tags.move(store, versions[1], "best")
    removal.delete(store, versions[1])
    with pytest.raises(CheckpointNotFound) as caught:
        store.resolve("team/base@best")
    assert "version 2, which was deleted" in caught.value.hint
    with pytest.raises(CheckpointNotFound):
        tags.move(store, versions[1], "other")
    assert [each.label for each in tags.every(store)] == ["team/base@best"], "moved back"
    tags.move(store, versions[2], "best")
    assert store.resolve("team/base@best").version == 3


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[]", b"other"])
def test_a_damaged_tag_is_named_and_not_followed(store: Store, versions: list[Checkpoint], damage: bytes) -> None:
    for each in versions[:2]:
        tags.move(store, each, "best")
    key = layout.tag_move("team/base", "best", 2)
    store.place.put(key, store.get(layout.tag_move("team/base", "best", 1)) if damage == b"other" else damage)
    with pytest.raises(InvalidDataError):
        store.resolve("team/base@best")
    assert key in {each.key for each in check(store, read_data=False).damage}
    store.place.put(layout.tag_move("team/base", "best", 4), b"{}")
    store.place.delete([key])
    assert {layout.tag_move("team/base", "best", 2), layout.tag_move("team/base", "best", 3)} <= {
        each.key for each in check(store, read_data=False).damage
    }
