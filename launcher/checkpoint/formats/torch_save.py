"""torch.save files, and folders of them that no other format knows.

Since torch 1.6 the file is a zip archive `<stem>/data.pkl, <stem>/data/N, <stem>/version …`, stored without compression,
its directory in the last write. Whole: the end record is the file's last bytes, and the archive explains every byte. The older
stream is five pickles (magic number, protocol, system, object, keys) and then each storage: its count in eight bytes, its
data; whole where the last one ends exactly at the file's end. Nothing is unpickled here.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator

from launcher.checkpoint import archive, pickles, symbols
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.pickles import Pickle
from launcher.checkpoint.symbols import Call, Mapping, Name, Persistent
from launcher.checkpoint.tree import Tree

LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The pickled magic number (protocol 2) that the older form begins with."""
_STORAGES = {
    "FloatStorage": (4, "float32"), "DoubleStorage": (8, "float64"), "HalfStorage": (2, "float16"),
    "BFloat16Storage": (2, "bfloat16"), "LongStorage": (8, "int64"), "IntStorage": (4, "int32"), "ShortStorage": (2, "int16"),
    "CharStorage": (1, "int8"), "ByteStorage": (1, "uint8"), "BoolStorage": (1, "bool"), "ComplexFloatStorage": (8, "complex64"),
    "ComplexDoubleStorage": (16, "complex128"), "UntypedStorage": (1, "uint8"), "QInt8Storage": (1, "qint8"),
    "QUInt8Storage": (1, "quint8"), "QInt32Storage": (4, "qint32"),
}  # fmt: skip
"""Storage class to (bytes of a value, dtype)."""
_TENSORS = frozenset({"_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_tensor_v3", "_rebuild_qtensor"})
_VISITS = 1_000_000
_DEPTH = 16


def is_torch(tree: Tree, path: str) -> bool:
    """Whether the file begins like one of torch.save, whole or not."""
    try:
        head = tree.read(path, 0, 512)
    except OSError:
        return False
    if head.startswith(LEGACY):
        return True
    if not head.startswith(archive.ENTRY) or len(head) < archive.LOCAL_HEADER:
        return False
    (length,) = struct.unpack_from("<H", head, 26)
    return head[archive.LOCAL_HEADER : archive.LOCAL_HEADER + length].endswith(b"/data.pkl")


def mistake(tree: Tree, path: str) -> str | None:
    """Why a torch.save file is not whole, or None."""
    try:
        head = tree.read(path, 0, len(LEGACY))
        if head == LEGACY:
            return _stream_mistake(tree, path)
        if head[:1] == b"\x80":
            return _pickle_mistake(tree, path)
        return zip_mistake(tree, path)
    except OSError as error:
        return f"{path}: {error.strerror or error}"


def zip_mistake(tree: Tree, path: str) -> str | None:
    """Why a zip archive is not whole, or None. Raises OSError."""
    try:
        archive.directory(tree, path)
    except ValueError as error:
        return str(error)
    return None


def _pickle_mistake(tree: Tree, path: str) -> str | None:
    """A plain pickle is whole where it ends with the file; of one that is too large to read, where the file ends like one."""
    size = tree.files[path]
    found = pickles.read(lambda start, length: tree.read(path, start, length), 0, size)
    if found.limit:
        return None if tree.read(path, size - 1, 1) == b"." else f"{path} does not end like a pickle"
    if found.mistake:
        return f"{path} is no whole pickle: {found.mistake}"
    return None if found.end == size else f"{path} has {size - found.end} bytes after its pickle"


def _stream_mistake(tree: Tree, path: str) -> str | None:
    position, value = 0, None
    for number in range(5):
        found = pickles.read(lambda start, length: tree.read(path, start, length), position)
        if found.limit:
            return None
        if found.mistake:
            return f"{path} is no whole torch.save stream: {found.mistake}"
        position, value = found.end, found.value if number == 3 else value
    storages = {}
    for each in _walk(value):
        if isinstance(each, Persistent) and isinstance(each.id, tuple) and len(each.id) >= 5:
            _, kind, key, _, count = each.id[:5]
            width = _STORAGES.get(kind.name if isinstance(kind, Name) else "", (0, ""))[0]
            if not width or not isinstance(key, str) or not isinstance(count, int):
                return f"{path} has a storage of an unknown kind"
            storages[key] = 8 + width * count
    end, size = position + sum(storages.values()), tree.files[path]
    return None if end == size else f"{path} has {size} bytes, its storages end at {end}"


def read_pickle(tree: Tree, path: str) -> Pickle | None:
    """The pickle that holds a torch.save file's object, tensors left out; None where there is none. Raises nothing."""
    if path not in tree.files:
        return None
    try:
        head = tree.read(path, 0, len(LEGACY))
        if head == LEGACY:
            position = 0
            for _ in range(3):
                position = pickles.read(lambda start, length: tree.read(path, start, length), position).end
            return pickles.read(lambda start, length: tree.read(path, start, length), position)
        if head[:4] != archive.ENTRY:
            return pickles.read(lambda start, length: tree.read(path, start, length)) if head[:1] == b"\x80" else None
        entry = next((each for each in archive.directory(tree, path) if each.name.endswith("/data.pkl")), None)
        if entry is None:
            return None
        data = archive.content(tree, path, entry, pickles.LARGEST)
    except (ValueError, OSError):
        return None
    return pickles.read(lambda start, length: data[start : start + length], 0, len(data))


def read_object(tree: Tree, path: str) -> object:
    """What a torch.save file holds, symbolically (see `pickles`); None where it cannot be read."""
    found = read_pickle(tree, path)
    return found.value if found and not found.mistake else None


def tensors(value: object) -> tuple[int, str | None]:
    """Parameters and the dtype of most of them, of the tensors in a read object."""
    counts: dict[str, int] = {}
    for each in _walk(value):
        if found := _tensor(each):
            dtype, shape = found
            counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return sum(counts.values()), max(counts, key=lambda dtype: counts[dtype], default=None)


def named_tensors(value: object) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each tensor in a read object, by its keys joined with dots: a state dictionary's by their names."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    pending: list[tuple[str, object, int]] = [("", value, 0)]
    left = _VISITS
    while pending:
        path, each, depth = pending.pop()
        if tensor := _tensor(each):
            found[path] = tensor
        elif depth < _DEPTH:
            inside = list(itertools.islice(_parts(each), left))
            left -= len(inside)
            pending += [
                (f"{path}.{key}" if path and key != "" else path or str(key), part, depth + 1) for key, part in inside
            ]
    return found


def is_state_dict(value: object) -> bool:
    """Whether the values of a dictionary are tensors: a model saved by itself."""
    pairs = value if isinstance(value, Mapping) else value.items if isinstance(value, Call) else []
    return bool(pairs) and all(
        isinstance(item, Call) and isinstance(item.callee, Name) and item.callee.name.startswith("_rebuild")
        for _, item in pairs
    )


def _tensor(value: object) -> tuple[str, tuple[int, ...]] | None:
    """Dtype and shape, where this is what makes a tensor."""
    if not isinstance(value, Call) or not isinstance(value.callee, Name) or value.callee.name not in _TENSORS:
        return None
    arguments = value.arguments if isinstance(value.arguments, tuple) else ()
    if len(arguments) < 3 or not isinstance(arguments[0], Persistent) or not isinstance(arguments[2], tuple):
        return None
    identifier, shape = arguments[0].id, arguments[2]
    kind = identifier[1] if isinstance(identifier, tuple) and len(identifier) > 1 else None
    dtype = _STORAGES.get(kind.name if isinstance(kind, Name) else "", (0, ""))[1]
    right = len(shape) <= 16 and all(isinstance(side, int) and 0 <= side < 1 << 48 for side in shape)
    return (dtype, shape) if dtype and right else None


def _parts(value: object) -> Iterator[tuple[str | int, object]]:
    """What lies in a value, by its key; what has none, such as the tensor of a parameter, by an empty one."""
    if isinstance(value, Call):
        for part in (Mapping(value.items), value.state):
            yield from _parts(part) if isinstance(part, Mapping) else ()
        if isinstance(value.callee, Name) and value.callee.name == "_rebuild_parameter":
            yield from (("", each) for each in (value.arguments if isinstance(value.arguments, tuple) else ())[:1])
    elif isinstance(value, Mapping):
        yield from ((key, item) for key, item in value if isinstance(key, (str, int)))
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)


def _walk(value: object) -> list[object]:
    """Every object below, each once."""
    seen: set[int] = set()
    found: list[object] = []
    pending = [value]
    while pending and len(found) < _VISITS:
        each = pending.pop()
        if id(each) in seen or each is None or isinstance(each, (str, bytes, int, float)):
            continue
        seen.add(id(each))
        found.append(each)
        if isinstance(each, Mapping):
            pending += [part for pair in each for part in pair]
        elif isinstance(each, (list, tuple)):
            pending += each
        elif isinstance(each, Call):
            pending += [each.callee, each.arguments, each.state, *(part for pair in each.items for part in pair)]
        elif isinstance(each, Persistent):
            pending.append(each.id)
    return found


class TorchSave:
    """A folder with torch.save files (`step-1000/model.pt`), and a single one in flat-file mode."""

    name = "torch-save"
    completes: tuple[str, ...] = ()

    def recognises(self, tree: Tree) -> bool:
        return any(is_torch(tree, path) for path in tree.files)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import files

        return judged(self.name, files.mistakes(tree), context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        """Step and epoch where the saved dictionary has them by these names; parameters of its model."""
        step = epoch = None
        parameters, dtype = 0, None
        for path in sorted(tree.files):
            if not is_torch(tree, path):
                continue
            value = read_object(tree, path)
            step = step if step is not None else number(value, "step", "global_step", "iteration")
            epoch = epoch if epoch is not None else number(value, "epoch")
            model = next((found for key in _MODEL if (found := symbols.get(value, key)) is not None), None)
            if model is None and not is_state_dict(value):
                continue
            count, kind = tensors(value if model is None else model)
            parameters, dtype = parameters + count, dtype or kind
        return Facts(
            step=int(step) if step is not None else None,
            epoch=float(epoch) if epoch is not None else None,
            parameters=parameters or None,
            dtype=dtype,
            library="torch",
        )

    def ready(self, tree: Tree) -> Ready:
        reason = "what a torch.save file holds is known to the script that wrote it"
        return Ready(resume_reason=reason, inference_reason=reason)

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()


_MODEL = ("model", "state_dict", "model_state_dict", "module")


def number(value: object, *keys: str) -> int | float | None:
    """The first number that a read dictionary holds under one of the keys."""
    for key in keys:
        found = symbols.get(value, key)
        if isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) < 1 << 62:
            return found
    return None
