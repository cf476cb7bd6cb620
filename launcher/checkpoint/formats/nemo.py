"""NeMo's `*.nemo`: a tar archive of model_config.yaml, weights and what the model registered. From its sources; not run here.

Whole: the archive's headers lead to its two blocks of zeros within the file, and the configuration and weights
(`model_weights.ckpt`, or a distributed checkpoint in `model_weights/`) are among its entries. Older releases packed it with
gzip; nothing inside is read then, and quiet decides. Only names and sizes are read, nothing is taken out.
"""

from __future__ import annotations

from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree

_BLOCK = 512
_ENTRIES = 100_000
_GZIP = b"\x1f\x8b"
_NAME_LIMIT = 1 << 16


def entries(tree: Tree, path: str) -> list[tuple[str, int, int]]:
    """(name, offset, size) of a tar archive's entries. Raises ValueError with the reason why it is not whole, OSError."""
    size, position, long_name = tree.files[path], 0, ""
    found: list[tuple[str, int, int]] = []
    for _ in range(_ENTRIES):
        block = tree.read(path, position, _BLOCK)
        if len(block) < _BLOCK:
            raise ValueError(f"{path} ends before its archive does")
        if not any(block):
            if any(tree.read(path, position, min(size - position, 1 << 20))) or size - position < 2 * _BLOCK:
                raise ValueError(f"{path} does not end like a tar archive")
            return found
        if block[257:262] != b"ustar":
            raise ValueError(f"{path} has no tar header at byte {position}")
        length = _number(path, block[124:136])
        kind = block[156:157]
        position += _BLOCK
        if kind == b"L":  # GNU: the next entry's name
            long_name = tree.read(path, position, min(length, _NAME_LIMIT)).rstrip(b"\0").decode("utf-8", "replace")
        elif kind not in (b"x", b"g", b"K"):
            name = long_name or block[:100].rstrip(b"\0").decode("utf-8", "replace")
            found.append((name, position, length))
            long_name = ""
        position += -(-length // _BLOCK) * _BLOCK
        if position > size:
            raise ValueError(f"{path} lacks bytes of its entry {found[-1][0][:80] if found else ''!r}")
    raise ValueError(f"{path} has more than {_ENTRIES} entries")


def _number(path: str, field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256
        return int.from_bytes(field, "big") & ((1 << 95) - 1)
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise ValueError(f"{path} has a tar header without a size") from None


def mistake(tree: Tree, path: str) -> str | None:
    """Why a `.nemo` is not whole, or None."""
    try:
        head = tree.read(path, 0, 2)
        if head == _GZIP:
            return None
        found = [name.removeprefix("./") for name, _, _ in entries(tree, path)]
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    if "model_config.yaml" not in found:
        return f"{path} has no model_config.yaml"
    if not any(name.startswith("model_weights") for name in found):
        return f"{path} has no model_weights"
    return None


class Nemo:
    """One or several `*.nemo`."""

    name = "nemo"
    completes: tuple[str, ...] = ()

    def recognises(self, tree: Tree) -> bool:
        return any(path.endswith(".nemo") for path in tree.files)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import files

        reasons = [reason for path in tree.files if path.endswith(".nemo") and (reason := mistake(tree, path))]
        return judged(self.name, [*reasons, *files.mistakes(tree)], context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return Facts(library="nemo")

    def ready(self, tree: Tree) -> Ready:
        return Ready(resume_reason="a .nemo has no state of the optimizer", inference=True)

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()
