"""transformers Trainer checkpoints (`checkpoint-500/`): model, optimizer, scheduler, random states, trainer_state.json.

Measured order (4.37 to 5.24, one process): config.json … model.safetensors … training_args.bin, optimizer.pt,
scheduler.pt, rng_state.pth, trainer_state.json last. With W processes every rank writes rng_state_R.pth at any moment, up
to seconds after trainer_state.json, so all W belong to the rule. `save_only_model` leaves out optimizer to rng_state.
training_args.bin is required: rotation on ext4 deletes it first, which tells a folder on its way out from a whole one. Where
the weights lie in a folder below (FSDP's sharded state, DeepSpeed) the Trainer writes none, nor config.json.
With PEFT the weights are an adapter's. trl writes the same; its class is named in training_args.bin.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from launcher.checkpoint.formats import dcp, deepspeed, files, peft, pretrained, torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, below, read_json, read_object, text_of

_RNG = re.compile(r"rng_state_(\d+)\.pth")
STATE = "trainer_state.json"
ARGUMENTS = "training_args.bin"
SENTINEL = "checkpoint-is-incomplete.txt"
"""Written first and removed last by JIT checkpoints; with several processes any of them may remove it early."""
FSDP_FULL = "pytorch_model_fsdp.bin"
"""FSDP's full state, beside or instead of model.safetensors."""


class Trainer:
    """A folder with trainer_state.json, or with what comes before it in a Trainer's folder."""

    name = "transformers-trainer"
    completes = (STATE, "rng_state_*.pth", SENTINEL)

    def recognises(self, tree: Tree) -> bool:
        found = tree.files
        if STATE in found or SENTINEL in found:
            return True
        random = "rng_state.pth" in found or any(_RNG.fullmatch(path) for path in found)
        return "scheduler.pt" in found and (random or "optimizer.pt" in found)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        reasons = [*_state_mistakes(tree), *_missing(tree), *files.mistakes(tree)]
        for prefix in dcp.nested(tree):
            reasons += [prefix + reason for reason in dcp.mistakes(below(tree, prefix))]
        if saves := deepspeed.saves(tree):
            for prefix in saves:
                reasons += [prefix + reason for reason in deepspeed.mistakes(below(tree, prefix))]
            reasons += deepspeed.latest_mistakes(tree)
        ranks, absent = random_states(tree, _RNG, "rng_state.pth", "rng_state_{}.pth", context)
        if has_optimizer(tree):
            reasons += absent
        return judged(self.name, reasons, context, proven=not ranks or context.world_size is not None)

    def facts(self, tree: Tree) -> Facts:
        state = read_object(tree, STATE)
        return msgspec.structs.replace(
            _model_facts(tree),
            step=_number(state.get("global_step"), int),
            epoch=_number(state.get("epoch"), float),
            train_loss=_last(state, "loss"),
            eval_loss=_last(state, "eval_loss"),
            best_metric=_number(state.get("best_metric"), float),
            best_checkpoint=_folder(state.get("best_model_checkpoint")),
        )

    def ready(self, tree: Tree) -> Ready:
        resumable = STATE in tree.files and has_optimizer(tree)
        return msgspec.structs.replace(
            peft.ready(tree) if peft.is_adapter(tree) else pretrained.inference(tree),
            resume=resumable,
            resume_reason="" if resumable else "no state of the optimizer (save_only_model)",
        )

    def claims(self, tree: Tree) -> frozenset[str]:
        own = {"optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", FSDP_FULL, "optimizer.bin", SENTINEL}
        return pretrained.Pretrained().claims(tree) | frozenset(
            path for path in tree.files if path in own or _RNG.fullmatch(path)
        )


class Trl(Trainer):
    """The Trainer's layout, written by one of trl's trainers."""

    name = "trl"

    def recognises(self, tree: Tree) -> bool:
        return super().recognises(tree) and trl_class(tree) is not None

    def facts(self, tree: Tree) -> Facts:
        """`trainer` is what trl's configuration class is named after: SFT, DPO, GRPO …"""
        return msgspec.structs.replace(
            super().facts(tree), library="trl", library_version=None, trainer=trl_class(tree)
        )


def trl_class(tree: Tree) -> str | None:
    """Which of trl's trainers wrote training_args.bin, by the class that it names; None for other writers."""
    if ARGUMENTS not in tree.files:
        return None
    found = torch_save.read_pickle(tree, ARGUMENTS)
    for name, _ in found.uses if found else ():
        if name.module and name.module.startswith("trl.") and name.name.endswith("Config"):
            return name.name.removesuffix("Config")
    return None


def has_optimizer(tree: Tree) -> bool:
    """Whether the optimizer's state is there in any of its forms."""
    return any(
        path in ("optimizer.pt", "optimizer.bin") or path.startswith(("optimizer_", "global_step"))
        for path in tree.files
    )


def random_states(
    tree: Tree, pattern: re.Pattern[str], single: str, form: str, context: Context
) -> tuple[set[int], list[str]]:
    """The ranks whose random state is there, and the reason where one is absent. Of W processes every rank writes its own;
    where W is not known the highest rank tells the least that there must be."""
    ranks = {int(match[1]) for match in map(pattern.fullmatch, tree.files) if match}
    if single in tree.files and not ranks:
        return ranks, []
    known = context.world_size or 1
    if known == 1 and not ranks:
        return ranks, [f"{single or form.format(0)} is not there"]
    world = known if known > 1 else max(ranks) + 1
    absent = sorted(set(range(world)) - ranks)
    reason = f"{form.format(absent[0])} is not there ({len(ranks)} of {world} ranks)" if absent else ""
    return ranks, [reason] if reason else []


def _state_mistakes(tree: Tree) -> list[str]:
    reasons = [f"{SENTINEL} says that it is being written"] if SENTINEL in tree.files else []
    if STATE not in tree.files:
        return [*reasons, f"{STATE}, which is written last, is not there"]
    try:
        state = read_json(tree, STATE)
    except (ValueError, OSError) as error:
        return [*reasons, f"{STATE} cannot be read ({error})"]
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        reasons.append(f"{STATE} has no global_step")
    return reasons


def _missing(tree: Tree) -> list[str]:
    """What the Trainer would have written and is not there."""
    found = tree.files
    reasons = []
    sharded = any(prefix.startswith("pytorch_model_fsdp") for prefix in dcp.nested(tree))
    elsewhere = sharded or bool(deepspeed.saves(tree))
    if ARGUMENTS not in found and not sharded:
        reasons.append(f"{ARGUMENTS} is not there")
    weights, _ = pretrained.weights(tree)
    inside = elsewhere or peft.is_adapter(tree) or (FSDP_FULL in found and pretrained.CONFIG not in found)
    if not weights and not inside:
        reasons.append("no weights are there")
    if peft.is_adapter(tree):
        reasons += peft.missing(tree)
    elif weights and pretrained.CONFIG not in found and found.keys() & {"generation_config.json"}:
        reasons.append(f"{pretrained.CONFIG} is not there")
    if has_optimizer(tree) and "scheduler.pt" not in found and not deepspeed.saves(tree):
        reasons.append("scheduler.pt is not there, and the optimizer's state is")
    if "scheduler.pt" in found and not has_optimizer(tree):
        reasons.append("the optimizer's state is not there, and scheduler.pt is")
    if "optimizer.bin" in found and FSDP_FULL not in found:
        reasons.append(f"{FSDP_FULL} is not there, and FSDP's optimizer.bin is")
    if sharded and not any(prefix.startswith("optimizer_") for prefix in dcp.nested(tree)) and has_optimizer(tree):
        reasons.append("optimizer_0, the optimizer's sharded state, is not there")
    return reasons


def _model_facts(tree: Tree) -> Facts:
    if peft.is_adapter(tree):
        return peft.facts(tree)
    found = pretrained.model_facts(tree)
    if found.parameters is not None:
        return found
    for prefix in dcp.nested(tree):
        if prefix.startswith("pytorch_model_fsdp"):
            nested = dcp.facts(below(tree, prefix))
            return msgspec.structs.replace(found, parameters=nested.parameters, dtype=found.dtype or nested.dtype)
    for prefix in deepspeed.saves(tree):
        nested = deepspeed.facts(below(tree, prefix))
        return msgspec.structs.replace(found, parameters=nested.parameters, dtype=found.dtype or nested.dtype)
    return found


def _last(state: dict[str, Any], key: str) -> float | None:
    """The last value of `key` in the log: the last entry often has only the training or only the evaluation loss."""
    history = state.get("log_history")
    for entry in reversed(history) if isinstance(history, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get(key), (int, float)):
            return float(entry[key])
    return None


def _number(value: object, kind: type[Any]) -> Any:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1 << 62:
        return None
    return kind(value)


def _folder(value: object) -> str | None:
    return text_of(value.rstrip("/").rpartition("/")[2], 255) if isinstance(value, str) else None
