"""Which files of a checkpoint are taken: globs, what inference needs, and which of a repository's duplicates."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_TRAINING = (
    # transformers, accelerate and FSDP
    "optimizer.*", "optimizer_*/*", "optimizer_*.bin", "optimizer_*.pt", "scheduler.*", "scheduler_*.bin", "lr_scheduler*",
    "rng_state*.pth", "random_states_*.pkl", "scaler*.pt", "sampler*.bin", "dl_state_dict*.bin", "custom_checkpoint_*.pkl",
    "trainer_state.json", "training_args.bin", "events.out.tfevents.*",
    # DeepSpeed
    "*_optim_states.pt", "latest", "zero_to_fp32.py",
)  # fmt: skip
"""What only a training that goes on needs, by name, as the libraries write it (measured with each of them)."""
_PYTORCH = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")
_OTHER_FRAMEWORKS = ("tf_model*.h5", "flax_model*.msgpack", "rust_model.ot", "*.onnx", "*.mlmodel", "*.tflite")
_OTHER_FOLDERS = ("onnx/*", "coreml/*", "openvino/*", "original/*", "runs/*")
_PAGES = (".gitattributes", ".gitignore", "README.md", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp")


@dataclass(frozen=True)
class Selection:
    """Globs of paths below the checkpoint's folder. A pattern without a slash is compared with a file's name in whatever
    folder, one with a slash with its whole path; `*` also stands for slashes. Nothing in `include` means everything."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: Literal["all", "inference"] = "all"

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude or self.only != "all")

    @property
    def text(self) -> str:
        """The selection as part of what identifies a cached copy; empty for everything."""
        return repr((sorted(self.include), sorted(self.exclude), self.only)) if self else ""

    def takes(self, path: str) -> bool:
        """Whether a file is taken."""
        if self.only == "inference" and _any(path, _TRAINING):
            return False
        return (not self.include or _any(path, self.include)) and not _any(path, self.exclude)


def needed(paths: Iterable[str]) -> set[str]:
    """The files of a hub repository that a PyTorch job needs: no pictures; where it has PyTorch weights, not the same ones
    for other frameworks; and not PyTorch's pickles where their folder has safetensors."""
    every = {path for path in paths if not _any(path, _PAGES)}
    safe = {path.rpartition("/")[0] for path in every if path.endswith(".safetensors")}
    if not any(_any(path, _PYTORCH) and not _any(path, _OTHER_FOLDERS) for path in every):
        return every
    return {
        path
        for path in every
        if not _any(path, _OTHER_FRAMEWORKS + _OTHER_FOLDERS)
        and not (
            path.rpartition("/")[0] in safe and _any(path, ("pytorch_model*.bin", "pytorch_model*.bin.index.json"))
        )
    }


def _any(path: str, patterns: Iterable[str]) -> bool:
    name = path.rpartition("/")[2]
    for pattern in patterns:
        if fnmatch.fnmatchcase(path if "/" in pattern else name, pattern):
            return True
        if "/" in pattern and fnmatch.fnmatchcase(path, f"*/{pattern}"):
            return True
    return False
