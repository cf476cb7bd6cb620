"""GGUF files (llama.cpp): one file with metadata, tensor descriptions and tensors.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Whole: the file ends where its last tensor does, or
at the alignment after it (the gguf package pads). A file of split size has `split.count` in its metadata, and all parts
`NAME-0000K-of-0000N.gguf` belong together. Its writer grows the file in place, so only the sizes tell.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree, text_of

MAGIC = b"GGUF"
HEADER_LIMIT = 256 << 20
"""Bytes of metadata and descriptions that are read; vocabularies of 250,000 tokens take some 10 MB."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCKS = {
    0: ("float32", 1, 4), 1: ("float16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 40), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292), 16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 24: ("int8", 1, 1), 25: ("int16", 1, 2), 26: ("int32", 1, 4),
    27: ("int64", 1, 8), 28: ("float64", 1, 8), 29: ("iq1_m", 256, 56), 30: ("bfloat16", 1, 2), 34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17),
}  # fmt: skip
"""ggml type to (name, values in a block, bytes of a block)."""
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Header:
    """`metadata` without arrays; `tensors` name to (type, shape); `end` and `padded`: where the last tensor ends."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, tuple[int, ...]]]
    end: int
    padded: int


def read_header(tree: Tree, path: str) -> Header:
    """The header of a GGUF file. Raises ValueError with the reason, OSError."""
    reader = _Reader(tree, path)
    if reader.take(4) != MAGIC:
        raise ValueError(f"{path} does not begin like a GGUF file")
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"{path} has GGUF version {version}, and 2 and 3 are known")
    tensor_count, pair_count = reader.number("Q"), reader.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.text()
        value = reader.value(reader.number("I"))
        if value is not None:
            metadata[key] = value
    tensors: dict[str, tuple[int, tuple[int, ...]]] = {}
    ends = [0]
    for _ in range(tensor_count):
        name = reader.text()
        dimensions = reader.number("I")
        if dimensions > 8:
            raise ValueError(f"{path} gives a tensor {dimensions} dimensions")
        shape = tuple(reader.number("Q") for _ in range(dimensions))
        kind, offset = reader.number("I"), reader.number("Q")
        tensors[name] = (kind, shape)
        ends.append(offset + _bytes(kind, shape))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ValueError(f"{path} claims an alignment of {alignment}")
    start = _aligned(reader.position, alignment) if tensors else reader.position
    return Header(metadata, tensors, start + max(ends), start + _aligned(max(ends), alignment))


def mistake(tree: Tree, path: str) -> str | None:
    """Why a GGUF file is not whole, or None. Raises OSError."""
    try:
        header = read_header(tree, path)
    except (ValueError, struct.error, OverflowError) as error:
        return str(error)
    size = tree.files[path]
    if size < header.end:
        return f"{path} has {size} bytes, its header promises {header.end}"
    if size > max(header.padded, header.end) and all(kind in _BLOCKS for kind, _ in header.tensors.values()):
        return f"{path} has {size} bytes, {size - header.padded} more than its header explains"
    return None


class _Reader:
    """Reads the header in order, HEADER_LIMIT bytes at most."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree, self._path = tree, path
        self._data = b""
        self._start = 0
        self.position = 0

    def take(self, count: int) -> bytes:
        at = self.position - self._start
        if at + count > len(self._data):
            if self.position + count > min(self._tree.files[self._path], HEADER_LIMIT):
                raise ValueError(f"{self._path} ends inside its header")
            self._data = self._tree.read(self._path, self.position, max(count, 1 << 20))
            self._start, at = self.position, 0
            if len(self._data) < count:
                raise ValueError(f"{self._path} ends inside its header")
        self.position += count
        return self._data[at : at + count]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A scalar or text; None for an array, which is passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"{self._path} has metadata of an unknown kind ({kind})")
        element, count = self.number("I"), self.number("Q")
        if element in _SCALARS:
            self.take(count * struct.calcsize("<" + _SCALARS[element]))
            return None
        if element != _STRING:
            raise ValueError(f"{self._path} has metadata of an unknown kind ({element})")
        for _ in range(count):
            self.take(self.number("Q"))
        return None


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _bytes(kind: int, shape: tuple[int, ...]) -> int:
    _, block, size = _BLOCKS.get(kind, ("", 1, 0))
    return _count(shape) // block * size


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


class Gguf:
    """One or several `*.gguf`."""

    name = "gguf"
    completes: tuple[str, ...] = ()

    def recognises(self, tree: Tree) -> bool:
        return any(path.endswith(".gguf") for path in tree.files)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import files

        return judged(self.name, [*files.mistakes(tree), *_missing_parts(tree)], context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        """Of the first file; parameters of all parts."""
        try:
            headers = [read_header(tree, path) for path in sorted(tree.files) if path.endswith(".gguf")]
        except (ValueError, OSError, struct.error):
            return Facts(library="gguf")
        metadata = headers[0].metadata
        counts: dict[str, int] = {}
        for header in headers:
            for kind, shape in header.tensors.values():
                name = _BLOCKS.get(kind, (f"type {kind}", 1, 0))[0]
                counts[name] = counts.get(name, 0) + _count(shape)
        return Facts(
            architecture=text_of(metadata.get("general.architecture")),
            base_model=text_of(metadata.get("general.base_model.0.name")),
            dtype=max(counts, key=lambda name: counts[name], default=None),
            parameters=sum(counts.values()),
            library="gguf",
        )

    def ready(self, tree: Tree) -> Ready:
        return Ready(resume_reason="GGUF is made for inference", inference=True)

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()


def _missing_parts(tree: Tree) -> list[str]:
    found: dict[tuple[str, int], set[int]] = {}
    for match in map(_SPLIT.fullmatch, tree.files):
        if match:
            found.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    return [
        f"{name} has {len(parts)} of {count} parts"
        for (name, count), parts in found.items()
        if len(parts) < count or max(parts) > count
    ]
