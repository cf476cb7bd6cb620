"""The guide's loading sample: from_pretrained on the input checkpoint, by its name."""

import os
from pathlib import Path

from transformers import AutoModelForCausalLM

checkpoint_dir = Path(os.environ["FLEXAI_INPUT_CHECKPOINT_DIR"])
model = AutoModelForCausalLM.from_pretrained(checkpoint_dir / "mistral7b_01_base")

print(f"loaded {model.num_parameters()} parameters of {type(model).__name__}")
