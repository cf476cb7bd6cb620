"""A loop of one's own without signals: it looks for the stop file, in which it finds how long it has."""

import json
import os
import signal
import time

import torch


def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Comes with the stop file, and would end this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    model = torch.nn.Linear(16, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0
    while not os.path.exists(os.environ["LAUNCHER_STOP_FILE"]):
        model(torch.ones(2, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step == 1:
            print("training", flush=True)
        time.sleep(0.1)
    with open(os.environ["LAUNCHER_STOP_FILE"]) as file:
        left = json.load(file)["deadline"] - time.time()
    print(f"saving step {step}, with {left:.0f} s left", flush=True)
    folder = os.path.join(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], f"step-{step}")
    os.makedirs(folder)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, f"{folder}/state.pt")


if __name__ == "__main__":
    main()
