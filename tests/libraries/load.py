"""Loads checkpoints again, each with the loader of the library that wrote it.

They lie in $FLEXAI_INPUT_CHECKPOINT_DIR/JOB/SCRIPT/NAME, where SCRIPT (trainer, peft_adapters, …) is the one beside this file
that wrote them; what they must hold is in $REFERENCE/JOB/SCRIPT/NAME.json. Prints one line for each.
"""

import fnmatch
import json
import os
import tempfile
from pathlib import Path

import tiny

INPUT = Path(os.environ["FLEXAI_INPUT_CHECKPOINT_DIR"])


def causal_model(folder):
    from transformers import AutoModelForCausalLM

    return {"model": AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()}


def trainer(folder):
    optimizer = folder / "optimizer.pt"
    return causal_model(folder) | ({"optimizer": torch_file(optimizer)} if optimizer.exists() else {})


def torch_file(path):
    import torch

    return torch.load(path, weights_only=True)


def state(folder):
    """accelerate's load_state into a model and an optimizer that know nothing yet."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = tiny.network(seed=99)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    accelerator.load_state(folder)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def saved_model(folder):
    from accelerate import load_checkpoint_in_model

    model = tiny.network(seed=99)
    load_checkpoint_in_model(model, str(folder))
    return {"model": model.state_dict()}


def adapter(folder):
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny.causal_model(), folder)
    if (folder / "second").exists():
        model.load_adapter(folder / "second", "second")
    return {"model": {name: each for name, each in model.state_dict().items() if "lora_" in name}}


def pipeline(folder):
    from diffusers import DDPMPipeline

    return {"unet": DDPMPipeline.from_pretrained(folder).unet.state_dict()}


def unet(folder):
    from diffusers import UNet2DModel

    return {"unet": UNet2DModel.from_pretrained(folder).state_dict()}


def training_example(folder):
    return unet(folder / "unet") | {"optimizer": torch_file(folder / "optimizer.bin")}


def only_torch_file(folder):
    (path,) = folder.iterdir()
    return {"content": torch_file(path)}


def safetensors_file(folder):
    from safetensors.torch import load_file

    return {"content": load_file(folder / "weights.safetensors")}


def npz(folder):
    import numpy

    return {"content": dict(numpy.load(folder / "arrays.npz"))}


def distributed(folder):
    """dcp.load into tensors of the same shapes; what ranks had sharded comes back whole."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model = tiny.network(seed=99)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    tiny.step(model, optimizer)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 0}
    if folder.name == "sharded":
        content = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
    dcp.load(content, checkpoint_id=folder)
    return {"model": content["model"]} if folder.name == "sharded" else {"content": content}


def merged_shards(folder):
    """accelerate's own merge of FSDP's shards into one file."""
    from accelerate.utils import merge_fsdp_weights
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as merged:
        merge_fsdp_weights(str(folder / "pytorch_model_fsdp_0"), merged)
        return {"model": load_file(Path(merged) / "model.safetensors")}


def full_state(folder):
    return {"model": torch_file(folder / "pytorch_model_fsdp.bin")}


def lightning_module(folder):
    from lightning_trainer import Module

    (path,) = folder.iterdir()
    return {"model": Module.load_from_checkpoint(path, map_location="cpu").state_dict()}


def zero(folder):
    """DeepSpeed's own consolidation of every rank's part, rounded to what the training computes with."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    return {"module": {name: each.bfloat16() for name, each in state.items()}}


def orbax_step(folder):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return {"params": checkpointer.restore(folder.resolve() / "default")["params"]}


def gguf_file(folder):
    from gguf import GGUFReader

    tensors = GGUFReader(folder / "tiny-f32.gguf").tensors
    return {"tensors": {each.name: each.data for each in tensors}}


LOADERS = {
    "trainer": {"*": trainer},
    "save_pretrained": {"*": causal_model},
    "accelerate_state": {"model": saved_model, "*": state},
    "peft_adapters": {"*": adapter},
    "trl_trainers": {"sft/*": causal_model, "dpo/*": adapter},
    "diffusers_pipeline": {"pipeline": pipeline, "checkpoint-*": training_example, "unet*": unet},
    "plain_files": {"safetensors": safetensors_file, "numpy": npz, "*": only_torch_file},
    "distributed_checkpoint": {"*": distributed},
    "fsdp_state": {"*-sharded*": merged_shards, "state-full": full_state, "trainer-full/*": causal_model},
    "lightning_trainer": {"*": lightning_module},
    "deepspeed_engine": {"*": zero},
    "orbax_manager": {"*": orbax_step},
    "gguf_writer": {"*": gguf_file},
}
"""The loader of each checkpoint by a pattern of its name, for each script."""


def main() -> None:
    references = Path(os.environ["REFERENCE"])
    for reference in sorted(references.glob("*/*/*.json")):
        script = reference.parent.name
        name = reference.stem.replace("__", "/")
        loader = next(each for pattern, each in LOADERS[script].items() if fnmatch.fnmatchcase(name, pattern))
        written = json.loads(reference.read_text())
        folder = reference.parent.relative_to(references) / name
        try:
            found = tiny.digests(loader(INPUT / folder))
        except Exception as error:  # Whatever a library raises: this checkpoint does not load, the others still may.
            print(f"not loaded {folder}: {type(error).__name__}: {str(error)[:500]}", flush=True)
            continue
        equal = sum(found.get(key) == digest for key, digest in written.items())
        print(f"loaded {folder}: {equal} of {len(written)} tensors equal", flush=True)


if __name__ == "__main__":
    main()
