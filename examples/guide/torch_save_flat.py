"""The guide's legacy mode: torch.save to a flat file, step-1000. It works, and launcher warns."""

import os
from pathlib import Path

import torch

model = torch.nn.Linear(4, 4)

checkpoint_dir = Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
torch.save(model.state_dict(), checkpoint_dir / "step-1000")
