"""Accelerators, from recorded answers: a `pynvml` that answers as recorded, and trees of /sys and /dev.

No test here has met real hardware.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from launcher.runners.accelerators import detect

H100 = "NVIDIA H100 80GB HBM3"
UUIDS = tuple(f"GPU-{digit}f3c81ad-5a1e-9d53-7d2b-0d0ac5bd6a11" for digit in "01234567")
SLICES = tuple(f"MIG-{digit}ab5a3f2-6d4c-5a77-8f0e-2e2e0f4b7c55" for digit in "01")


class NVMLError(Exception):
    """As pynvml's: every answer other than success."""


class Nvml:
    """A pynvml whose GPUs are (UUID, UUIDs of its MIG instances or None where MIG is off)."""

    NVMLError = NVMLError

    def __init__(
        self, gpus: Iterable[tuple[str, Iterable[str] | None]] = (), *, lost: int = -1, init: str = ""
    ) -> None:
        self.gpus = [(uuid, None if slices is None else tuple(slices)) for uuid, slices in gpus]
        self.lost, self.init, self.open = lost, init, 0

    def nvmlInit(self) -> None:
        if self.init:
            raise NVMLError(self.init)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index == self.lost:
            raise NVMLError("GPU is lost")
        return self.gpus[index][0]

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"{H100} MIG 1g.10gb" if handle.startswith("MIG-") else H100

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        slices = dict(self.gpus)[handle]
        return [0, 0] if slices is None else [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        slices = dict(self.gpus)[handle] or ()
        if index >= len(slices):
            raise NVMLError("Not Found")
        return slices[index]


def eight() -> Nvml:
    return Nvml((uuid, None) for uuid in UUIDS)


@pytest.fixture
def nvidia(tmp_path: Path) -> str:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    return str(tmp_path)


@pytest.fixture
def amd(tmp_path: Path) -> str:
    """Two processors and four MI300X, as amdkfd lists them."""
    for node in range(6):
        folder = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{node}"
        folder.mkdir(parents=True)
        gpu = node > 1
        lines = [f"cpu_cores_count {0 if gpu else 96}", f"simd_count {1216 if gpu else 0}"]
        lines += [f"gfx_target_version {90402 if gpu else 0}", f"drm_render_minor {126 + node if gpu else 0}"]
        lines += [f"unique_id {0x9D05A7B1C0FFEE00 + node if gpu else 0}", "vendor_id 4098" if gpu else "vendor_id 0"]
        (folder / "properties").write_text("\n".join(lines) + "\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    return str(tmp_path)


def test_a_machine_without_a_driver_has_none(tmp_path: Path) -> None:
    found = detect({}, root=str(tmp_path))
    assert (found.kind, found.count, found.names) == ("cpu", 0, ())
    assert found.detail == "no accelerator driver is loaded"


def test_without_a_driver_nothing_is_imported_and_it_takes_under_a_millisecond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        detect({"CUDA_VISIBLE_DEVICES": "0"}, root=str(tmp_path))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.001
    assert "pynvml" not in sys.modules


@pytest.mark.parametrize("path", ["dev/nvidiactl", "proc/driver/nvidia/version", "dev/dxg"])
def test_any_trace_of_the_nvidia_driver_asks_nvml(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    nvml = eight()
    found = detect({}, root=str(tmp_path), nvml=nvml)
    assert (found.kind, found.count, set(found.names)) == ("cuda", 8, {H100})
    assert found.detail == f"8 NVIDIA ({H100})"
    assert nvml.open == 0, "NVML is shut down"


@pytest.mark.parametrize(
    ("variable", "count"),
    [
        ("0", 1),
        ("0,1", 2),
        ("7, 6 ,5", 3),
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),  # Slurm's word for none
        ("all", 0),  # a word of the container toolkit, not of CUDA
        ("3,-1,4", 1),
        ("8", 0),
        ("0,1,8,2", 2),
        ("1,1", 0),
        ("1gpu2,2", 2),
        (UUIDS[0], 1),
        (f"{UUIDS[7]},{UUIDS[2]}", 2),
        ("GPU-3f3c", 1),
        (UUIDS[0].upper(), 0),
        ("GPU-", 0),
        (f"{UUIDS[0]},{UUIDS[0]}", 0),
        (f"{UUIDS[0]},GPU-ffffffff", 1),
        (f"{UUIDS[0]},1", 1),
        (f"0,{UUIDS[1]}", 1),
        (SLICES[0], 0),
    ],
)
def test_cuda_visible_devices_leaves_what_cuda_would_see(nvidia: str, variable: str, count: int) -> None:
    found = detect({"CUDA_VISIBLE_DEVICES": variable}, root=nvidia, nvml=eight())
    assert found.count == len(found.names) == count
    assert found.kind == ("cuda" if count else "cpu")
    assert found.detail == f"8 NVIDIA ({H100}), {count} left by CUDA_VISIBLE_DEVICES={variable}"


@pytest.mark.parametrize(
    ("gpus", "variable", "names"),
    [
        ([(UUIDS[0], SLICES)], None, ["MIG"]),
        ([(UUIDS[0], SLICES)], "0", ["MIG"]),
        ([(UUIDS[0], SLICES)], SLICES[1], ["MIG"]),
        ([(UUIDS[0], SLICES)], ",".join(SLICES), ["MIG"]),
        ([(UUIDS[0], SLICES)], f"MIG-{UUIDS[0]}/1/0", ["MIG"]),
        ([(UUIDS[0], SLICES)], "MIG-ffffffff", []),
        ([(UUIDS[0], ())], None, []),
        ([(UUIDS[0], None), (UUIDS[1], SLICES)], None, ["MIG"]),
        ([(UUIDS[0], None), (UUIDS[1], SLICES)], "0", ["GPU"]),
        ([(UUIDS[0], None), (UUIDS[1], SLICES)], "1", ["MIG"]),
        ([(UUIDS[0], None), (UUIDS[1], ())], None, ["GPU"]),
    ],
)
def test_with_mig_a_process_sees_one_instance(nvidia: str, gpus: Any, variable: str | None, names: list[str]) -> None:
    env = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    found = detect(env, root=nvidia, nvml=Nvml(gpus))
    assert ["MIG" if "MIG" in name else "GPU" for name in found.names] == names
    assert found.count == len(names)
    assert "in MIG mode" in found.detail


def test_a_driver_that_fails_is_told_and_counts_as_none(nvidia: str) -> None:
    found = detect({}, root=nvidia, nvml=Nvml(init="Driver/library version mismatch"))
    assert (found.kind, found.count) == ("cpu", 0)
    assert found.detail == "NVML failed: Driver/library version mismatch"


def test_a_lost_gpu_is_told_and_the_others_count(nvidia: str) -> None:
    nvml = Nvml(((uuid, None) for uuid in UUIDS), lost=3)
    found = detect({}, root=nvidia, nvml=nvml)
    assert (found.kind, found.count) == ("cuda", 7)
    assert found.detail == f"7 NVIDIA ({H100}); GPU 3: GPU is lost"
    assert nvml.open == 0


def test_without_nvidia_ml_py_the_missing_package_is_named(nvidia: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert detect({}, root=nvidia).detail == "the package nvidia-ml-py is missing"


def test_the_real_pynvml_without_a_driver_is_an_answer_not_an_exception(nvidia: str) -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert detect({}, root=nvidia).detail.startswith("NVML failed: ")
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has an NVIDIA driver")


def test_amd_gpus_come_from_the_kernel_s_topology(amd: str) -> None:
    found = detect({}, root=amd)
    assert (found.kind, found.count, found.names[0]) == ("rocm", 4, "gfx942")
    assert found.detail == "4 AMD (gfx942)"


def test_an_amd_gpu_that_tells_its_product_name_has_it(amd: str) -> None:
    device = Path(amd, "sys/class/drm/renderD128/device")
    device.mkdir(parents=True)
    (device / "product_name").write_text("AMD Instinct MI300X OAM\n")
    assert detect({}, root=amd).names[:2] == ("AMD Instinct MI300X OAM (gfx942)", "gfx942")


@pytest.mark.parametrize(
    ("version", "name"), [(90010, "gfx90a"), (90402, "gfx942"), (110501, "gfx1151"), (0, "AMD GPU")]
)
def test_the_target_version_is_written_as_compilers_do(amd: str, version: int, name: str) -> None:
    properties = Path(amd, "sys/class/kfd/kfd/topology/nodes/2/properties")
    properties.write_text(properties.read_text().replace("gfx_target_version 90402", f"gfx_target_version {version}"))
    assert detect({}, root=amd).names[0] == name


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({"ROCR_VISIBLE_DEVICES": "1"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-9d05a7b1c0ffee04"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "GPU-9D05A7B1C0FFEE05"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "GPU-ffffffffffffffff,0"}, 0),
        ({"ROCR_VISIBLE_DEVICES": "0,1,1,2"}, 2),
        ({"ROCR_VISIBLE_DEVICES": ""}, 0),
        ({"HIP_VISIBLE_DEVICES": "0,2,3"}, 3),
        ({"HIP_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "0,1"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "0,1"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "2,3"}, 0),
    ],
)
def test_hip_counts_what_rocr_left(amd: str, env: dict[str, str], count: int) -> None:
    read = [key for key in env if key != "CUDA_VISIBLE_DEVICES" or "HIP_VISIBLE_DEVICES" not in env]
    found = detect(env, root=amd)
    assert (found.kind, found.count) == ("rocm" if count else "cpu", count)
    assert found.detail.endswith(f"{count} left by " + " and ".join(f"{key}={env[key]}" for key in read))


def test_amd_gpus_of_the_host_do_not_count_in_a_container_without_them(amd: str) -> None:
    Path(amd, "dev/kfd").unlink()
    found = detect({}, root=amd)
    assert (found.kind, found.count) == ("cpu", 0)
    assert found.detail.startswith("4 AMD (gfx942), but /dev/kfd cannot be opened")


def test_a_gpu_whose_properties_are_hidden_is_left_out(amd: str) -> None:
    Path(amd, "sys/class/kfd/kfd/topology/nodes/3/properties").unlink()
    Path(amd, "sys/class/kfd/kfd/topology/nodes/4/properties").write_text("")
    assert detect({}, root=amd).count == 2


def test_where_nvidia_s_driver_fails_amd_s_gpus_count(amd: str) -> None:
    Path(amd, "dev/nvidiactl").touch()
    assert detect({}, root=amd, nvml=Nvml(init="Unknown Error")).kind == "rocm"
