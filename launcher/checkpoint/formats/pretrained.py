"""transformers `save_pretrained` and `Trainer.save_model`: a model for inference, whole or sharded.

Measured order (transformers 5.23): config.json, generation_config.json, weights or shards, index last, tokenizer files,
training_args.bin last by save_model. A second save truncates the JSON files in place, so no file proves that this one is
over: quiet has to. A stale index beside a whole model.safetensors means nothing: from_pretrained takes the latter.
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.checkpoint.formats import safetensors, torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, read_json, read_object

SINGLE = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_BESIDE = frozenset(
    {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
        "chat_template.jinja", "preprocessor_config.json", "processor_config.json", "training_args.bin",
        "adapter_config.json", "README.md", "trainer_state.json", "all_results.json", "train_results.json",
        "eval_results.json",
    }
)  # fmt: skip


def weights(tree: Tree) -> tuple[list[str], list[str]]:
    """The files that hold the model, and the reasons why they are not whole (none: they are).

    Raises nothing: what cannot be read is a reason.
    """
    for name in SINGLE:
        if name in tree.files:
            return [name], _mistakes(tree, [name])
    for index in INDEXES:
        if index not in tree.files:
            continue
        try:
            content = read_json(tree, index)
            shards = sorted(set(content["weight_map"].values()))
            if not shards or not all(isinstance(shard, str) and "/" not in shard for shard in shards):
                raise ValueError("weight_map")
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            return [], [f"{index} is no readable index of shards ({error})"]
        missing = [shard for shard in shards if shard not in tree.files]
        if missing:
            return shards, [f"{index} names {missing[0]}, which is not there ({len(missing)} missing)"]
        return [*shards, index], _mistakes(tree, shards) or _uncovered(tree, index, content["weight_map"])
    return [], ["no weights are there"]


def _uncovered(tree: Tree, index: str, weight_map: dict[str, str]) -> list[str]:
    if not index.startswith("model.safetensors"):
        return []
    names: dict[str, frozenset[str]] = {}
    for tensor, shard in weight_map.items():
        if shard not in names:
            names[shard] = frozenset(safetensors.read_header(tree, shard).tensors)
        if tensor not in names[shard]:
            return [f"{shard} does not hold {tensor[:80]!r}, which {index} promises"]
    return []


def _mistakes(tree: Tree, paths: Iterable[str]) -> list[str]:
    found = (
        safetensors.mistake(tree, path) if path.endswith(".safetensors") else torch_save.mistake(tree, path)
        for path in paths
    )
    return [reason for reason in found if reason]


def model_facts(tree: Tree) -> Facts:
    """Model facts of config.json and the headers of the weights."""
    config = read_object(tree, "config.json")
    adapter = read_object(tree, "adapter_config.json")
    files, reasons = weights(tree)
    headers = safetensors.of_headers(tree, [path for path in files if path.endswith(".safetensors") and not reasons])
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    dtype = config.get("dtype") or config.get("torch_dtype") or headers.dtype
    base = adapter.get("base_model_name_or_path") or config.get("_name_or_path")
    return Facts(
        architecture=_text(architecture),
        model_type=_text(config.get("model_type")),
        dtype=_text(dtype),
        parameters=headers.parameters,
        base_model=_text(base),
        library="transformers",
        library_version=_text(config.get("transformers_version")),
    )


def inference(tree: Tree) -> tuple[bool, str]:
    """Whether an inference server finds what it needs, and the reason where not."""
    config = read_object(tree, "config.json")
    _, reasons = weights(tree)
    if reasons:
        return False, reasons[0]
    if "adapter_config.json" in tree.files and "config.json" not in tree.files:
        base = read_object(tree, "adapter_config.json").get("base_model_name_or_path")
        return False, f"an adapter: it needs its base model ({base or 'not named in adapter_config.json'})"
    if not config.get("architectures"):
        return False, "config.json names no architecture"
    return True, ""


def _text(value: object) -> str | None:
    return value[:500] if isinstance(value, str) and value else None


class Pretrained:
    """config.json with `model_type` or `architectures`, beside weights."""

    name = "transformers-pretrained"
    completes = ("training_args.bin",)

    def recognises(self, tree: Tree) -> bool:
        if "config.json" not in tree.files:
            return False
        config = read_object(tree, "config.json")
        has_weights = any(name in tree.files for name in (*SINGLE, *INDEXES))
        return "model_type" in config or "architectures" in config or (has_weights and "_class_name" not in config)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        reasons = []
        try:
            if not isinstance(read_json(tree, "config.json"), dict):
                reasons.append("config.json holds no object")
        except (ValueError, OSError) as error:
            reasons.append(f"config.json cannot be read ({error})")
        _, missing = weights(tree)
        reasons += missing
        if "training_args.bin" in tree.files:
            reasons += _mistakes(tree, ["training_args.bin"])
        return judged(self.name, reasons, context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return model_facts(tree)

    def ready(self, tree: Tree) -> Ready:
        can, reason = inference(tree)
        return Ready(resume_reason="no state of optimizer and scheduler", inference=can, inference_reason=reason)

    def claims(self, tree: Tree) -> frozenset[str]:
        files, _ = weights(tree)
        return frozenset(path for path in tree.files if path in _BESIDE or path in files)
