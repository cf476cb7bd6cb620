"""Diffusers: whole pipelines (model_index.json) and single models (config.json with `_class_name`).

Measured (0.42): a pipeline writes its components one after the other, model_index.json last, in place; before it, every
component looks like a model of its own. An un-sharded model writes its weights last, a sharded one its index. The layout
that training examples write with accelerate's hooks (`checkpoint-500/unet/…`) has neither: it is accelerate's.
"""

from __future__ import annotations

import re

import msgspec

from launcher.checkpoint.formats import files, safetensors
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, below, read_object, text_of

INDEX = "model_index.json"
CONFIG = "config.json"
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(\.[^/.]+)?\.(safetensors|bin)", re.DOTALL)
_PARTS = ("scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json", CONFIG)


def weights(tree: Tree) -> list[str]:
    """The weights files, or their index, directly in a folder; variants (`….fp16.safetensors`) count."""
    return [
        path for path in tree.files if "/" not in path and (_WEIGHTS.fullmatch(path) or files.INDEX.fullmatch(path))
    ]


class Pipeline:
    """model_index.json beside the folders of its components; before it comes, a scheduler's folder tells."""

    name = "diffusers-pipeline"
    completes = (INDEX,)

    def recognises(self, tree: Tree) -> bool:
        if INDEX in tree.files:
            return True
        alone = not any("/" not in path for path in tree.files if path != "README.md")
        return alone and "scheduler/scheduler_config.json" in tree.files

    def judge(self, tree: Tree, context: Context) -> Judgement:
        index = read_object(tree, INDEX)
        reasons = [] if INDEX in tree.files else [f"{INDEX}, which is written last, is not there"]
        reasons += [] if reasons or "_class_name" in index else [f"{INDEX} names no class"]
        for name in components(tree):
            reasons += _component_mistakes(below(tree, f"{name}/"), name)
        # It is written in place and has been there before when a pipeline is saved again: quiet must confirm.
        return judged(self.name, [*reasons, *files.mistakes(tree)], context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return _facts(tree, INDEX)

    def ready(self, tree: Tree) -> Ready:
        return Ready(resume_reason="no state of optimizer and scheduler", inference=True)

    def claims(self, tree: Tree) -> frozenset[str]:
        folders = tuple(f"{name}/" for name in components(tree))
        return frozenset(path for path in tree.files if path in (INDEX, "README.md") or path.startswith(folders))


def components(tree: Tree) -> list[str]:
    """The folders that model_index.json says must be there: `[library, class]`, and not `[null, null]`."""
    return [
        name
        for name, value in read_object(tree, INDEX).items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None and "/" not in name
    ]


def _component_mistakes(tree: Tree, name: str) -> list[str]:
    if not tree.files:
        return [f"{name}, which {INDEX} names, is not there"]
    if not any(part in tree.files for part in _PARTS):
        return [f"{name} has no configuration"]
    only_settings = any(part in tree.files for part in _PARTS if part != CONFIG)
    if CONFIG in tree.files and not only_settings and not weights(tree):
        return [f"{name} has no weights"]
    return []


class Model:
    """One model: config.json with `_class_name` and its weights."""

    name = "diffusers-model"
    completes = ("diffusion_pytorch_model.safetensors.index.json",)

    def recognises(self, tree: Tree) -> bool:
        return any(path.startswith("diffusion_pytorch_model") for path in tree.files) or (
            "_class_name" in read_object(tree, CONFIG)
        )

    def judge(self, tree: Tree, context: Context) -> Judgement:
        reasons = [] if "_class_name" in read_object(tree, CONFIG) else [f"{CONFIG} is not there, or names no class"]
        if not weights(tree):
            reasons.append("no weights are there")
        return judged(self.name, [*reasons, *files.mistakes(tree)], context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return _facts(tree, CONFIG)

    def ready(self, tree: Tree) -> Ready:
        return Ready(
            resume_reason="no state of optimizer and scheduler",
            inference_reason="one model of a pipeline: it needs the others",
        )

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset(path for path in tree.files if path == CONFIG or path.startswith("diffusion_pytorch_model"))


def _facts(tree: Tree, path: str) -> Facts:
    """What the library's own JSON file and the headers of the weights say."""
    about = read_object(tree, path)
    headers = safetensors.of_headers(tree, [each for each in tree.files if each.endswith(".safetensors")])
    return msgspec.structs.replace(
        headers,
        architecture=text_of(about.get("_class_name")),
        base_model=text_of(about.get("_name_or_path")),
        library="diffusers",
        library_version=text_of(about.get("_diffusers_version")),
    )
