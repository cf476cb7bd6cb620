"""What a job prints arrives whole and as it was printed."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.entrypoint import environment

LINE = "0123456789abcdef" * 7
COUNT = 1_000_000


@pytest.mark.parametrize("kind", ["plain", "main job"])
def test_100_megabytes_arrive_whole(launcher: Launcher, tmp_path: Path, kind: str) -> None:
    """`benchmarks/init.py` measures the speed."""
    plain = kind == "plain"
    words = [PROGRAM, "entrypoint"] if plain else [PROGRAM, "training", "run", "x"]
    started = time.monotonic()
    with open(tmp_path / "out", "wb") as file:
        command = [*words, "--", "sh", "-c", f"yes {LINE} | head -n {COUNT}"]
        env = environment() if plain else launcher.env
        subprocess.run(command, env=env, cwd=ROOT, stdout=file, stderr=subprocess.DEVNULL, check=True, timeout=240)
    seconds = time.monotonic() - started
    expected = hashlib.sha256(f"{LINE}\n".encode() * COUNT).hexdigest()
    found = {tmp_path / "out"} if plain else {tmp_path / "out", launcher.job("x") / "logs/job.log"}
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in found} == {expected}
    print(f"{kind}: {COUNT * 113 / 1e6:.0f} MB whole in {seconds:.2f} s, with start and end")


def test_the_lines_of_two_ranks_arrive_whole(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "lines.py"
    script.write_text(f"import sys\nfor _ in range(200):\n    sys.stdout.write({LINE!r} + '\\n' + '{LINE}\\n' * 999)\n")
    with open(tmp_path / "out", "wb") as file:
        command = [PROGRAM, "training", "run", "x", "--accels", "2", "--", script]
        subprocess.run(command, env=launcher.env, cwd=ROOT, stdout=file, stderr=subprocess.DEVNULL, check=True)
    lines = (tmp_path / "out").read_text().splitlines()
    for rank in (0, 1):
        assert lines.count(f"[rank{rank}]: {LINE}") == 200_000
    assert len(lines) == 400_000


def test_the_job_may_close_its_output(launcher: Launcher) -> None:
    output = launcher("training", "run", "x", "--", "sh", "-c", "echo first; exec >&- 2>&-; sleep 1; exit 3", code=3)
    assert "first" in output


def test_progress_bars_are_passed_on_byte_by_byte(launcher: Launcher) -> None:
    done = subprocess.run(
        [PROGRAM, "training", "run", "x", "--", "printf", r"\r10%%\r50%%\r100%%\n"],
        env=launcher.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.stdout == b"\r10%\r50%\r100%\n"
    assert (launcher.job("x") / "logs/job.log").read_bytes() == done.stdout
