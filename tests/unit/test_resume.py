"""Which checkpoint is gone on from, as tables: no process, no store."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from launcher.checkpoint.manifest import Ready
from launcher.errors import SettingsError
from launcher.events import silent
from launcher.job.folder import given_id
from launcher.job.record import Attempt, Outcome
from launcher.outputs import salvage
from launcher.restoring import Candidate, _nanoseconds, _seconds, resumable
from launcher.resume import _in_order, _resumable


def candidate(identifier: str, *, attempt: int = 1, can: bool | None = True) -> Candidate:
    return Candidate(identifier, identifier, f"checkpoint-{identifier}", None, (attempt, identifier), can, {})


def attempts(*ends: tuple[str, Outcome | None]) -> list[Attempt]:
    return [
        Attempt(number=number, host="", pid=0, started=0.0, resumed=resumed, outcome=outcome)
        for number, (resumed, outcome) in enumerate(ends, start=1)
    ]


FAILED = Outcome(code=1, origin="job", cause="")
CRASHED = Outcome(code=139, origin="job", cause="", signal="SIGSEGV")
KILLED = Outcome(code=137, origin="job", cause="", signal="SIGKILL")
STOPPED = Outcome(code=143, origin="job", cause="", signal="SIGTERM", stopped=True)
LOST = None
OURS = Outcome(code=69, origin="launcher", cause="")


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([], "c b a"),
        ([("c", FAILED)], "c b a"),
        ([("c", FAILED), ("c", FAILED)], "b a"),
        ([("c", FAILED), ("c", CRASHED)], "b a"),
        ([("c", FAILED), ("c", STOPPED)], "c b a"),
        ([("c", LOST), ("c", LOST)], "c b a"),
        ([("c", KILLED), ("c", KILLED)], "c b a"),
        ([("c", OURS), ("c", OURS)], "c b a"),
        ([("c", FAILED), ("b", FAILED), ("c", FAILED)], "c b a"),
        ([("c", FAILED), ("c", FAILED), ("b", FAILED)], "b a"),
        ([("c", FAILED), ("c", FAILED), ("b", FAILED), ("b", FAILED)], "a"),
        ([("a", FAILED), ("a", FAILED)], "c b a"),
        ([("c", FAILED), ("c", FAILED), ("b", FAILED), ("b", FAILED), ("a", FAILED), ("a", FAILED)], "c b a"),
        ([("", FAILED), ("", FAILED)], "c b a"),
    ],
)
def test_what_failed_twice_in_a_row_is_passed_over(ends: list[tuple[str, Outcome | None]], expected: str) -> None:
    own = [candidate("c"), candidate("b"), candidate("a")]
    assert [each.id for each in _in_order(own, attempts(*ends), silent)] == expected.split()


def test_newest_is_by_attempt_then_by_capture_and_unknown_only_where_nothing_is_known() -> None:
    found = [candidate("z", attempt=1), candidate("a", attempt=2), candidate("b", attempt=2), candidate("q", can=None)]
    assert [each.id for each in _resumable(found)] == ["b", "a", "z"]
    doubtful = [candidate("a", can=None), candidate("b", can=False), candidate("c", can=None)]
    assert [each.id for each in _resumable(doubtful)] == ["c", "a"]


@pytest.mark.parametrize(
    ("format", "ready", "paths", "expected"),
    [
        ("transformers-trainer", True, (), True),
        ("transformers-trainer", False, ("model.safetensors",), False),
        ("torch-save", False, ("model.pt",), None),
        ("safetensors", False, ("model.safetensors", "optimizer.pt"), None),
        ("safetensors", False, ("model.safetensors",), False),
        ("unknown", False, ("data.bin",), None),
    ],
)
def test_unknown_is_neither_yes_nor_no(format: str, ready: bool, paths: tuple[str, ...], expected: bool | None) -> None:
    assert resumable(format, Ready(resume=ready), paths) is expected


def test_times_survive_a_manifest_to_the_bit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for nanoseconds in (
        1,
        999_999_999,
        1_764_250_000_123_456_789,
        1_764_250_000_999_999_999,
        2_000_000_000_000_000_001,
    ):
        os.utime(file, ns=(nanoseconds, nanoseconds))
        recorded = file.stat().st_mtime
        assert _seconds(nanoseconds) == recorded
        os.utime(file, ns=(0, _nanoseconds(recorded)))
        assert file.stat().st_mtime == recorded


def test_an_id_is_the_callers_unless_a_job_inherited_it() -> None:
    assert given_id({"LAUNCHER_JOB_ID": "slurm-a.b_7"}) == "slurm-a.b_7"
    assert given_id({"LAUNCHER_JOB_ID": "slurm-7", "LAUNCHER_ATTEMPT": "2"}) == ""
    assert given_id({}) == ""
    for wrong in ("a/b", "../x", "-x", "x" * 64, "a b"):
        with pytest.raises(SettingsError):
            given_id({"LAUNCHER_JOB_ID": wrong})


def test_only_what_would_mislead_is_moved(tmp_path: Path) -> None:
    root, aside = tmp_path / "output", tmp_path / "job/salvage/attempt-2"
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-10", "runs", "results"):
        (root / name).mkdir(parents=True)
    for name in ("checkpoint-1", "checkpoint-2"):
        (root / name / "config.json").write_text("{}")
    (root / "checkpoint-10/model.safetensors").write_bytes(b"torn")
    (root / "results/table.json").write_text("{}")

    def moved(**options: object) -> dict[str, str]:
        found = salvage.put_aside(
            str(root),
            aside,
            since=0.0,
            world_size=1,
            resumable=lambda format, tree: None,
            **options,  # type: ignore[arg-type]
        )
        return {each.path: each.reason for each in found}

    assert not moved(chosen="checkpoint-2", spared={str(root / name) for name in ("checkpoint-1", "checkpoint-10")})
    found = moved(chosen="checkpoint-2")
    assert set(found) == {"checkpoint-1", "checkpoint-10"}, "an unfinished one and a torn one"
    assert (aside / "checkpoint-10/model.safetensors").read_bytes() == b"torn"
    assert {each.name for each in root.iterdir()} == {"checkpoint-2", "runs", "results"}
    (root / "checkpoint-10").mkdir()
    assert set(moved(chosen="checkpoint-2")) == {"checkpoint-10"}, "an empty one"
    assert (aside / "checkpoint-10.2").is_dir(), "what was moved before is still there"


def test_what_is_older_than_the_job_is_not_its_own(tmp_path: Path) -> None:
    torn = tmp_path / "output/checkpoint-9"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    found = salvage.put_aside(
        str(tmp_path / "output"), tmp_path / "job/salvage", chosen=None, since=torn.stat().st_mtime + 60, world_size=1,
        resumable=lambda format, tree: False,
    )  # fmt: skip
    assert not found and torn.is_dir()


def test_a_candidate_of_one_file_is_told_from_a_folder() -> None:
    assert dataclasses.replace(candidate("1"), path="step-1", files={"step-1": (1, 0.0)}).flat
    assert not dataclasses.replace(candidate("1"), path="step-1", files={"model.pt": (1, 0.0)}).flat
