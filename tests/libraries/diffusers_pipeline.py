"""Diffusers: a pipeline, a single model, and the layout of its training examples (accelerate's save_state with a hook)."""

import tiny
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

OUT = tiny.output()


def unet(seed):
    """A UNet of some 20,000 parameters."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


accelerator = Accelerator(cpu=True)
if tiny.rank() == 0:
    pipeline = DDPMPipeline(unet=unet(7), scheduler=DDPMScheduler(num_train_timesteps=10))
    pipeline.save_pretrained(OUT / "pipeline")
    tiny.remember("pipeline", unet=pipeline.unet.state_dict())

    single = unet(8)
    single.save_pretrained(OUT / "unet")
    tiny.remember("unet", unet=single.state_dict())

    sharded = unet(9)
    sharded.save_pretrained(OUT / "unet-sharded", max_shard_size="20KB")
    tiny.remember("unet-sharded", unet=sharded.state_dict())


def save_models(models, weights, folder):
    """The hook of the training examples: every model in a folder of its own, and nothing left for accelerate."""
    for model in models:
        if accelerator.is_main_process:
            accelerator.unwrap_model(model).save_pretrained(f"{folder}/unet")
        if weights:
            weights.pop()


accelerator.register_save_state_pre_hook(save_models)
model = unet(10)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
model(torch.ones(2, 1, 8, 8), 1).sample.square().mean().backward()
optimizer.step()
accelerator.save_state(OUT / "checkpoint-500")
tiny.remember(
    "checkpoint-500", unet=accelerator.unwrap_model(model).state_dict(), optimizer=optimizer.optimizer.state_dict()
)
tiny.leave()
