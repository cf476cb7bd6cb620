"""What the job computes on, and with which interpreter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping

from launcher.errors import TooFewAccelerators
from launcher.events import Emit, event
from launcher.job.spec import JobSpec
from launcher.runners import torchrun
from launcher.runners.accelerators import detect


def choose(spec: JobSpec, environ: Mapping[str, str], emit: Emit) -> tuple[str, dict[str, str]]:
    """The device in words, and the variables that keep a job on the CPU where that was chosen."""
    if spec.runner == "sidecar":
        return "the job's own container's", {}
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if spec.device == "cpu":
        return "cpu", on_cpu
    wrapped = torchrun.command_line(
        spec.command, accels=spec.accels, launch=spec.launch, python="python", log_dir=""
    ).wrapped
    if spec.device == "auto" and not wrapped and spec.accels == 1:
        return "the command's own choice", {}
    found = detect(environ)
    if spec.device != "auto" and found.kind != spec.device:
        raise TooFewAccelerators(asked=spec.accels, found=0, detail=f"--device {spec.device}; {found.detail}")
    if found.count == 0 and spec.runner != "entrypoint":
        processes = "1 process" if spec.accels == 1 else f"{spec.accels} gloo processes"
        emit(event("cpu-fallback", f"No accelerator here ({found.detail}): running {processes} on the CPU"))
        # Without it, a Trainer under torchrun on a machine without accelerators trains every rank on its own (measured).
        return "cpu (no accelerator)", {"ACCELERATE_USE_CPU": "true"}
    if found.count < spec.accels:
        hint = "Set LAUNCHER_DEVICE=cpu to run on the CPU." if found.count == 0 else None
        raise TooFewAccelerators(asked=spec.accels, found=found.count, detail=found.detail, hint=hint)
    return f"{found.kind} × {spec.accels}", {}


def interpreter(environ: Mapping[str, str]) -> str:
    """The job's own interpreter: the active virtual environment's, else ours if torch is there, else the one on PATH."""
    if environ.get("VIRTUAL_ENV"):
        candidate = os.path.join(environ["VIRTUAL_ENV"], "bin", "python")
        if os.access(candidate, os.X_OK):
            return candidate
    if importlib.util.find_spec("torch"):
        return sys.executable
    return shutil.which("python3", path=environ.get("PATH")) or sys.executable
