"""A path of the input that the command names and that is not there is said before the job starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import NotFoundError, UsageError
from launcher.inputs import mentions
from launcher.inputs.choose import Chosen
from tests.support.cli import Launcher

FILES = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer/vocab.json")


@pytest.fixture
def chosen(tmp_path: Path) -> list[Chosen]:
    for each in FILES:
        (tmp_path / "model" / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / each).write_text("{}")
    model = str(tmp_path / "model")
    return [
        Chosen("base", ("base", "0123-id"), folder=model),
        Chosen("ft", ("ft/checkpoint-5",), folder=model),
    ]


@pytest.mark.parametrize(
    "word",
    [
        "/input-checkpoint",
        "/input-checkpoint/",
        "/input-checkpoint/base",
        "/input-checkpoint/base/",
        "/input-checkpoint//base/./config.json",
        "--model=/input-checkpoint/base",
        "--model=/input-checkpoint/0123-id/tokenizer",
        "model.path=/input-checkpoint/ft/checkpoint-5/config.json",
        "/input-checkpoint/ft",
        "/input-checkpoint/base/*.safetensors",
        "/input-checkpoint/base/tokenizer/{vocab,merges}.json",
        "/input-checkpoint/*/config.json",
        "/input-checkpoints/elsewhere",
        "input-checkpoint/base/nothing",
        "cat /input-checkpoint/base/nothing || true",
        '{"model": "/input-checkpoint/nothing"}',
        "--note=see /input-checkpoint/nothing",
    ],
)
def test_what_is_there_or_is_no_path_passes(word: str, chosen: list[Chosen]) -> None:
    mentions.check(["train.py", word], chosen, "/input-checkpoint", here=False)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("/input-checkpoint/bsae", "not in the input.\nIn it: base, 0123-id, ft."),
        ("--model=/input-checkpoint/typo", "not in the input.\nIn it: "),
        ("model.path=/input-checkpoint/base/modle", "not in the input 'base'.\nIn it: config.json, model-0000"),
        ("/input-checkpoint/base/tokenizer/vocb.json", "not in the input 'base'.\nIn tokenizer/: vocab.json."),
        ("/input-checkpoint/ft/checkpoint-6/config.json", "not in the input.\nIn ft/: checkpoint-5."),
        ("/input-checkpoint/base/tokenzer/*.json", "not in the input 'base'.\nIn it: tokenizer, "),
        ("/input-checkpoint/base/config", "not in the input 'base'.\nIn it: config.json, "),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(word: str, text: str, chosen: list[Chosen]) -> None:
    with pytest.raises(NotFoundError) as error:
        mentions.check(["train.py", "--epochs", "3", word], chosen, "/input-checkpoint", here=False)
    print(error.value)
    assert text in str(error.value) and word.partition("=")[2] in str(error.value)


def test_the_default_path_where_it_is_not_the_inputs(chosen: list[Chosen], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\$FLEXAI_INPUT_CHECKPOINT_DIR"):
        mentions.check(["train.py", "/input-checkpoint/base"], chosen, "", here=True)
    mentions.check(["train.py", str(tmp_path / "model" / "nothing")], chosen, "", here=True)
    mentions.check(["train.py", str(tmp_path / "model" / "config.json")], [], str(tmp_path), here=True)
    with pytest.raises(NotFoundError, match="No input is chosen"):
        mentions.check(["train.py", str(tmp_path / "model" / "nothing")], [], str(tmp_path / "model"), here=True)


def test_the_job_does_not_start_and_nothing_is_downloaded(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
    launcher.env["LAUNCHER_INPUT_DIR"] = str(tmp_path / "in")
    job = ("training", "run", "j", "-C", "base", "--", "echo", "started")
    output = launcher(*job, f"--model={tmp_path}/in/base/typo.json", code=66)
    assert "started" not in output.split("error", 1)[0] and "In it: config.json." in output
    assert not (launcher.home / "cache" / "checkpoints").exists()
    assert "started" in launcher(*job, f"--model={tmp_path}/in/base/config.json")
    del launcher.env["LAUNCHER_INPUT_DIR"]
    assert "here the job's input is at $FLEXAI" in launcher(*job, "/input-checkpoint/base", code=64)
