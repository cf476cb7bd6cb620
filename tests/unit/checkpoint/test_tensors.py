"""The tensors of torch.save files are listed without unpickling them, as torch itself sees them."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from launcher.checkpoint.formats import torch_save
from launcher.checkpoint.tree import Folder
from tests.support.cli import Launcher


def state() -> dict[str, Any]:
    """A training's state as scripts save it: a model by name, an optimizer by number, loose numbers."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 7,
        "half": torch.zeros(2, 0, 3, dtype=torch.bfloat16),
        "list": [torch.zeros(1, dtype=torch.int64), {"deep": (torch.tensor(True),)}],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
        "view": torch.arange(10, dtype=torch.uint8)[2:6],
    }


def as_torch_sees_it(value: Any, path: str = "") -> dict[str, tuple[str, tuple[int, ...]]]:
    if isinstance(value, torch.Tensor):
        return {path: (str(value.dtype).removeprefix("torch."), tuple(value.shape))}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {
        name: found
        for key, item in pairs
        for name, found in as_torch_sees_it(item, f"{path}.{key}" if path else str(key)).items()
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_by_its_keys(tmp_path: Path, zipped: bool) -> None:
    content = state()
    torch.save(content, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    found = torch_save.named_tensors(torch_save.read_object(Folder.scan(str(tmp_path)), "state.pt"))
    wanted = as_torch_sees_it(content)
    print(f"{len(found)} tensors")
    assert found == wanted and len(wanted) > 15 and found["parameter"] == ("float64", (2,))


def test_the_same_weights_in_the_other_format_have_the_same_tensors(launcher: Launcher, tmp_path: Path) -> None:
    weights = OrderedDict(
        a=torch.zeros(2, 3), b=torch.zeros(4, dtype=torch.bfloat16), c=torch.zeros(1, dtype=torch.int64)
    )
    for name in ("safe", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"architectures": ["X"]}')
    safetensors.torch.save_file(dict(weights), tmp_path / "safe" / "model.safetensors")
    torch.save(OrderedDict(list(weights.items())[:2]), tmp_path / "torch" / "pytorch_model-00001-of-00002.bin")
    torch.save(OrderedDict(list(weights.items())[2:]), tmp_path / "torch" / "pytorch_model-00002-of-00002.bin")
    found = launcher.json("checkpoint", "diff", str(tmp_path / "safe"), str(tmp_path / "torch"))
    assert found["tensors"] == {"removed": {}, "added": {}, "changed": {}, "same": 3}
    assert found["not_compared"] == [] and not found["same"]
    torch.save({"a": torch.zeros(3, 3), "b": weights["b"]}, tmp_path / "torch" / "pytorch_model-00001-of-00002.bin")
    torch.save({"state": {0: {"exp_avg": torch.zeros(2)}}}, tmp_path / "torch" / "optimizer.pt")
    (tmp_path / "torch" / "training_args.bin").write_bytes(b"no torch file")
    found = launcher.json("checkpoint", "diff", str(tmp_path / "safe"), str(tmp_path / "torch"))
    assert found["tensors"]["changed"] == {"a": [["F32", [2, 3]], ["F32", [3, 3]]]}
    assert found["tensors"]["added"] == {"optimizer.pt:state.0.exp_avg": ["F32", [2]]}
    assert found["not_compared"] == ["training_args.bin"]


def test_what_holds_itself_a_billion_times_ends() -> None:
    """Nothing is asserted of the time: it would not end."""
    bomb: list[Any] = [[]]
    for _ in range(40):
        bomb = [bomb, bomb]
    wide: list[Any] = []
    wide.extend([wide] * 100_000)
    from launcher.checkpoint import pickles

    for content in (bomb, wide):
        data = pickle.dumps(content)
        value = pickles.read(lambda start, length, data=data: data[start : start + length], 0, len(data)).value
        assert torch_save.named_tensors(value) == {}
