"""accelerate: one rank's trigger stops them all at the same step, and all of them save."""

import os
import signal
import sys
import time

import torch
from accelerate import Accelerator


def main():
    accelerator = Accelerator(cpu=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: accelerator.set_trigger())
    model = torch.nn.Linear(16, 4)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    step = 0
    while not accelerator.check_trigger():  # The same answer on every rank.
        model(torch.ones(2, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step == 1:
            accelerator.print("training", flush=True)
        time.sleep(0.1)
    accelerator.save_state(os.path.join(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], f"step-{step}"))
    accelerator.print(f"left at step {step}", flush=True)
    leave(accelerator)


def leave(accelerator):
    """Ends the process group, then the process: with gloo, a thread of torch's may abort an interpreter that ends by itself."""
    accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
