"""Which accelerators this machine has, without importing a training library.

NVIDIA through NVML, AMD through the kernel's own topology files. Tested against recorded answers only: no machine with an
accelerator was at hand.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["cuda", "rocm", "cpu"]


@dataclass(frozen=True)
class Accelerators:
    """What was found: `count` devices that the job may see, their names, and in words how that is known."""

    kind: Kind
    count: int
    names: tuple[str, ...]
    detail: str


def detect(env: Mapping[str, str], *, root: str = "/", nvml: Any = None) -> Accelerators:
    """The accelerators that a process with this environment would see. `root` and `nvml` are for tests.

    Costs under 1 ms where there is no driver. Never raises: a driver that answers with an error is told in `detail`.
    """
    notes = []
    if any(os.path.exists(os.path.join(root, path)) for path in ("dev/nvidiactl", "proc/driver/nvidia/version")):
        names, note = _nvidia(nvml)
        if names:
            seen = _visible(names, env.get("CUDA_VISIBLE_DEVICES"))
            return Accelerators("cuda", len(seen), tuple(seen), _detail("NVIDIA", names, seen, "CUDA_VISIBLE_DEVICES"))
        notes.append(note)
    names = _amd(os.path.join(root, "sys/class/kfd/kfd/topology/nodes"))
    if names:
        variable = "ROCR_VISIBLE_DEVICES" if "ROCR_VISIBLE_DEVICES" in env else "HIP_VISIBLE_DEVICES"
        seen = _visible(names, env.get(variable))
        return Accelerators("rocm", len(seen), tuple(seen), _detail("AMD", names, seen, variable))
    return Accelerators("cpu", 0, (), "; ".join(note for note in notes if note) or "no accelerator driver is loaded")


def _nvidia(nvml: Any) -> tuple[list[str], str]:
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return [], "the package nvidia-ml-py is missing"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"NVML failed: {error}"
    try:
        names = []
        for index in range(nvml.nvmlDeviceGetCount()):
            name = nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index))
            names.append(name.decode() if isinstance(name, bytes) else str(name))
        return names, ""
    except nvml.NVMLError as error:
        return [], f"NVML failed: {error}"
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _amd(nodes: str) -> list[str]:
    names = []
    try:
        entries = sorted(os.listdir(nodes), key=lambda entry: int(entry) if entry.isdigit() else 0)
    except OSError:
        return []
    for entry in entries:
        try:
            with open(os.path.join(nodes, entry, "properties")) as file:
                properties = dict(re.findall(r"^(\w+) (\S+)$", file.read(), re.M))
        except OSError:
            continue  # A GPU that this process may not use: the container's cgroup hides its properties.
        if int(properties.get("simd_count", "0")) > 0:
            version = int(properties.get("gfx_target_version", "0"))
            names.append(f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else "AMD GPU")
    return names


def _visible(names: list[str], variable: str | None) -> list[str]:
    """The devices that a *_VISIBLE_DEVICES variable leaves: the list ends at the first entry that is none (CUDA's rule)."""
    if variable is None:
        return names
    seen = []
    for entry in variable.split(","):
        entry = entry.strip()
        if entry.isdigit() and int(entry) < len(names):
            seen.append(names[int(entry)])
        elif entry.startswith(("GPU-", "MIG-")):
            seen.append(entry)
        else:
            break
    return seen


def _detail(vendor: str, names: list[str], seen: list[str], variable: str) -> str:
    text = f"{len(names)} {vendor} ({names[0]})"
    return text if len(seen) == len(names) else f"{text}, {len(seen)} left by {variable}"
