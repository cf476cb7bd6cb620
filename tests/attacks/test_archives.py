"""No archive writes outside its folder, runs the disk or the memory full, or leaves half a checkpoint (exit code 65)."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from launcher.errors import ArchiveRefused, LauncherError, NoSpace, UnsafePath
from launcher.inputs import archives

GOOD = b"0123456789" * 100


def entry(name: str, data: bytes = GOOD, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, b"", type=kind, linkname=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def raw(name: bytes, size: int, kind: bytes = b"0", body: bytes = b"") -> bytes:
    """A header that tarfile would not write."""
    field = b"%011o\0" % size if 0 <= size < 8**11 else struct.pack(">BxxxQ", 0x80 if size >= 0 else 0xFF, size % 2**64)
    head = bytearray(
        name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field + b"00000000000\0" + b" " * 8 + kind
    )
    head = head.ljust(257, b"\0") + b"ustar\x0000"
    head = head.ljust(512, b"\0")
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + body.ljust(-(-len(body) // 512) * 512, b"\0")


END = b"\0" * 1024
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1000000000000"}

TAR: dict[str, bytes] = {
    "parent": tar(entry("../canary")),
    "parent in the middle": tar(entry("a/../../canary")),
    "absolute": tar(entry("/tmp/canary")),
    "drive": tar(entry("C:/canary")),
    "backslash": tar(entry("..\\canary")),
    "empty part": tar(entry("a//b")),
    "newline": tar(entry("a\nb")),
    "escape": tar(entry("a\x1b[2Jb")),
    "not UTF-8": raw(b"a\xff\xfe", 4, body=b"abcd") + END,
    "long part": tar(entry("x" * 300)),
    "long path": tar(entry("/".join(["y" * 100] * 15))),
    "link": tar(link("config.json", "/etc/passwd")),
    "link to a folder, then a file in it": tar(link("a", "/tmp"), entry("a/canary")),
    "hard link": tar(link("config.json", "/etc/passwd", tarfile.LNKTYPE)),
    "hard link to a member": tar(entry("a"), link("b", "a", tarfile.LNKTYPE)),
    "character device": tar(entry("null", b"", type=tarfile.CHRTYPE)),
    "block device": tar(entry("sda", b"", type=tarfile.BLKTYPE)),
    "fifo": tar(entry("pipe", b"", type=tarfile.FIFOTYPE)),
    "unknown type": tar(entry("what", b"", type=b"Z")),
    "case twins": tar(entry("Config.json"), entry("config.json")),
    "NFC twins": tar(entry("caf\u00e9"), entry("cafe\u0301")),
    "twice": tar(entry("a"), entry("a", b"other")),
    "file, then folder": tar(entry("a"), entry("a/b")),
    "folder, then file": tar(entry("a/b"), entry("a")),
    "sparse": tar(entry("a", pax_headers=SPARSE)),
    "old sparse": tar(entry("a", type=tarfile.GNUTYPE_SPARSE)),
    "negative size": raw(b"a", -512) + END,
    "negative header": raw(b"a", -512, b"L") + END,
    "2^62 bytes": raw(b"a", 1 << 62) + END,
    "10^7 bytes of name": raw(b"././@LongLink", 10**7, b"L", b"x" * 10**7) + END,
    "header of 1 TB": raw(b"././@PaxHeader", 1 << 40, b"x") + END,
    "header without a length": raw(b"h", 10, b"x", b"path=a/b/c") + raw(b"a", 0) + END,
    "header of length 0": raw(b"h", 10, b"x", b"0 path=a/b") + raw(b"a", 0) + END,
    "size in words": tar(entry("a", pax_headers={"size": "much"})),
    "global header renames": raw(b"g", 19, b"g", b"19 path=../canary1\n") + raw(b"a", 4, body=b"abcd") + END,
    "cut in a file": tar(entry("a", os.urandom(5000)))[:3000],
    "cut in a header": tar(entry("a"))[:300],
    "without an end": raw(b"a", 4, body=b"abcd"),
    "wrong checksum": b"x" * 10240,
    "empty": b"",
    "not a tar": b"<html>log in</html>" * 100,
}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.zst"])
@pytest.mark.parametrize("attack", TAR)
def test_a_hostile_tar_is_refused(tmp_path: Path, attack: str, suffix: str) -> None:
    pack: dict[str, Callable[[bytes], bytes]] = {
        "tar": bytes,
        "tar.gz": lambda data: gzip.compress(data, 1),
        "tar.zst": zstandard.compress,
    }
    assert isinstance(
        unpacked(tmp_path, f"a.{suffix}", pack[suffix](TAR[attack])), (ArchiveRefused, UnsafePath, NoSpace)
    )


def zipped(*members: tuple[str, bytes], edit: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            edit(info)
            archive.writestr(info, data)
    return buffer.getvalue()


def mode(value: int) -> Callable[[zipfile.ZipInfo], None]:
    def edit(info: zipfile.ZipInfo) -> None:
        info.create_system, info.external_attr = 3, value << 16

    return edit


def encrypted() -> bytes:
    data = bytearray(zipped(("a", GOOD)))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def overlapping() -> bytes:
    """Two entries of the directory for the same bytes: the trick of bombs without nesting."""
    data = zipped(("a", GOOD), ("b", GOOD))
    start = data.rindex(b"PK\1\2")
    first = data.index(b"PK\1\2")
    return data[: start + 42] + data[first + 42 : first + 46] + data[start + 46 :]


def said(size: int) -> bytes:
    data = bytearray(zipped(("a", GOOD)))
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, size)
    return bytes(data)


def damaged(data: bytes) -> bytes:
    return data[:45] + bytes([data[45] ^ 255]) + data[46:]


ZIP: dict[str, bytes] = {
    "parent": zipped(("../canary", GOOD)),
    "absolute": zipped(("/tmp/canary", GOOD)),
    "backslash": zipped(("..\\canary", GOOD)),
    "NUL": zipped(("aXb", GOOD)).replace(b"aXb", b"a\0b"),
    "link": zipped(("a", b"/etc/passwd"), edit=mode(0o120777)),
    "device": zipped(("a", b""), edit=mode(0o020666)),
    "fifo": zipped(("a", b""), edit=mode(0o010666)),
    "case twins": zipped(("A", GOOD), ("a", GOOD)),
    "twice": zipped(("a", GOOD), ("b", b"other")).replace(b"b\xcb", b"a\xcb").replace(b"\0b", b"\0a"),
    "file, then folder": zipped(("a", GOOD), ("a/b", GOOD)),
    "encrypted": encrypted(),
    "overlapping": overlapping(),
    "says less than it has": said(10),
    "says more than it has": said(5000),
    "damaged": damaged(zipped(("a", GOOD))),
    "bzip2": zipped(("a", GOOD), edit=lambda info: setattr(info, "compress_type", zipfile.ZIP_BZIP2)),
    "cut": zipped(("a", GOOD))[:-30],
    "without its directory": zipped(("a", GOOD))[:40],
    "a directory of 3 GB": zipped(("a", GOOD))[:-10] + struct.pack("<IIH", 3 << 30, 0, 0),
    "empty": b"",
    "not a zip": b"<html>log in</html>" * 100,
}


@pytest.mark.parametrize("attack", ZIP)
def test_a_hostile_zip_is_refused(tmp_path: Path, attack: str) -> None:
    assert isinstance(unpacked(tmp_path, "a.zip", ZIP[attack]), (ArchiveRefused, UnsafePath, NoSpace))


def unpacked(tmp_path: Path, name: str, data: bytes) -> LauncherError | None:
    """The error that unpacking ends with; asserts that nothing was written but below the folder."""
    archive, outside = tmp_path / name, tmp_path / "outside"
    archive.write_bytes(data)
    folder = outside / "folder"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        archives.unpack(str(archive), folder, lambda path: True)
    except LauncherError as error:
        return error
    finally:
        assert os.listdir(outside) == ["folder"] and not (tmp_path / "canary").exists()
        assert not Path("/tmp/canary").exists()
        assert all(path.is_file() or path.is_dir() for path in folder.rglob("*") if not path.is_symlink())
        assert not any(path.is_symlink() for path in folder.rglob("*"))
    return None


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst", "zip"])
def test_a_bomb_ends_early_and_small(tmp_path: Path, kind: str) -> None:
    zeros, size = bytes(1 << 20), 1 << 30
    archive = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with (
            zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
            file.open("a", "w") as member,
        ):
            for _ in range(256):
                member.write(zeros)
    else:
        with open(archive, "wb") as out:
            packed = (
                gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1)
                if kind == "tar.gz"
                else zstandard.ZstdCompressor().stream_writer(out, closefd=False)
            )
            with packed:  # type: ignore[attr-defined]
                packed.write(raw(b"a", size))  # type: ignore[attr-defined]
                for _ in range(256):
                    packed.write(zeros)  # type: ignore[attr-defined]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ArchiveRefused, match="would become"):
        archives.unpack(str(archive), folder, lambda path: True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    written = sum(path.stat().st_size for path in folder.rglob("*"))
    print(f"{kind}: {archive.stat().st_size} bytes in, {written} bytes written, memory +{grown >> 10} MiB")
    assert written == 0 and grown < 200 << 10


def test_more_members_than_a_checkpoint_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MEMBERS", 100)
    error = unpacked(tmp_path, "a.tar", tar(*(entry(f"f{number}", b"") for number in range(101))))
    assert isinstance(error, ArchiveRefused) and "more than 100 members" in str(error)


def mutations(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Unpacks `count` seeded mutations of good archives, and says how many were unpacked and refused: no other exception is
    raised and nothing is written elsewhere."""
    dice = random.Random(seed)
    good = {
        "a.tar": tar(entry("a/config.json"), entry("a/" + "n" * 200), entry("ö")),
        "a.tar.gz": gzip.compress(tar(entry("a"), entry("b" * 150))),
        "a.tar.zst": zstandard.compress(tar(entry("a"), entry("b" * 150))),
        "a.zip": zipped(("a", GOOD), ("d/b", GOOD)),
    }
    found = {"unpacked": 0, "refused": 0}
    for number in range(count):
        name = dice.choice(sorted(good))
        data = bytearray(good[name])
        for _ in range(dice.randint(1, 4)):
            position = dice.randrange(len(data))
            if dice.random() < 0.2 and len(data) > 1000:
                del data[position : position + dice.randint(1, 600)]
            else:
                data[position] = dice.randrange(256)
        place = folder / str(number)
        place.mkdir()
        found["refused" if unpacked(place, name, bytes(data)) else "unpacked"] += 1
        shutil.rmtree(place)
    return found


def test_mutations_are_unpacked_or_refused(tmp_path: Path) -> None:
    found = mutations(tmp_path, 300, 5)
    print(f"300 mutated archives: {found}")
    assert found["refused"] > 100


def test_harmless_archives_are_unpacked(tmp_path: Path) -> None:
    for name, data in {
        "dots.tar": tar(entry("./a"), entry("./b/c")),
        "folders.tar": tar(entry("d", b"", type=tarfile.DIRTYPE), entry("d/a"), entry("e/b")),
        "long.tar": tar(entry("d/" + "n" * 200), entry("x")),
        "empty files.zip": zipped(("a", b""), ("b", b"")),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        assert unpacked(folder, name, data) is None
        assert len([path for path in folder.rglob("*") if path.is_file()]) == 3  # two files and the archive
