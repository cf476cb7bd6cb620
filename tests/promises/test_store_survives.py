"""Short slices of the store's campaigns: pauses, kills, crashes between any two writes, damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.ids import new_id
from tests.campaigns import damage, gc, model
from tests.support.cli import Launcher
from tests.support.commits import open_store, upload
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
    text, well = gc.pauses(f"{url}/pauses", count=4, seed=2, writers=2)
    print(text)
    assert well, text


def test_what_a_kill_leaves_is_finished_by_one_gc(tmp_path: Path) -> None:
    text, well = gc.kills(str(tmp_path / "kills"), count=3, seed=2)
    print(text)
    assert well, text


def test_the_store_is_its_model_whatever_the_order_and_the_crashes() -> None:
    print(model.campaign(examples=12, steps=15, seed=2))


def test_every_damage_is_named_and_no_wrong_byte_is_read() -> None:
    text, well = damage.campaign(flips=20, others=8, seed=2)
    print(text)
    assert well, text


def test_the_command_line_tells_what_is_left_over_and_what_is_damaged(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "data.bin").write_bytes(b"0123456789")
    launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
    assert "Unchanged" in launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
    store = open_store(str(launcher.home / "data/store"))
    orphan = new_id()
    upload(store, {"x": b"abc"}, orphan)
    assert "may still be in the making" in launcher("checkpoint", "gc")
    found = launcher.json("checkpoint", "gc", "--older", "0s", "--dry-run")
    assert found["bytes"] == 3 and [each["what"] for each in found["removed"]] == [orphan]
    assert "Cleared 1 leftover(s), 3 B" in launcher("checkpoint", "gc", "--older", "0s")
    assert "Nothing is left over" in launcher("checkpoint", "gc", "--older", "0s")
    assert "1 checkpoint(s), 1 file(s): sound" in launcher("checkpoint", "check", "--read-data")
    (stored,) = (launcher.home / "data/store/checkpoints").glob("*/data.bin")
    stored.chmod(0o644)
    stored.write_bytes(b"0123456780")
    assert "sound" in launcher("checkpoint", "check"), "sizes are right"
    output = launcher("checkpoint", "check", "--read-data", code=65)
    assert f"{stored.relative_to(launcher.home / 'data/store')}: its bytes are others" in output
    assert "no whole number" in launcher("checkpoint", "prune", "--job", "j", "--keep", "last=x", code=64)
    assert "no duration" in launcher("checkpoint", "gc", "--older", "soon", code=64)
