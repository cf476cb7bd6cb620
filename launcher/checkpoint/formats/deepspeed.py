"""DeepSpeed `engine.save_checkpoint`: `global_stepN/` with one model file per model-parallel rank and optimizer shards.

Measured (0.19, ZeRO-2 bf16, two processes): `mp_rank_00_model_states.pt` by rank 0, `*zero_pp_rank_R_mp_rank_M_optim_states.pt`
by every rank, in any order; then `latest` and `zero_to_fp32.py` outside the folder. `latest` proves nothing: it named a folder
1.5 s before the last rank's file was there. The world's size is inside the model file (`dp_world_size`, `mp_world_size`), read
by opcodes: whole means that all of their shards are there and whole. ZeRO-3 writes `zero_pp_rank_R_mp_rank_M_model_states.pt`
by every rank; without ZeRO the optimizer is in the model file. From the sources, not run: ZeRO-3, pipelines, experts.
"""

from __future__ import annotations

import re

from launcher.checkpoint import symbols
from launcher.checkpoint.formats import torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, below, folders, text_of

_MODEL = re.compile(r"(?:zero_pp_rank_\d+_)?mp_rank_(\d+)_model_states\.pt")
_SHARD = re.compile(r"(?:[a-z0-9]+_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(optim|model)_states\.pt")
LATEST = "latest"


def saves(tree: Tree) -> list[str]:
    """Prefixes of the saves in a folder: "" for itself, `global_step500/` for those of a Trainer or an output directory."""
    found = [""] if any(_is_save_file(path) for path in tree.files) else []
    return found + [
        f"{name}/"
        for name in folders(tree)
        if any(path.startswith(f"{name}/") and _is_save_file(path[len(name) + 1 :]) for path in tree.files)
    ]


def _is_save_file(path: str) -> bool:
    return bool(_MODEL.fullmatch(path) or _SHARD.fullmatch(path))


def mistakes(tree: Tree) -> list[str]:
    """Why one save (the content of `global_stepN/`) is not whole; its files' own mistakes left out."""
    models = sorted(path for path in tree.files if _MODEL.fullmatch(path))
    if not models:
        return ["no *model_states.pt is there"]
    found = torch_save.read_pickle(tree, models[0])
    if found is not None and found.limit:
        return []
    value = found.value if found else None
    data, model = torch_save.number(value, "dp_world_size"), torch_save.number(value, "mp_world_size")
    if not isinstance(data, int) or not isinstance(model, int) or not 0 < data * model <= 1 << 20:
        return [f"{models[0]} does not say of how many ranks it is"]
    reasons = []
    if any(path.startswith("mp_") for path in models):
        parts = [f"mp_rank_{part:02d}_model_states.pt" for part in range(model)]
        absent = [name for name in parts if name not in tree.files]
        reasons += [f"{absent[0]} is not there ({model - len(absent)} of {model} parts)"] if absent else []
    shards = [match for match in map(_SHARD.fullmatch, tree.files) if match]
    for kind in ("optim", "model"):
        ranks = {(int(match[1]), int(match[2])) for match in shards if match[3] == kind}
        wanted = {(rank, part) for rank in range(data) for part in range(model)}
        needed = ranks if kind == "model" else ranks or _sharded(value)
        missing = sorted(wanted - ranks) if needed else []
        if missing:
            name = f"zero_pp_rank_{missing[0][0]}_mp_rank_{missing[0][1]:02d}_{kind}_states.pt"
            reasons.append(f"{name} is not there ({len(ranks)} of {len(wanted)} ranks)")
    return reasons


def _sharded(value: object) -> bool:
    """Whether the optimizer's state is in files of its own: the model file has none and its configuration names ZeRO."""
    config = symbols.get(symbols.get(value, "ds_config"), "zero_optimization")
    stage = symbols.get(config, "stage")
    return symbols.get(value, "optimizer") is None and isinstance(stage, int) and stage > 0


class DeepSpeed:
    """`global_stepN/` itself, or a folder that holds some and `latest`."""

    name = "deepspeed"
    completes = ("*_states.pt",)

    def recognises(self, tree: Tree) -> bool:
        return bool(saves(tree))

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import files

        reasons = files.mistakes(tree)
        for prefix in saves(tree):
            reasons += [prefix + reason for reason in mistakes(below(tree, prefix))]
        return judged(self.name, [*reasons, *latest_mistakes(tree)], context, proven=True)

    def facts(self, tree: Tree) -> Facts:
        """Of the newest save."""
        found = [facts(below(tree, prefix)) for prefix in saves(tree)]
        return max(found, key=lambda each: each.step or 0)

    def ready(self, tree: Tree) -> Ready:
        return Ready(resume=True, inference_reason="convert it with its zero_to_fp32.py first")

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset(path for path in tree.files if _is_save_file(path))


def latest_mistakes(tree: Tree) -> list[str]:
    """`latest` must name a save that is there: DeepSpeed loads by it."""
    if LATEST not in tree.files:
        return []
    named = tree.read(LATEST, 0, 256).decode("utf-8", "replace").strip()
    return [] if f"{named}/" in saves(tree) else [f"{LATEST} names {named[:80]!r}, which is not there"]


def facts(tree: Tree) -> Facts:
    """Step, parameters and version of one save, from its model file."""
    model = next((path for path in sorted(tree.files) if _MODEL.fullmatch(path)), None)
    value = torch_save.read_object(tree, model) if model else None
    step = torch_save.number(value, "global_steps")
    parameters, dtype = torch_save.tensors(symbols.get(value, "module"))
    version = symbols.get(value, "ds_version")
    return Facts(
        step=int(step) if step is not None else None,
        parameters=parameters or None,
        dtype=dtype,
        library="deepspeed",
        library_version=text_of(version),
    )
