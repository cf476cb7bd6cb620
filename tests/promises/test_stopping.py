"""A stop request: told to every rank at once, with a deadline, whoever asks; and its end is on time and honest."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.campaigns import moments, survivors
from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.fault_proxy import FaultProxy
from tests.support.filesystems import KernelCannot
from tests.support.s3_server import S3Server

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
    process.send_signal(signal.SIGUSR1)  # In plain torchrun it kills the agent.
    seen += until(process, "rank 0 got USR1", "rank 1 got USR1")
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


DEAF = "trap '' TERM INT; echo ready; while :; do sleep 0.1; done"
POLITE = (
    "trap 'echo told; exit 7' TERM; echo file $LAUNCHER_STOP_FILE; echo patience $TORCH_ELASTIC_SHUTDOWN_TIMEOUT; "
    "while :; do sleep 0.1; done"
)


def test_whoever_makes_the_stop_file_stops_the_job(launcher: Launcher) -> None:
    process = launcher.start("training", "run", "j", "--grace", "90s", "--", "sh", "-c", POLITE)
    assert process.stdout
    file = next(line.split()[1] for line in process.stdout if line.startswith("file"))
    assert next(process.stdout) == "patience 90\n"  # For a torchrun that the job starts itself.
    Path(file).touch()
    output = finish(process)
    assert process.returncode == 7 and "told" in output, output  # The code is the job's own.
    result = launcher.result("j")
    assert result["stopped"] and result["retryable"] and "Stopped by the stop file" in result["cause"], result


def test_the_time_limit_stops_the_job_with_the_grace_left(launcher: Launcher) -> None:
    started = time.monotonic()
    process = launcher.start("training", "run", "j", "--time-limit", "8s", "--grace", "2s", "--", "sh", "-c", POLITE)
    output = finish(process)
    assert process.returncode == 7 and time.monotonic() - started > 6, output
    assert "Stopped by the time limit of 8.00 s" in launcher.result("j")["cause"]
    output = launcher("training", "run", "j", "--time-limit", "30s", "--", "true", code=64)
    assert "used up by --grace" in output


def test_slurms_early_signal_is_a_stop_and_its_sigterm_later_no_second_one(launcher: Launcher, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"trap 'echo told' TERM; echo ready; while ! [ -e {go} ]; do sleep 0.1; done; exit 7"
    words = ("training", "run", "j", "--stop-signal", "USR1", "--grace", "5m", "--", "sh", "-c", script)
    process = launcher.start(*words)
    seen = until(process, "ready")
    process.send_signal(signal.SIGUSR1)
    seen += until(process, "told")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    go.touch()
    seen += finish(process)
    assert process.returncode == 7 and "again" not in seen, seen
    assert "Stopped by SIGUSR1" in launcher.result("j")["cause"]


def test_ctrl_c_twice_on_a_terminal_ends_the_job_now(launcher: Launcher) -> None:
    """The third time it would end the storing. Between the first and the second the terminal says what happens."""
    reader, terminal = pty.openpty()
    words = [PROGRAM, "training", "run", "j", "--grace", "10m", "--", "sh", "-c", DEAF]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words],
        stdin=terminal, stdout=terminal, stderr=terminal, env=launcher.env, cwd=ROOT,
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    asked = 0
    late = threading.Timer(60, process.kill)
    late.start()
    try:
        while True:
            try:
                data = os.read(reader, 4096)
            except OSError:  # The terminal's other side is closed.
                break
            if not data:
                break
            seen += data
            if (asked == 0 and b"ready\r\n" in seen) or (asked == 1 and b"a second signal ends it now" in seen):
                os.write(reader, b"\x03")
                asked += 1
        assert process.wait(60) == 137, seen.decode()
    finally:
        late.cancel()
        os.close(reader)
    assert b"Asked again: killing the job now" in seen
    assert "SIGINT" in launcher.result("j")["cause"]


def test_a_stop_while_a_stalled_store_keeps_the_last_checkpoint_is_over_in_time_and_says_what_is_left(
    launcher: Launcher, s3_server: S3Server
) -> None:
    """At the deadline, and at once when asked again; `launcher recover` stores it then."""
    with FaultProxy(s3_server.endpoint) as proxy:
        launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/p"}
        launcher.env["AWS_ENDPOINT_URL"] = proxy.endpoint
        job = (
            "import os, sys, time; sys.path.insert(0, 'tests/campaigns'); import quick_writer, pathlib\n"
            "folder = pathlib.Path(os.environ['FLEXAI_OUTPUT_CHECKPOINT_DIR'], 'checkpoint-1'); folder.mkdir()\n"
            "for name, data in quick_writer.content(1, 1).items(): (folder / name).write_bytes(data)\n"
            "print('ready', flush=True); time.sleep(600)"
        )
        for name, grace, again in (("late", 4.0, False), ("again", 600.0, True)):
            words = ("training", "run", name, "--settle", "0.1s", "--grace", f"{grace}s", "--", "python", "-c", job)
            rule = proxy.on("PUT", r"safetensors", "no-answer:15*")
            process = launcher.start(*words)
            seen = until(process, "ready")
            rule.wait(1, deadline=60)  # The uploader waits for the server.
            sent = time.monotonic()
            process.send_signal(signal.SIGTERM)
            if again:
                seen += until(process, "a further signal ends it")
                process.send_signal(signal.SIGTERM)
            seen += finish(process)
            used = time.monotonic() - sent
            proxy.rules.clear()
            result = launcher.result(name)
            print(
                f"grace {grace:g} s: over after {used:.1f} s, exit {process.returncode}; {result['cause']}; {result['hint']}"
            )
            assert process.returncode == 143 and used < min(grace, 60) + 60, seen
            assert result["bytes_not_stored"] > 10_000 and result["next"] == f"launcher recover {name}", result
        for name in ("late", "again"):
            launcher("recover", name)
            assert [each["metadata"]["name"] for each in launcher.json("training", "checkpoints", name)] == [
                f"{name}/checkpoint-1"
            ]


def test_sigterm_at_random_moments_of_a_whole_life() -> None:
    """The whole: `python -m tests.campaigns.moments`. The bound of 2 s is for a machine that is not busy."""
    figures = moments.campaign(8, seed=3, pid1=False, bound=60)
    print(figures.text())
    assert not figures.violations, figures.violations


@pytest.mark.parametrize("kind", ["deaf", "stuck"])
def test_the_end_is_on_time_whatever_a_rank_does(kind: str) -> None:
    """The whole: `python -m tests.campaigns.survivors`."""
    try:
        figures = survivors.campaign(kind, 1, grace=3, seed=3, slack=60)
    except KernelCannot as error:
        pytest.skip(str(error))
    print(kind, figures.text(3))
    assert not figures.violations, figures.violations


FORKS = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
os.fork()
end = time.monotonic() + 150  # Should it outlive the test, it must not disturb those after it.
while time.monotonic() < end:  # Each leaves a child behind and goes on as it: no list of processes is true for long.
    if os.fork():
        os._exit(0)
    time.sleep(0.005)
"""


def test_a_job_that_forks_faster_than_one_can_look_is_ended_whole(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "forks"
    script.write_text(f"#!{sys.executable}\n{FORKS}")
    script.chmod(0o755)
    process = launcher.start("training", "run", "forks", "--grace", "10m", "--", script)
    seen = until(process, "ready")
    process.send_signal(signal.SIGTERM)
    seen += until(process, "a second signal ends it now")
    process.send_signal(signal.SIGTERM)
    seen += finish(process)
    mark = f"LAUNCHER_JOB_ID={launcher.job('forks').name}".encode()
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if mark in _content(path)]
    print(f"exit {process.returncode}, {len(left)} processes left")
    assert process.returncode in (0, 137) and not left, seen


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
