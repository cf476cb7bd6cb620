"""The quick list is always the true one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from benchmarks.jobs import make
from launcher.job import listing
from launcher.job.record import JobRecord, write_atomically


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten jobs, whose records count as old enough."""
    monkeypatch.setattr(listing, "_SETTLED", -1)
    make(tmp_path, 10)
    return tmp_path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the records that are read."""
    count = [0]

    def decode(body: bytes, kind: type[JobRecord]) -> JobRecord:
        count[0] += 1
        return msgspec.json.decode(body, type=kind)

    monkeypatch.setattr(listing, "decode", decode)
    return count


def change(path: Path, code: str) -> None:
    record = msgspec.json.decode(path.read_bytes(), type=JobRecord)
    record.change(code, "Changed.")  # type: ignore[arg-type]
    write_atomically(str(path), msgspec.json.encode(record))


def test_what_has_not_changed_is_not_read_again(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = reads(monkeypatch)
    first = listing.every(str(jobs))
    assert count == [10] and [row.name for row in first] == [f"job_{number:05d}" for number in range(10)]
    assert listing.every(str(jobs)) == first and count == [10]


def test_what_has_changed_is(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing.every(str(jobs))
    count = reads(monkeypatch)
    (record,) = (jobs / "jobs" / "job_00003").glob("*/record.json")
    change(record, "stopped")
    assert [row.state for row in listing.every(str(jobs))].count("stopped") == 1 and count == [1]
    make(jobs / "more", 1)
    (new,) = (jobs / "more/jobs").glob("*/*")
    os.rename(new, jobs / "jobs" / "job_00003" / new.name)
    assert len(listing.every(str(jobs))) == 11 and count == [2]
    record.unlink()
    assert len(listing.every(str(jobs))) == 10


def test_a_job_that_runs_is_read_each_time(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = (jobs / "jobs" / "job_00003").glob("*/record.json")
    change(record, "in progress")
    count = reads(monkeypatch)
    assert [row.state for row in listing.every(str(jobs), lambda path, _: True)][3] == "in progress"
    assert [row.state for row in listing.every(str(jobs), lambda path, _: False)][3] == "lost"
    assert count == [11]


def test_what_is_too_young_to_be_known_by_its_time_is_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 3)
    listing.every(str(tmp_path))
    count = reads(monkeypatch)
    assert len(listing.every(str(tmp_path))) == 3 and count == [3]


@pytest.mark.parametrize("damage", [b"", b"\x93", b"not msgpack", b"\x92\xa11\x80"])
def test_notes_that_are_damaged_or_of_another_release_are_made_anew(jobs: Path, damage: bytes) -> None:
    first = listing.every(str(jobs))
    (jobs / "jobs/.list").write_bytes(damage)
    assert listing.every(str(jobs)) == first
    (jobs / "jobs/.list").unlink()
    assert listing.every(str(jobs)) == first and (jobs / "jobs/.list").stat().st_size > 100


def test_a_record_that_cannot_be_read_hides_no_other(jobs: Path) -> None:
    (record,) = (jobs / "jobs" / "job_00003").glob("*/record.json")
    record.write_text("{")
    (jobs / "jobs" / "stray").write_text("no folder")
    assert len(listing.every(str(jobs))) == 9
    assert listing.every(str(jobs / "nowhere")) == []
