"""FSDP2 through accelerate's save_state and through the Trainer: the state in shards, and the full state in one file."""

import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer, TrainingArguments

OUT = tiny.output()


def on_cpu(kind):
    """An Accelerator with FSDP2. It chooses FSDP only where it finds accelerators; all of it runs on CPUs as well."""
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(cpu=True)
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
    return accelerator


for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
    name = kind.partition("_")[0].lower()
    accelerator = on_cpu(kind)
    model = tiny.network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    tiny.step(model, optimizer)
    accelerator.save_state(OUT / f"state-{name}")
    tiny.remember(f"state-{name}", model=accelerator.get_state_dict(model))

tokens = tiny.tokenizer()
ids = tokens(tiny.TEXTS, padding="max_length", max_length=32, truncation=True)["input_ids"]
for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
    name = kind.partition("_")[0].lower()
    arguments = TrainingArguments(
        output_dir=OUT / f"trainer-{name}",
        max_steps=2,
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    )

    on_cpu(kind)
    trainer = Trainer(
        model=tiny.causal_model(),
        args=arguments,
        train_dataset=[{"input_ids": torch.tensor(each), "labels": torch.tensor(each)} for each in ids],
    )
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    tiny.remember(f"trainer-{name}/checkpoint-2", model=state)
tiny.leave()
