"""What only a machine with accelerators can show. Run by hand there: CI has none.

    python -m tests.campaigns.accelerator

Every row is a promise and what was found; the exit code is 1 where one does not hold. Needs the examples' libraries with an
accelerator build of torch. A job's processes must be gone from the accelerator after every kind of end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.runners.accelerators import detect
from tests.support.cli import PROGRAM, ROOT, Launcher

OUT_OF_MEMORY = """
import torch
held = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(4096)]
"""
HOLD = """
import os, signal, time, torch
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("DEAF") else signal.SIG_DFL)
held = torch.ones(1 << 28, device="cuda")
torch.cuda.synchronize()
print("holding", flush=True)
time.sleep(600)
"""
SHARDED = """
import os, sys, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl")
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8)).cuda()
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.randn(16, 512, device="cuda")).sum().backward()
optimizer.step()
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optim": state}, checkpoint_id=os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"] + "/step-1")
dist.barrier()
dist.destroy_process_group()
"""


RESUMED = """
import os
print("going on from", os.path.basename(os.environ["LAUNCHER_RESUME_CHECKPOINT"]))
"""


class Broken(Exception):
    """A promise that does not hold: what was found."""


def require(holds: bool, found: object) -> None:
    """Raises Broken with what was found."""
    if not holds:
        raise Broken(str(found))


class Machine:
    """The command line, and what this machine has by torch's own word."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.launcher = Launcher(home)
        self.count, self.names = visible({})

    def script(self, name: str, text: str) -> str:
        path = self.home / f"{name}.py"
        path.write_text(text)
        return str(path)

    def run(self, name: str, *words: str, code: int = 0, **env: str) -> str:
        launcher = Launcher(self.home, **env)
        return launcher("training", "run", name, *words, code=code, timeout=300)

    def outcome(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = self.launcher.result(name)
        return result

    def collected(self, name: str) -> list[str]:
        return [each["metadata"]["name"] for each in self.launcher.json("training", "checkpoints", name)]


def visible(env: Mapping[str, str]) -> tuple[int, list[str]]:
    """What torch sees with these variables."""
    names = "[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]"
    code = f"import json, torch; print(json.dumps({names}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return len(found), found


def computing() -> list[int]:
    """Process ids that hold an accelerator, by NVML."""
    import pynvml

    pynvml.nvmlInit()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found += [each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return found
    finally:
        pynvml.nvmlShutdown()


def free_within(seconds: float) -> float:
    """Seconds until no process holds an accelerator. Raises Broken."""
    started = time.monotonic()
    while held := computing():
        require(time.monotonic() - started < seconds, f"{len(held)} process(es) hold it after {seconds} s")
        time.sleep(0.02)
    return time.monotonic() - started


def detection(machine: Machine) -> str:
    """The launcher counts what torch counts, whatever CUDA_VISIBLE_DEVICES says."""
    import pynvml

    pynvml.nvmlInit()
    uuid = str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))
    values = ["", "0", uuid, uuid[:12], "0,0", "7", "-1", "0,9", "GPU-0", uuid.upper()]
    for value in values:
        env = {"CUDA_VISIBLE_DEVICES": value}
        ours, torchs = detect(env).count, visible(env)[0]
        require(ours == torchs, f"CUDA_VISIBLE_DEVICES={value}: launcher {ours}, torch {torchs}")
    found = detect({})
    require((found.count, list(found.names)) == (machine.count, machine.names), found)
    return f"{found.detail}; {len(values)} of {len(values)} values of CUDA_VISIBLE_DEVICES counted as torch does"


def too_few(machine: Machine) -> str:
    """More than there are: an error with both numbers, before anything is downloaded."""
    asked = machine.count + 3
    words = ("-C", "base", "--device", "cuda", "--accels", str(asked), "--", "examples/fine_tune.py")
    text = machine.run("few", *words, code=73)
    line = next(line for line in text.splitlines() if "error" in line)
    require(str(asked) in line and str(machine.count) in line, line)
    return line.strip()


def fine_tuning(machine: Machine) -> str:
    """The demo's script, unchanged, on every accelerator, by NCCL."""
    accels = str(machine.count)
    text = machine.run(
        "tune", "-C", "base", "--device", "cuda", "--accels", accels, "--", "examples/fine_tune.py",
        "--steps", "40", "--save-steps", "10",
    )  # fmt: skip
    names = machine.collected("tune")
    wanted = {"tune", *(f"tune/checkpoint-{step}" for step in (10, 20, 30, 40))}
    require(set(names) == wanted, names)
    record = json.loads((machine.launcher.job("tune") / "record.json").read_text())["attempts"][-1]
    require(record["device"] == f"cuda × {accels}", record["device"])
    losses = [line for line in text.splitlines() if "train_loss" in line]
    rung = record["inputs"][0]["rung"]
    return f"{len(names)} of {len(wanted)} checkpoints; {record['device']}; input by {rung}; {losses[-1][:80]}"


def continuing(machine: Machine) -> str:
    """From a checkpoint of the job before it."""
    text = machine.run(
        "again", "-C", "job:tune/checkpoint-20", "--device", "cuda", "--", "examples/fine_tune.py",
        "--steps", "30", "--save-steps", "10",
    )  # fmt: skip
    require("from step 20" in text and "finished at step 30" in text, text[-400:])
    return "from step 20 to step 30"


def sharded(machine: Machine) -> str:
    """FSDP2 and torch.distributed.checkpoint with NCCL."""
    machine.run("sharded", "--accels", str(machine.count), "--", machine.script("sharded", SHARDED))
    found = machine.launcher.json("training", "checkpoints", "sharded")
    require(len(found) == 1, found)
    text = machine.launcher("checkpoint", "verify", "sharded/step-1")
    return f"collected and verified: {text.strip().splitlines()[-1]}"


def in_a_container(machine: Machine) -> str:
    """The entrypoint finds the accelerators by itself; without them it fails rather than fall back."""
    words = [PROGRAM, "entrypoint", "--name", "inside", "-C", "base", "--", "examples/fine_tune.py", "--steps", "2"]
    env = machine.launcher.env | {
        "LAUNCHER_INPUT_DIR": str(machine.home / "in"),
        "LAUNCHER_OUTPUT_DIR": str(machine.home / "out"),
    }
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    require(done.returncode == 0, done.stderr[-500:])
    hidden = subprocess.run(
        words, env=env | {"CUDA_VISIBLE_DEVICES": ""}, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    require(hidden.returncode == 73, f"{hidden.returncode}: {hidden.stderr[-300:]}")
    return "with them exit code 0, hidden 73"


def out_of_memory(machine: Machine) -> str:
    """The verdict names the accelerator's memory."""
    machine.run("oom", "--", machine.script("oom", OUT_OF_MEMORY), code=1)
    outcome = machine.outcome("oom")
    require(outcome["failure"] == "oom" and "OutOfMemory" in outcome["traceback"], outcome)
    return f"{outcome['cause'][:110]}; {free_within(5):.1f} s until free"


def stopped_and_continued(machine: Machine) -> str:
    """SIGTERM to a Trainer that saves when it is told to; then the same job's next attempt goes on from what it saved."""
    process = machine.launcher.start(
        "training",
        "run",
        "saves",
        "--accels",
        str(machine.count),
        "--grace",
        "60s",
        "--",
        "examples/stopping/trainer.py",
    )
    assert process.stdout
    try:
        for line in process.stdout:
            if "training" in line.split():
                break
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    require(process.returncode == 143, f"{process.returncode}: {text[-500:]}")
    names = machine.collected("saves")
    require(len(names) == 1, names)
    step = int(names[0].rpartition("-")[2])
    env = {"LAUNCHER_JOB_ID": machine.launcher.job("saves").name}
    words = ("--accels", str(machine.count), "--", machine.script("resumed", RESUMED))
    text = machine.run("saves", *words, **env)
    require(f"going on from checkpoint-{step}" in text, text[-500:])
    return f"exit code 143, checkpoint-{step} stored and found by the next attempt"


def ends(machine: Machine) -> str:
    """SIGTERM, the end of the grace, and kill -9 of the launcher: the accelerator is free within two seconds."""
    script, found = machine.script("hold", HOLD), []
    for how, number, deaf in (
        ("SIGTERM", signal.SIGTERM, False),
        ("deaf to it", signal.SIGTERM, True),
        ("kill -9", signal.SIGKILL, False),
    ):
        launcher = Launcher(machine.home, **({"DEAF": "1"} if deaf else {}))
        words = ("training", "run", "hold", "--accels", str(machine.count), "--grace", "3s", "--", script)
        process = launcher.start(*words)
        assert process.stdout
        try:
            for line in process.stdout:
                if "holding" in line:
                    break
            require(bool(computing()), "nothing holds the accelerator")
            started = time.monotonic()
            process.send_signal(number)
            if number == signal.SIGTERM:
                process.communicate(timeout=60)
                found.append(
                    f"{how}: launcher ended after {time.monotonic() - started:.1f} s, free {free_within(2):.1f} s later"
                )
            else:
                found.append(f"{how}: free after {free_within(2 + 5):.1f} s")
        finally:
            process.kill()
            process.wait()
    return "; ".join(found)


ROWS: list[Callable[[Machine], str]] = [
    detection, too_few, fine_tuning, continuing, sharded, in_a_container, out_of_memory, stopped_and_continued, ends,
]  # fmt: skip


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="launcher-accelerator-"))
    broken = 0
    try:
        machine = Machine(home)
        if not machine.count:
            print("torch sees no accelerator here: there is nothing to try.")
            return 1
        print(f"{machine.count} accelerator(s): {', '.join(machine.names)}; torch {version('torch')}")
        model = [
            sys.executable,
            ROOT / "examples/make_tiny_model.py",
            home / "model",
            "--hidden",
            "512",
            "--layers",
            "4",
        ]
        subprocess.run(model, check=True, capture_output=True)
        machine.launcher("checkpoint", "push", "base", "--file", home / "model")
        for row in ROWS:
            started = time.monotonic()
            try:
                found, mark = row(machine), "holds "
            except (Broken, AssertionError, StopIteration, subprocess.SubprocessError) as error:
                found, mark, broken = f"{type(error).__name__}: {error}", "BROKEN", broken + 1
            print(f"{mark} {row.__name__} ({time.monotonic() - started:.1f} s): {found}", flush=True)
    finally:
        subprocess.run(["chmod", "-R", "u+w", home], check=False)
        shutil.rmtree(home, ignore_errors=True)
    print(f"{len(ROWS) - broken} of {len(ROWS)} promises hold")
    return 1 if broken else 0


def version(package: str) -> str:
    from importlib.metadata import version as of

    return of(package)


if __name__ == "__main__":
    sys.exit(main())
