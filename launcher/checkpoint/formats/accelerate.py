"""accelerate `save_state`: model, optimizer, scheduler, samplers, and each rank's random states last. No JSON, no step.

Measured (1.15): model.safetensors (or pytorch_model.bin, FSDP's `pytorch_model_fsdp_0/` or `pytorch_model_fsdp.bin`, or what a
hook of the script writes: `unet/…` in Diffusers' examples), optimizer.bin, scheduler.bin, then `random_states_R.pkl` by every
rank, up to seconds after each other: all W of them prove the save. Whether a script had a scheduler or a sampler, no file
tells: what it needs beside these is not known here. `save_model` writes weights only, which is the format `safetensors`.
"""

from __future__ import annotations

import re

import msgspec

from launcher.checkpoint.formats import dcp, deepspeed, diffusers, files, safetensors, torch_save
from launcher.checkpoint.formats.trainer import FSDP_FULL, has_optimizer, random_states
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, below, folders, read_object

_RANDOM = re.compile(r"random_states_(\d+)\.pkl")
_MODEL = re.compile(
    r"(.*/)?(pytorch_model|model|diffusion_pytorch_model|adapter_model|pytorch_lora_weights|pytorch_model_fsdp)"
    r"(_\d+)?(-\d+-of-\d+)?\.(safetensors|bin)"
)
_OPTIMIZER = re.compile(r"optimizer(_\d+)?\.bin")


class Accelerate:
    """A folder with random_states_R.pkl, or with what comes before them."""

    name = "accelerate"
    completes = ("random_states_*.pkl",)

    def recognises(self, tree: Tree) -> bool:
        return any(_RANDOM.fullmatch(path) for path in tree.files) or (
            "optimizer.bin" in tree.files and any(_MODEL.fullmatch(path) for path in tree.files)
        )

    def judge(self, tree: Tree, context: Context) -> Judgement:
        reasons = [*_missing(tree), *files.mistakes(tree)]
        for prefix in dcp.nested(tree):
            reasons += [prefix + reason for reason in dcp.mistakes(below(tree, prefix))]
        for prefix in _engine(tree):
            reasons += [prefix + reason for reason in deepspeed.mistakes(below(tree, prefix))]
        _, absent = random_states(tree, _RANDOM, "", "random_states_{}.pkl", context)
        return judged(self.name, [*reasons, *absent], context, proven=context.world_size is not None)

    def facts(self, tree: Tree) -> Facts:
        """Parameters and dtype of the model; save_state writes nothing else down."""
        models = [path for path in tree.files if _MODEL.fullmatch(path)]
        found = safetensors.of_headers(tree, [path for path in models if path.endswith(".safetensors")])
        if found.parameters is None and models:
            counted = [
                torch_save.tensors(torch_save.read_object(tree, path)) for path in models if path.endswith(".bin")
            ]
            kind = next((kind for _, kind in counted if kind), None)
            found = Facts(parameters=sum(count for count, _ in counted) or None, dtype=kind)
        for prefix in dcp.nested(tree) if found.parameters is None else ():
            if prefix.startswith("pytorch_model_fsdp"):
                found = dcp.facts(below(tree, prefix))
        return msgspec.structs.replace(found, library="accelerate", library_version=None)

    def ready(self, tree: Tree) -> Ready:
        resumable = has_optimizer(tree) or bool(_engine(tree))
        return Ready(
            resume=resumable,
            resume_reason="" if resumable else "no state of the optimizer",
            inference_reason="no configuration of the model: it needs its own code",
        )

    def claims(self, tree: Tree) -> frozenset[str]:
        own = re.compile(
            r"(optimizer|scheduler|sampler|dl_state_dict)(_\d+)?\.bin|scaler\.pt|custom_checkpoint_\d+\.pkl"
        )
        return frozenset(
            path
            for path in tree.files
            if _RANDOM.fullmatch(path) or own.fullmatch(path) or (_MODEL.fullmatch(path) and "/" not in path)
        )


def _engine(tree: Tree) -> list[str]:
    """DeepSpeed's own save inside: accelerate calls it `pytorch_model/`."""
    return deepspeed.saves(tree)


def _missing(tree: Tree) -> list[str]:
    reasons = []
    if not any(_MODEL.fullmatch(path) for path in tree.files) and not dcp.nested(tree) and not _engine(tree):
        reasons.append("no weights are there")
    if not _optimizer(tree) and (FSDP_FULL in tree.files or "scheduler.bin" in tree.files or dcp.nested(tree)):
        reasons.append("the optimizer's state is not there")
    for name in folders(tree):  # What the hooks of Diffusers' examples write: a model with its configuration.
        part = below(tree, f"{name}/")
        if "_class_name" in read_object(part, diffusers.CONFIG) or any(
            path.startswith("diffusion_pytorch_model") for path in part.files
        ):
            reasons += [f"{name}/{reason}" for reason in diffusers.Model().judge(part, Context()).reasons]
        elif diffusers.CONFIG in part.files and not diffusers.weights(part):
            reasons.append(f"{name} has no weights")
    return reasons


def _optimizer(tree: Tree) -> bool:
    return (
        any(_OPTIMIZER.fullmatch(path) for path in tree.files)
        or any(prefix.startswith("optimizer_") for prefix in dcp.nested(tree))
        or bool(_engine(tree))
    )
