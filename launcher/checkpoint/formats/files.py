"""What one file must hold to be whole, by its kind; and what the files of a folder add up to.

| Kind | Whole |
|---|---|
| `*.safetensors` | header and size agree (see `safetensors`) |
| `*.pt *.pth *.ckpt`, `*.bin` of the libraries' names, any torch.save | zip directory, or the older stream's exact end |
| `*.pkl` | as torch.save where it is one; else the pickle ends with the file |
| `*.index.json` | every shard that it names is there and whole, and holds the tensors that it promises |
| `*.json` | parses; of names that no library writes, several values behind each other too |
| `*.gguf` | its tensors end where the file does (see `gguf`) |
| `*.npz` | zip directory |
| other `*.bin`, texts (vocabularies, templates, cards) | do not begin with zeros, as a lost block does; a cut cannot be told |

A loader reads no more than this before the tensors themselves. Tensor data are never read, so that damage inside them is not
seen here: digests see it once a checkpoint is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from launcher.checkpoint.formats import gguf, safetensors, torch_save
from launcher.checkpoint.tree import JSON_LIMIT, Tree

_TORCH = re.compile(
    r".*\.(pt|pth|ckpt)|(.*/)?(pytorch_model|model|adapter_model|diffusion_pytorch_model|pytorch_lora_weights|optimizer|scheduler"
    r"|sampler|dl_state_dict|training_args)[^/]*\.bin|(.*/)?(random_states|custom_checkpoint)_\d+\.pkl",
    re.DOTALL,
)
_JSON = re.compile(
    r"(.*[/_])?(config|state|map|tokens|tokenizer|vocab|template|metadata|model_index|results|modules)\.json", re.DOTALL
)
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}\.(safetensors|bin)", re.DOTALL)
_OTHER = (".txt", ".md", ".jinja", ".yaml", ".yml", ".py", ".bin", ".pkl", ".model")


def mistakes(tree: Tree, paths: Iterable[str] | None = None) -> list[str]:
    """Why files are not whole, each judged by its own kind; of all files where no `paths` are given. Raises nothing."""
    headers: dict[str, safetensors.Header] = {}
    reasons = []
    chosen = list(tree.files if paths is None else paths)
    for path in chosen:
        try:
            reason = _mistake(tree, path, headers)
        except OSError as error:
            reason = f"{path}: {error.strerror or error}"
        if reason:
            reasons.append(reason)
    reasons += _without_index(tree, chosen)
    for path in chosen:
        if path.endswith(".safetensors.index.json") and not reasons and not replaced(tree, path):
            reasons += uncovered(tree, path, headers)
    return reasons


def _without_index(tree: Tree, paths: Iterable[str]) -> list[str]:
    """The index that shards by their names must have: it is written last."""
    indexes = {f"{match[1]}.{match[2]}.index.json" for match in map(_SHARD.fullmatch, paths) if match}
    return [f"{index}, which names the shards, is not there" for index in sorted(indexes - tree.files.keys())]


def replaced(tree: Tree, index: str) -> bool:
    """Whether an index is what an earlier, sharded save left beside a whole file (transformers leaves it, measured; its
    loaders take the file)."""
    return index.removesuffix(".index.json") in tree.files


def _mistake(tree: Tree, path: str, headers: dict[str, safetensors.Header]) -> str | None:
    if path.endswith(".safetensors"):
        try:
            headers[path] = safetensors.read_header(tree, path)
        except ValueError as error:
            return str(error)
        return None
    if path.endswith(".index.json"):
        return None if replaced(tree, path) else _index_mistake(tree, path)
    if path.endswith(".json"):
        return json_mistake(tree, path, several=not _JSON.fullmatch(path))
    if path.endswith(".gguf"):
        return gguf.mistake(tree, path)
    if path.endswith(".npz"):
        return torch_save.zip_mistake(tree, path)
    if path.endswith(".distcp"):
        return None  # torch.distributed.checkpoint's own: its .metadata says where it ends
    if _TORCH.fullmatch(path) or torch_save.is_torch(tree, path):
        return torch_save.mistake(tree, path)
    if path.endswith(".pkl") and tree.read(path, 0, 1) == b"\x80":
        return torch_save.mistake(tree, path)
    if path.endswith(_OTHER) and tree.files[path] and not any(tree.read(path, 0, 64)):
        return f"{path} begins with zeros"
    return None


def json_mistake(tree: Tree, path: str, *, several: bool = False) -> str | None:
    """Why a file is no JSON value (or, with `several`, one or more), or None. No objects are made of it. Raises OSError."""
    if tree.files[path] > JSON_LIMIT:
        return None
    try:
        msgspec.json.decode(tree.read(path, 0, JSON_LIMIT), type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        if several and "trailing characters" in str(error):
            return None
        return f"{path} is no whole JSON ({error})"
    return None


def shards(tree: Tree, index: str) -> dict[str, str]:
    """Tensor name to shard of a `*.index.json`. Raises ValueError with the reason, OSError."""
    try:
        content = msgspec.json.decode(tree.read(index, 0, JSON_LIMIT), type=_Index)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{index} is no readable index of shards ({error})") from None
    if not content.weight_map or any("/" in shard for shard in content.weight_map.values()):
        raise ValueError(f"{index} names no shards of its own folder")
    folder = index.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    return {tensor: prefix + shard for tensor, shard in content.weight_map.items()}


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _index_mistake(tree: Tree, index: str) -> str | None:
    try:
        named = set(shards(tree, index).values())
    except ValueError as error:
        return str(error)
    missing = sorted(named - tree.files.keys())
    if missing:
        return f"{index} names {missing[0]}, which is not there ({len(missing)} of {len(named)} missing)"
    return None


def uncovered(tree: Tree, index: str, headers: dict[str, safetensors.Header]) -> list[str]:
    """The first tensor that an index promises and its shard does not hold: shards of two saves side by side."""
    for tensor, shard in shards(tree, index).items():
        if shard not in headers:
            headers[shard] = safetensors.read_header(tree, shard)
        if tensor not in headers[shard].tensors:
            return [f"{shard} does not hold {tensor[:80]!r}, which {index} promises"]
    return []
