"""A training that is the same however often it is interrupted, if it goes on from what it saved: standard library only.

    python -m tests.campaigns.steady_writer SEED [STEPS]

Its state (weights, momentum, random numbers) is in each `checkpoint-N`, laid out as the transformers Trainer does; it goes on
from the folder with the largest number, as `get_last_checkpoint` chooses, and fails where that one is torn. Rotation keeps
three. `journal.txt` in the output directory gets a line when it starts (`from STEP`), when a checkpoint is whole (`whole STEP`)
and before it stops to be (`going STEP`).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import struct
import sys
import time
import zipfile

from tests.campaigns.quick_writer import torch_file

JOURNAL = "journal.txt"
KEPT = 3
SIZE = 2_000


class Training:
    """The model, its optimizer and its random numbers."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.weights = [self.chance.uniform(-1, 1) for _ in range(SIZE)]
        self.momentum = [0.0] * SIZE
        self.step = 0
        self.losses: list[float] = []

    def advance(self) -> None:
        """One optimizer step; its loss is noted."""
        total = 0.0
        for index in range(SIZE):
            error = self.weights[index] - self.chance.gauss(0.0, 0.1)
            total += error * error
            self.momentum[index] = 0.9 * self.momentum[index] + 0.02 * error
            self.weights[index] -= self.momentum[index]
        self.step += 1
        self.losses.append(total / SIZE)

    def files(self) -> dict[str, bytes]:
        """The checkpoint's files in the order in which they are written."""
        weights = struct.pack(f"<{SIZE}d", *self.weights)
        header = json.dumps({"w": {"dtype": "F64", "shape": [SIZE], "data_offsets": [0, len(weights)]}}).encode()
        header += b" " * (-len(header) % 8)
        log = [{"step": step, "loss": loss} for step, loss in enumerate(self.losses, start=1)]
        return {
            "config.json": json.dumps({"architectures": ["Steady"], "model_type": "steady"}).encode(),
            "model.safetensors": struct.pack("<Q", len(header)) + header + weights,
            "training_args.bin": torch_file("training_args", {}),
            "optimizer.pt": torch_file("optimizer", {"momentum": self.momentum}),
            "scheduler.pt": torch_file("scheduler", {"last_epoch": self.step}),
            "rng_state.pth": torch_file("rng_state", {"python": self.chance.getstate()}),
            "trainer_state.json": json.dumps({"global_step": self.step, "epoch": 1.0, "log_history": log}).encode(),
        }

    def load(self, folder: str) -> None:
        """The state that `files` gave. Raises for a torn checkpoint."""

        def read(name: str) -> bytes:
            with open(f"{folder}/{name}", "rb") as file:
                return file.read()

        def unpickled(name: str) -> dict[str, object]:
            stem = name.partition(".")[0]
            with zipfile.ZipFile(io.BytesIO(read(name))) as archive:
                value: dict[str, object] = pickle.loads(archive.read(f"{stem}/data.pkl"))
                return value

        self.weights = list(struct.unpack(f"<{SIZE}d", read("model.safetensors")[-8 * SIZE :]))
        self.momentum = unpickled("optimizer.pt")["momentum"]  # type: ignore[assignment]
        self.chance.setstate(unpickled("rng_state.pth")["python"])  # type: ignore[arg-type]
        state = json.loads(read("trainer_state.json"))
        self.step, self.losses = state["global_step"], [each["loss"] for each in state["log_history"]]


def expected(seed: int, steps: int) -> list[float]:
    """The losses of a run that nobody interrupts."""
    training = Training(seed)
    for _ in range(steps):
        training.advance()
    return training.losses


def last_checkpoint(output: str) -> str | None:
    """transformers.trainer_utils.get_last_checkpoint."""
    found = [each for each in os.listdir(output) if re.fullmatch(r"checkpoint-\d+", each)]
    found = [each for each in found if os.path.isdir(f"{output}/{each}")]
    return f"{output}/{max(found, key=lambda each: int(each.split('-')[1]))}" if found else None


def main() -> None:
    seed, steps = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12
    output = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
    journal = os.open(f"{output}/{JOURNAL}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(word: str, step: int) -> None:
        os.write(journal, f"{word} {step}\n".encode())

    training = Training(seed)
    if last := last_checkpoint(output):
        training.load(last)
    say("from", training.step)
    pace = random.Random(time.time_ns())
    while training.step < steps:
        training.advance()
        print(f"step {training.step} loss {training.losses[-1].hex()}", flush=True)
        folder = f"{output}/checkpoint-{training.step}"
        os.makedirs(folder, exist_ok=True)
        for name, data in training.files().items():
            with open(f"{folder}/{name}", "wb") as file:
                file.write(data)
            time.sleep(pace.uniform(0.0, 0.02))
        say("whole", training.step)
        old = f"{output}/checkpoint-{training.step - KEPT}"
        if os.path.isdir(old):
            say("going", training.step - KEPT)
            for name in os.listdir(old):
                os.unlink(f"{old}/{name}")
                time.sleep(pace.uniform(0.0, 0.01))
            os.rmdir(old)
        time.sleep(pace.uniform(0.0, 0.15))
    print("finished at step", training.step, flush=True)


if __name__ == "__main__":
    main()
