"""What the scripts beside this file share: a tiny model, a few texts, where to write, and a reference of what was written.

The scripts are ordinary training programs, one for each library: `python SCRIPT.py OUT`. Without an argument they write to
$FLEXAI_OUTPUT_CHECKPOINT_DIR. Where $REFERENCE names a folder, the digest of every tensor that a checkpoint must hold is
written to $REFERENCE/SCRIPT, so that what is loaded later can be compared. They import nothing of the launcher.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = [f"{name} and {other} went up the hill" for name in ("Jack", "Jill", "Ada", "Alan") for other in ("I", "you")]


def output() -> Path:
    """The folder to write to."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])


def rank() -> int:
    """This process's rank; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def remember(checkpoint, **parts) -> None:
    """Writes the digests of a checkpoint's tensors, on rank 0. `parts` are trees of tensors and arrays."""
    reference = os.environ.get("REFERENCE")
    if reference and rank() == 0:
        folder = Path(reference, Path(sys.argv[0]).stem)
        folder.mkdir(parents=True, exist_ok=True)
        name = str(checkpoint).replace("/", "__").replace("=", "-")
        Path(folder, f"{name}.json").write_text(json.dumps(digests(parts)))


def digests(tree, path="") -> dict[str, str]:
    """{path in the tree: digest} of every tensor and array in nested dicts, lists and tuples."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    elif hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return {path: _digest(tree)}
    else:
        return {}
    return {key: value for name, each in items for key, value in digests(each, f"{path}/{name}").items()}


def _digest(tensor) -> str:
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if hasattr(tensor, "detach"):
        import torch

        kind = str(tensor.dtype).removeprefix("torch.")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        import numpy

        array = numpy.asarray(tensor)
        kind, data = str(array.dtype), array.tobytes()
    return f"{kind} {list(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def tokenizer():
    """One token for each byte, and three special ones; made in memory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def causal_model(name="", seed=7):
    """A causal language model of some 35,000 parameters. `name`: where it says that it comes from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            name_or_path=name,
            vocab_size=259,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def network(seed=7):
    """A plain torch network."""
    import torch

    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))


def step(model, optimizer) -> None:
    """One step of training, so that the optimizer has a state."""
    import torch

    optimizer.zero_grad()
    model(torch.ones(2, 16)).square().mean().backward()
    optimizer.step()


def leave() -> None:
    """Ends the process group, and then the process: with gloo a thread of torch may abort an interpreter that ends by
    itself (SIGABRT, a known bug of torch)."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        backend = dist.get_backend()
        dist.barrier()
        dist.destroy_process_group()
        if "gloo" in backend:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
