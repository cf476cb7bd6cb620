"""TRL: supervised fine-tuning of a whole model, and DPO of an adapter."""

import tiny
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

OUT = tiny.output()
COMMON = {
    "max_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "use_cpu": True,
    "bf16": False,
}

sft = SFTTrainer(
    model=tiny.causal_model(),
    args=SFTConfig(output_dir=str(OUT / "sft"), max_length=32, **COMMON),
    train_dataset=Dataset.from_dict({"text": tiny.TEXTS}),
    processing_class=tiny.tokenizer(),
)
sft.train()
tiny.remember("sft/checkpoint-2", model=sft.model.state_dict())

pairs = {"prompt": tiny.TEXTS, "chosen": [" twice"] * len(tiny.TEXTS), "rejected": [" never"] * len(tiny.TEXTS)}
dpo = DPOTrainer(
    model=tiny.causal_model("tiny/base"),
    args=DPOConfig(output_dir=str(OUT / "dpo"), **COMMON),
    train_dataset=Dataset.from_dict(pairs),
    processing_class=tiny.tokenizer(),
    peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
dpo.train()
adapter = {name: each for name, each in dpo.model.state_dict().items() if "lora_" in name and ".ref." not in name}
tiny.remember("dpo/checkpoint-2", model=adapter)
tiny.leave()
