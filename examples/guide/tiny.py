"""The tiny model and data that complete the guide's samples."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

custom_model = LlamaForCausalLM(
    LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
)
texts = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(8)]
