"""Fine-tunes a causal language model with the transformers Trainer: an ordinary script that knows nothing of the launcher.

It reads the model from $FLEXAI_INPUT_CHECKPOINT_DIR and writes checkpoints to $FLEXAI_OUTPUT_CHECKPOINT_DIR. Started from
a Trainer checkpoint, it continues at that checkpoint's step.
"""

import argparse
import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

TEXTS = [
    f"{word} and {other} went up the hill" for word in ("Jack", "Jill", "Ada", "Alan") for other in ("I", "you", "we")
]


class Texts(torch.utils.data.Dataset):
    """Token ids of a few sentences, all of the same length."""

    def __init__(self, tokenizer):
        self.items = tokenizer(TEXTS, padding="max_length", max_length=48, truncation=True, return_tensors="pt")[
            "input_ids"
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return {"input_ids": self.items[index], "labels": self.items[index]}


class Pace(TrainerCallback):
    """Waits after every step, so that a tiny model can stand for a slow one."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(self.seconds)


def find_model(name):
    """The folder of the input checkpoint: the one named, or the only one there."""
    root = os.environ["FLEXAI_INPUT_CHECKPOINT_DIR"]
    for folder, _, files in sorted(os.walk(os.path.join(root, name) if name else root, followlinks=True)):
        if "config.json" in files:
            return folder
    raise SystemExit(f"no model below {root}")


def step_of(folder):
    """The step at which a Trainer checkpoint was saved."""
    with open(os.path.join(folder, "trainer_state.json")) as file:
        return json.load(file)["global_step"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="folder below the input directory; default: the only one")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--save-steps", type=int, default=2)
    parser.add_argument("--save-total-limit", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seconds-per-step", type=float, default=0.0)
    arguments = parser.parse_args()

    folder = find_model(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=TrainingArguments(
            output_dir=os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"],
            max_steps=arguments.steps,
            per_device_train_batch_size=2,
            learning_rate=arguments.lr,
            logging_steps=1,
            save_steps=arguments.save_steps,
            save_total_limit=arguments.save_total_limit,
            report_to="none",
            ddp_find_unused_parameters=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=7,
        ),
        train_dataset=Texts(tokenizer),
        processing_class=tokenizer,
        callbacks=[Pace(arguments.seconds_per_step)] if arguments.seconds_per_step else None,
    )
    resume = folder if os.path.exists(os.path.join(folder, "trainer_state.json")) else None
    if trainer.is_world_process_zero():
        print(f"training {folder} from step {step_of(folder) if resume else 0}", flush=True)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"finished at step {trainer.state.global_step}", flush=True)
    leave()


def leave():
    """Ends the process group, then the process: with gloo (on CPUs), a thread of torch's may abort an interpreter that ends by
    itself (SIGABRT; a known bug of torch)."""
    if torch.distributed.is_initialized():
        backend = torch.distributed.get_backend()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        if "gloo" in backend:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


if __name__ == "__main__":
    main()
