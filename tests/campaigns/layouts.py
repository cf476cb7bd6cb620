"""Checkpoints in the layouts of the libraries, in one process, by the primitives that they write with.

torch.save, safetensors, torch.distributed.checkpoint and gguf write the files; only which files there are, and what their
dictionaries hold, is imitated (from the libraries' own output, and for Megatron and NeMo from their sources). Quick enough for
every run of the tests; what the libraries themselves write is tests/libraries' to make.
"""

from __future__ import annotations

import io
import json
import tarfile
from argparse import Namespace
from pathlib import Path
from typing import Any

WORLD = 2


def write(target: Path) -> None:
    """Every layout, each in a folder of its own below `target`."""
    for name, make in LAYOUTS.items():
        folder = target / name
        folder.mkdir(parents=True)
        make(folder)


def _tensors() -> dict[str, Any]:
    import torch

    return {"layer.weight": torch.arange(300.0).reshape(15, 20), "layer.bias": torch.ones(15)}


def _save(path: Path, value: Any, **options: Any) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)


def _safetensors(path: Path, tensors: dict[str, Any] | None = None) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or _tensors(), path, metadata={"format": "pt"})


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def _state(step: int) -> dict[str, Any]:
    return {
        "global_step": step,
        "epoch": 1.5,
        "log_history": [{"loss": 2.5, "step": step}, {"eval_loss": 2.25, "step": step}],
    }


def _config(folder: Path) -> None:
    _json(
        folder / "config.json",
        {"architectures": ["TinyForCausalLM"], "model_type": "tiny", "transformers_version": "5.0"},
    )
    _json(folder / "generation_config.json", {"eos_token_id": 1})


def _resumable(folder: Path, ranks: int) -> None:
    _save(folder / "training_args.bin", {"lr": 0.1})
    _save(folder / "optimizer.pt", {"state": _tensors()})
    _save(folder / "scheduler.pt", {"last_epoch": 5})
    for rank in range(ranks):
        _save(folder / ("rng_state.pth" if ranks == 1 else f"rng_state_{rank}.pth"), {"cpu": _tensors()})
    _json(folder / "trainer_state.json", _state(10))


def _trainer(folder: Path) -> None:
    _config(folder)
    _safetensors(folder / "model.safetensors")
    _resumable(folder, 1)


def _trainer_ranks(folder: Path) -> None:
    _config(folder)
    _safetensors(folder / "model.safetensors")
    _resumable(folder, WORLD)


def _trainer_adapter(folder: Path) -> None:
    _peft(folder)
    _resumable(folder, 1)


def _pretrained(folder: Path) -> None:
    _config(folder)
    weights = _tensors()
    shards = {f"model-0000{index}-of-00002.safetensors": {name: weights[name]} for index, name in enumerate(weights, 1)}
    for name, tensors in shards.items():
        _safetensors(folder / name, tensors)
    index = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    _json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def _accelerate(folder: Path) -> None:
    _safetensors(folder / "model.safetensors")
    _save(folder / "optimizer.bin", {"state": _tensors()})
    _save(folder / "scheduler.bin", {"last_epoch": 5})
    for rank in range(WORLD):
        _save(folder / f"random_states_{rank}.pkl", {"step": 0, "torch_manual_seed": _tensors()})


def _peft(folder: Path) -> None:
    _safetensors(folder / "adapter_model.safetensors")
    _json(
        folder / "adapter_config.json",
        {"peft_type": "LORA", "base_model_name_or_path": "tiny/base", "peft_version": "0.21"},
    )
    (folder / "README.md").write_text("---\nbase_model: tiny/base\n---\n")


def _pipeline(folder: Path) -> None:
    _json(folder / "unet/config.json", {"_class_name": "UNet2DModel", "_diffusers_version": "0.42"})
    _safetensors(folder / "unet/diffusion_pytorch_model.safetensors")
    _json(folder / "scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler"})
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"], "none": [None, None]}
    _json(folder / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": "0.42", **parts})


def _deepspeed(folder: Path) -> None:
    model = {
        "module": _tensors(), "optimizer": None, "global_steps": 7, "dp_world_size": WORLD, "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}}, "ds_version": "0.19.8",
    }  # fmt: skip
    _save(folder / "global_step7/mp_rank_00_model_states.pt", model)
    for rank in range(WORLD):
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        _save(folder / "global_step7" / name, {"optimizer_state_dict": _tensors()})
    (folder / "latest").write_text("global_step7")


def _megatron(folder: Path) -> None:
    arguments = Namespace(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    for tensor in range(2):
        for stage in range(2):
            path = folder / f"mp_rank_{tensor:02d}_{stage:03d}/model_optim_rng.pt"
            _save(path, {"iteration": 10, "args": arguments, "model": _tensors()})


def _megatron_dist(folder: Path) -> None:
    _dcp(folder)
    _save(folder / "common.pt", {"iteration": 10})
    _json(folder / "metadata.json", {"sharded_backend": "torch_dist", "sharded_backend_version": 1})


def _dcp(folder: Path) -> None:
    import warnings

    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": _tensors(), "step": 5, "note": {"any": "object"}}, checkpoint_id=folder, no_dist=True)


def _nemo(folder: Path) -> None:
    weights = io.BytesIO()
    import torch

    torch.save(_tensors(), weights)
    with tarfile.open(folder / "tiny.nemo", "w:") as archive:
        for name, data in (("model_config.yaml", b"name: tiny\n"), ("model_weights.ckpt", weights.getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _lightning(folder: Path) -> None:
    value = {"epoch": 1, "global_step": 12, "pytorch-lightning_version": "2.6.6", "state_dict": _tensors()}
    _save(folder / "epoch=1-step=12.ckpt", value | {"optimizer_states": [{"state": _tensors()}]})


def _gguf(folder: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_token_list(["<s>", "</s>", "a"])
    for name, tensor in _tensors().items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _numpy(folder: Path) -> None:
    import numpy

    numpy.savez(folder / "arrays.npz", **{name: tensor.numpy() for name, tensor in _tensors().items()})


def _torch(folder: Path) -> None:
    _save(folder / "model.pt", {"step": 3, "model": _tensors()})


def _torch_old(folder: Path) -> None:
    _save(folder / "model.pt", {"step": 3, "model": _tensors()}, _use_new_zipfile_serialization=False)


LAYOUTS = {
    "trainer": _trainer, "trainer-ranks": _trainer_ranks, "trainer-adapter": _trainer_adapter, "pretrained": _pretrained,
    "accelerate": _accelerate, "peft": _peft, "pipeline": _pipeline, "deepspeed": _deepspeed, "megatron": _megatron,
    "megatron-dist": _megatron_dist, "dcp": _dcp, "nemo": _nemo, "lightning": _lightning, "gguf": _gguf, "numpy": _numpy,
    "torch": _torch, "torch-old": _torch_old,
}  # fmt: skip
