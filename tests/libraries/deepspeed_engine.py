"""DeepSpeed ZeRO-2 and ZeRO-3 with save_checkpoint; needs no accelerator (gloo)."""

import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")

import deepspeed
import tiny
import torch

OUT = tiny.output()
tiny.alone()
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # It would be compiled first, for a minute.
deepspeed.init_distributed("gloo")


def train(stage, folder, steps):
    """A few steps, and a checkpoint after each."""
    model = tiny.network()
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    for number in range(1, steps + 1):
        engine.backward(engine(torch.ones(2, 16, dtype=torch.bfloat16)).float().square().mean())
        engine.step()
        engine.save_checkpoint(OUT / folder)
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=stage == 3):
            tiny.remember(Path(folder, f"global_step{number}"), module=dict(engine.module.named_parameters()))


train(2, "", steps=2)
train(3, "zero3", steps=1)
tiny.leave()
