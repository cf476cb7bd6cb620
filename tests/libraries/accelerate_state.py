"""accelerate's save_state into a folder of one's choice and with automatic naming (which nests), and save_model in shards."""

import tiny
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

OUT = tiny.output()


def prepared(accelerator, seed=7):
    """A model, its optimizer and scheduler after one step."""
    model = tiny.network(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    tiny.step(model, optimizer)
    return model, optimizer


def remember(accelerator, name, model, optimizer):
    """Writes down what save_state wrote."""
    tiny.remember(name, model=accelerator.unwrap_model(model).state_dict(), optimizer=optimizer.state_dict())


accelerator = Accelerator(cpu=True)
model, optimizer = prepared(accelerator)
accelerator.save_state(OUT / "state")
remember(accelerator, "state", model, optimizer)

accelerator.save_model(model, OUT / "model", max_shard_size="2KB")
tiny.remember("model", model=accelerator.unwrap_model(model).state_dict())

configuration = ProjectConfiguration(project_dir=str(OUT), automatic_checkpoint_naming=True)
named = Accelerator(cpu=True, project_config=configuration)
model, optimizer = prepared(named, seed=8)
for number in range(2):
    named.save_state()
    remember(named, f"checkpoints/checkpoint_{number}", model, optimizer)
    tiny.step(model, optimizer)
tiny.leave()
