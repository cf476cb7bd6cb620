"""Lightning's `ModelCheckpoint` (`*.ckpt`): a torch.save zip that says by its keys that Lightning wrote it.

Measured (2.6): written outside the folder and moved in, or, where that is another file system, copied in place; `last.ckpt` is
replaced. Flat files by default. The keys `pytorch-lightning_version`, `epoch`, `global_step` are read by opcodes. Strategies
that shard (DeepSpeed, FSDP) make `NAME.ckpt` a folder of DeepSpeed's or torch.distributed.checkpoint's own layout.
"""

from __future__ import annotations

from launcher.checkpoint import archive, symbols
from launcher.checkpoint.formats import torch_save
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, text_of

_VERSION = "pytorch-lightning_version"


class Lightning:
    """`*.ckpt` files, alone or several in a folder."""

    name = "lightning"
    completes: tuple[str, ...] = ()

    def recognises(self, tree: Tree) -> bool:
        return any(path.endswith(".ckpt") and _written_by(tree, path) for path in tree.files)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import files

        return judged(self.name, files.mistakes(tree), context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        """Of the file with the highest step."""
        found = [_facts(tree, path) for path in sorted(tree.files) if path.endswith(".ckpt")]
        return max(found, key=lambda each: each.step or 0, default=Facts(library="lightning"))

    def ready(self, tree: Tree) -> Ready:
        values = [torch_save.read_object(tree, path) for path in tree.files if path.endswith(".ckpt")]
        resumable = any(symbols.get(value, "optimizer_states") is not None for value in values)
        return Ready(
            resume=resumable,
            resume_reason="" if resumable else "no state of the optimizer (save_weights_only)",
            inference_reason="the module's own code is needed to load it",
        )

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()


def _written_by(tree: Tree, path: str) -> bool:
    """Whether the file's dictionary has Lightning's key; of one that is cut, whether its first bytes do."""
    value = torch_save.read_object(tree, path)
    if value is not None:
        return symbols.get(value, _VERSION) is not None
    try:
        head = tree.read(path, 0, 64 << 10)
    except OSError:
        return False
    return head.startswith(archive.ENTRY) and _VERSION.encode() in head


def _facts(tree: Tree, path: str) -> Facts:
    value = torch_save.read_object(tree, path)
    step, epoch = torch_save.number(value, "global_step"), torch_save.number(value, "epoch")
    parameters, dtype = torch_save.tensors(symbols.get(value, "state_dict"))
    version = symbols.get(value, _VERSION)
    return Facts(
        step=int(step) if step is not None else None,
        epoch=float(epoch) if epoch is not None else None,
        parameters=parameters or None,
        dtype=dtype,
        library="lightning",
        library_version=text_of(version),
    )
