"""transformers' Trainer, going on where it was interrupted: the newest checkpoint in its output directory, if there is one.

`journal.txt` there gets `from STEP` and `whole STEP`, for whoever compares.
"""

import argparse
import os
import time

import tiny
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

OUT = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]


class Journal(TrainerCallback):
    """Writes down where it began and what is whole; prints each loss; waits after each step."""

    def _say(self, word, step):
        with open(f"{OUT}/journal.txt", "a") as file:
            file.write(f"{word} {step}\n")

    def on_train_begin(self, args, state, control, **kwargs):
        self._say("from", state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self._say("whole", state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            print(f"step {state.global_step} loss {logs['loss'].hex()}", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.2)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6)
arguments = parser.parse_args()
tokens = tiny.tokenizer()
ids = tokens(tiny.TEXTS, padding="max_length", max_length=32, truncation=True)["input_ids"]
model = tiny.causal_model()
model.config.attention_dropout = 0.1  # So that the random state matters.
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=OUT,
        max_steps=arguments.steps,
        per_device_train_batch_size=2,
        save_steps=1,
        save_total_limit=3,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        seed=3,
    ),
    train_dataset=[{"input_ids": torch.tensor(each), "labels": torch.tensor(each)} for each in ids],
    processing_class=tokens,
    callbacks=[Journal()],
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(OUT))
tiny.leave()
