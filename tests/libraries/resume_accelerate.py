"""accelerate, going on where it was interrupted: automatic naming, and load_state() of the newest."""

import os
import time

import tiny
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

OUT = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
STEPS = 6

settings = ProjectConfiguration(project_dir=OUT, automatic_checkpoint_naming=True, total_limit=3)
accelerator = Accelerator(cpu=True, project_config=settings)
torch.manual_seed(3)
model = torch.nn.Sequential(tiny.network(), torch.nn.Dropout(0.2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)

done = 0
if last := os.environ.get("LAUNCHER_RESUME_CHECKPOINT"):
    accelerator.load_state(last)
    done = int(last.rpartition("_")[2]) + 1
    settings.iteration = done
print("from", done, flush=True)
for step in range(done + 1, STEPS + 1):
    loss = model(torch.rand(4, 16)).square().mean()  # Random data, by the restored random state.
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    print(f"step {step} loss {loss.item().hex()}", flush=True)
    accelerator.save_state()
    time.sleep(0.3)
tiny.leave()
