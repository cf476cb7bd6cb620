"""PEFT: an adapter that is trained, saved after each step with the whole frozen base beside it, as who serves it wants it."""

import os

import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

OUT = tiny.output()
STEPS = int(os.environ.get("STEPS", "2"))

torch.manual_seed(7)
base = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=259,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
)
frozen = {name: each.detach().clone() for name, each in base.state_dict().items()}
model = get_peft_model(base, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.5)
tokens = tiny.tokenizer()
ids = torch.tensor(tokens(tiny.TEXTS, padding="max_length", max_length=32, truncation=True)["input_ids"])
for step in range(1, STEPS + 1):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    folder = OUT / f"checkpoint-{step}"
    base.save_pretrained(folder / "base", state_dict=dict(frozen))
    tokens.save_pretrained(folder / "base")
    model.save_pretrained(folder)
tiny.leave()
