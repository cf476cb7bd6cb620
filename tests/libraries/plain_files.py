"""Files without a library's layout around them: torch.save (folder, flat, old format), safetensors and numpy."""

import numpy
import safetensors.torch
import tiny
import torch

OUT = tiny.output()


def state(seed):
    """What people save: the model, its optimizer and the step."""
    model = tiny.network(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tiny.step(model, optimizer)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1000 + seed, "epoch": 2}


if tiny.rank() == 0:
    for name in ("torch", "torch-old", "safetensors", "numpy"):
        (OUT / name).mkdir(parents=True)
    zipped, flat, old = state(1), state(2), state(3)
    torch.save(zipped, OUT / "torch" / "model.pt")
    tiny.remember("torch", content=zipped)
    torch.save(flat, OUT / "step-1000.pt")
    tiny.remember("step-1000.pt", content=flat)
    torch.save(old, OUT / "torch-old" / "model.pth", _use_new_zipfile_serialization=False)
    tiny.remember("torch-old", content=old)

    tensors = tiny.network(4).state_dict()
    safetensors.torch.save_file(tensors, OUT / "safetensors" / "weights.safetensors", metadata={"step": "4"})
    tiny.remember("safetensors", content=tensors)

    arrays = {"weight": numpy.arange(12.0).reshape(3, 4), "bias": numpy.ones(3, dtype=numpy.float32)}
    numpy.savez(OUT / "numpy" / "arrays.npz", **arrays)
    tiny.remember("numpy", content=arrays)
