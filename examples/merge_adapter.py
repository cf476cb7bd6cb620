"""Merges a LoRA adapter into its base, for servers that load no adapters: an ordinary script that knows nothing of the launcher.

It reads `adapter` and `base` below $FLEXAI_INPUT_CHECKPOINT_DIR, and writes the model to $FLEXAI_OUTPUT_CHECKPOINT_DIR.
"""

import os

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    inputs, output = os.environ["FLEXAI_INPUT_CHECKPOINT_DIR"], os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
    adapter, base = os.path.join(inputs, "adapter"), os.path.join(inputs, "base")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(output)
    has_tokenizer = os.path.exists(os.path.join(adapter, "tokenizer_config.json"))
    AutoTokenizer.from_pretrained(adapter if has_tokenizer else base).save_pretrained(output)


if __name__ == "__main__":
    main()
