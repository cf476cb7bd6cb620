"""The guide's first sample: a Trainer whose output_dir is the output directory, and save_model() for the root."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tiny import custom_model, texts
from transformers import Trainer, TrainingArguments

checkpoint_dir = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]

training_args = TrainingArguments(
    output_dir=checkpoint_dir,
    # completed: a short training that saves twice
    max_steps=4,
    save_steps=2,
    report_to="none",
    disable_tqdm=True,
)

trainer = Trainer(
    model=custom_model,
    args=training_args,
    train_dataset=texts,
)

trainer.train()
trainer.save_model()
