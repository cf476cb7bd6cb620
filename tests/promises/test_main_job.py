"""The main job on real input: a real Trainer on two real processes under torchrun, and everything that it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT, Launcher
from tests.support.s3_server import S3Server


def fine_tune_and_continue(launcher: Launcher, tiny_model: Path, *flags: str) -> None:
    """Push, fine-tune on two processes with rotation, check what was collected, continue from a rotated checkpoint."""
    launcher("checkpoint", "push", "mistral_tiny_base", "--file", tiny_model)
    output = launcher(
        "training", "run", "ft_01", "--checkpoint", "mistral_tiny_base", "--accels", "2", *flags, "--",
        "examples/fine_tune.py", "--steps", "6", "--save-steps", "2", "--save-total-limit", "1", timeout=240,
    )  # fmt: skip
    assert "finished at step 6" in output
    found = launcher.json("training", "checkpoints", "ft_01")
    by_name = {each["metadata"]["name"]: each["status"] for each in found}
    assert list(by_name) == ["ft_01/checkpoint-2", "ft_01/checkpoint-4", "ft_01/checkpoint-6", "ft_01"]
    for step in (2, 4, 6):
        status = by_name[f"ft_01/checkpoint-{step}"]
        assert status["facts"]["step"] == step
        assert status["facts"]["train_loss"] > 0
        assert status["facts"]["architecture"] == "MistralForCausalLM"
        assert status["facts"]["parameters"] == 107200
        assert status["format"] == "transformers-trainer"
        assert status["ready"]["resume"] and status["ready"]["inference"]
        names = {file["path"] for file in status["files"]}
        assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "trainer_state.json"} <= names
    assert by_name["ft_01"]["ready"]["inference"] and not by_name["ft_01"]["ready"]["resume"]
    parent = launcher.json("checkpoint", "inspect", "mistral_tiny_base")["metadata"]["id"]
    assert all(each["spec"]["lineage"]["parents"] == [parent] for each in found)
    for reference in ("ft_01", "job:ft_01/checkpoint-2", found[1]["metadata"]["id"]):
        assert launcher.json("checkpoint", "verify", reference)["whole"]

    output = launcher(
        "training", "run", "ft_02", "-C", "job:ft_01/checkpoint-2", "--accels", "2", *flags, "--",
        "examples/fine_tune.py", "--steps", "4", "--save-steps", "2", timeout=240,
    )  # fmt: skip
    assert "from step 2" in output and "finished at step 4" in output
    found = launcher.json("training", "checkpoints", "ft_02")
    assert [each["status"]["facts"].get("step") for each in found] == [4, None]


def test_fine_tuning_on_two_processes_is_collected_and_continued(launcher: Launcher, tiny_model: Path) -> None:
    fine_tune_and_continue(launcher, tiny_model)
    record = launcher.json("training", "inspect", "ft_01")
    assert record["state"] == "succeeded"
    assert record["attempts"][0]["inputs"][0]["rung"] in ("bind", "userns", "landlock")
    assert {path.name for path in launcher.job("ft_01").glob("logs/attempt-1/*/attempt_0/*")} == {"0", "1"}
    events = [json.loads(line) for line in (launcher.job("ft_01") / "events.jsonl").read_text().splitlines()]
    assert [each["kind"] for each in events].count("checkpoint-committed") == 4
    assert not any((launcher.job("ft_01") / "spool").iterdir())
    assert "finished at step 6" in launcher("training", "logs", "ft_01")
    assert "finished at step 6" in launcher("training", "logs", "ft_01", "--rank", "0")


def test_the_same_with_the_store_on_a_real_s3_server(launcher: Launcher, tiny_model: Path, s3_server: S3Server) -> None:
    launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/team/store"}
    fine_tune_and_continue(launcher, tiny_model)


def test_a_collected_checkpoint_loads_from_the_plain_files_of_the_store(launcher: Launcher, tiny_model: Path) -> None:
    launcher("checkpoint", "push", "base", "--file", tiny_model)
    identifier = launcher.json("checkpoint", "inspect", "base")["metadata"]["id"]
    stored = launcher.home / "data" / "store" / "checkpoints" / identifier
    program = (
        "import sys; from transformers import AutoModel as M; print(M.from_pretrained(sys.argv[1]).num_parameters())"
    )
    done = subprocess.run([sys.executable, "-c", program, stored], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


@pytest.mark.parametrize(
    ("sample", "names"),
    [
        ("trainer", ["job/checkpoint-2", "job/checkpoint-4", "job"]),
        ("torch_save_directory", ["job/step-1000"]),
        ("torch_save_flat", ["job/step-1000"]),
    ],
)
def test_the_guides_samples_are_collected(launcher: Launcher, sample: str, names: list[str]) -> None:
    output = launcher("training", "run", "job", "--", f"examples/guide/{sample}.py")
    assert [each["metadata"]["name"] for each in launcher.json("training", "checkpoints", "job")] == names
    assert (output.count("saved as a flat file") == 1) == (sample == "torch_save_flat")


def test_the_guides_loading_sample_finds_its_model(launcher: Launcher, tiny_model: Path) -> None:
    launcher("checkpoint", "push", "mistral7b_01_base", "--file", tiny_model)
    output = launcher("training", "run", "load", "-C", "mistral7b_01_base", "--", "examples/guide/load.py")
    assert "loaded 107200 parameters of MistralForCausalLM" in output


def test_nothing_of_the_launcher_is_imported_by_the_examples() -> None:
    for path in (ROOT / "examples").rglob("*.py"):
        assert "import launcher" not in path.read_text() and "from launcher" not in path.read_text()


def test_an_output_that_cannot_be_stored_is_named_and_stops_nothing(launcher: Launcher) -> None:
    script = 'cd "$FLEXAI_OUTPUT_CHECKPOINT_DIR"; mkdir z; echo x > z/good.txt; touch "$(printf "a\\nb")" "$(printf "\\377")"'
    output = launcher("training", "run", "odd", "--", "sh", "-c", script)
    assert output.count("Not stored: The path") == 2 and "Stored 1 other file(s)" in output
