"""A job that writes checkpoints as a Trainer does, quickly and without torch: standard library only.

    python quick_writer.py SEED JOURNAL [STEPS]

Each step writes `checkpoint-N` file by file, trainer_state.json last, then deletes all but the newest two, file by file; every
third step it rewrites the root's own checkpoint in place. What is in a file follows from seed, step and file name alone, so
that whoever checks can tell one state from another. JOURNAL gets a line when a checkpoint has become whole (`whole NAME STEP`)
and before one stops to be (`going NAME STEP`).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import time
import zipfile

ROOT = "."
"""The root's own checkpoint."""
_KEPT = 2


def content(seed: int, step: int) -> dict[str, bytes]:
    """The files of one checkpoint in the order in which they are written. tokenizer.json is the same in every step."""
    chance = random.Random(f"{seed}/{step}")
    model = chance.randbytes(chance.randrange(20_000, 600_000))
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(model)], "data_offsets": [0, len(model)]}}).encode()
    header += b" " * (-len(header) % 8)
    return {
        "config.json": json.dumps({"architectures": ["Quick"], "model_type": "quick", "step": step}).encode(),
        "model.safetensors": struct.pack("<Q", len(header)) + header + model,
        "tokenizer.json": json.dumps({"seed": seed, "vocabulary": list(range(5000))}).encode(),
        "training_args.bin": torch_file("training_args", {"seed": seed}),
        "optimizer.pt": torch_file("optimizer", {"state": chance.randbytes(len(model))}),
        "scheduler.pt": torch_file("scheduler", {"last_epoch": step}),
        "rng_state.pth": torch_file("rng_state", {"python": chance.randbytes(5000)}),
        "trainer_state.json": json.dumps({"global_step": step, "epoch": step / 10, "log_history": []}).encode(),
    }


def root_content(seed: int, step: int) -> dict[str, bytes]:
    """The root's own checkpoint after `step`, as save_model writes it."""
    files = content(seed, step)
    return {name: files[name] for name in ("config.json", "model.safetensors", "tokenizer.json", "training_args.bin")}


def torch_file(stem: str, value: object) -> bytes:
    """A file as torch.save lays it out: a zip without compression, data.pkl in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (
            ("data.pkl", pickle.dumps(value, protocol=2)),
            ("byteorder", b"little"),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"{stem}/{name}"), data)
    return buffer.getvalue()


def main() -> None:
    seed, journal = int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    output = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
    chance = random.Random(seed)

    def say(*words: object) -> None:
        os.write(journal, (" ".join(map(str, words)) + "\n").encode())

    def write(folder: str, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            with open(f"{folder}/{name}", "wb") as file:
                file.write(data)

    root_step = 0
    for step in range(1, steps + 1):
        folder = f"{output}/checkpoint-{step}"
        os.mkdir(folder)
        write(folder, content(seed, step))
        say("whole", f"checkpoint-{step}", step)
        old = f"{output}/checkpoint-{step - _KEPT}"
        if os.path.isdir(old):
            say("going", f"checkpoint-{step - _KEPT}", step - _KEPT)
            for name in os.listdir(old):
                os.unlink(f"{old}/{name}")
            os.rmdir(old)
        if step % 3 == 0:
            if root_step:
                say("going", ROOT, root_step)
            write(output, root_content(seed, step))
            say("whole", ROOT, step)
            root_step = step
        time.sleep(chance.uniform(0.02, 0.3))
    print("written", flush=True)


if __name__ == "__main__":
    main()
