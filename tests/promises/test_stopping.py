"""A stop request: told to every rank at once, with a deadline, whoever asks; and its end is on time and honest."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import Launcher

RANKS = """
import json, os, pathlib, signal, sys, time
import torch
rank = int(os.environ["RANK"])
out = pathlib.Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
came = []
def stop(number, frame):
    came.append((number, time.time()))
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGUSR1, lambda *_: print(f"rank {rank} got USR1", flush=True))
loader = iter(torch.utils.data.DataLoader(range(10**9), num_workers=1))
print(f"rank {rank} is ready", flush=True)
while not came:
    next(loader)
    time.sleep(0.01)
time.sleep(WAIT[rank])
next(loader)  # Its worker is alive still.
told = json.loads(pathlib.Path(os.environ["LAUNCHER_STOP_FILE"]).read_text())
print(f"rank {rank} saves: signals {[signal.Signals(each[0]).name for each in came]}, {told['reason']}", flush=True)
if rank == 0:
    (out / "step-7").mkdir()
    torch.save({"a": torch.ones(3), "left": told["deadline"] - came[0][1]}, out / "step-7" / "model.pt")
os._exit(CODES[rank])
"""


def ranks(folder: Path, *, wait: tuple[float, ...] = (0, 0), codes: tuple[int, ...] = (0, 0)) -> Path:
    """A training script whose ranks save when they are stopped, after so long a time, and end with such a code."""
    script = folder / "ranks.py"
    script.write_text(f"WAIT, CODES = {wait}, {codes}\n{RANKS}")
    return script


def until(process: subprocess.Popen[str], *texts: str) -> str:
    """Reads its output until every text was there."""
    assert process.stdout
    seen = ""
    left = set(texts)
    for line in process.stdout:
        seen += line
        left = {text for text in left if text not in line}
        if not left:
            return seen
    raise AssertionError(f"no {left} in:\n{seen}")


def finish(process: subprocess.Popen[str], seconds: float = 120) -> str:
    """The rest of its output."""
    output, _ = process.communicate(timeout=seconds)
    return output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_every_rank_is_told_once_and_saves_though_others_have_ended(
    launcher: Launcher, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Rank 1 ends by the signal's own code at once; rank 0 saves three seconds later, with its data loader alive."""
    script = ranks(tmp_path, wait=(3, 0), codes=(0, code))
    process = launcher.start("training", "run", "stopped", "--accels", "2", "--grace", "90s", "--", script)
    seen = until(process, "rank 0 is ready", "rank 1 is ready")
    process.send_signal(number)
    output = seen + finish(process)
    assert process.returncode == code, output
    for rank in (0, 1):
        assert f"rank {rank} saves: signals ['{number.name}'], {number.name}" in output
    assert [each["metadata"]["name"] for each in launcher.json("checkpoint", "list")] == ["stopped/step-7"], output
    result = launcher.result("stopped")
    assert result["stopped"] and result["origin"] == "job" and "It ended in time" in result["cause"]
    print(f"{number.name}: exit {process.returncode}; {result['cause']}")


RECIPES = [
    ("trainer", 1, "transformers-trainer"),
    ("lightning_module", 1, "lightning"),
    ("accelerate_loop", 2, "accelerate"),
    ("handler", 1, "torch-save"),
    ("stop_file", 1, "torch-save"),
]


@pytest.mark.parametrize(("script", "accels", "library"), RECIPES, ids=[each[0] for each in RECIPES])
def test_every_recipe_of_the_documentation_saves(launcher: Launcher, script: str, accels: int, library: str) -> None:
    """Real libraries, as docs/stopping.md says."""
    process = launcher.start(
        "training", "run", "recipe", "--accels", str(accels), "--grace", "2m", "--", f"examples/stopping/{script}.py"
    )
    seen = until(process, "training")
    process.send_signal(signal.SIGTERM)
    output = seen + finish(process)
    assert process.returncode == 143, output
    found = launcher.json("training", "checkpoints", "recipe")
    assert [each["status"]["format"] for each in found] == [library], output
    print(script, [each["metadata"]["name"] for each in found], launcher.result("recipe")["cause"])
