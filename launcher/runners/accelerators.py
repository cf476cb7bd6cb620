"""Which accelerators this machine has, without importing a training library.

NVIDIA through NVML: counted as torch counts on an H100, for ten values of CUDA_VISIBLE_DEVICES (tests/campaigns/accelerator.py).
AMD through the kernel's topology files (amdkfd): never run on real hardware, the tests give recorded answers.

Intel GPUs (XPU) are left out. The kernel's files tell an Intel render node from others, but not a laptop's integrated
graphics, which is no training device, from an accelerator: that takes Level Zero, a library that need not be there. So a
machine with Intel GPUs alone counts as one without accelerators.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["cuda", "rocm", "cpu"]


@dataclass(frozen=True)
class Accelerators:
    """What was found: `count` devices that a process of the job sees, their names, and in words how that is known.

    `kind` is "cpu" exactly where `count` is 0, also where devices are there and hidden: `detail` then says why.
    """

    kind: Kind
    count: int
    names: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class _Device:
    name: str
    uuid: str
    mig: bool = False
    """In MIG mode: only its instances compute."""
    instances: tuple[_Device, ...] = ()


def detect(env: Mapping[str, str], *, root: str = "/", nvml: Any = None) -> Accelerators:
    """The accelerators that a process with this environment would see. `root` and `nvml` (a `pynvml`) are for tests.

    Costs under 1 ms where there is no driver. Never raises: a driver that answers with an error is told in `detail`.
    """
    notes = []
    # /dev/nvidiactl in containers, /proc/driver/nvidia where its device files are not made yet, /dev/dxg in WSL.
    if any(os.path.exists(os.path.join(root, path)) for path in ("dev/nvidiactl", "proc/driver/nvidia", "dev/dxg")):
        devices, problem = _nvidia(nvml)
        visible = _cuda_visible(devices, env.get("CUDA_VISIBLE_DEVICES"))
        detail = _detail("NVIDIA", devices, visible, env, ["CUDA_VISIBLE_DEVICES"], problem)
        if visible:
            return Accelerators("cuda", len(visible), tuple(each.name for each in visible), detail)
        notes.append(detail)
    devices, problem = _amd(root)
    visible = _rocm_visible(devices, env)
    detail = _detail("AMD", devices, visible, env, ["ROCR_VISIBLE_DEVICES", _hip_variable(env)], problem)
    if visible:
        return Accelerators("rocm", len(visible), tuple(each.name for each in visible), detail)
    notes.append(detail)
    return Accelerators("cpu", 0, (), "; ".join(filter(None, notes)) or "no accelerator driver is loaded")


def _nvidia(nvml: Any) -> tuple[list[_Device], str]:
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return [], "the package nvidia-ml-py is missing"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"NVML failed: {error}"
    devices, problems = [], []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                devices.append(_nvidia_device(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
            except nvml.NVMLError as error:  # Lost, or not permitted: CUDA leaves it out too.
                problems.append(f"GPU {index}: {error}")
    except nvml.NVMLError as error:
        problems.append(f"NVML failed: {error}")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return devices, "; ".join(problems)


def _nvidia_device(nvml: Any, handle: Any) -> _Device:
    name, uuid = _text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlDeviceGetUUID(handle))
    try:
        mig = bool(nvml.nvmlDeviceGetMigMode(handle)[0])
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if mig else 0
    except nvml.NVMLError:  # "Not Supported": most GPUs.
        return _Device(name, uuid)
    instances = []
    for slot in range(slots):
        with contextlib.suppress(nvml.NVMLError):  # "Not Found": an empty slot.
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
            instances.append(_Device(_text(nvml.nvmlDeviceGetName(instance)), _text(nvml.nvmlDeviceGetUUID(instance))))
    return _Device(name, uuid, mig, tuple(instances))


def _text(answer: str | bytes) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer


def _cuda_visible(gpus: Sequence[_Device], variable: str | None) -> list[_Device]:
    """What CUDA enumerates (its programming guide and MIG guide; torch.cuda reads the variable by the same rules).

    Indexes or UUIDs, not both; UUIDs as NVML writes them, and may be shortened; the list ends at the first entry that is no
    device; an entry given twice hides all. With MIG, a process sees one instance, whatever is listed, and no whole GPU
    beside it.
    """
    if variable is not None and variable.startswith("MIG-"):
        wanted = variable.split(",")[0].strip()
        for gpu in gpus:
            for instance in gpu.instances:
                # MIG-<UUID>, and drivers before 470: MIG-GPU-<UUID of the GPU>/<GPU instance>/<compute instance>.
                if instance.uuid == wanted or wanted.startswith(f"MIG-{gpu.uuid}/"):
                    return [instance]
        return []
    selected: list[_Device] = list(gpus)
    if variable is not None:
        by_uuid = variable.startswith("GPU-")
        entries = itertools.takewhile(lambda entry: entry.startswith("GPU-") == by_uuid, variable.split(","))
        indexes = _indexes(gpus, entries)
        selected = [gpus[index] for index in indexes] if len(set(indexes)) == len(indexes) else []
    instances = [instance for gpu in selected for instance in gpu.instances]
    return instances[:1] or [gpu for gpu in selected if not gpu.mig]


def _amd(root: str) -> tuple[list[_Device], str]:
    nodes = os.path.join(root, "sys/class/kfd/kfd/topology/nodes")
    try:
        entries = sorted((entry for entry in os.listdir(nodes) if entry.isdigit()), key=int)
    except OSError:
        return [], ""
    devices = []
    for entry in entries:
        try:
            with open(os.path.join(nodes, entry, "properties")) as file:
                properties = {key: int(value) for key, value in re.findall(r"^(\w+) (\d+)$", file.read(), re.M)}
        except OSError:
            continue  # A GPU that this process may not use: the container's cgroup hides its properties.
        if properties.get("simd_count", 0) > 0:  # 0: a node of processors.
            devices.append(_amd_device(root, properties))
    if devices and not os.access(os.path.join(root, "dev/kfd"), os.R_OK | os.W_OK):
        # /sys shows the host's GPUs in every container.
        reason = "/dev/kfd cannot be opened (a container without it, or a user outside the group render)"
        return [], f"{len(devices)} AMD ({devices[0].name}), but {reason}"
    return devices, ""


def _amd_device(root: str, properties: Mapping[str, int]) -> _Device:
    version = properties.get("gfx_target_version", 0)
    name = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else "AMD GPU"
    render_node = os.path.join(root, "sys/class/drm", f"renderD{properties.get('drm_render_minor', 0)}")
    with contextlib.suppress(OSError), open(os.path.join(render_node, "device/product_name")) as file:
        product = file.read().strip()
        name = f"{product} ({name})" if product else name
    unique_id = properties.get("unique_id", 0)
    return _Device(name, f"GPU-{unique_id:016x}" if unique_id else "")


def _rocm_visible(gpus: Sequence[_Device], env: Mapping[str, str]) -> list[_Device]:
    """What HIP enumerates (AMD's "GPU isolation techniques"): ROCr's variable first, HIP's indexes count what that left.

    Indexes and UUIDs may be mixed; each list ends at the first entry that is no device, or was there before.
    """
    visible = list(gpus)
    for variable in ("ROCR_VISIBLE_DEVICES", _hip_variable(env)):
        if variable in env:
            indexes = _indexes(visible, env[variable].split(","), fold_case=True)
            count = next((place for place, index in enumerate(indexes) if index in indexes[:place]), len(indexes))
            visible = [visible[index] for index in indexes[:count]]
    return visible


def _hip_variable(env: Mapping[str, str]) -> str:
    return "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in env else "CUDA_VISIBLE_DEVICES"


def _indexes(devices: Sequence[_Device], entries: Iterable[str], *, fold_case: bool = False) -> list[int]:
    """The places of the devices that the entries of a variable mean, up to the first entry that means none."""
    indexes = []
    for entry in entries:
        entry = entry.strip()
        number = re.match(r"\+?(\d+)", entry)  # As strtoul reads it: what follows the digits does not matter.
        if number:
            matches = [int(number[1])] if int(number[1]) < len(devices) else []
        else:
            fold = str.lower if fold_case else str
            matches = [place for place, each in enumerate(devices) if entry and fold(each.uuid).startswith(fold(entry))]
        if len(matches) != 1:
            break
        indexes += matches
    return indexes


def _detail(
    vendor: str,
    devices: Sequence[_Device],
    visible: Sequence[_Device],
    env: Mapping[str, str],
    variables: Sequence[str],
    problem: str,
) -> str:
    if not devices:
        return problem
    text = f"{len(devices)} {vendor} ({devices[0].name})"
    instances = sum(len(device.instances) for device in devices)
    if any(device.mig for device in devices):
        text += f", in MIG mode with {instances} instance{'' if instances == 1 else 's'}: a process sees one at most"
    chosen = [f"{variable}={env[variable]}" for variable in variables if variable in env]
    if len(visible) != len(devices) and chosen:
        text += f", {len(visible)} left by {' and '.join(chosen)}"
    return f"{text}; {problem}" if problem else text
