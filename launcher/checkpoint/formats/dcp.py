"""torch.distributed.checkpoint: `__R_K.distcp` written by the ranks in parallel, then `.metadata`.

Measured (torch 2.13, save, async_save, one file per tensor): rank 0 writes `.metadata.tmp` when all ranks are done and renames
it, so `.metadata` proves the save, except over an older one, which stands until the rename: there only events tell. It is a
pickle of `Metadata`, read by its opcodes: `storage_data` gives every item's file, offset and length. Whole: each of these files
is there and reaches to its last item; torch writes nothing after it.
"""

from __future__ import annotations

import math

from launcher.checkpoint import pickles
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.symbols import Call, Mapping, Name, get
from launcher.checkpoint.tree import Tree

METADATA = ".metadata"


def metadata(tree: Tree) -> object:
    """The symbolic `Metadata`; None where it is too large to be read. Raises ValueError with the reason why it is not whole,
    OSError."""
    size = tree.files[METADATA]
    found = pickles.read(lambda start, length: tree.read(METADATA, start, length), 0, size)
    if found.limit and tree.read(METADATA, size - 1, 1) == b".":
        return None
    if found.mistake:
        raise ValueError(f"{METADATA} is no whole pickle: {found.mistake}")
    if found.end != size:
        raise ValueError(f"{METADATA} has {size - found.end} bytes after its pickle")
    return found.value


def items(value: object) -> list[tuple[object, str, int, int]]:
    """(index, file, offset, length) of every stored item; none of a metadata too large to be read. Raises ValueError."""
    if value is None:
        return []
    storage = get(value, "storage_data")
    if not isinstance(storage, Mapping):
        raise ValueError(f"{METADATA} has no storage_data")
    found = []
    for index, info in storage:
        path, offset, length = get(info, "relative_path"), get(info, "offset"), get(info, "length")
        if not isinstance(path, str) or not isinstance(offset, int) or not isinstance(length, int):
            raise ValueError(f"{METADATA} describes an item in no known way")
        found.append((index, path, offset, length))
    return found


def byte_items(value: object) -> list[tuple[str, str, int, int]]:
    """(name, file, offset, length) of what is not stored as a tensor: torch unpickles it."""
    described = get(value, "state_dict_metadata")
    kept = {
        name
        for name, info in (described if isinstance(described, Mapping) else ())
        if isinstance(name, str) and not _is_tensor(info)
    }
    found = []
    for index, path, offset, length in items(value):
        name = get(index, "fqn")
        if isinstance(name, str) and name in kept:
            found.append((name, path, offset, length))
    return found


def _is_tensor(info: object) -> bool:
    return isinstance(info, Call) and isinstance(info.callee, Name) and info.callee.name == "TensorStorageMetadata"


def mistakes(tree: Tree) -> list[str]:
    """Why the folder is not whole."""
    if METADATA not in tree.files:
        return [f"{METADATA}, which is written last, is not there"]
    try:
        return _item_mistakes(tree, items(metadata(tree)))
    except (ValueError, OSError) as error:
        return [str(error)]


def _item_mistakes(tree: Tree, stored: list[tuple[object, str, int, int]]) -> list[str]:
    ends: dict[str, int] = {}
    for _, path, offset, length in stored:
        ends[path] = max(ends.get(path, 0), offset + length)
    reasons = []
    for path, end in sorted(ends.items()):
        size = tree.files.get(path)
        if size is None:
            reasons.append(f"{path}, which {METADATA} names, is not there")
        elif size != end:
            reasons.append(f"{path} has {size} bytes, {METADATA} promises {end}")
        elif size and not any(tree.read(path, 0, 16)):
            reasons.append(f"{path} begins with zeros instead of an item")
    return reasons


def is_folder(tree: Tree) -> bool:
    """Whether a save of torch.distributed.checkpoint lies directly in the folder, whole or not."""
    return METADATA in tree.files or any(path.endswith(".distcp") and "/" not in path for path in tree.files)


def nested(tree: Tree) -> list[str]:
    """Paths, ending with a slash, of the folders below that hold such a save (FSDP's sharded state)."""
    found = set()
    for path in tree.files:
        folder, slash, name = path.rpartition("/")
        if slash and (name == METADATA or name.endswith(".distcp")):
            found.add(folder + slash)
    return sorted(found)


class Dcp:
    """A folder with `.metadata` or `*.distcp`."""

    name = "torch-dcp"
    completes = (METADATA,)

    def recognises(self, tree: Tree) -> bool:
        return is_folder(tree)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        return judged(self.name, mistakes(tree), context, proven=True)

    def facts(self, tree: Tree) -> Facts:
        return facts(tree)

    def ready(self, tree: Tree) -> Ready:
        return Ready(resume=True, inference_reason="torch.distributed.checkpoint needs its script, or a conversion")

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset(path for path in tree.files if path == METADATA or path.endswith(".distcp"))


_OPTIMIZER = ("optim", "opt.", "optimizer")


def facts(tree: Tree) -> Facts:
    """Parameters and dtype of what is not an optimizer's state, by the names that applications give."""
    try:
        described = get(metadata(tree), "state_dict_metadata")
    except (ValueError, OSError, KeyError):
        return Facts(library="torch")
    counts: dict[str, int] = {}
    for name, info in described if isinstance(described, Mapping) else ():
        size = get(info, "size")
        shape = size.arguments[0] if isinstance(size, Call) and isinstance(size.arguments, tuple) else None
        if not isinstance(name, str) or name.startswith(_OPTIMIZER) or not isinstance(shape, tuple):
            continue
        dtype = _dtype(get(info, "properties"))
        if all(isinstance(side, int) and 0 <= side < 1 << 48 for side in shape) and len(shape) <= 16:
            counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    dtype = max(counts, key=lambda each: counts[each], default="")
    return Facts(parameters=sum(counts.values()) or None, dtype=dtype or None, library="torch")


def _dtype(properties: object) -> str:
    """The dtype among a TensorProperties' values, which are a tuple of state or named."""
    state = properties.state if isinstance(properties, Call) else None
    named = get(properties, "dtype")
    for each in [named, *(state if isinstance(state, tuple) else ())]:
        if isinstance(each, Name) and each.module == "torch":
            return each.name
    return ""
