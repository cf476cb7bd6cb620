"""Short slices of the store's campaigns: pauses, kills, crashes between any two writes, damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import damage, gc, model
from tests.support.s3_server import S3Server


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_gc_takes_nothing_from_a_writer_that_was_only_paused(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    url = str(tmp_path)
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.new_bucket()}"
    text, well = gc.pauses(f"{url}/pauses", count=6, seed=2, writers=3)
    print(text)
    assert well, text


def test_what_a_kill_leaves_is_finished_by_one_gc(tmp_path: Path) -> None:
    text, well = gc.kills(str(tmp_path / "kills"), count=6, seed=2)
    print(text)
    assert well, text


def test_the_store_is_its_model_whatever_the_order_and_the_crashes() -> None:
    print(model.campaign(examples=12, steps=15, seed=2))


def test_every_damage_is_named_and_no_wrong_byte_is_read() -> None:
    text, well = damage.campaign(flips=30, others=12, seed=2)
    print(text)
    assert well, text
