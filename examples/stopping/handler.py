"""A loop of one's own: a handler takes note of the stop, and the loop saves between two steps."""

import os
import signal
import sys
import time

import torch

STOP = []


def main():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: STOP.append(number))
    model = torch.nn.Linear(16, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0
    while not STOP:
        model(torch.ones(2, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step == 1:
            print("training", flush=True)
        time.sleep(0.1)
    folder = os.path.join(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], f"step-{step}")
    os.makedirs(folder)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, f"{folder}/state.pt")
    sys.exit(128 + STOP[0])


if __name__ == "__main__":
    main()
