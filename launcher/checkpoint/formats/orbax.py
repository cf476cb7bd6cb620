"""Orbax (JAX): a folder named by its step, made whole under another name and renamed.

Measured (0.12): `N.orbax-checkpoint-tmp/` is filled and renamed to `N`, its items (`default/`) likewise, so that under the final
name it is whole at once. `_CHECKPOINT_METADATA` names the items and carries `commit_timestamp_nsecs`. Arrays lie in OCDBT
key-value stores: manifests and nodes begin with a magic number and their own length, by which a cut is seen; they are packed
with zstd, so which data files a manifest names is not read here. Where a file system has no atomic rename, `commit_success.txt`
marks the end.
"""

from __future__ import annotations

import re

from launcher.checkpoint.formats import files
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, read_object

METADATA = "_CHECKPOINT_METADATA"
_ITEM = "_METADATA"
_MANIFEST = "manifest.ocdbt"
_COMMIT = "commit_success.txt"
_MAGIC = {bytes.fromhex("0cdb3a2a"): "manifest", bytes.fromhex("0cdb20de"): "node", bytes.fromhex("0cdb1b0e"): "node"}
TEMPORARY = ".orbax-checkpoint-tmp"
_DATA = re.compile(r"(?:.*/)?d/[0-9a-f]{32}")


class Orbax:
    """A folder with `_CHECKPOINT_METADATA`, a single item (`_METADATA` beside its store), or a folder of such folders."""

    name = "orbax"
    completes = (METADATA, _COMMIT)

    def recognises(self, tree: Tree) -> bool:
        return bool(_saves(tree)) or (_ITEM in tree.files and _MANIFEST in tree.files) or _unnamed(tree)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        reasons = [f"{path} is being written" for path in tree.files if TEMPORARY in path][:1]
        saves = _saves(tree)
        for prefix in saves:
            metadata = read_object(tree, prefix + METADATA)
            if not metadata.get("commit_timestamp_nsecs"):
                reasons.append(f"{prefix}{METADATA} has no time of commit")
            handlers = metadata.get("item_handlers")
            items = [prefix + item for item in handlers] if isinstance(handlers, dict) else []
            reasons += [f"{item}, which {METADATA} names, is not there" for item in items if not _below(tree, item)]
            reasons += [
                f"{item}/{_ITEM} is not there"
                for item in items
                if f"{item}/{_MANIFEST}" in tree.files and f"{item}/{_ITEM}" not in tree.files
            ]
        if not saves and _unnamed(tree):
            reasons.append(f"{METADATA} is not there")
        reasons += _store_mistakes(tree)
        names = [path for path in tree.files if path.rpartition("/")[2] in (METADATA, _ITEM, "_sharding")]
        reasons += [reason for path in names if (reason := _json(tree, path))]
        return judged(self.name, [*reasons, *files.mistakes(tree)], context, proven=_committed(tree, saves))

    def facts(self, tree: Tree) -> Facts:
        """Of the arrays' shapes, where the item's metadata has them."""
        parameters = 0
        for path in tree.files:
            if path.rpartition("/")[2] != _ITEM:
                continue
            described = read_object(tree, path).get("tree_metadata")
            for each in described.values() if isinstance(described, dict) else ():
                shape = (each.get("value_metadata") or {}).get("write_shape") if isinstance(each, dict) else None
                parameters += _count(shape)
        return Facts(parameters=parameters or None, library="orbax")

    def ready(self, tree: Tree) -> Ready:
        return Ready(resume=True, inference_reason="no configuration of the model: it needs its own code")

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()


def _saves(tree: Tree) -> list[str]:
    """Prefixes of the checkpoints in a folder: "" for itself, `params/` of a StandardCheckpointer's that is deeper."""
    return [path.removesuffix(METADATA) for path in tree.files if path.rpartition("/")[2] == METADATA]


def _committed(tree: Tree, saves: list[str]) -> bool:
    return bool(saves) and all(prefix + _COMMIT in tree.files for prefix in saves)


def _unnamed(tree: Tree) -> bool:
    """Items without the file that names them."""
    return any(path.count("/") == 1 and path.endswith(f"/{_ITEM}") for path in tree.files) and any(
        path.endswith(_MANIFEST) for path in tree.files
    )


def _below(tree: Tree, item: str) -> bool:
    return any(path.startswith(f"{item}/") for path in tree.files)


def _store_mistakes(tree: Tree) -> list[str]:
    reasons = []
    roots = {path.rpartition("/")[0] for path in tree.files if path.rpartition("/")[2] in (_MANIFEST, _ITEM)}
    roots |= {path.rpartition("/d/")[0] for path in tree.files if _DATA.fullmatch(path) and "/" in path[:-34]}
    for root in sorted(roots):
        prefix = f"{root}/" if root else ""
        if _process(root) or f"{prefix}{_ITEM}" not in tree.files:
            needed = [_MANIFEST]
        else:
            needed = [_ITEM, _MANIFEST] if read_object(tree, prefix + _ITEM).get("use_ocdbt", True) else [_ITEM]
        reasons += [f"{prefix}{name} is not there" for name in needed if prefix + name not in tree.files]
        if prefix + _MANIFEST in tree.files and not any(path.startswith(f"{prefix}d/") for path in tree.files):
            reasons.append(f"{prefix}d, the store's data, is not there")
    for path in tree.files:
        if path.endswith(_MANIFEST) or _DATA.fullmatch(path):
            reason = _node_mistake(tree, path)
            reasons += [reason] if reason else []
    return reasons


def _process(root: str) -> bool:
    return root.rpartition("/")[2].startswith("ocdbt.process_")


def _node_mistake(tree: Tree, path: str) -> str | None:
    """A manifest is one record; a data file that begins with a node is a chain of them; other data cannot be told."""
    size, position = tree.files[path], 0
    if size < 16:
        return f"{path} has {size} bytes, less than any part of an OCDBT store"
    for _ in range(1000):
        head = tree.read(path, position, 12)
        if _MAGIC.get(head[:4]) is None:
            if path.endswith(_MANIFEST) or not any(head):
                return f"{path} does not begin like a part of an OCDBT store"
            return None
        position += int.from_bytes(head[4:12], "little")
        if position == size:
            return None
        if position > size or len(head) < 12:
            return f"{path} has {size} bytes, its records promise {position}"
        if path.endswith(_MANIFEST):
            return f"{path} has {size} bytes, its record promises {position}"
    return None


def _json(tree: Tree, path: str) -> str | None:
    try:
        return files.json_mistake(tree, path)
    except OSError as error:
        return f"{path}: {error.strerror or error}"


def _count(shape: object) -> int:
    if not isinstance(shape, list) or len(shape) > 16 or not all(isinstance(side, int) for side in shape):
        return 0
    count = 1
    for side in shape:
        count *= side
    return count
