"""Whole or not, on what the real libraries wrote, cut and mutated at many places."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from launcher.checkpoint import formats
from launcher.checkpoint.judgement import Context
from launcher.checkpoint.tree import Folder
from tests.support.cli import ROOT


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Everything that a real Trainer on two processes writes, and torch.save in both forms."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "in").mkdir()
    (folder / "in" / "base").symlink_to(tiny_model)
    env = os.environ | {
        "FLEXAI_INPUT_CHECKPOINT_DIR": str(folder / "in" / "base"),
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": str(folder / "out"),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "examples/fine_tune.py"), "--steps", "2", "--save-steps", "1"]
    subprocess.run([*torchrun, *script], env=env, check=True, capture_output=True)
    for sample in ("torch_save_directory", "torch_save_flat"):
        target = {"FLEXAI_OUTPUT_CHECKPOINT_DIR": str(folder / sample)}
        (folder / sample).mkdir()
        subprocess.run([sys.executable, ROOT / f"examples/guide/{sample}.py"], env=env | target, check=True)
    return folder


def verdict(folder: Path, world_size: int | None = 2, final: bool = True) -> tuple[str, str]:
    judgement = formats.judge(Folder.scan(str(folder)), Context(world_size=world_size, final=final))
    return judgement.format, judgement.verdict


def test_what_the_libraries_wrote_is_whole_with_its_facts(written: Path, tiny_model: Path) -> None:
    checkpoint = written / "out/checkpoint-2"
    assert verdict(checkpoint) == ("transformers-trainer", "whole")
    assert verdict(tiny_model) == ("transformers-pretrained", "whole")
    assert verdict(written / "torch_save_directory/step-1000") == ("torch-save", "whole")
    assert verdict(written / "torch_save_flat") == ("torch-save", "whole")
    tree = Folder.scan(str(checkpoint))
    format = formats.recognise(tree)
    assert format
    facts = format.facts(tree)
    assert (facts.step, facts.architecture, facts.parameters, facts.dtype) == (
        2,
        "MistralForCausalLM",
        107200,
        "float32",
    )
    assert facts.train_loss and facts.library_version
    assert format.ready(tree).resume and format.ready(tree).inference


@pytest.mark.parametrize("final", [True, False])
def test_without_any_one_of_its_files_a_trainer_checkpoint_is_not_whole(
    written: Path, tmp_path: Path, final: bool
) -> None:
    source = written / "out/checkpoint-2"
    optional = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in sorted(os.listdir(source)):
        shutil.copytree(source, tmp_path / name)
        (tmp_path / name / name).unlink()
        # Without the tokenizer it still resumes. The Trainer of a plain torch module writes neither of the configurations.
        expected = "whole" if name in optional else "broken" if final else "unfinished"
        assert verdict(tmp_path / name, final=final)[1] == expected, name


def test_cut_at_any_place_no_file_with_tensors_is_whole(written: Path, tmp_path: Path) -> None:
    """Every tensor file and trainer_state.json, cut at 100 places each: 0 judged whole."""
    random.seed(4)
    source = written / "out/checkpoint-2"
    cuts = whole = 0
    for name in (
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_1.pth",
        "training_args.bin",
        "trainer_state.json",
    ):
        data = (source / name).read_bytes()
        folder = tmp_path / name
        shutil.copytree(source, folder)
        for _ in range(100):
            (folder / name).write_bytes(data[: random.randrange(len(data.rstrip()))])
            cuts += 1
            whole += verdict(folder)[1] == "whole"
        (folder / name).write_bytes(b"")
        assert verdict(folder)[1] != "whole"
        (folder / name).write_bytes(data + data)
        assert verdict(folder)[1] != "whole"
        (folder / name).write_bytes(data)
        assert verdict(folder)[1] == "whole"
    print(f"{cuts} cuts, {whole} judged whole")
    assert whole == 0


def test_no_mutated_header_is_called_whole_that_the_library_refuses(tiny_model: Path, tmp_path: Path) -> None:
    """2,000 mutations of a real safetensors header, the library as oracle."""
    random.seed(5)
    data = (tiny_model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    wrong = agreed = 0
    path = tmp_path / "model.safetensors"
    for round in range(2000):
        changed = bytearray(data)
        if round % 4 == 0:
            changed[:8] = struct.pack("<Q", random.choice([0, 1, length - 1, length + 1, 2**63, 2**64 - 1, len(data)]))
        for _ in range(random.randint(1, 3)):
            changed[random.randrange(8, 8 + length)] = random.choice(b'0123456789{}[]",:FIU-e. ')
        path.write_bytes(changed)
        ours = verdict(tmp_path)[1] == "whole"
        try:
            with safe_open(path, "pt") as file:
                list(file.keys())
            theirs = True
        except Exception:
            theirs = False
        wrong += ours and not theirs
        agreed += ours == theirs
    print(f"2000 mutations: {wrong} called whole that the library refuses, {agreed} judged alike")
    assert wrong == 0 and agreed > 1900


def test_the_sentinel_and_temporary_files_mean_unfinished(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "out/checkpoint-2", tmp_path / "c")
    for name in (".tmpAbC123", "model.safetensors.tmp", "x.incomplete"):
        (tmp_path / "c" / name).write_bytes(b"x")
        assert verdict(tmp_path / "c", final=False)[1] == "unfinished"
        assert verdict(tmp_path / "c", final=True)[1] == "whole"  # nobody writes any more: a left-over
        (tmp_path / "c" / name).unlink()
    (tmp_path / "c" / "checkpoint-is-incomplete.txt").touch()
    assert verdict(tmp_path / "c")[1] == "broken"


def test_the_world_size_decides_about_random_states(written: Path) -> None:
    assert verdict(written / "out/checkpoint-2", world_size=2)[1] == "whole"
    assert verdict(written / "out/checkpoint-2", world_size=3)[1] == "broken"
    assert verdict(written / "out/checkpoint-2", world_size=None)[1] == "whole"


def test_shards_are_whole_by_their_index(tiny_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from transformers import AutoModelForCausalLM as M;"
        "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2], max_shard_size='100KB')"
    )
    subprocess.run([sys.executable, "-c", program, tiny_model, tmp_path / "s"], check=True, capture_output=True)
    index = json.loads((tmp_path / "s/model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2 and verdict(tmp_path / "s")[1] == "whole"
    (tmp_path / "s" / shards[0]).rename(tmp_path / "aside")
    assert verdict(tmp_path / "s")[1] == "broken"
    shutil.copy(tmp_path / "s" / shards[1], tmp_path / "s" / shards[0])  # a whole file, and another shard's tensors
    assert verdict(tmp_path / "s")[1] == "broken"
