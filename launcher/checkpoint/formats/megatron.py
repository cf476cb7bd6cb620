"""Megatron-LM (`iter_0000010/`), from its sources and documentation; not run here.

Its older form has one folder for each model-parallel rank, `mp_rank_TT[_PPP[_EEE]]/model_optim_rng.pt` (with
`distrib_optim.pt` where the optimizer is distributed); the arguments inside say how many ranks there are. Its newer form
(`torch_dist`) is torch.distributed.checkpoint's with `common.pt` and `metadata.json`. The tracker beside the folders,
`latest_checkpointed_iteration.txt`, is outside of the checkpoint.
"""

from __future__ import annotations

import re

import msgspec

from launcher.checkpoint import symbols
from launcher.checkpoint.formats import dcp, files, torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, read_object

_RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?(?:_(\d{3}))?/(model_optim_rng|model_rng)\.pt")
_OPTIMIZER = "distrib_optim.pt"
COMMON = "common.pt"


class Megatron:
    """One iteration's folder."""

    name = "megatron"
    completes = (dcp.METADATA,)

    def recognises(self, tree: Tree) -> bool:
        if COMMON in tree.files or any(_RANK.fullmatch(path) for path in tree.files):
            return True
        return "sharded_backend" in read_object(tree, "metadata.json")

    def judge(self, tree: Tree, context: Context) -> Judgement:
        if any(_RANK.fullmatch(path) for path in tree.files):
            return judged(self.name, [*_missing_ranks(tree), *files.mistakes(tree)], context, proven=False)
        reasons = [f"{name} is not there" for name in (COMMON, "metadata.json") if name not in tree.files]
        return judged(self.name, [*reasons, *dcp.mistakes(tree), *files.mistakes(tree)], context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        value = torch_save.read_object(tree, _first(tree) or COMMON)
        step = torch_save.number(value, "iteration")
        found = dcp.facts(tree) if dcp.METADATA in tree.files else Facts()
        return msgspec.structs.replace(found, step=int(step) if step is not None else None, library="megatron")

    def ready(self, tree: Tree) -> Ready:
        return Ready(resume=True, inference_reason="convert it with Megatron's tools first")

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()


def _first(tree: Tree) -> str:
    return next((path for path in sorted(tree.files) if _RANK.fullmatch(path)), "")


def _missing_ranks(tree: Tree) -> list[str]:
    """Tensor × pipeline ranks by the arguments in the first one's file; where they are not there, by the highest number."""
    found = {(int(match[1]), int(match[2] or 0)) for match in map(_RANK.fullmatch, tree.files) if match}
    arguments = symbols.get(torch_save.read_object(tree, _first(tree)), "args")
    tensor = symbols.get(arguments, "tensor_model_parallel_size")
    pipeline = symbols.get(arguments, "pipeline_model_parallel_size")
    tensors = tensor if _is_count(tensor) else max(rank for rank, _ in found) + 1
    stages = pipeline if _is_count(pipeline) else max(stage for _, stage in found) + 1
    missing = sorted({(rank, stage) for rank in range(tensors) for stage in range(stages)} - found)
    reasons = []
    if missing:
        rank, stage = missing[0]
        name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
        reasons.append(f"{name} is not there ({len(found)} of {tensors * stages} ranks)")
    distributed = {path.rpartition("/")[0] for path in tree.files if path.endswith("/" + _OPTIMIZER)}
    folders = {path.rpartition("/")[0] for path in tree.files if _RANK.fullmatch(path)}
    if distributed and folders - distributed:
        reasons.append(f"{min(folders - distributed)}/{_OPTIMIZER} is not there")
    return reasons


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096
