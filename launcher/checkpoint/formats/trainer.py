"""transformers Trainer checkpoints (`checkpoint-500/`): model, optimizer, scheduler, random states, trainer_state.json.

Measured order (4.37 to 5.23, one process): config.json … model.safetensors … training_args.bin, optimizer.pt,
scheduler.pt, rng_state.pth, trainer_state.json last. With W processes every rank writes rng_state_R.pth at any moment, up
to seconds after trainer_state.json, so all W belong to the rule. `save_only_model` leaves out optimizer to rng_state.
training_args.bin is required: rotation on ext4 deletes it first, which tells a folder on its way out from a whole one.
"""

from __future__ import annotations

import re
from typing import Any

from launcher.checkpoint.formats import pretrained, torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, read_json, read_object

_RNG = re.compile(r"rng_state_(\d+)\.pth")
SENTINEL = "checkpoint-is-incomplete.txt"
"""Written first and removed last by JIT checkpoints; with several processes any of them may remove it early."""


class Trainer:
    """A folder with trainer_state.json, or with what comes before it in a Trainer's folder."""

    name = "transformers-trainer"
    completes = ("trainer_state.json", "rng_state_*.pth", SENTINEL)

    def recognises(self, tree: Tree) -> bool:
        files = tree.files
        return (
            "trainer_state.json" in files or SENTINEL in files or ("optimizer.pt" in files and "scheduler.pt" in files)
        )

    def judge(self, tree: Tree, context: Context) -> Judgement:
        files = tree.files
        reasons: list[str] = []
        if SENTINEL in files:
            reasons.append(f"{SENTINEL} says that it is being written")
        if "trainer_state.json" not in files:
            reasons.append("trainer_state.json, which is written last, is not there")
        else:
            try:
                state = read_json(tree, "trainer_state.json")
                if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
                    reasons.append("trainer_state.json has no global_step")
            except (ValueError, OSError) as error:
                reasons.append(f"trainer_state.json cannot be read ({error})")
        if "training_args.bin" not in files:
            reasons.append("training_args.bin is not there")
        _, missing = pretrained.weights(tree)
        if missing and not _nested_weights(tree):
            reasons += missing
        if "optimizer.pt" in files:
            if "scheduler.pt" not in files:
                reasons.append("scheduler.pt is not there, and optimizer.pt is")
            reasons += self._random_states(tree, context)
        for path in files:
            if path.endswith((".pt", ".pth", ".bin")) and path not in pretrained.SINGLE:
                reason = torch_save.mistake(tree, path)
                reasons += [reason] if reason else []
        return judged(self.name, reasons, context, proven=True)

    def _random_states(self, tree: Tree, context: Context) -> list[str]:
        ranks = {int(match[1]) for match in map(_RNG.fullmatch, tree.files) if match}
        if "rng_state.pth" in tree.files and not ranks:
            return []
        world = context.world_size if context.world_size and context.world_size > 1 else max(ranks, default=0) + 1
        absent = sorted(set(range(world)) - ranks)
        if not absent:
            return []
        if not ranks and (context.world_size or 1) == 1:
            return ["rng_state.pth is not there"]
        return [f"rng_state_{absent[0]}.pth is not there ({len(ranks)} of {world} ranks)"]

    def facts(self, tree: Tree) -> Facts:
        model = pretrained.model_facts(tree)
        state = read_object(tree, "trainer_state.json")
        import msgspec

        return msgspec.structs.replace(
            model,
            step=_number(state.get("global_step"), int),
            epoch=_number(state.get("epoch"), float),
            train_loss=_last(state, "loss"),
            eval_loss=_last(state, "eval_loss"),
            best_metric=_number(state.get("best_metric"), float),
            best_checkpoint=_folder(state.get("best_model_checkpoint")),
        )

    def ready(self, tree: Tree) -> Ready:
        can, reason = pretrained.inference(tree)
        resumable = "trainer_state.json" in tree.files and any(
            path == "optimizer.pt" or path == "optimizer.bin" or path.startswith(("optimizer_0/", "global_step"))
            for path in tree.files
        )
        return Ready(
            resume=resumable,
            resume_reason="" if resumable else "no state of the optimizer (save_only_model)",
            inference=can,
            inference_reason=reason,
        )

    def claims(self, tree: Tree) -> frozenset[str]:
        return pretrained.Pretrained().claims(tree) | frozenset(
            path
            for path in tree.files
            if path in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth") or _RNG.fullmatch(path)
        )


def _nested_weights(tree: Tree) -> bool:
    """Weights in a folder below: sharded FSDP and DeepSpeed, whose own files are judged by their formats."""
    return any(path.startswith(("pytorch_model_fsdp", "global_step")) for path in tree.files)


def _last(state: dict[str, Any], key: str) -> float | None:
    """The last value of `key` in the log: the last entry often has only the training or only the evaluation loss."""
    history = state.get("log_history")
    for entry in reversed(history) if isinstance(history, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get(key), (int, float)):
            return float(entry[key])
    return None


def _number(value: object, kind: type[Any]) -> Any:
    return kind(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _folder(value: object) -> str | None:
    return value.rstrip("/").rpartition("/")[2][:255] if isinstance(value, str) and value else None
