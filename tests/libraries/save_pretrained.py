"""transformers' save_pretrained: in one file, in shards, and a pytorch_model.bin as older releases wrote it."""

import tiny
import torch

OUT = tiny.output()

if tiny.rank() == 0:
    model, tokens = tiny.causal_model(), tiny.tokenizer()
    model.save_pretrained(OUT / "single")
    tokens.save_pretrained(OUT / "single")
    tiny.remember("single", model=model.state_dict())

    model = tiny.causal_model(seed=8)
    model.save_pretrained(OUT / "sharded", max_shard_size="40KB")
    tiny.remember("sharded", model=model.state_dict())

    model = tiny.causal_model(seed=9).to(torch.bfloat16)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(OUT / "bin")
    torch.save(model.state_dict(), OUT / "bin" / "pytorch_model.bin")
    tiny.remember("bin", model=model.state_dict())
