"""Of the input model, what can be served, and what can not: `full` is another model of the same shape, `adapter` a LoRA adapter
of the input, `sharded` a state in torch.distributed.checkpoint's files, `optimizer` an optimizer's state alone. What the base,
the full model and the adapter answer to a chat is printed, as transformers and peft have them in memory."""

import json
import os

import tiny
import torch
import torch.distributed.checkpoint as dcp
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

OUT = tiny.output()
CHAT = [{"role": "user", "content": "Hello"}]

folder = os.environ["LAUNCHER_INPUT_CHECKPOINT"]
tokens = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained(folder)
chat = tokens.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def answer(model):
    """The eight tokens that follow, without chance, as text."""
    made = model.generate(**chat, max_new_tokens=8, do_sample=False)
    return tokens.decode(made[0][chat["input_ids"].shape[1] :], skip_special_tokens=True)


torch.manual_seed(11)
full = AutoModelForCausalLM.from_config(base.config)
full.save_pretrained(OUT / "full")
tokens.save_pretrained(OUT / "full")
dcp.save({"model": full.state_dict()}, checkpoint_id=OUT / "sharded", no_dist=True)
(OUT / "optimizer").mkdir()
torch.save(torch.optim.AdamW(full.parameters()).state_dict(), OUT / "optimizer" / "optimizer.pt")
answers = {"base": answer(base), "full": answer(full)}
lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM")
model = get_peft_model(base, lora)
for name, parameter in model.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter.data, std=0.5)
model.save_pretrained(OUT / "adapter")
answers["adapter"] = answer(model)
print("answers", json.dumps(answers), flush=True)
tiny.leave()
