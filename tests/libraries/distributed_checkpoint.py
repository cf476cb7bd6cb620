"""torch.distributed.checkpoint: save, async_save, a file for each tensor, and a module sharded by fully_shard."""

import tiny
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard

OUT = tiny.output()
if tiny.processes() > 1:
    dist.init_process_group("gloo")


def state(seed):
    """A model and its optimizer after one step."""
    model = tiny.network(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tiny.step(model, optimizer)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1000 + seed}


content = state(1)
dcp.save(content, checkpoint_id=OUT / "saved")
tiny.remember("saved", content=content)

content = state(2)
dcp.async_save(content, checkpoint_id=OUT / "async").result()
tiny.remember("async", content=content)

content = state(3)
dcp.save(content, storage_writer=dcp.FileSystemWriter(OUT / "file-per-tensor", single_file_per_rank=False))
tiny.remember("file-per-tensor", content=content)

if tiny.processes() > 1:
    model = tiny.network(4)
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (tiny.processes(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tiny.step(model, optimizer)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    content = {"model": model_state, "optimizer": optimizer_state}
    dcp.save(content, checkpoint_id=OUT / "sharded")
    full = {name: each.full_tensor() for name, each in model_state.items()}  # On every rank: it communicates.
    tiny.remember("sharded", model=full)
tiny.leave()
