"""transformers `save_pretrained` and `Trainer.save_model`: a model for inference, whole or sharded.

Measured order (transformers 5.24): config.json, generation_config.json, weights or shards, index last, tokenizer files,
training_args.bin last by save_model. A second save truncates the JSON files in place, so no file proves that this one is
over: quiet has to. A stale index beside a whole model.safetensors means nothing: from_pretrained takes the latter.
"""

from __future__ import annotations

from launcher.checkpoint.formats import files, safetensors, torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, read_object, text_of

CONFIG = "config.json"
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
BESIDE = frozenset(
    {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
        "chat_template.jinja", "preprocessor_config.json", "processor_config.json", "training_args.bin",
        "adapter_config.json", "README.md", "trainer_state.json", "all_results.json", "train_results.json",
        "eval_results.json",
    }
)  # fmt: skip
"""What lies beside the weights and belongs to the model."""
_COMPANION = "generation_config.json"
"""Never written without config.json: a model beside it has lost its configuration."""
_SHARD = ("model-", "pytorch_model-")


def weights(tree: Tree) -> tuple[list[str], list[str]]:
    """The files that hold the model, and the reasons why they are not all there (none: they are). Raises nothing."""
    for name in SINGLE:
        if name in tree.files:
            return [name], []
    for index in INDEXES:
        if index not in tree.files:
            continue
        try:
            shards = sorted(set(files.shards(tree, index).values()))
        except (ValueError, OSError) as error:
            return [], [str(error)]
        return [*shards, index], [f"{shard} is not there" for shard in shards if shard not in tree.files]
    return [], ["no weights are there"]


def model_facts(tree: Tree) -> Facts:
    """Model facts of config.json and the headers of the weights."""
    config = read_object(tree, CONFIG)
    held, missing = weights(tree)
    parameters = dtype = None
    if not missing and held and held[0].endswith(".safetensors"):
        headers = safetensors.of_headers(tree, [path for path in held if path.endswith(".safetensors")])
        parameters, dtype = headers.parameters, headers.dtype
    elif not missing:
        counted = [torch_save.tensors(torch_save.read_object(tree, path)) for path in held if path.endswith(".bin")]
        parameters = sum(count for count, _ in counted) or None
        dtype = next((kind for _, kind in counted if kind), None)
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    return Facts(
        architecture=text_of(architecture),
        model_type=text_of(config.get("model_type")),
        dtype=text_of(config.get("dtype") or config.get("torch_dtype")) or dtype,
        parameters=parameters,
        base_model=text_of(config.get("_name_or_path")),
        library="transformers",
        library_version=text_of(config.get("transformers_version")),
    )


def inference(tree: Tree) -> Ready:
    """Whether an inference server finds what it needs, and the reason where not."""
    _, missing = weights(tree)
    if not missing and not read_object(tree, CONFIG).get("architectures"):
        missing = [f"{CONFIG} names no architecture"]
    return Ready(
        resume_reason="no state of optimizer and scheduler",
        inference=not missing,
        inference_reason=missing[0] if missing else "",
    )


class Pretrained:
    """config.json with `model_type` or `architectures`, beside weights."""

    name = "transformers-pretrained"
    completes = ("training_args.bin",)

    def recognises(self, tree: Tree) -> bool:
        if CONFIG not in tree.files:
            return _COMPANION in tree.files and any(name in tree.files for name in (*SINGLE, *INDEXES))
        config = read_object(tree, CONFIG)
        has_weights = any(name in tree.files for name in (*SINGLE, *INDEXES))
        return "model_type" in config or "architectures" in config or (has_weights and "_class_name" not in config)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        _, missing = weights(tree)
        if CONFIG not in tree.files:
            missing = [f"{CONFIG} is not there", *missing]
        return judged(self.name, [*missing, *files.mistakes(tree)], context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return model_facts(tree)

    def ready(self, tree: Tree) -> Ready:
        return inference(tree)

    def claims(self, tree: Tree) -> frozenset[str]:
        held, _ = weights(tree)
        return frozenset(
            path
            for path in tree.files
            if path in BESIDE or path in held or (path.startswith(_SHARD) and "-of-" in path)
        )
