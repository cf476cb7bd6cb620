"""Retention keeps what its rules say and never takes what is needed; deletes are told first; lineage answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.cli import Launcher

JOB = """
import json, os, shutil, struct, sys, time
out, steps = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], [int(word) for word in sys.argv[1].split(",")]
for step in steps:
    folder = f"{out}/checkpoint-{step}"
    os.mkdir(folder)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    with open(f"{folder}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + struct.pack("<4f", step, step, step, step))
    shutil.copy(os.environ["TRAINING_ARGS"], f"{folder}/training_args.bin")
    log = [{"step": step, "eval_loss": abs(step - 20) / 10}]
    with open(f"{folder}/trainer_state.json", "w") as file:
        json.dump({"global_step": step, "log_history": log}, file)
    time.sleep(0.3)
"""


@pytest.fixture(autouse=True)
def training_args(launcher: Launcher, tmp_path: Path) -> None:
    import torch

    torch.save({}, tmp_path / "training_args.bin")
    launcher.env["TRAINING_ARGS"] = str(tmp_path / "training_args.bin")


def run(launcher: Launcher, name: str, steps: str, *flags: str) -> str:
    words = ["--launch", "exec", "--settle", "0.1s", "--", "python", "-c", JOB, steps]
    return launcher("training", "run", name, *flags, *words)


def stored(launcher: Launcher, name: str) -> list[str]:
    return sorted(each["metadata"]["name"] for each in launcher.json("training", "checkpoints", name))


def test_a_jobs_own_rules_are_applied_while_it_runs(launcher: Launcher) -> None:
    output = run(launcher, "j", "10,20,30,40,50,60", "--keep", "last=2,every=30,best=eval_loss:min")
    assert stored(launcher, "j") == ["j/checkpoint-20", "j/checkpoint-30", "j/checkpoint-50", "j/checkpoint-60"]
    assert "that --keep does not keep: j/checkpoint-10@v1" in output
    assert "Collected: 6 checkpoint(s)" in output and "other file" not in output
    assert len(list((launcher.home / "data/store/checkpoints").iterdir())) == 4
    assert launcher.json("checkpoint", "check", "--read-data")["sound"]


def test_what_a_job_was_started_from_and_what_is_pinned_stay(launcher: Launcher) -> None:
    run(launcher, "j", "10,20,30,40")
    run(launcher, "other", "1", "-C", "j/checkpoint-10")
    launcher("checkpoint", "pin", "j/checkpoint-20", "--note", "in the paper")
    words = ["checkpoint", "prune", "--job", "j", "--keep", "last=1"]
    plan = launcher.json(*words, "--dry-run")
    assert [each["name"] for each in plan["deleted"]] == ["j/checkpoint-30"]
    because = {each["name"]: " ".join(each["because"]) for each in plan["kept"]}
    assert "was started from it" in because["j/checkpoint-10"] and "was made from it" in because["j/checkpoint-10"]
    assert because["j/checkpoint-20"] == "pinned" and "newest" in because["j/checkpoint-40"]
    assert "--yes" in launcher(*words, code=64), "nobody can answer here"
    assert len(stored(launcher, "j")) == 4
    launcher(*words, "--yes")
    assert stored(launcher, "j") == ["j/checkpoint-10", "j/checkpoint-20", "j/checkpoint-40"]


def test_a_delete_says_what_needs_it(launcher: Launcher) -> None:
    run(launcher, "j", "10,20")
    run(launcher, "other", "1", "-C", "j/checkpoint-10")
    launcher("checkpoint", "pin", "j/checkpoint-20")
    output = launcher("checkpoint", "delete", "j/checkpoint-10", "j/checkpoint-20", "--yes", code=64)
    assert "other/checkpoint-1@v1 was made from it" in output and "pinned" in output and "--force" in output
    assert len(stored(launcher, "j")) == 2
    launcher("checkpoint", "unpin", "j/checkpoint-20")
    assert "--yes" in launcher("checkpoint", "delete", "j/checkpoint-20", code=64)
    launcher("checkpoint", "delete", "j/checkpoint-20", "--yes")
    launcher("checkpoint", "delete", "j/checkpoint-10", "--yes", "--force")
    assert "has written no checkpoint" in launcher("training", "checkpoints", "j")
    assert launcher("checkpoint", "log", "job:other").count("(deleted)") == 1


def test_lineage_names_job_command_code_and_parents_and_no_secret(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"hidden_size": 4, "rope": {"theta": 1}}))
    launcher("checkpoint", "push", "base", "--file", tmp_path / "model")
    launcher.env |= {"MY_TOKEN": "s3cr3t-value", "GIT_CONFIG_COUNT": "0"}
    run(launcher, "one", "10", "-C", "base", "--env", "MY_TOKEN")
    words = ["--launch", "exec", "--settle", "0.1s", "--", "python", "-c", JOB, "20", "--api-key=s3cr3t-value"]
    launcher("training", "run", "two", "-C", "job:one", *words)
    launcher("checkpoint", "push", "merged", "--file", tmp_path / "model", "--parent", "base", "--parent", "job:two")
    found = launcher.json("checkpoint", "log", "merged")
    assert [each["name"] for each in found] == ["merged", "base", "two/checkpoint-20", "one/checkpoint-10"]
    by_name = {each["name"]: each for each in found}
    assert by_name["one/checkpoint-10"]["parents"] == [by_name["base"]["id"]]
    assert by_name["two/checkpoint-20"]["lineage"]["command"][-2:] == ["20", "--api-key=***"]
    assert by_name["base"]["lineage"]["sources"] == [str(tmp_path / "model")]
    assert by_name["two/checkpoint-20"]["origin"]["name"] == "two"
    text = launcher("checkpoint", "log", "merged")
    assert text.count("* base@v1") == 2 and "(above)" in text and "job two (" in text
    assert "s3cr3t" not in text + json.dumps(found)
    for path in (launcher.home / "data").rglob("*.json*"):
        assert b"s3cr3t" not in path.read_bytes(), path


def test_a_difference_is_told_by_settings_files_tensors_and_facts(launcher: Launcher, tmp_path: Path) -> None:
    run(launcher, "j", "10,20")
    found = launcher.json("checkpoint", "diff", "j/checkpoint-10", "j/checkpoint-20")
    assert not found["same"] and sorted(found["files"]["changed"]) == ["model.safetensors", "trainer_state.json"]
    assert found["tensors"] == {"removed": {}, "added": {}, "changed": {}, "same": 1}
    assert found["facts"]["changed"]["step"] == [10, 20]
    launcher("checkpoint", "fetch", "j/checkpoint-20", "--destination", tmp_path / "copy")
    assert launcher.json("checkpoint", "diff", "j/checkpoint-20", str(tmp_path / "copy"))["same"]
    (tmp_path / "copy" / "config.json").write_text('{"a": {"b": 1}}')
    header = json.dumps({"v": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}).encode()
    os.chmod(tmp_path / "copy/model.safetensors", 0o644)
    (tmp_path / "copy/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    found = launcher.json("checkpoint", "diff", "j/checkpoint-20", str(tmp_path / "copy"))
    assert found["config"]["added"] == {"config.json:a.b": 1} and found["files"]["added"] == {"config.json": 15}
    assert found["tensors"]["removed"] == {"w": ["F32", [4]]} and found["tensors"]["added"] == {"v": ["F16", [2, 4]]}
    text = launcher("checkpoint", "diff", "j/checkpoint-20", str(tmp_path / "copy"))
    assert "+ v: F16 [2, 4]" in text and "+ config.json:a.b: 1" in text
