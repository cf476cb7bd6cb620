"""`launcher checkpoint …` as a person types it: list and its filters, inspect, path, tags, the aliases, and what is unknown."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.support.cli import PROGRAM, Launcher
from tests.support.commits import commit, open_store, tiny_checkpoint


@pytest.fixture
def base(launcher: Launcher, tmp_path: Path) -> str:
    """The id of a checkpoint `base`."""
    launcher("checkpoint", "push", "base", "--file", tiny_checkpoint(tmp_path / "base"))
    identifier: str = launcher.json("checkpoint", "inspect", "base")["metadata"]["id"]
    return identifier


def listed(launcher: Launcher, *words: str) -> list[str]:
    return [f"{each['metadata']['name']}@v{each['metadata']['version']}"
            for each in launcher.json("checkpoint", "list", *words)]  # fmt: skip


def test_list_and_its_filters(launcher: Launcher, base: str, tmp_path: Path) -> None:
    store = open_store(str(launcher.home / "data" / "store"))
    for step in (500, 1000):
        commit(store, f"ft_01/checkpoint-{step}", {"x": b"%d" % step}, job="ft_01")
    commit(store, "ft_02", {"x": b"3"}, job="ft_02")
    everything = ["base@v1", "ft_01/checkpoint-500@v1", "ft_01/checkpoint-1000@v1", "ft_02@v1"]
    assert listed(launcher) == everything
    assert listed(launcher, "--name", "ft_*") == everything[1:]
    assert listed(launcher, "--name", "*-500") == everything[1:2]
    assert listed(launcher, "--job", "ft_01") == everything[1:3]
    assert listed(launcher, "--ready", "inference") == everything[:1]
    assert listed(launcher, "--limit", "2") == everything[2:]
    assert listed(launcher, "--limit", "0") == everything
    assert listed(launcher, "--name", "ft_*", "--limit", "1") == everything[3:]
    assert listed(launcher, "--since", "1h") == everything and listed(launcher, "--since", "0s") == []
    assert listed(launcher, "--since", "2000-01-01") == everything and listed(launcher, "--since", "2900-01-01") == []
    for words in (["--since", "yesterday"], ["--limit", "-1"], ["--limit", "x"], ["--ready", "soon"]):
        launcher("checkpoint", "list", *words, code=64)
    text = launcher("checkpoint", "ls")
    assert text == launcher("checkpoint", "list")
    assert [line.split()[0] for line in text.splitlines()] == [
        "NAME",
        *(each.rpartition("@")[0] for each in everything),
    ]
    assert "--limit 0 shows all" in launcher("checkpoint", "list", "--limit", "1")
    assert launcher("checkpoint", "list", "--job", "none").strip() == "No checkpoint is like that."


def test_an_empty_store_lists_nothing_and_is_no_error(launcher: Launcher) -> None:
    assert launcher("checkpoint", "list").strip() == "The store is empty."
    assert launcher.json("checkpoint", "list") == [] and not (launcher.home / "data" / "store").exists()


def test_inspect_has_flexais_fields(launcher: Launcher, base: str, tmp_path: Path) -> None:
    found = launcher.json("checkpoint", "inspect", "base")
    assert yaml.safe_load(launcher("checkpoint", "inspect", "base")) == found
    assert found["kind"] == "checkpoint"
    assert found["metadata"] | {"created": 0} == {
        "name": "base", "id": base, "version": 1, "created": 0, "pinned": False, "tags": [],
    }  # fmt: skip
    assert found["spec"]["fromLocalFiles"] == [str(tmp_path / "base")]
    assert found["spec"]["storageProvider"] is None and found["spec"]["sourcePath"] is None
    status = found["status"]
    assert status["status"] == "available" and status["metadata"]["model"] == "Tiny"
    assert status["metadata"].keys() == {
        "name", "node", "step", "trainLoss", "evalLoss", "model", "version", "inferenceReady",
    }  # fmt: skip
    assert {(file["path"], file["size"]) for file in status["files"]} == {
        (path.name, path.stat().st_size) for path in (tmp_path / "base").iterdir()
    }
    (summary,) = launcher.json("checkpoint", "list")
    for part in ("metadata", "status"):
        for key, value in summary[part].items():
            assert value == found[part][key] or (isinstance(value, dict) and value.items() <= found[part][key].items())


def test_push_from_a_source_path_without_a_storage(launcher: Launcher, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "local")
    assert "Pushed local@v1" in launcher("checkpoint", "push", "local", "--source-path", "./local", cwd=tmp_path)
    assert launcher.json("checkpoint", "inspect", "local")["spec"]["fromLocalFiles"] == [str(tmp_path / "local")]


def test_pull_is_fetch(launcher: Launcher, base: str, tmp_path: Path) -> None:
    launcher("checkpoint", "pull", "base", "--destination", tmp_path / "here")
    assert (tmp_path / "here" / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()
    assert "pull" in launcher("checkpoint", "pull", "--help")


def test_path_is_a_folder_that_stays(launcher: Launcher, base: str, tmp_path: Path) -> None:
    script = f'cat "$({PROGRAM} checkpoint path base)/config.json"; ls "$({PROGRAM} checkpoint path base --include "*.json")"'
    done = subprocess.run(["bash", "-c", script], env=launcher.env, capture_output=True, text=True, check=True)
    assert done.stdout == (tmp_path / "base" / "config.json").read_text() + "config.json\n"
    found = launcher.json("checkpoint", "path", "base", "--keep", "2h")
    assert found["id"] == base and abs(found["kept_until"] - time.time() - 7200) < 100
    folder = Path(found["path"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert not any(path.stat().st_mode & 0o222 for path in (folder, *folder.iterdir()))
    # Whatever needs room, it stays; and a shorter time does not take back a longer one.
    assert launcher.json("checkpoint", "path", "base", "--keep", "1s")["path"] == str(folder)
    launcher("cache", "prune", "--limit", "1")
    assert folder.exists()
    (entry,) = [each for each in launcher.json("cache", "list") if each["id"] == base]
    assert entry["used"] <= time.time() < entry["kept_until"] and not entry["held"]
    launcher("cache", "prune", "--all")
    assert not folder.exists()
    assert launcher.json("checkpoint", "path", base[:13], "--keep", "0s")["path"] == str(folder)
    launcher("cache", "prune", "--limit", "1")
    assert not folder.exists(), "kept for no time, it goes like any other"


def test_path_of_what_is_not_in_the_store(launcher: Launcher, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "mine")
    assert launcher("checkpoint", "path", folder).strip() == str(folder)
    subprocess.run(["tar", "-cf", tmp_path / "mine.tar", "-C", tmp_path, "mine"], check=True)
    unpacked = Path(launcher("checkpoint", "path", tmp_path / "mine.tar").splitlines()[-1])
    assert (unpacked / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    for words, code in (
        (["nothing"], 66),
        ([tmp_path / "nothing"], 66),
        ([tmp_path / "mine.tar", "--include", "*.none"], 66),
        (["mine", "--keep", "long"], 64),
        (["a//b"], 64),
    ):
        assert "Traceback" not in launcher("checkpoint", "path", *words, code=code)


def test_path_is_what_transformers_loads(launcher: Launcher, tiny_model: Path) -> None:
    launcher("checkpoint", "push", "tiny", "--file", tiny_model)
    program = "import sys, transformers; print(transformers.AutoConfig.from_pretrained(sys.argv[1]).architectures)"
    script = f"{sys.executable} -c '{program}' \"$({PROGRAM} checkpoint path tiny --only inference)\""
    done = subprocess.run(["bash", "-c", script], env=launcher.env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "['MistralForCausalLM']\n", done.stderr


def test_tags(launcher: Launcher, base: str, tmp_path: Path) -> None:
    (tmp_path / "base" / "config.json").write_text('{"architectures": ["Other"]}')
    launcher("checkpoint", "push", "base", "--file", tmp_path / "base")
    assert "base@live is at v1" in launcher("checkpoint", "tag", "base@v1", "live")
    assert "already" in launcher("checkpoint", "tag", base, "live")
    assert launcher.json("checkpoint", "inspect", "base@live")["metadata"] | {"created": 0} == {
        "name": "base", "id": base, "version": 1, "created": 0, "pinned": False, "tags": ["live"],
    }  # fmt: skip
    assert "tagged live" in launcher("checkpoint", "delete", "base@v1", "--yes", code=64)
    moved = launcher.json("checkpoint", "tag", "base", "live")
    assert (moved["before"]["version"], moved["tagged"]["version"], moved["tagged"]["number"]) == (1, 2, 2)
    assert launcher.json("checkpoint", "untag", "base@live")["untagged"]["version"] == 2
    assert launcher.json("checkpoint", "tags") == []
    history = launcher.json("checkpoint", "tags", "base", "--history")
    assert [each["version"] for each in history] == [1, 2, None]
    launcher("checkpoint", "tag", "base@v2", "candidate")
    assert launcher("checkpoint", "tags").splitlines()[1].split()[:2] == ["base@candidate", "v2"]
    assert "base@candidate" in launcher("checkpoint", "untag", "base@candidat", code=66)
    for words, code in (
        (["tag", "base", "v1"], 64),
        (["tag", "none", "x"], 66),
        (["untag", "base"], 64),
        (["tag", "base"], 64),
    ):
        assert "Traceback" not in launcher("checkpoint", *words, code=code)


def test_a_job_is_started_from_a_tag(launcher: Launcher, base: str) -> None:
    launcher("checkpoint", "tag", "base", "live")
    words = ["training", "run", "t", "-C", "base@live", "--", "sh", "-c", "ls $FLEXAI_INPUT_CHECKPOINT_DIR/base"]
    assert "model.safetensors" in launcher(*words)


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["checkpoint", "inspect", "bsae"], "base"),
        (["checkpoint", "fetch", "bas"], "base"),
        (["checkpoint", "lsit"], "list"),
        (["checkpoint", "pin", "job:bass"], "base"),
        (["checkpoint", "list", "--limt", "3"], "--limit"),
        (["checkpiont", "list"], "checkpoint"),
        (["secret", "delete", "hf-tokne"], "hf-token"),
        (["storage", "inspect", "huv"], "hub"),
        (["storage", "create", "x", "--provider", "s3", "--secret", "hf_token"], "hf-token"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(
    launcher: Launcher, base: str, words: list[str], nearest: str
) -> None:
    subprocess.run([PROGRAM, "secret", "create", "hf-token"], input=b"abc", env=launcher.env, check=True)
    launcher("storage", "create", "hub", "--provider", "huggingface")
    done = subprocess.run([PROGRAM, *words], env=launcher.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode in (64, 66) and nearest in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert os.path.isdir(launcher.home)
