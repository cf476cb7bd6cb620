"""What the pickles of a checkpoint would do when somebody loads them: findings, and never the word "safe".

Every file is looked at by its content, whatever its name: pickles, also behind each other, torch.save zips and older
streams, archives in archives, numpy object arrays, `.nemo` tars, what torch.distributed.checkpoint keeps as bytes. Their
opcodes are read (`pickles`), nothing is run. A finding is each name that would be imported and is not in `KNOWN`, each name
that is computed, and everything that cannot be read to its end: unknown is never taken for harmless.

`KNOWN` holds what torch, numpy, transformers, accelerate, trl, peft, Lightning and DeepSpeed write into ordinary checkpoints:
data classes and functions that build them, none of which imports, opens, evaluates or loads another pickle. It is a list of
what is allowed because lists of what is forbidden were bypassed again and again (picklescan: CVE-2025-1716, -1889, -1944,
-1945, -10155, -10156, -10157). An archive is read by our own strict reader for the same reason: what confuses it is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from launcher.checkpoint import archive, pickles
from launcher.checkpoint.formats import dcp, nemo, torch_save
from launcher.checkpoint.symbols import Name
from launcher.checkpoint.tree import Tree, below
from launcher.text import printable

_DEPTH = 3
_OPCODES = 4_000_000
"""Opcodes of one checkpoint that are read: two to four seconds of a processor."""
_UNPACKED = 256 << 20
"""Bytes of one archive that are unpacked."""
_PICKLES = 64
"""Pickles behind each other in one file that are read."""
_ENTRIES = 10_000
_LISTED = 200
"""Findings and names that are kept; more are counted."""
_ENDINGS = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".pck", ".p")
_PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z",
    b"\x78\x9c": "zlib", b"\x78\x01": "zlib", b"\x78\xda": "zlib", b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip
_NEVER_UNPICKLED = re.compile(
    r"[^/]*/(\.?data/[^/]*|version|byteorder|\.format_version|\.storage_alignment)", re.DOTALL
)
"""Tensors and marks of torch.save."""
_NUMPY = b"\x93NUMPY"


Found = tuple[pickles.Pickle | str, str]
"""A pickle that was read, or what is to be said where one could not be; and the place, in words."""


class Safety(msgspec.Struct, frozen=True):
    """`findings` in words; `imports`: every name that would be imported, known or not. Both sorted by file."""

    findings: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()


def look(tree: Tree) -> Safety:
    """The pickles of a checkpoint. Raises nothing: what cannot be read is a finding."""
    findings: dict[str, None] = {}
    imports: dict[str, None] = {}
    left = _OPCODES
    for found, where in _all(tree):
        _judge(found, where, findings, imports)
        left -= 0 if isinstance(found, str) else found.opcodes
        if left < 0:
            findings[f"after {where}: it holds more pickles than are read ({_OPCODES} opcodes)"] = None
            break
    return Safety(_shortened(findings, "more findings"), _shortened(dict.fromkeys(sorted(imports)), "more names"))


def _all(tree: Tree) -> Iterator[Found]:
    stored = {path for path in tree.files if path.endswith(".distcp")}
    for path in tree.files:
        if path not in stored:
            yield from _of_file(tree, path, _DEPTH)
    yield from _of_distributed(tree, stored)


def known(name: Name) -> bool:
    """Whether a name is one that ordinary checkpoints import."""
    if name.module is None:
        return False
    return name.name in KNOWN.get(name.module, ()) or any(family.fullmatch(name.dotted) for family in _FAMILIES)


def _judge(found: pickles.Pickle | str, where: str, findings: dict[str, None], imports: dict[str, None]) -> None:
    if isinstance(found, str):
        findings[f"{where}: {found}"] = None
        return
    how: dict[Name, set[str]] = {}
    for name, use in found.uses:
        how.setdefault(name, set()).add(use)
    for name, uses in how.items():
        dotted = name.dotted[:200]
        if name.module is not None:
            imports[dotted] = None
        if not known(name):
            act = "imports and calls" if uses & {"called", "made"} else "imports"
            findings[f"{where}: {act} {dotted}"] = None
        if "changed" in uses:
            findings[f"{where}: changes {dotted} itself"] = None
    if found.mistake:
        findings[f"{where}: cannot be read to its end ({found.mistake})"] = None


def _shortened(texts: dict[str, None], what: str) -> tuple[str, ...]:
    listed = [printable(text) for text in texts]
    rest = len(listed) - _LISTED
    return (*listed[:_LISTED], f"{rest} {what}") if rest > 0 else tuple(listed)


def _of_file(tree: Tree, path: str, depth: int) -> Iterator[Found]:
    try:
        head = tree.read(path, 0, 512)
        if head.startswith(archive.ENTRY):
            yield from _of_archive(tree, path, depth)
        elif _is_tar(head):
            yield from _of_tar(tree, path, depth)
        elif head.startswith(_NUMPY):
            yield from _of_array(tree, path, head)
        elif packing := next((name for magic, name in _PACKED.items() if head.startswith(magic)), None):
            if path.endswith((*_ENDINGS, ".nemo")):
                yield f"it is packed with {packing}, so that what it holds is not known", path
        else:
            yield from _of_stream(tree, path, head)
    except OSError as error:
        yield f"cannot be read ({error.strerror or error})", path


def _is_tar(head: bytes) -> bool:
    """By its magic, or, of the oldest form that torch still loads, by its checksum."""
    if head[257:262] == b"ustar" or len(head) < 512:
        return head[257:262] == b"ustar"
    written = head[148:156].strip(b"\0 ")
    summed = sum(head[:148]) + 8 * ord(" ") + sum(head[156:])
    return summed > 8 * ord(" ") and written.isdigit() and written == f"{summed:0{len(written)}o}".encode()


def _of_stream(tree: Tree, path: str, head: bytes) -> Iterator[Found]:
    """Pickles behind each other from the file's first byte; of torch's older form five, then the tensors."""
    size, position = tree.files[path], 0
    claims = head[:1] == b"\x80" or path.endswith(_ENDINGS)
    old = head.startswith(torch_save.LEGACY)
    for number in range(_PICKLES):
        if position >= size or (old and number == 5):
            return
        found = pickles.read(lambda start, length: tree.read(path, start, length), position, size - position)
        acts = any(use != "named" for _, use in found.uses)
        if not claims and found.mistake and not acts:
            return  # A text or other data that nobody takes for a pickle.
        position = found.end
        if claims or found.uses:
            yield found, path
            claims = True
        if found.mistake:
            return
    yield f"holds more than {_PICKLES} pickles, and the rest was not read", path


def _of_archive(tree: Tree, path: str, depth: int) -> Iterator[Found]:
    try:
        entries = archive.directory(tree, path)
    except ValueError as error:
        yield f"what its pickles import is not known: {error}", path
        return
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        yield "has two entries of one name", path
    if len(entries) > _ENTRIES:
        entries = [entry for entry in entries if entry.name.endswith(_ENDINGS)]
    unpacked = 0
    for entry in entries:
        if entry.name.endswith(".py") and "/code/" in entry.name:
            yield f"holds TorchScript code ({entry.name[:100]})", path
        if _NEVER_UNPICKLED.fullmatch(entry.name) and not entry.name.endswith(_ENDINGS):
            continue
        if depth == 0:
            yield "holds archives within archives within archives", path
            return
        name = f"{path}/{entry.name.rpartition('/')[2][:100]}"
        try:
            inner: _Bytes | _Slice
            if entry.method == archive.STORED:
                inner = _Slice(tree, path, name, archive.place(tree, path, entry), entry.size)
            else:
                data = archive.content(tree, path, entry, pickles.LARGEST)
                unpacked += len(data)
                inner = _Bytes(name, data)
        except ValueError as error:
            yield f"what its pickles import is not known: {error}", path
            continue
        yield from _of_file(inner, name, depth - 1)
        if unpacked > _UNPACKED:
            yield f"unpacks to more than {_UNPACKED >> 20} MiB, and the rest was not read", path
            return


def _of_tar(tree: Tree, path: str, depth: int) -> Iterator[Found]:
    try:
        entries = nemo.entries(tree, path)
    except ValueError as error:
        yield f"what its pickles import is not known: {error}", path
        return
    if depth == 0:
        yield "holds archives within archives within archives", path
        return
    for name, offset, size in entries:
        inner = _Slice(tree, path, f"{path}/{name[:100]}", offset, size)
        yield from _of_file(inner, inner.path, depth - 1)


def _of_array(tree: Tree, path: str, head: bytes) -> Iterator[Found]:
    """A .npy file is a pickle only where its type holds objects."""
    wide = head[6:7] != b"\x01"
    length = int.from_bytes(head[8 : 12 if wide else 10], "little")
    start = (12 if wide else 10) + length
    described = tree.read(path, 12 if wide else 10, min(length, 1 << 20))
    if b"O" in described.replace(b"fortran_order", b""):
        yield pickles.read(lambda at, count: tree.read(path, at, count), start), path


def _of_distributed(tree: Tree, stored: set[str]) -> Iterator[Found]:
    """`*.distcp`: torch loads tensors from it with its own restricted reader, and unpickles what is kept as bytes."""
    for folder in sorted({path.rpartition("/")[0] for path in stored}):
        prefix = f"{folder}/" if folder else ""
        part = below(tree, prefix)
        try:
            value = dcp.metadata(part)
            places = dcp.byte_items(value)
        except (ValueError, OSError, KeyError):
            yield f"no {dcp.METADATA} says what it holds", f"{prefix}*.distcp"
            continue
        for name, path, offset, length in places[:_ENTRIES]:
            if path in part.files:
                inner = _Slice(part, path, f"{prefix}{path}/{name[:100]}", offset, length)
                yield from _of_file(inner, inner.path, 1)


class _Bytes:
    """An archive's entry as a tree of one file."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path, self._data = path, data
        self.files = {path: len(data)}

    def read(self, path: str, start: int, length: int) -> bytes:
        return self._data[start : start + length]


class _Slice:
    """A part of a file as a tree of one file."""

    def __init__(self, tree: Tree, source: str, path: str, offset: int, size: int) -> None:
        self.path, self._tree, self._source, self._offset = path, tree, source, offset
        self.files = {path: size}

    def read(self, path: str, start: int, length: int) -> bytes:
        length = min(length, self.files[path] - start)
        return self._tree.read(self._source, self._offset + start, length) if length > 0 else b""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DTYPES = (
    "float16 float32 float64 bfloat16 complex32 complex64 complex128 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool "
    "half float double short int long qint8 quint8 qint32 quint4x2 quint2x4 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
    "float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
)
_NUMPY_SCALARS = (
    "ndarray dtype bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 "
    "str_ bytes_ datetime64 timedelta64 longlong ulonglong intc uintc"
)
_RANDOM = _names("__randomstate_ctor __generator_ctor __bit_generator_ctor")
_BUILTINS = _names("set frozenset bytearray complex slice range dict list tuple int float str bytes bool object")
KNOWN: dict[str, frozenset[str]] = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS | _names("unicode long"),
    "_codecs": _names("encode"),
    "argparse": _names("Namespace"),
    "collections": _names("OrderedDict defaultdict Counter deque"),
    "copyreg": _names("_reconstructor __newobj__"),
    "copy_reg": _names("_reconstructor __newobj__"),
    "datetime": _names("datetime date time timedelta timezone"),
    "decimal": _names("Decimal"),
    "fractions": _names("Fraction"),
    "pathlib": _names("PosixPath PurePosixPath WindowsPath PureWindowsPath Path PurePath"),
    "pathlib._local": _names("PosixPath PurePosixPath WindowsPath PureWindowsPath Path PurePath"),
    "types": _names("SimpleNamespace"),
    "typing": _names("Any"),
    "uuid": _names("UUID SafeUUID"),
    "numpy": _names(_NUMPY_SCALARS),
    "numpy.core.multiarray": _names("_reconstruct scalar"),
    "numpy._core.multiarray": _names("_reconstruct scalar"),
    "numpy.core.numeric": _names("_frombuffer"),
    "numpy._core.numeric": _names("_frombuffer"),
    "numpy.random._pickle": _RANDOM,
    "numpy.random._mt19937": _names("MT19937"),
    "numpy.random._pcg64": _names("PCG64 PCG64DXSM"),
    "numpy.random._philox": _names("Philox"),
    "numpy.random._sfc64": _names("SFC64"),
    "numpy.random.bit_generator": _names("SeedSequence __pyx_unpickle_SeedSequence"),
    "torch": _names(
        _DTYPES
        + " FloatStorage DoubleStorage HalfStorage BFloat16Storage LongStorage IntStorage ShortStorage CharStorage "
        "ByteStorage BoolStorage ComplexFloatStorage ComplexDoubleStorage QInt8Storage QUInt8Storage QInt32Storage "
        "QUInt4x2Storage QUInt2x4Storage Size Tensor device strided sparse_coo contiguous_format preserve_format "
        "channels_last channels_last_3d per_tensor_affine per_channel_affine"
    ),
    "torch._tensor": _names("_rebuild_from_type_v2 Tensor"),
    "torch._utils": _names(
        "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state "
        "_rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage _rebuild_nested_tensor "
        "_rebuild_wrapper_subclass _rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor"
    ),
    "torch.nn.parameter": _names("Parameter Buffer UninitializedParameter UninitializedBuffer"),
    "torch.serialization": _names("_get_layout"),
    "torch.storage": _names("UntypedStorage TypedStorage"),
    "torch.distributed.checkpoint.filesystem": _names("_StorageInfo"),
    "torch.distributed.checkpoint.metadata": _names(
        "Metadata MetadataIndex StorageMeta TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties "
        "_MEM_FORMAT_ENCODING"
    ),
    "torch.distributed._shard.sharded_tensor.metadata": _names("TensorProperties MEM_FORMAT_ENCODING"),
    "torch.distributed.device_mesh": _names("DeviceMesh"),
    "torch.distributed.tensor": _names("DTensor Shard Replicate Partial"),
    "torch.distributed.tensor._api": _names("DTensor"),
    "torch.distributed.tensor._dtensor_spec": _names("DTensorSpec TensorMeta"),
    "torch.distributed.tensor.placement_types": _names("Shard Replicate Partial"),
    "torch._C._distributed": _names("Shard Replicate Partial"),
    "transformers.debug_utils": _names("DebugOption"),
    "transformers.generation.configuration_utils": _names("GenerationConfig"),
    "transformers.integrations.deepspeed": _names("HfTrainerDeepSpeedConfig HfDeepSpeedConfig"),
    "transformers.deepspeed": _names("HfTrainerDeepSpeedConfig HfDeepSpeedConfig"),
    "transformers.trainer_pt_utils": _names("AcceleratorConfig"),
    "transformers.trainer_utils": _names(
        "IntervalStrategy SchedulerType HubStrategy SaveStrategy EvaluationStrategy FSDPOption"
    ),
    "transformers.training_args": _names("TrainingArguments OptimizerNames ParallelMode"),
    "transformers.training_args_seq2seq": _names("Seq2SeqTrainingArguments"),
    "accelerate.state": _names("PartialState AcceleratorState"),
    "accelerate.parallelism_config": _names("ParallelismConfig"),
    "lightning.fabric.utilities.data": _names("AttributeDict"),
    "lightning_fabric.utilities.data": _names("AttributeDict"),
    "lightning.pytorch.utilities.parsing": _names("AttributeDict"),
    "pytorch_lightning.utilities.parsing": _names("AttributeDict"),
    "deepspeed.runtime.fp16.loss_scaler": _names("LossScaler DynamicLossScaler"),
    "deepspeed.runtime.zero.config": _names("ZeroStageEnum"),
    "deepspeed.utils.tensor_fragment": _names("fragment_address tensor_fragment"),
    "omegaconf.base": _names("ContainerMetadata Metadata"),
    "omegaconf.dictconfig": _names("DictConfig"),
    "omegaconf.listconfig": _names("ListConfig"),
    "omegaconf.nodes": _names("AnyNode StringNode IntegerNode FloatNode BooleanNode"),
}
"""Module to names."""
_FAMILIES = tuple(
    re.compile(pattern)
    for pattern in (
        r"trl\.(trainer|experimental)\.[a-z0-9_.]*_config\.[A-Z][A-Za-z0-9]*Config",
        r"peft\.(tuners\.[a-z0-9_.]+\.config\.[A-Z][A-Za-z0-9]*Config|utils\.peft_types\.(PeftType|TaskType))",
        r"accelerate\.utils\.(dataclasses|deepspeed)\.[A-Z][A-Za-z0-9]*(Type|Plugin|Kwargs|Config|Backend|Configuration)",
        r"numpy\.dtypes\.[A-Z][A-Za-z0-9]*DType",
        r"torch\.nn\.modules\.[a-z]+\.[A-Z][A-Za-z0-9]*",
    )
)
"""Families of data classes whose members change from release to release."""
