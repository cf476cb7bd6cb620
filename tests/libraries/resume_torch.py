"""A plain loop, going on where it was interrupted: all of its state in one file of a folder for each step."""

import os
import time

import tiny
import torch

OUT = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
STEPS = 6

torch.manual_seed(3)
model = torch.nn.Sequential(tiny.network(), torch.nn.Dropout(0.2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
done = 0
if last := os.environ.get("LAUNCHER_RESUME_CHECKPOINT"):
    state = torch.load(f"{last}/state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    done = state["step"]
print("from", done, flush=True)
for step in range(done + 1, STEPS + 1):
    loss = model(torch.rand(4, 16)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step} loss {loss.item().hex()}", flush=True)
    folder = f"{OUT}/step-{step}"
    os.makedirs(folder, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state | {"random": torch.get_rng_state()}, f"{folder}/state.pt")
    time.sleep(0.3)
