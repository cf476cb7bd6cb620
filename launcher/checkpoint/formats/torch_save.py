"""torch.save files, and folders of them that no other format knows.

Since torch 1.6 the file is a zip archive `<stem>/data.pkl, <stem>/data/N, <stem>/version …`, stored without compression,
its central directory in the last write. Whole: the end record is the file's last bytes and every entry lies inside the
file. The older stream form is five pickles followed by the storages to the end of the file, without a trailer. Nothing is
unpickled here.
"""

from __future__ import annotations

import io
import struct
import zipfile

from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree

ZIP = b"PK\x03\x04"
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The pickled magic number (protocol 2) that the older form begins with."""
DIRECTORY_LIMIT = 64 << 20
"""Bytes of a zip directory that are read; 64 MiB hold some 800,000 tensors."""
_LOCAL_HEADER = 30


def is_torch(tree: Tree, path: str) -> bool:
    """Whether the file begins like one of torch.save, whole or not."""
    try:
        head = tree.read(path, 0, 512)
    except OSError:
        return False
    if head.startswith(LEGACY):
        return True
    if not head.startswith(ZIP) or len(head) < _LOCAL_HEADER:
        return False
    (length,) = struct.unpack_from("<H", head, 26)
    return head[_LOCAL_HEADER : _LOCAL_HEADER + length].endswith(b"/data.pkl")


def mistake(tree: Tree, path: str) -> str | None:
    """Why the file is not whole, or None. The older form has no end mark: None, and only quiet proves it."""
    try:
        if tree.read(path, 0, len(LEGACY)) == LEGACY:
            return None
        return zip_mistake(tree, path)
    except OSError as error:
        return f"{path}: {error.strerror or error}"


def zip_mistake(tree: Tree, path: str) -> str | None:
    """Why a zip archive is not whole, or None. Raises OSError."""
    size = tree.files[path]
    if size == 0:
        return f"{path} is empty"
    if tree.read(path, 0, 4) != ZIP:
        return f"{path} does not begin like a torch.save file"
    try:
        with zipfile.ZipFile(_Window(tree, path)) as archive:
            for entry in archive.infolist():
                if entry.header_offset + _LOCAL_HEADER + entry.compress_size > archive.start_dir:
                    return f"{path} lacks bytes of its entry {entry.filename[:80]!r}"
            if not archive.infolist():
                return f"{path} has no entries"
    except zipfile.BadZipFile as error:
        return f"{path} has no zip directory at its end ({error})"
    except (ValueError, struct.error, NotImplementedError, UnicodeDecodeError) as error:
        return f"{path} has an unreadable zip directory ({error})"
    return None


class _Window(io.RawIOBase):
    """A file of a tree for zipfile, which may read at most DIRECTORY_LIMIT bytes of it."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree, self._path, self._size = tree, path, tree.files[path]
        self._position = 0
        self._left = DIRECTORY_LIMIT

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("an offset lies before the file")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        available = max(self._size - self._position, 0)
        length = available if size is None or size < 0 else min(size, available)
        self._left -= length
        if self._left < 0:
            raise ValueError(f"it claims more than {DIRECTORY_LIMIT >> 20} MiB")
        data = self._tree.read(self._path, self._position, length)
        self._position += len(data)
        return data


class TorchSave:
    """A folder with torch.save files (`step-1000/model.pt`), and a single one in flat-file mode."""

    name = "torch-save"
    completes: tuple[str, ...] = ()

    def recognises(self, tree: Tree) -> bool:
        return any(is_torch(tree, path) for path in tree.files)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import file_mistakes

        return judged(self.name, file_mistakes(tree, tree.files), context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return Facts(library="torch")

    def ready(self, tree: Tree) -> Ready:
        reason = "what a torch.save file holds is known to the script that wrote it"
        return Ready(resume_reason=reason, inference_reason=reason)

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()
