"""DeepSpeed ZeRO-2 with save_checkpoint; needs no accelerator (gloo)."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")

import deepspeed
import tiny
import torch

OUT = tiny.output()
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # It would be compiled first, for a minute.
deepspeed.init_distributed("gloo")
model = tiny.network()
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=model.parameters(),
    optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
    config={
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
)
for number in (1, 2):
    engine.backward(engine(torch.ones(2, 16, dtype=torch.bfloat16)).float().square().mean())
    engine.step()
    engine.save_checkpoint(OUT)
    tiny.remember(f"global_step{number}", module=engine.module.state_dict())
tiny.leave()
