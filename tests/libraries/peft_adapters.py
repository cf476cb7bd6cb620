"""PEFT: an adapter on its own, two adapters of one model (the second is nested), and an adapter trained by a Trainer."""

import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

OUT = tiny.output()


def adapted(seed=7):
    """The tiny model with a LoRA whose two matrices both hold something."""
    model = get_peft_model(tiny.causal_model("tiny/base"), lora(4))
    fill(model, seed)
    return model


def lora(rank):
    return LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def fill(model, seed):
    """B starts as zeros, which would compare equal to anything forgotten."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)


def adapters(model):
    return {name: each for name, each in model.state_dict().items() if "lora_" in name}


if tiny.rank() == 0:
    one = adapted()
    one.save_pretrained(OUT / "adapter")
    tiny.remember("adapter", model=adapters(one))

    two = adapted(8)
    two.add_adapter("second", lora(2))
    fill(two, 9)
    two.save_pretrained(OUT / "adapters")
    tiny.remember("adapters", model=adapters(two))

tokens = tiny.tokenizer()
ids = tokens(tiny.TEXTS, padding="max_length", max_length=32, truncation=True)["input_ids"]
trainer = Trainer(
    model=adapted(10),
    args=TrainingArguments(
        output_dir=OUT / "trained",
        max_steps=2,
        save_steps=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
    ),
    train_dataset=[{"input_ids": torch.tensor(each), "labels": torch.tensor(each)} for each in ids],
    processing_class=tokens,
)
trainer.train()
tiny.remember("trained/checkpoint-2", model=adapters(trainer.model))
tiny.leave()
