"""The verdict tells the same truth about a job in a container of a real engine."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.promises.test_verdict import ENDS, check, failing_script
from tests.support.cli import Launcher

# The first test waits for the base image, which takes minutes to make where it is not there yet.
pytestmark = pytest.mark.timeout(1500)
BASE = "launcher-test-base:latest"


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the container's user can read; pytest's own is the caller's alone."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


def test_the_first_failing_rank_is_named_from_outside_of_the_container(
    tmp_path: Path, folder: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every end in a container of the docker runner, rank 1 of 2; the kernel's killer by a limit that the engine sets."""
    script = failing_script(folder)

    def one(how: str) -> str:
        launcher = Launcher(tmp_path / how.replace(" ", "-"), DOCKER_HOST=engine)
        words = ["training", "run", "t", "--runner", "docker", "--image", BASE, "--device", "cpu", "--accels", "2"]
        process = launcher.start(*words, "--", script.name, how, "1", "wait", cwd=folder)
        if how == "memory":
            limit(launcher, process)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == ENDS[how][0], output
        check(launcher.result("t"), how, 1, os.uname().nodename)
        return str(launcher.result("t")["cause"])

    with ThreadPoolExecutor(2) as pool:
        causes = dict(zip(ENDS, pool.map(one, ENDS)))
    with capsys.disabled():
        print("".join(f"\n  docker     {how:10} rank 1 of 2: {ENDS[how][0]:3}  {causes[how]}" for how in ENDS))


def limit(launcher: Launcher, process: subprocess.Popen[str]) -> None:
    """Gives the job's container 512 MiB, as soon as it runs."""
    while process.poll() is None:
        for folder in launcher.home.glob("data/jobs/t/0*"):
            words = ["docker", "update", "--memory", "512m", "--memory-swap", "512m", f"launcher-{folder.name}"]
            running = ["docker", "inspect", "--format", "{{.State.Running}}", f"launcher-{folder.name}"]
            if "true" in subprocess.run(running, env=launcher.env, capture_output=True, text=True).stdout:
                subprocess.run(words, env=launcher.env, check=True, capture_output=True)
                return
        time.sleep(0.2)


def test_a_container_that_stands_still_is_ended(engine: str, launcher: Launcher) -> None:
    """The engine tells of its processor time and of what its processes wait in."""
    launcher.env["DOCKER_HOST"] = engine
    words = ["training", "run", "still", "--runner", "docker", "--image", BASE, "--stall-timeout", "3s"]
    launcher(*words, "--", "sh", "-c", "trap 'exit 9' TERM; echo one; while :; do sleep 1; done", code=9)
    result = launcher.result("still")
    assert result["failure"] == "hang" and "no processor time (" in result["cause"]


def test_a_container_cannot_show_files_of_this_machine_by_its_logs(
    engine: str, folder: Path, launcher: Launcher
) -> None:
    """As the ranks' logs, the agent's verdict and the job's log it plants links to a file that only this machine has."""
    launcher.env["DOCKER_HOST"] = engine
    canary = folder.parent / f"{folder.name}-canary"
    canary.write_text("canary-4711\n")
    (folder / "plant.py").write_text(
        "import json, os, signal, sys, time\n"
        "canary, logs = sys.argv[1], '/run/launcher/logs'\n"
        "if os.environ['RANK'] == '1': time.sleep(300)\n"
        "for there in ('job.log', '../job.log', 'job.times'):\n"
        "    try: os.symlink(canary, f'{logs}/{there}')\n"
        "    except OSError as error: print(there, error)\n"
        "os.makedirs(f'{logs}/x/attempt_0/7'); os.makedirs(f'{logs}/y/attempt_0/8')\n"
        "os.symlink(canary, f'{logs}/x/attempt_0/7/stderr.log')\n"
        "os.mkfifo(f'{logs}/y/attempt_0/8/stdout.log')\n"
        "up = '../' * 20 + canary\n"
        "rank = {'rank': 0, 'pid': 1, 'code': 5, 'ended': 1.0, 'cut': False, 'error': '', 'log': up}\n"
        "if sys.argv[2] == 'link': os.symlink(canary, f'{logs}/verdict.json')\n"
        "else:\n"
        "    with open(f'{logs}/verdict.json', 'w') as file: json.dump({'closed': 0.0, 'ranks': [rank]}, file)\n"
        "time.sleep(3)\n"
        "os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    try:
        for how, code in (("link", 137), ("verdict", 5)):
            words = [
                "training",
                "run",
                "plant",
                "--runner",
                "docker",
                "--image",
                BASE,
                "--device",
                "cpu",
                "--accels",
                "2",
            ]
            output = launcher(*words, "--", "plant.py", canary, how, code=code, cwd=folder)
            kept = [path.read_text(errors="replace") for path in launcher.job("plant").glob("*.json*")]
            kept += [path.read_text(errors="replace") for path in (launcher.home / "data/store").rglob("*.log")]
            assert kept and not any("canary-4711" in text for text in (output, *kept))
    finally:
        canary.unlink()
