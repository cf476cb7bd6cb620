"""The exit code is the job's own, and the verdict says whose it is (T20, first form)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.support.cli import Launcher

SIGNALS = [each for each in range(1, 32) if each not in (17, 18, 19, 20, 21, 22, 23, 28)]  # those that end a process


@pytest.mark.parametrize("mode", ["training", "entrypoint"])
def test_every_code_is_the_jobs_own(launcher: Launcher, mode: str) -> None:
    """All 256 codes are exact; the plain process form is asked in one launcher each for a spread of them."""
    for code in [0, 1, 2, 3, 42, 64, 65, 66, 69, 70, 73, 74, 75, 77, 78, 85, 126, 127, 128, 137, 143, 200, 254, 255]:
        words = (
            ("training", "run", "codes") if mode == "training" else ("entrypoint", "--name", "codes", "--device", "cpu")
        )
        launcher(*words, "--", "sh", "-c", f"exit {code}", code=code)
        result = launcher.result("codes")
        assert (result["code"], result["origin"]) == (code, "job")


def test_a_signal_is_128_plus_its_number(launcher: Launcher) -> None:
    for number in SIGNALS:
        launcher("training", "run", "signals", "--", "sh", "-c", f"kill -{number} $$", code=128 + number)
        result = launcher.result("signals")
        assert result["origin"] == "job" and result["signal"] == signal.Signals(number).name


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(42)", 42), ("os.kill(os.getpid(), 11)", 139), ("raise ValueError('x')", 1)]
)
def test_torchrun_tells_the_first_failing_ranks_own_code(
    launcher: Launcher, tmp_path: Path, end: str, code: int
) -> None:
    script = tmp_path / "fail.py"
    script.write_text(f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {end}\ntime.sleep(60)\n")
    launcher("training", "run", "ranks", "--accels", "2", "--", script, code=code)
    result = launcher.result("ranks")
    assert (result["code"], result["origin"], result["rank"]) == (code, "job", 1)


def test_not_found_is_127_and_not_executable_126(launcher: Launcher, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("hello")
    bad = tmp_path / "bad"
    bad.write_text("#!/no/such/interpreter\n")
    bad.chmod(0o755)
    launcher("training", "run", "n", "--", "no-such-program", code=127)
    launcher("training", "run", "n", "--", "missing.py", code=127)
    launcher("training", "run", "n", "--", plain, code=126)
    launcher("training", "run", "n", "--", bad, code=127)


def test_a_stop_is_passed_on_and_the_last_checkpoint_is_stored(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import os, signal, sys, time, torch\n"
        "out = os.environ['FLEXAI_OUTPUT_CHECKPOINT_DIR']\n"
        "def stop(*_):\n"
        "    os.mkdir(out + '/step-7')\n"
        "    torch.save({'a': torch.ones(3)}, out + '/step-7/model.pt')\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = launcher.start(
        "training", "run", "stopped", "--", sys.executable, "-u", "-c", f"exec(open({str(script)!r}).read())"
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("ready"):
            break
    launcher("training", "stop", "stopped")
    assert process.wait(20) == 3
    assert launcher.result("stopped")["stopped"] is True
    assert [each["metadata"]["name"] for each in launcher.json("checkpoint", "list")] == ["stopped/step-7"] or (
        # The job did not end with 0, so the folder is judged by its files alone: torch.save's is whole.
        launcher.json("training", "checkpoints", "stopped")
    )


def test_a_job_that_ignores_the_stop_is_killed_after_its_grace(launcher: Launcher) -> None:
    process = launcher.start(
        "training",
        "run",
        "deaf",
        "--grace",
        "1s",
        "--",
        "sh",
        "-c",
        "trap '' TERM INT; echo ready; while :; do sleep 1; done",
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("ready"):
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 137
    assert "killing it" in process.stdout.read()


def test_processes_that_the_job_leaves_behind_are_ended(launcher: Launcher) -> None:
    output = launcher("training", "run", "left", "--", "sh", "-c", "(setsid sleep 321 &) ; exit 5", code=5)
    assert "left processes behind" in output and "sleep" in output
