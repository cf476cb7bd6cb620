"""PEFT adapters (`PeftModel.save_pretrained`): adapter_config.json and the adapter's weights.

Measured (0.21): README.md, adapter_model.safetensors, adapter_config.json last. A second adapter lies in a folder of its own
name, written after the first one. The configuration names the base model, without which no adapter can be used.
"""

from __future__ import annotations

from launcher.checkpoint.formats import files, safetensors, torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, read_object, text_of

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter(tree: Tree) -> bool:
    """Whether an adapter lies directly in the folder, whole or not."""
    return CONFIG in tree.files or any(name in tree.files for name in WEIGHTS)


def adapters(tree: Tree) -> list[str]:
    """Prefixes of the adapters: "" for the folder's own, `second/` for one below."""
    found = {""} if is_adapter(tree) else set()
    for path in tree.files:
        folder, slash, name = path.rpartition("/")
        if slash and (name == CONFIG or name in WEIGHTS):
            found.add(folder + slash)
    return sorted(found)


def missing(tree: Tree) -> list[str]:
    """What an adapter, or one of the folders below, lacks."""
    reasons = []
    for prefix in adapters(tree):
        if prefix + CONFIG not in tree.files:
            reasons.append(f"{prefix}{CONFIG} is not there")
        elif "peft_type" not in read_object(tree, prefix + CONFIG):
            reasons.append(f"{prefix}{CONFIG} names no peft_type")
        if not any(prefix + name in tree.files for name in WEIGHTS):
            reasons.append(f"{prefix}{WEIGHTS[0]} is not there")
    return reasons


def facts(tree: Tree) -> Facts:
    """Of the folder's own adapter, else of the first one below."""
    prefix = next(iter(adapters(tree)), "")
    config = read_object(tree, prefix + CONFIG)
    weights = [prefix + name for name in WEIGHTS if prefix + name in tree.files]
    headers = safetensors.of_headers(tree, [path for path in weights[:1] if path.endswith(".safetensors")])
    parameters, dtype = headers.parameters, headers.dtype
    if weights and weights[0].endswith(".bin"):
        parameters, dtype = torch_save.tensors(torch_save.read_object(tree, weights[0]))
    kind = config.get("peft_type")
    return Facts(
        model_type=text_of(kind.lower()) if isinstance(kind, str) else None,
        dtype=dtype,
        parameters=parameters or None,
        base_model=base(tree),
        library="peft",
        library_version=text_of(config.get("peft_version")),
    )


def base(tree: Tree) -> str | None:
    """The base model that the adapter's configuration names."""
    prefix = next(iter(adapters(tree)), "")
    return text_of(read_object(tree, prefix + CONFIG).get("base_model_name_or_path"))


def ready(tree: Tree) -> Ready:
    """For inference with its base."""
    named = base(tree)
    return Ready(
        resume_reason="an adapter alone: no state of the optimizer",
        inference=True,
        inference_reason=f"an adapter: it needs its base model ({named or 'not named in ' + CONFIG})",
        base=named or "",
    )


class Peft:
    """A folder with an adapter, or with folders of adapters only."""

    name = "peft"
    completes = (CONFIG,)

    def recognises(self, tree: Tree) -> bool:
        return is_adapter(tree)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        # A second adapter may still follow, so the last file of the first one proves nothing.
        return judged(self.name, [*missing(tree), *files.mistakes(tree)], context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return facts(tree)

    def ready(self, tree: Tree) -> Ready:
        return ready(tree)

    def claims(self, tree: Tree) -> frozenset[str]:
        from launcher.checkpoint.formats import pretrained

        return frozenset(path for path in tree.files if path in pretrained.BESIDE or path in WEIGHTS)
