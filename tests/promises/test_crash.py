"""A crash leaves a whole checkpoint or none, and `launcher recover` stores what was whole on disk, once."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from tests.support.cli import Launcher

JOB = """
import os, sys, time, torch
out = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
for step in range(8):
    os.mkdir(f"{out}/step-{step}")
    torch.save({"w": torch.full((200_000,), float(step))}, f"{out}/step-{step}/model.pt")
    print("saved", step, flush=True)
    time.sleep(0.1)
time.sleep(0.3)
"""


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_at_a_random_moment(launcher: Launcher, seed: int) -> None:
    random.seed(seed)
    process = launcher.start(
        "training", "run", "crash", "--settle", "0.1s", "--launch", "exec", "--", "python", "-c", JOB
    )
    assert process.stdout
    for line in process.stdout:
        if "saved 0" in line:
            break
    time.sleep(random.random() * 1.2)
    process.kill()
    process.wait()
    subprocess.run(["sleep", "0.5"], check=True)  # the job itself ends with its launcher
    output = launcher.job("crash") / "output-checkpoint"
    on_disk = set()
    for folder in output.iterdir():
        if (
            "whole ("
            in subprocess.run(
                [*_verify(launcher, str(folder))], env=launcher.env, capture_output=True, text=True
            ).stdout
        ):
            on_disk.add(f"crash/{folder.name}")
    launcher("recover", "crash")
    found = launcher.json("training", "checkpoints", "crash")
    stored = [each["metadata"]["name"] for each in found]
    assert set(stored) == on_disk
    assert len(stored) == len(set(stored)), "stored twice"
    assert all(launcher.json("checkpoint", "verify", each["metadata"]["id"])["whole"] for each in found)
    assert "everything whole is stored" in launcher("recover", "crash")
    assert len(launcher.json("training", "checkpoints", "crash")) == len(found)


@pytest.mark.parametrize("settle", ["60s", "0.1s"])
def test_a_store_that_is_gone_at_the_end_loses_nothing(launcher: Launcher, settle: str) -> None:
    """The store becomes unwritable while the job runs, before or after its first commits: exit code 74, the command that
    finishes, and it does."""
    launcher.env["LAUNCHER_STORE_TIMEOUT"] = "1s"
    store, aside = launcher.home / "data/store", launcher.home / "aside"
    script = JOB.replace(
        "time.sleep(0.3)", f"os.rename({str(store)!r}, {str(aside)!r}); open({str(store)!r}, 'w').close()"
    )
    script += '\nos.mkdir(f"{out}/last")\ntorch.save({"w": torch.ones(9)}, f"{out}/last/model.pt")\n'
    output = launcher(
        "training", "run", "gone", "--settle", settle, "--launch", "exec", "--", "python", "-c", script, code=74
    )
    assert "launcher recover gone" in output
    assert launcher.result("gone")["origin"] == "launcher"
    store.unlink()
    aside.rename(store)
    assert "Stored " in launcher("recover", "gone")
    assert len(launcher.json("training", "checkpoints", "gone")) == 9
    assert "everything whole is stored" in launcher("recover", "gone")


def _verify(launcher: Launcher, path: str) -> list[str]:
    from tests.support.cli import PROGRAM

    return [PROGRAM, "checkpoint", "verify", path]
