"""One file per library. The list is asked in order: what knows more comes first.

A package of others can add a format: an entry point of the group `launcher.formats` that names a class (or function) which,
called without arguments, gives a `Format`. It is asked before the list below. One that cannot be loaded, or that raises, is
warned about once and then as if it were not there.
"""

from __future__ import annotations

import fnmatch
import functools
import re

from launcher.checkpoint.judgement import Context, Format, Judgement
from launcher.checkpoint.tree import Tree, part

__all__ = [
    "built_in",
    "by_name",
    "completes",
    "every",
    "holds_tensors",
    "is_sentinel",
    "is_temporary",
    "judge",
    "load",
    "part",
    "recognise",
    "without_temporaries",
]

_TEMPORARY = re.compile(
    r"(.*\.tmp|\.tmp.*|.*\.incomplete|.*\.lock|.*\.__lock|.*\.part|.*\.orbax-checkpoint-tmp.*|tmp-checkpoint-\d+)",
    re.DOTALL,
)
_MAGICS = {".gguf": b"GGUF", ".npz": b"PK\x03\x04", ".h5": b"\x89HDF\r\n\x1a\n", ".hdf5": b"\x89HDF\r\n\x1a\n"}


def load() -> None:
    """Imports the formats, and finds those of other packages, now (some 100 ms) and not when the first checkpoint of a job is
    whole for 20 ms. Imports are late so that starting a job and `launcher --help` do not wait for them."""
    _last_files()


@functools.cache
def built_in() -> tuple[Format, ...]:
    """The formats of this package, in the order in which they are asked."""
    from launcher.checkpoint.formats.accelerate import Accelerate
    from launcher.checkpoint.formats.dcp import Dcp
    from launcher.checkpoint.formats.deepspeed import DeepSpeed
    from launcher.checkpoint.formats.diffusers import Model, Pipeline
    from launcher.checkpoint.formats.gguf import Gguf
    from launcher.checkpoint.formats.lightning import Lightning
    from launcher.checkpoint.formats.megatron import Megatron
    from launcher.checkpoint.formats.nemo import Nemo
    from launcher.checkpoint.formats.numpy import Numpy
    from launcher.checkpoint.formats.orbax import Orbax
    from launcher.checkpoint.formats.peft import Peft
    from launcher.checkpoint.formats.pretrained import Pretrained
    from launcher.checkpoint.formats.safetensors import Safetensors
    from launcher.checkpoint.formats.torch_save import TorchSave
    from launcher.checkpoint.formats.trainer import Trainer, Trl

    return (
        Orbax(), Trl(), Trainer(), Pipeline(), Accelerate(), Megatron(), DeepSpeed(), Peft(), Model(), Pretrained(), Dcp(),
        Nemo(), Lightning(), Gguf(), Safetensors(), TorchSave(), Numpy(),
    )  # fmt: skip


@functools.cache
def every() -> tuple[Format, ...]:
    """All formats, those of other packages first."""
    from launcher.checkpoint.formats import added

    return (*added.formats(), *built_in())


def recognise(tree: Tree) -> Format | None:
    """The format that wrote the folder, whole or not; None where none knows it."""
    return next((format for format in every() if format.recognises(tree)), None)


def by_name(name: str) -> Format | None:
    """The format of a manifest."""
    return next((format for format in every() if format.name == name), None)


def judge(tree: Tree, context: Context = Context()) -> Judgement:
    """The verdict on a folder, whoever wrote it."""
    format = recognise(tree)
    unfinished = [path for path in tree.files if is_temporary(path)]
    if format is None:
        if unfinished and not context.final:
            return Judgement("unfinished", "unknown", (f"{unfinished[0]} is being written",))
        return Judgement("unknown", "unknown", ("no format knows these files",))
    judgement = format.judge(without_temporaries(tree) if context.final else tree, context)
    if unfinished and not context.final and judgement.whole:
        return Judgement("unfinished", format.name, (f"{unfinished[0]} is being written",))
    return judgement


def is_temporary(path: str) -> bool:
    """Whether a part of the path says that somebody is writing it (or was, when he was killed)."""
    return any(_TEMPORARY.fullmatch(name) for name in path.split("/"))


def is_sentinel(path: str) -> bool:
    """Whether deleting this file is how a library says that it is done."""
    from launcher.checkpoint.formats.trainer import SENTINEL

    return path.rpartition("/")[2] == SENTINEL


def without_temporaries(tree: Tree) -> Tree:
    """The tree without what a killed writer left: no library would read those files."""
    kept = [path for path in tree.files if not is_temporary(path)]
    return tree if len(kept) == len(tree.files) else part(tree, kept)


def completes(path: str) -> bool:
    """Whether closing this file may make a checkpoint whole: the watcher then looks at once."""
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _last_files())


@functools.cache
def _last_files() -> tuple[str, ...]:
    return tuple(dict.fromkeys(pattern for format in every() for pattern in format.completes))


def holds_tensors(tree: Tree, path: str) -> bool:
    """Whether a file on its own would be a checkpoint in flat-file mode."""
    if is_temporary(path):
        return False
    name = path.rpartition("/")[2]
    if name.endswith((".safetensors", ".nemo")):
        return True
    for suffix, magic in _MAGICS.items():
        if name.endswith(suffix):
            return _begins(tree, path, magic)
    from launcher.checkpoint.formats import torch_save

    return torch_save.is_torch(tree, path)


def _begins(tree: Tree, path: str, magic: bytes) -> bool:
    try:
        return tree.read(path, 0, len(magic)) == magic
    except OSError:
        return False
