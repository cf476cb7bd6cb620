"""Checkpoints outside the output directory: --watch DIR collects them, and where nothing was collected the job is told where
they seem to be."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launcher.outputs import elsewhere
from tests.campaigns import quick_writer
from tests.support.cli import Launcher
from tests.support.watching import save_trainer

SAVE = (
    "import os; from tests.support.watching import save_trainer; from pathlib import Path; "
    "[save_trainer(Path(where) / f'checkpoint-{step}', 1, step) for where in ('results/exp1',) for step in (1, 2)]"
)


def run(launcher: Launcher, folder: Path, name: str, *flags: str) -> str:
    folder.mkdir(exist_ok=True)
    launcher.env["PYTHONPATH"] = str(Path(__file__).parents[2])
    words = ("training", "run", name, "--settle", "0.2s", "--launch", "exec", *flags, "--", "python", "-c", SAVE)
    return launcher(*words, cwd=folder)


def test_watched_folders_are_collected_under_their_own_name(launcher: Launcher, tmp_path: Path) -> None:
    run(launcher, tmp_path / "work", "job", "--watch", "results")
    names = {each["metadata"]["name"] for each in launcher.json("training", "checkpoints", "job")}
    assert names == {"job/results/exp1/checkpoint-1", "job/results/exp1/checkpoint-2"}
    assert launcher.json("checkpoint", "verify", "job/results/exp1/checkpoint-2")["whole"]
    assert "recover" not in launcher("recover", "job").replace("launcher recover", "")


def test_two_watched_folders_of_one_name_are_refused(launcher: Launcher, tmp_path: Path) -> None:
    words = ("training", "run", "job", "--watch", "a/out", "--watch", "b/out", "--", "true")
    assert "two folders are called 'out'" in launcher(*words, code=64, cwd=tmp_path)


def test_where_nothing_was_collected_the_place_is_named_with_the_command_that_stores_it(
    launcher: Launcher, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    save_trainer(work / "old" / "checkpoint-7", 1, 7)
    os.utime(work / "old" / "checkpoint-7" / "trainer_state.json", (1, 1))
    output = run(launcher, work, "lost")
    assert "Collected: no checkpoint" in output
    assert f"{work}/results/exp1/checkpoint-2 (transformers-trainer" in output
    assert f"launcher checkpoint push lost --file {work}/results/exp1/checkpoint-2" in output
    assert "--watch" in output
    launcher("checkpoint", "push", "lost", "--file", work / "results/exp1/checkpoint-2")


def test_only_what_is_whole_and_new_is_named(tmp_path: Path) -> None:
    since = time.time() - 1
    save_trainer(tmp_path / "a" / "checkpoint-1", 1, 1)
    save_trainer(tmp_path / "b" / "checkpoint-1", 1, 1, names=["config.json", "optimizer.pt", "scheduler.pt"])
    save_trainer(tmp_path / "c" / "checkpoint-1", 1, 1)
    for path in (tmp_path / "c" / "checkpoint-1").iterdir():
        os.utime(path, (1, 1))
    (tmp_path / "d.pt").write_bytes(quick_writer.content(1, 1)["optimizer.pt"])
    save_trainer(tmp_path / ".git" / "checkpoint-1", 1, 1)
    (tmp_path / "loop").symlink_to(tmp_path)
    found = elsewhere.checkpoints(str(tmp_path), since=since)
    assert {path.removeprefix(f"{tmp_path}/") for path, _, _ in found} == {"a/checkpoint-1", "d.pt"}
    assert elsewhere.look(str(tmp_path / "c"), "job", since=since) is None
    assert elsewhere.look(str(tmp_path / "missing"), "job", since=since) is None
