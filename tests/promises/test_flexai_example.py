"""The documented example of a fine-tuning, as it is written for FlexAI's command line, unchanged."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.git_server import commit, git, git_server
from tests.support.s3_server import S3Server

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

config, (flag, _, name) = sys.argv[1], sys.argv[2].partition("=")
assert (config, flag) == ("mistral_config", "--dataset")
rows = [json.loads(line) for line in (Path(os.environ["FLEXAI_INPUT_DIR"]) / name / "train.jsonl").read_text().splitlines()]
assert os.environ["HF_TOKEN"] == "hf_canary_0123456789", "the secret"
model = AutoModelForCausalLM.from_pretrained(Path(os.environ["FLEXAI_INPUT_CHECKPOINT_DIR"]) / "mistral7b_01_base")
data = [{"input_ids": torch.tensor(row["ids"]), "labels": torch.tensor(row["ids"])} for row in rows]
arguments = TrainingArguments(
    output_dir=os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], max_steps=2, save_steps=2, per_device_train_batch_size=1,
    report_to=[], use_cpu=True, disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=data)
trainer.train()
print("ranks", dist.get_world_size(), dist.get_backend(), flush=True)
"""
EXAMPLE = """
shopt -s expand_aliases
alias flexai=launcher
flexai training run ft_mistral7b_01 --dataset FreedomIntelligence__medical-o1-reasoning-SFT=medical \\
  --repository-url "$URL" --repository-revision new_med_settings --checkpoint=mistral7b_01_base \\
  --secret HF_TOKEN=hf_token --accels 4 -- fine-tune.py mistral_config --dataset=medical
"""


@pytest.mark.timeout(600)
def test_the_documented_fine_tuning_runs_unchanged(
    launcher: Launcher, tiny_model: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/team", "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "served" / "blueprints"
    commit(folder, {"fine-tune.py": "raise SystemExit('the wrong revision')\n"})
    git(folder, "checkout", "-q", "-b", "new_med_settings")
    revision = commit(folder, {"fine-tune.py": SCRIPT})
    git(folder, "checkout", "-q", "-")
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"ids": list(range(1, 17))}) + "\n" for _ in range(16)))
    launcher("checkpoint", "push", "mistral7b_01_base", "--file", tiny_model)
    launcher("dataset", "push", "FreedomIntelligence__medical-o1-reasoning-SFT", "--file", rows)
    launcher.env["CANARY"] = "hf_canary_0123456789"
    launcher("secret", "create", "hf_token", "--from-env", "CANARY")
    del launcher.env["CANARY"]
    with git_server(folder.parent) as server:
        env = launcher.env | {"URL": f"{server.url}/blueprints", "PATH": f"{Path(PROGRAM).parent}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", EXAMPLE], env=env, cwd=ROOT, capture_output=True, text=True, timeout=500)
    print(done.stdout + done.stderr)
    assert done.returncode == 0
    assert "running 4 gloo processes on the CPU" in done.stderr
    assert "ranks 4 gloo" in done.stdout
    found = launcher.json("training", "checkpoints", "ft_mistral7b_01")[0]
    lineage = found["spec"]["lineage"]
    assert lineage["commit"] == revision
    assert lineage["datasets"][0]["name"] == "FreedomIntelligence__medical-o1-reasoning-SFT"
    assert "hf_canary" not in done.stdout + done.stderr
