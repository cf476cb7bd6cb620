"""How two checkpoints differ: files, configuration, tensors, facts. Headers are read, never a tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from launcher.checkpoint import formats, reference
from launcher.checkpoint.formats import torch_save
from launcher.checkpoint.formats.safetensors import read_header
from launcher.checkpoint.tree import Tree, read_json
from launcher.store.store import Store
from launcher.store.tree import tree_of
from launcher.transfer import digest as digests
from launcher.verify import open_tree

_CONFIG_LIMIT = 4 << 20
"""Bytes of a JSON file that counts as configuration: a tokenizer's vocabulary is no setting."""
_NOT_CONFIG = ("trainer_state.json", "tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")
_TORCH = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_TENSORS = (".distcp", ".gguf")
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip
"""torch's names to those of safetensors: the same weights in the other format are the same."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Keys only in the first, only in the second, and in both with different values (first, second)."""

    removed: dict[str, Any] = {}
    added: dict[str, Any] = {}
    changed: dict[str, tuple[Any, Any]] = {}
    same: int = 0


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """`files`: path to size; `config`: FILE:KEY to value; `tensors`: name to [dtype, shape]; `facts`: name to value;
    `not_compared`: files whose tensors this release cannot list."""

    first: str
    second: str
    files: Changes
    config: Changes
    tensors: Changes
    facts: Changes
    not_compared: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every file is the same."""
        return not (self.files.added or self.files.removed or self.files.changed)


class _Side(msgspec.Struct):
    label: str
    tree: Tree
    digests: Mapping[str, str]
    facts: dict[str, Any]


def compare(first: str, second: str, store: Store) -> Difference:
    """Compares two checkpoints, each a reference or the path of a folder. Raises CheckpointNotFound, SourceNotFound."""
    one, other = _side(first, store), _side(second, store)
    sizes = _changes(
        {path: [size, one.digests[path]] for path, size in one.tree.files.items()},
        {path: [size, other.digests[path]] for path, size in other.tree.files.items()},
    )
    files = Changes(
        removed={path: size for path, (size, _) in sizes.removed.items()},
        added={path: size for path, (size, _) in sizes.added.items()},
        changed={path: (old[0], new[0]) for path, (old, new) in sizes.changed.items()},
        same=sizes.same,
    )
    unread: set[str] = set()
    return Difference(
        first=one.label,
        second=other.label,
        files=files,
        config=_changes(_config(one.tree), _config(other.tree)),
        tensors=_changes(_tensors(one.tree, unread), _tensors(other.tree, unread)),
        facts=_changes(one.facts, other.facts),
        not_compared=tuple(sorted(unread)),
    )


def _side(text: str, store: Store) -> _Side:
    ref = reference.parse(text)
    if ref.kind == "path":
        tree = open_tree(text)
        format = formats.by_name(formats.judge(tree).format)
        facts = msgspec.to_builtins(format.facts(tree)) if format else {}
        return _Side(text, tree, {path: digests.of_file(f"{tree.root}/{path}") for path in tree.files}, facts)
    found = store.resolve(ref)
    manifest = found.manifest
    facts = msgspec.to_builtins(manifest.facts) | {"format": manifest.format}
    return _Side(found.label, tree_of(store, manifest), {file.path: file.digest for file in manifest.files}, facts)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    both = [key for key in old if key in new]
    return Changes(
        removed={key: old[key] for key in old if key not in new},
        added={key: new[key] for key in new if key not in old},
        changed={key: (old[key], new[key]) for key in both if old[key] != new[key]},
        same=sum(old[key] == new[key] for key in both),
    )


def _config(tree: Tree) -> dict[str, Any]:
    """Every setting of the JSON files that are configuration: FILE:KEY.KEY to value."""
    found: dict[str, Any] = {}
    for path, size in tree.files.items():
        name = path.rpartition("/")[2]
        if not name.endswith(".json") or name.endswith(".index.json") or name in _NOT_CONFIG or size > _CONFIG_LIMIT:
            continue
        try:
            value = read_json(tree, path)
        except (ValueError, OSError):
            continue  # As a file it is compared; whether it is damaged, `verify` says.
        if isinstance(value, dict):
            found |= {f"{path}:{key}": each for key, each in _flat(value).items()}
    return found


def _flat(value: dict[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, each in value.items():
        if isinstance(each, dict) and each and depth < 20:
            found |= _flat(each, f"{prefix}{key}.", depth + 1)
        else:
            found[f"{prefix}{key}"] = each
    return found


def _tensors(tree: Tree, unread: set[str]) -> dict[str, Any]:
    """Tensor name, below its folder, to [dtype, shape]: however a model's tensors are spread over shards. Those of torch.save
    files that hold other things (optimizers, training states) are named FILE:KEY.KEY. Adds to `unread` what cannot be read."""
    found: dict[str, Any] = {}
    for path in tree.files:
        folder = path.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        tensors: Mapping[str, tuple[str, Sequence[int]]] = {}
        if path.endswith(".safetensors"):
            with contextlib.suppress(ValueError, OSError):  # Whether it is damaged, `verify` says.
                tensors = read_header(tree, path).tensors
        elif path.endswith(_TORCH) and (value := torch_save.read_object(tree, path)) is not None:
            tensors = torch_save.named_tensors(value)
            prefix = prefix if torch_save.is_state_dict(value) else f"{path}:"
        elif path.endswith((*_TORCH, *_OTHER_TENSORS)):
            unread.add(path)
        found |= {
            f"{prefix}{name}": [_DTYPES.get(dtype, dtype), list(shape)] for name, (dtype, shape) in tensors.items()
        }
    return found
