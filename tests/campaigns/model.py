"""The store against a model of it, in random orders of everything that changes it, with crashes between any two writes.

    python -m tests.campaigns.model [--examples 200] [--steps 30] [--seed 1]

The model is a list of what was committed. A crash is an exception of the place (a wrapper, here) before its N-th write; then
gc runs, and the store must hold what it held before or what it would have held after, nothing in between. After every step:
the living checkpoints and their versions, what each name resolves to, every byte, and `check`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from launcher.errors import CheckpointNotFound
from launcher.ids import new_id
from launcher.job import keep
from launcher.store import catalog, layout, protection, removal, retention
from launcher.store.check import check
from launcher.store.gc import collect
from launcher.store.store import Aborted, Store
from launcher.transfer.object_store import Entry, Moved, ObjectStore, OnBytes
from launcher.transfer.places import open_place
from tests.support.commits import manifest, upload

FIGURES: Counter[str] = Counter()
CRASHES = st.one_of(st.none(), st.integers(0, 12))


class Crash(BaseException):
    """The process would be dead here."""


class Fragile:
    """A place that crashes before its `left`-th write from now (None: never)."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place
        self.url = place.url
        self.left: int | None = None

    def _write(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Crash
            self.left -= 1

    def create_once(self, key: str, body: bytes) -> None:
        self._write()
        self._place.create_once(key, body)

    def put(self, key: str, body: bytes) -> None:
        self._write()
        self._place.put(key, body)

    def upload(self, source: str, key: str, on_bytes: OnBytes) -> Moved:
        self._write()
        return self._place.upload(source, key, on_bytes)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._write()
            self._place.delete([key])

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        return self._place.list(prefix, after)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)


@dataclass
class Made:
    """One checkpoint of the model."""

    id: str
    name: str
    version: int
    content: bytes
    alive: bool = True
    pinned: bool = False
    used: bool = False


class Machine(RuleBasedStateMachine):
    """Commits, deletes, pins, prunes and collects; two names of one job."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Made] = []
        self.folder = ""

    @initialize(local=st.booleans())
    def open(self, local: bool) -> None:
        self.folder = tempfile.mkdtemp(prefix="launcher-model-")
        url = f"{self.folder}/store" if local else f"memory://{new_id()}"
        self.place = Fragile(open_place(url, timeout=60, environ=os.environ))
        self.index = f"{self.folder}/cache/index"
        self.store.prepare()
        FIGURES["examples"] += 1

    @property
    def store(self) -> Store:
        """Each step is another process."""
        return Store(self.place, timeout=60, threads=1, index=self.index)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def living(self, name: str | None = None) -> list[Made]:
        return [each for each in self.made if each.alive and name in (None, each.name)]

    def after_crash(self) -> set[str]:
        """What another process finds, after one gc."""
        FIGURES["crashes"] += 1
        self.place.left = None
        collect(self.store, older=-1)
        return {each.manifest.id for each in self.store.checkpoints()}

    @rule(name=st.sampled_from(["j/a", "j/b"]), number=st.integers(0, 2), crash=CRASHES, again=st.booleans())
    def commit(self, name: str, number: int, crash: int | None, again: bool) -> None:
        content = {"x": b"%d" % number, "d/y": b"same"}
        newest = max(self.living(name), key=lambda each: each.version, default=None)
        version = 1 + max((each.version for each in self.made if each.name == name), default=0)
        identifier = new_id()
        self.place.left = crash
        try:
            found = self.store.commit(manifest(name, upload(self.store, content, identifier), identifier, job="j"))
        except Crash:
            if not again:
                if identifier in self.after_crash():
                    self.made.append(Made(identifier, name, version, content["x"]))
                return
            self.place.left = None  # Recovery commits the same id again.
            FIGURES["crashes"] += 1
            found = self.store.commit(manifest(name, upload(self.store, content, identifier), identifier, job="j"))
        finally:
            self.place.left = None
        FIGURES["commits"] += 1
        if newest and newest.content == content["x"]:
            assert found.repeated and found.manifest.id == newest.id and found.version == newest.version
        else:
            assert not found.repeated and found.version == version
            self.made.append(Made(identifier, name, version, content["x"]))

    @rule(number=st.integers(0, 2))
    def late_writer(self, number: int) -> None:
        """gc takes a writer for dead between its upload and its commit."""
        identifier = new_id()
        wanted = manifest("j/a", upload(self.store, {"x": b"%d late" % number}, identifier), identifier, job="j")
        collect(self.store, older=-1)
        try:
            self.store.commit(wanted)
        except Aborted:
            return
        raise AssertionError("a manifest over deleted files")

    @precondition(lambda self: self.living())
    @rule(data=st.data(), crash=CRASHES)
    def delete(self, data: st.DataObject, crash: int | None) -> None:
        chosen = data.draw(st.sampled_from(self.living()))
        self.place.left = crash
        try:
            removal.delete(self.store, self.store.resolve(chosen.id))
            chosen.alive = False
        except Crash:
            chosen.alive = chosen.id in self.after_crash()
        finally:
            self.place.left = None
        FIGURES["deletes"] += 1

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.living()))
        act = protection.unpin if chosen.pinned else protection.pin
        act(self.store, self.store.resolve(chosen.id))
        chosen.pinned = not chosen.pinned

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.living()))
        protection.use(self.store, chosen.id, new_id(), "other")
        chosen.used = True

    @rule(last=st.integers(1, 3), crash=CRASHES)
    def prune(self, last: int, crash: int | None) -> None:
        before = {each.id: each for each in self.living()}
        self.place.left = crash
        try:
            deleted = {each.manifest.id for each in retention.apply(self.store, "j", keep.parse(f"last={last}"))}
            assert len(before) - len(deleted) >= min(last, len(before))
        except Crash:
            deleted = before.keys() - self.after_crash()
        finally:
            self.place.left = None
        FIGURES["pruned"] += len(deleted)
        for identifier in deleted:
            assert not (before[identifier].pinned or before[identifier].used)
            before[identifier].alive = False

    @rule(crash=CRASHES)
    def gc(self, crash: int | None) -> None:
        upload(self.store, {"x": b"orphan"}, new_id())
        self.place.left = crash
        try:
            collect(self.store, older=-1)
        except Crash:
            self.after_crash()
        finally:
            self.place.left = None
        assert not collect(self.store, older=-1).removed

    @invariant()
    def the_store_is_the_model(self) -> None:
        if not self.folder:
            return
        FIGURES["steps"] += 1
        store = self.store
        found = {each.manifest.id: (each.manifest.name, each.version) for each in store.checkpoints()}
        assert found == {each.id: (each.name, each.version) for each in self.living()}
        lines = catalog.refresh(store).summaries()
        assert [(each.id, each.name, each.version) for each in lines] == sorted((key, *found[key]) for key in found)
        assert protection.pinned(store) == {each.id for each in self.living() if each.pinned}
        for name in ("j/a", "j/b"):
            newest = max(self.living(name), key=lambda each: each.version, default=None)
            try:
                resolved = store.resolve(name).manifest.id
            except CheckpointNotFound:
                resolved = None
            assert resolved == (newest.id if newest else None)
        for each in self.living():
            assert store.get(layout.files(each.id) + "x") == each.content
        checked = check(store, read_data=True)
        assert not checked.damage, checked.damage


def campaign(examples: int, steps: int, seed: int) -> str:
    """Runs the examples; returns the line of figures. Raises AssertionError with the shortest order that breaks a promise."""
    FIGURES.clear()
    machine = hypothesis.seed(seed)(Machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return (
        f"{FIGURES['examples']} examples, {FIGURES['steps']} steps, {FIGURES['commits']} commits, {FIGURES['deletes']} "
        f"deletes, {FIGURES['pruned']} pruned, {FIGURES['crashes']} crashes between two writes: store and model the same"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(campaign(arguments.examples, arguments.steps, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
