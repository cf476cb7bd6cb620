"""Every layout: recognised, whole, its facts, and not whole when any one of its files is cut, removed, zeroed or doubled."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launcher.checkpoint import formats
from launcher.checkpoint.judgement import Context
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Folder, Tree
from tests.campaigns import garbage, headers, layouts, truncation


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts") / "imitated"
    layouts.write(folder)
    return folder


def said(tree: Tree, world_size: int | None = None) -> tuple[str, Facts, Ready]:
    judgement = formats.judge(tree, Context(world_size))
    assert judgement.whole, judgement.reasons
    format = formats.by_name(judgement.format)
    assert format
    return judgement.format, format.facts(tree), format.ready(tree)


NUMBERS = 315
"""Parameters of the layouts' model."""
TABLE = {
    "trainer": ("transformers-trainer", {"step": 10, "eval_loss": 2.25, "architecture": "TinyForCausalLM"}, "resume inference"),
    "trainer-ranks": ("transformers-trainer", {"step": 10, "library_version": "5.0"}, "resume inference"),
    "trainer-adapter": ("transformers-trainer", {"step": 10, "base_model": "tiny/base"}, "resume inference"),
    "pretrained": ("transformers-pretrained", {"dtype": "float32", "model_type": "tiny"}, "inference"),
    "accelerate": ("accelerate", {"dtype": "float32"}, "resume"),
    "peft": ("peft", {"base_model": "tiny/base", "library_version": "0.21", "model_type": "lora"}, "inference"),
    "pipeline": ("diffusers-pipeline", {"architecture": "DDPMPipeline", "library_version": "0.42"}, "inference"),
    "deepspeed": ("deepspeed", {"step": 7, "library_version": "0.19.8"}, "resume"),
    "megatron": ("megatron", {"step": 10}, "resume"),
    "megatron-dist": ("megatron", {"step": 10, "dtype": "float32"}, "resume"),
    "dcp": ("torch-dcp", {"dtype": "float32"}, "resume"),
    "nemo": ("nemo", {}, "inference"),
    "lightning": ("lightning", {"step": 12, "epoch": 1.0, "library_version": "2.6.6"}, "resume"),
    "gguf": ("gguf", {"architecture": "llama", "dtype": "float32"}, "inference"),
    "numpy": ("numpy", {}, ""),
    "torch": ("torch-save", {"step": 3, "dtype": "float32"}, ""),
    "torch-old": ("torch-save", {"step": 3, "dtype": "float32"}, ""),
}  # fmt: skip
UNCOUNTED = {"nemo", "numpy", "megatron"}


@pytest.mark.parametrize("layout", TABLE)
def test_a_layout_is_recognised_whole_with_its_facts(written: Path, layout: str) -> None:
    name, expected, able = TABLE[layout]
    found, facts, ready = said(Folder.scan(str(written / layout)), layouts.WORLD if "ranks" in layout else None)
    assert found == name
    assert {key: getattr(facts, key) for key in expected} == expected
    assert facts.parameters == (None if layout in UNCOUNTED else NUMBERS)
    assert {kind for kind in ("resume", "inference") if getattr(ready, kind)} == set(able.split())
    assert ready.resume or ready.resume_reason
    assert ready.inference or ready.inference_reason
    assert ready.base == ("tiny/base" if layout in ("peft", "trainer-adapter") else "")


def test_every_built_in_format_has_a_layout_or_a_library() -> None:
    """The rest is written by the libraries themselves, in tests/libraries."""
    imitated = {name for name, _, _ in TABLE.values()}
    assert {each.name for each in formats.built_in()} - imitated == {"orbax", "trl", "diffusers-model", "safetensors"}


def test_nothing_broken_is_judged_whole_and_nothing_whole_broken(written: Path) -> None:
    samples = truncation.of_folder(written.parent)
    rows, wrong = truncation.campaign(samples, cuts=6, seed=3)
    changes = sum(row.changes for row in rows.values())
    print(f"{len(samples)} samples of {len(rows)} formats, {changes} changes: {len(wrong)} judged wrong")
    assert wrong == [] and len(samples) == len(layouts.LAYOUTS)


def test_nothing_that_a_file_holds_makes_the_judge_raise(written: Path) -> None:
    done, raised = garbage.campaign(truncation.of_folder(written.parent), count=8, seed=5)
    print(f"{done} variants of files: {len(raised)} raised")
    assert raised == []


def test_no_mutated_header_is_called_whole_that_the_library_refuses() -> None:
    found = headers.campaign(2000, seed=7)
    print(
        f"{found.count} mutated headers: {found.wrong} called whole that the library refuses, {found.stricter} the reverse"
    )
    assert found.wrong == 0 and found.whole > 0


def test_a_folder_of_thousands_is_judged_in_a_moment(written: Path, tmp_path: Path) -> None:
    """2,000 shards with their index, and 10,000 small files: figures only, as this machine may be busy."""
    import json

    import numpy
    from safetensors.numpy import save

    weight_map = {}
    for number in range(1, 2001):
        shard = f"model-{number:05d}-of-02000.safetensors"
        (tmp_path / shard).write_bytes(save({f"layer.{number}": numpy.zeros(1, "float32")}))
        weight_map[f"layer.{number}"] = shard
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text('{"architectures": ["X"], "model_type": "x"}')
    started = time.process_time()
    assert formats.judge(Folder.scan(str(tmp_path))).whole
    shards = time.process_time() - started
    for number in range(10_000):
        os.link(written / "trainer/config.json", tmp_path / f"file-{number}.json")
    started = time.process_time()
    assert formats.judge(Folder.scan(str(tmp_path))).whole
    print(
        f"2,000 shards: {shards:.2f} s; with 10,000 files more: {time.process_time() - started:.2f} s of processor time"
    )


def test_files_of_others_beside_a_checkpoint_break_nothing(written: Path, tmp_path: Path) -> None:
    """Whole stays whole beside JSON lines, other people's .bin and .pkl, and an empty marker."""
    import pickle
    import shutil

    folder = tmp_path / "c"
    shutil.copytree(written / "trainer", folder)
    (folder / "log.json").write_text('{"step": 1}\n{"step": 2}\n')
    (folder / "data.bin").write_bytes(b"\x01\x02other")
    (folder / "rewards.pkl").write_bytes(pickle.dumps([1.5, 2.5]))
    (folder / "old.pkl").write_bytes(pickle.dumps([1.5, 2.5], 0))
    (folder / "many.pkl").write_bytes(pickle.dumps(list(range(1_500_000))))
    (folder / "_SUCCESS").touch()
    (folder / "vocab.txt").write_bytes(b"a\n\x00\nb\n")
    judgement = formats.judge(Folder.scan(str(folder)))
    assert judgement.whole, judgement.reasons


def test_variants_are_weights_too(written: Path, tmp_path: Path) -> None:
    """`model.fp16.safetensors`, and shards with `model.safetensors.index.fp16.json`."""
    import shutil

    for name, layout in (("single", "trainer"), ("sharded", "pretrained")):
        shutil.copytree(written / layout, tmp_path / name)
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    for path in single.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            path.unlink()
    (single / "model.safetensors").rename(single / "model.fp16.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.rename(sharded / "model.safetensors.index.fp16.json")
    for folder in (single, sharded):
        name, facts, _ = said(Folder.scan(str(folder)))
        assert (name, facts.parameters) == ("transformers-pretrained", NUMBERS)
    next(sharded.glob("model-*")).unlink()
    assert not formats.judge(Folder.scan(str(sharded))).whole


def test_what_the_world_size_proves(written: Path) -> None:
    tree = Folder.scan(str(written / "trainer-ranks"))
    assert formats.judge(tree, Context(2)).proven
    assert not formats.judge(tree, Context(None)).proven
    assert formats.judge(tree, Context(3)).reasons == ("rng_state_2.pth is not there (2 of 3 ranks)",)
    assert formats.judge(Folder.scan(str(written / "accelerate")), Context(3)).verdict == "broken"
    assert formats.judge(Folder.scan(str(written / "accelerate")), Context(3, final=False)).verdict == "unfinished"
