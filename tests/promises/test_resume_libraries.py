"""Each library's own way to go on finds what was restored, and its loss curve goes on exactly where it was cut."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.campaigns.kills import tree
from tests.support.cli import ROOT, Launcher

LIBRARIES = ("trainer", "accelerate", "lightning", "torch")
KILLED_AT = 4
_LOSS = re.compile(r"step (\d+) loss (\S+)")


def _losses(text: str) -> dict[int, set[str]]:
    """Every loss that was printed for a step, bit by bit."""
    found: dict[int, set[str]] = {}
    for step, loss in _LOSS.findall(text):
        found.setdefault(int(step), set()).add(loss)
    return found


def _alone(launcher: Launcher, library: str) -> dict[int, set[str]]:
    """The losses of a run without a launcher, which nobody interrupts."""
    output = launcher.home / f"alone-{library}"
    output.mkdir(parents=True)
    env = launcher.env | {"FLEXAI_OUTPUT_CHECKPOINT_DIR": str(output), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, f"tests/libraries/resume_{library}.py"]
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return _losses(done.stdout)


def _interrupted(launcher: Launcher, library: str) -> str:
    """What a job prints whose script is killed in the middle, and that goes on by itself."""
    process = launcher.start(
        "training", "run", library, "--max-restarts", "1", "--settle", "0.1s", "--launch", "exec", "--env", "OMP_NUM_THREADS=1",
        "--", "python", f"tests/libraries/resume_{library}.py",
    )  # fmt: skip
    lines = []
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"step {KILLED_AT} "):
            break
    for pid in tree(process.pid):
        if f"resume_{library}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            break
    lines.append(process.communicate(timeout=300)[0])
    assert process.returncode == 0, "".join(lines)
    return "".join(lines)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_loss_curve_goes_on_exactly(launcher: Launcher, library: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        alone, interrupted = (pool.submit(each, launcher, library) for each in (_alone, _interrupted))
        expected, text = alone.result(), interrupted.result()
    attempts = launcher.json("training", "inspect", library)["attempts"]
    assert len(attempts) == 2 and "goes on from" in text
    found = _losses(text)
    print(
        f"{library}: {len(found)} steps, went on from step {attempts[1]['resumed_step']} ({attempts[1]['resumed_path']})"
    )
    assert found == expected
    assert attempts[1]["resumed"]
