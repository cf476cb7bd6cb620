"""One file per library. The list is asked in order: what knows more comes first."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from launcher.checkpoint.formats import safetensors, torch_save
from launcher.checkpoint.formats.pretrained import Pretrained
from launcher.checkpoint.formats.safetensors import Safetensors
from launcher.checkpoint.formats.torch_save import TorchSave
from launcher.checkpoint.formats.trainer import SENTINEL, Trainer
from launcher.checkpoint.judgement import Context, Format, Judgement
from launcher.checkpoint.tree import Tree

FORMATS: tuple[Format, ...] = (Trainer(), Pretrained(), Safetensors(), TorchSave())

_TEMPORARY = (
    "*.tmp", ".tmp*", "*.incomplete", "*.lock", "*.__lock", "*.part", "tmp-checkpoint-*", "*.orbax-checkpoint-tmp*"
)  # fmt: skip
_SUFFIXES = {".gguf": b"GGUF", ".npz": b"PK\x03\x04", ".h5": b"\x89HDF\r\n\x1a\n", ".hdf5": b"\x89HDF\r\n\x1a\n"}


def recognise(tree: Tree) -> Format | None:
    """The format that wrote the folder, whole or not; None where none knows it."""
    return next((format for format in FORMATS if format.recognises(tree)), None)


def by_name(name: str) -> Format | None:
    """The format of a manifest."""
    return next((format for format in FORMATS if format.name == name), None)


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
    """Whether the name says that somebody is writing it (or was, when he was killed)."""
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _TEMPORARY)


def is_sentinel(path: str) -> bool:
    """Whether deleting this file is how a library says that it is done."""
    return path.rpartition("/")[2] == SENTINEL


def without_temporaries(tree: Tree) -> Tree:
    """The tree without what a killed writer left: no library would read those files."""
    kept = {path: size for path, size in tree.files.items() if not is_temporary(path)}
    return tree if len(kept) == len(tree.files) else _Part(tree, kept)


def part(tree: Tree, paths: Iterable[str]) -> Tree:
    """Some files of a tree."""
    return _Part(tree, {path: tree.files[path] for path in sorted(paths)})


def completes(path: str) -> bool:
    """Whether closing this file may make a checkpoint whole: the watcher then looks at once."""
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, pattern) for format in FORMATS for pattern in format.completes)


def holds_tensors(tree: Tree, path: str) -> bool:
    """Whether a file on its own would be a checkpoint in flat-file mode."""
    if is_temporary(path):
        return False
    name = path.rpartition("/")[2]
    if name.endswith(".safetensors"):
        return True
    for suffix, magic in _SUFFIXES.items():
        if name.endswith(suffix):
            return _begins(tree, path, magic)
    return torch_save.is_torch(tree, path)


def file_mistakes(tree: Tree, paths: Iterable[str]) -> list[str]:
    """Why files that hold tensors are not whole, judged each by its own kind."""
    reasons = []
    for path in paths:
        if path.endswith(".safetensors"):
            reason = safetensors.mistake(tree, path)
        elif path.endswith((".pt", ".pth", ".bin", ".ckpt")) or torch_save.is_torch(tree, path):
            reason = (
                torch_save.mistake(tree, path) if torch_save.is_torch(tree, path) or tree.files[path] == 0 else None
            )
        else:
            continue
        if reason:
            reasons.append(reason)
    return reasons


def _begins(tree: Tree, path: str, magic: bytes) -> bool:
    try:
        return tree.read(path, 0, len(magic)) == magic
    except OSError:
        return False


class _Part:
    """Some files of another tree."""

    def __init__(self, tree: Tree, files: dict[str, int]) -> None:
        self._tree = tree
        self.files = files

    def read(self, path: str, start: int, length: int) -> bytes:
        return self._tree.read(path, start, length)
