"""transformers: the Trainer saves when it is told to stop, by `enable_jit_checkpoint`; the script does nothing for it."""

import argparse
import os
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


class Pace(TrainerCallback):
    """Waits after every step, so that a tiny model can stand for a slow one."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            print("training", flush=True)
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--save-steps", type=int, default=1000)
    arguments = parser.parse_args()
    texts = torch.arange(64 * 16).reshape(64, 16) % 100
    trainer = Trainer(
        model=GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=16, n_embd=16, n_layer=1, n_head=2)),
        args=TrainingArguments(
            output_dir=os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"],
            max_steps=arguments.steps,
            save_steps=arguments.save_steps,
            enable_jit_checkpoint=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": each, "labels": each} for each in texts],
        callbacks=[Pace()],
    )
    trainer.train()
    print(f"left at step {trainer.state.global_step} of {arguments.steps}", flush=True)


if __name__ == "__main__":
    main()
