"""transformers' Trainer: checkpoint-N and save_model in the root, save_only_model with rotation, a checkpoint just in time."""

import signal
import time
from pathlib import Path

import tiny
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

OUT = tiny.output()


class Remembering(Trainer):
    """A Trainer that writes down what each checkpoint holds."""

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        state = {} if self.args.save_only_model else {"optimizer": self.optimizer.state_dict()}
        folder = Path(self.args.output_dir).relative_to(OUT)
        tiny.remember(folder / f"checkpoint-{self.state.global_step}", model=self.model.state_dict(), **state)


class Terminate(TrainerCallback):
    """Sends this process what a scheduler sends before it takes the machine away."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.05)


def trainer(folder, *callbacks, **arguments):
    """A Trainer on a few texts that writes to a folder below the output."""
    tokens = tiny.tokenizer()
    ids = tokens(tiny.TEXTS, padding="max_length", max_length=32, truncation=True)["input_ids"]
    return Remembering(
        model=tiny.causal_model(),
        args=TrainingArguments(
            output_dir=OUT / folder,
            per_device_train_batch_size=2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
            use_cpu=True,
            **arguments,
        ),
        train_dataset=[{"input_ids": torch.tensor(each), "labels": torch.tensor(each)} for each in ids],
        processing_class=tokens,
        callbacks=list(callbacks),
    )


full = trainer("", max_steps=4, save_steps=2)
full.train()
full.save_model()
tiny.remember("root", model=full.model.state_dict())
trainer("weights-only", max_steps=2, save_steps=1, save_only_model=True, save_total_limit=1).train()
if tiny.processes() == 1:  # On two processes the sentinel says nothing: rank 1 deletes it before rank 0 has written.
    preempted = trainer("just-in-time", Terminate(), max_steps=200, save_strategy="no", enable_jit_checkpoint=True)
    callback = next(each for each in preempted.callback_handler.callbacks if hasattr(each, "jit_manager"))
    callback.jit_manager.kill_wait = 0.2  # Instead of three seconds.
    preempted.train()
tiny.leave()
