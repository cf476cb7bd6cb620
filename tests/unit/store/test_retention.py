"""Retention: which rule keeps what, and what no rule may touch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launcher.checkpoint.manifest import SCHEMA, Facts, File, Manifest, Origin
from launcher.errors import StoreUnavailable, UsageError
from launcher.events import Event
from launcher.ids import new_id
from launcher.job import keep, spec
from launcher.job.keep import Keep
from launcher.store import layout, protection, retention
from launcher.store.reading import Checkpoint
from tests.support.commits import commit, open_store


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("last=3", Keep(last=3)),
        (
            " last = 3, every=500,best=eval_loss:min,days=30 ",
            Keep(last=3, every=500, best="eval_loss", largest=False, days=30.0),
        ),
        ("best=best_metric:max", Keep(best="best_metric", largest=True)),
        ("days=0.5,", Keep(days=0.5)),
    ],
)
def test_rules_are_read(text: str, wanted: Keep) -> None:
    assert keep.parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", ",", "last", "last=0", "last=-1", "last=1.5", "every=x", "best=eval_loss", "best=step:min", "best=eval_loss:up",
     "days=0", "days=-1", "days=1e9", "lst=3", "last=1,last=2", "last=99999999999"],
)  # fmt: skip
def test_mistakes_are_found(text: str) -> None:
    with pytest.raises(ValueError):
        keep.parse(text)


def test_every_mistake_is_reported_with_the_others_of_the_job() -> None:
    with pytest.raises(UsageError) as caught:
        spec.load({"name": "a b!", "keep": "lst=3,every=0"}, environ={})
    assert "did you mean last?" in caught.value.text and "every=0" in caught.value.text
    assert (
        "no command" in caught.value.text and "3 mistakes" in caught.value.text
    ) or "4 mistakes" in caught.value.text


def test_metrics_are_facts() -> None:
    facts = {field.name: field.type for field in msgspec.structs.fields(Facts)}
    assert all(facts[metric] in ("float | None", float | None) for metric in keep.METRICS)


def made(
    step: int, *, loss: float | None = None, day: float = 0, name: str = "", best: str | None = None
) -> Checkpoint:
    """A checkpoint of step `step`, committed `day` days after the epoch."""
    name = name or f"j/checkpoint-{step}"
    return Checkpoint(
        Manifest(
            schema=SCHEMA,
            id=new_id(),
            name=name,
            created=day,
            writer="t",
            format="unknown",
            files=(File("x", 1, "blake3:" + "0" * 64),),
            size=1,
            facts=Facts(step=step, eval_loss=loss, best_checkpoint=best),
            origin=Origin("run", "j", "." if name == "j" else name.removeprefix("j/")),
        ),
        1,
        committed=day * 86400,
    )


def kept(
    found: list[Checkpoint], rules: str, now: float = 0, protected: tuple[Checkpoint, ...] = ()
) -> list[int | None]:
    why = {each.manifest.id: ["pinned"] for each in protected}
    verdicts = retention.judge(found, keep.parse(rules), protected=why, now=now * 86400)
    return [each.checkpoint.manifest.facts.step for each in verdicts if each.keep]


def test_rules_add_up() -> None:
    found = [made(100 * n, loss=abs(n - 4), day=n) for n in range(1, 11)]
    assert kept(found, "last=3") == [800, 900, 1000]
    assert kept(found, "every=500") == [500, 1000]
    assert kept(found, "best=eval_loss:min") == [400, 1000]
    assert kept(found, "best=eval_loss:max,last=2") == [900, 1000]
    assert kept(found, "days=2.5", now=11) == [900, 1000]
    assert kept(found, "last=2,every=500,best=eval_loss:min,days=3.5", now=11) == [400, 500, 800, 900, 1000]


def test_the_newest_is_by_commit_not_by_step() -> None:
    found = [made(1000, day=1), made(10, day=2), made(20, day=3)]
    assert kept(found, "last=1") == [20]


def test_what_is_always_kept() -> None:
    root, pinned = made(50, day=1, name="j"), made(100, day=2)
    found = [made(40, day=0.5, name="j"), root, pinned, made(200, day=3), made(300, day=4, best="/out/checkpoint-200")]
    assert kept(found, "last=1", protected=(pinned,)) == [50, 100, 200, 300], (
        "root's newest, pinned, trainer's best, newest"
    )


def test_a_metric_that_is_missing_decides_nothing() -> None:
    assert kept([made(1, day=1), made(2, loss=3.0, day=2), made(3, day=3)], "best=eval_loss:min") == [2, 3]
    assert kept([], "last=1") == []


def test_only_this_jobs_own_and_never_what_others_need(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    own = [commit(store, f"j/{n}", {"x": str(n).encode()}, job="j", facts=Facts(step=n)) for n in range(8)]
    earlier = commit(store, "j/0", {"x": b"an earlier run"}, job="j", run="run-0")
    others = [commit(store, "jj/1", {"x": b"o"}, job="jj"), commit(store, "j/pushed", {"x": b"p"})]
    commit(store, "child", {"x": b"c"}, parents=(own[1].manifest.id,))
    protection.use(store, own[2].manifest.id, new_id(), "other")
    protection.pin(store, own[3])
    deleted = retention.apply(store, "j", keep.parse("last=1"), run="run-1", protected={own[4].manifest.id})
    assert [each.label for each in deleted] == ["j/0@v1", "j/5@v1", "j/6@v1"]
    living = {each.manifest.id for each in store.checkpoints()}
    assert {each.manifest.id for each in [earlier, *others, *own[1:5], own[7]]} <= living
    protection.unpin(store, own[3])
    assert [each.label for each in retention.apply(store, "j", keep.parse("last=1"))] == ["j/3@v1", "j/4@v1", "j/7@v1"]
    assert store.checkpoints() and store.listing(layout.PINS) == []


def test_a_pin_that_comes_between_plan_and_delete_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "store"))
    found = [commit(store, f"j/{n}", {"x": str(n).encode()}, job="j") for n in range(4)]
    planned = retention.plan(store, "j", keep.parse("last=1"))
    protection.pin(store, found[0])
    monkeypatch.setattr(retention, "plan", lambda *args, **more: planned)
    assert [each.label for each in retention.apply(store, "j", keep.parse("last=1"))] == ["j/1@v1", "j/2@v1"]


def test_a_failure_is_a_warning_and_no_more(tmp_path: Path) -> None:
    class Gone:
        url = "gone"

        def list(self, prefix: str, after: str = "") -> None:
            raise StoreUnavailable(store="gone", cause="no answer")

    from launcher.store.store import Store

    events: list[Event] = []
    after = retention.AfterCommits(Store(Gone(), timeout=0.1), "j", "r", keep.parse("last=1"), events.append)  # type: ignore[arg-type]
    after()
    after(at_end=True)
    assert [(each.kind, each.level) for each in events] == [("retention-failed", "warning")] * 2
    retention.AfterCommits(Store(Gone(), timeout=0.1), "j", "r", None, events.append)()  # type: ignore[arg-type]
    assert len(events) == 2
