"""The guide's recommended mode: torch.save into a folder of its own, step-1000/model.pt."""

import os
from pathlib import Path

import torch

model = torch.nn.Linear(4, 4)

checkpoint_dir = Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
step_dir = checkpoint_dir / "step-1000"
step_dir.mkdir(parents=True, exist_ok=True)
torch.save(model.state_dict(), step_dir / "model.pt")
