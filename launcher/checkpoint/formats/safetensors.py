"""safetensors files, and folders of them that no other format knows.

A file is u64 header length, JSON header, data (specification: https://github.com/huggingface/safetensors#format). Whole:
8 + header length + the largest `data_offsets` end is the file's size, and the tensors' spans tile the data without gaps.
Necessary and not sufficient: safetensors 0.8 creates `.tmpXXXXXX` at full length and renames it when it is written, so
only the final name counts; up to 0.7 it grows under its final name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree

HEADER_LIMIT = 100_000_000
"""The library's own limit on the header's length."""
_FIRST_READ = 32 << 10
_LARGEST = 1 << 64

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


@dataclass(frozen=True)
class Header:
    """A checked header: tensor name to (dtype, shape), and the free-form metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        return sum(_count(shape) for _, shape in self.tensors.values())

    @property
    def dtype(self) -> str | None:
        """The dtype of most parameters, as torch calls it."""
        counts: dict[str, int] = {}
        for dtype, shape in self.tensors.values():
            counts[dtype] = counts.get(dtype, 0) + _count(shape)
        most = max(counts, key=lambda dtype: counts[dtype], default=None)
        return _NAMES.get(most, most.lower()) if most else None


def read_header(tree: Tree, path: str) -> Header:
    """The header of a whole file. Raises ValueError with the reason why it is not whole, or OSError."""
    size = tree.files[path]
    if size < 8:
        raise ValueError(f"{path} has {size} bytes, less than a header")
    head = tree.read(path, 0, _FIRST_READ)
    (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\0"))
    if length > HEADER_LIMIT:
        raise ValueError(f"{path} claims a header of {length} bytes")
    if 8 + length > size:
        raise ValueError(f"{path} ends inside its header")
    try:
        body = head[8 : 8 + length] if 8 + length <= len(head) else tree.read(path, 8, length)
        # As strict as the library: UTF-8 only, no name twice, no NaN, no lone surrogate, no number with a sign as a size.
        text = body.decode()
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refused, parse_int=_natural)
        if "\\u" in text:
            str(content).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has an unreadable header ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} has a header that is no JSON object")
    metadata = content.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path} has metadata that are not text")
    tensors, spans = {}, []
    for name, info in content.items():
        dtype, shape, begin, end = _tensor(path, name, info)
        tensors[name] = (dtype, shape)
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError(f"{path} has a gap or an overlap at offset {position} of its data")
        position = end
    if 8 + length + position != size:
        raise ValueError(f"{path} has {size} bytes, its header promises {8 + length + position}")
    return Header(tensors, metadata)


def mistake(tree: Tree, path: str) -> str | None:
    """Why the file is not whole, or None."""
    try:
        read_header(tree, path)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def _tensor(path: str, name: str, info: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = info["dtype"], info["shape"], info["data_offsets"]
        bits = _BITS[dtype]
        if not isinstance(shape, list) or not isinstance(info["data_offsets"], list):
            raise TypeError
        if not all(type(number) is int and 0 <= number < _LARGEST for number in (*shape, begin, end)):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} describes the tensor {name[:80]!r} in no known way") from None
    count = _count(shape)
    if begin > end or count * bits >= _LARGEST or end - begin != count * bits // 8 or count * bits % 8:
        raise ValueError(f"{path} gives the tensor {name[:80]!r} {end - begin} bytes for {dtype} {shape[:20]}")
    return dtype, tuple(shape), begin, end


def _count(shape: Iterable[int]) -> int:
    count = 1
    for side in shape:
        count *= side
        if count >= _LARGEST:  # The library refuses a product that overflows on the way, even to nothing.
            return _LARGEST
    return count


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _refused(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _natural(text: str) -> int:
    """A number of the header; -1 for every one with a sign, as the library takes -0 for no size either."""
    if text.startswith("-"):
        return -1
    return int(text) if len(text) <= 20 else _LARGEST


class Safetensors:
    """A folder of safetensors files without anything that tells more."""

    name = "safetensors"
    completes: tuple[str, ...] = ()

    def recognises(self, tree: Tree) -> bool:
        return any(path.endswith(".safetensors") for path in tree.files)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import files

        return judged(self.name, files.mistakes(tree), context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return of_headers(tree, [path for path in tree.files if path.endswith(".safetensors")])

    def ready(self, tree: Tree) -> Ready:
        return Ready(
            resume_reason="no state of optimizer and scheduler beside the tensors",
            inference_reason="no config.json that names an architecture: it needs its own code",
        )

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()


def of_headers(tree: Tree, paths: list[str]) -> Facts:
    """Parameter count and dtype from the headers of whole files, no tensor read."""
    parameters, dtype = 0, None
    for path in paths:
        try:
            header = read_header(tree, path)
        except (ValueError, OSError):
            return Facts(library="safetensors")
        parameters += header.parameters
        dtype = dtype or header.dtype
    return Facts(parameters=parameters if paths else None, dtype=dtype, library="safetensors")
