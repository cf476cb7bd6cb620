"""Datasets: immutable, versioned, verified; the job has them read-only at /input/NAME, and its checkpoints say which."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.promises.test_input_read_only import public, rig
from tests.promises.test_sources import write
from tests.support.cli import Launcher
from tests.support.hub_server import COMMIT, hub_server
from tests.support.images import BASE
from tests.support.s3_server import S3Server
from tests.support.watching import eventually

__all__ = ["public"]

DATA = {
    "train.jsonl": b'{"a": 1}\n',
    "sub/deep/eval.jsonl": b'{"a": 2}\n',
    "sub/empty": b"",
    "shard.tar": b"no archive",
}
JOB = """
import hashlib, json, os, pathlib
data = pathlib.Path(os.environ["FLEXAI_INPUT_DIR"])
files = [path for path in data.rglob("*") if path.is_file()]
print("found", json.dumps({str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}))
folder = pathlib.Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], "checkpoint-1")
folder.mkdir(exist_ok=True)
header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
(folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
(folder / "config.json").write_text('{"architectures": ["Tiny"], "model_type": "tiny"}')
"""
WRITES = """
cd "$FLEXAI_INPUT_DIR/medical" && test -s train.jsonl || exit 90
for write in 'touch x' 'rm -f train.jsonl' 'mv train.jsonl y' 'echo no > train.jsonl' 'mkdir sub/z' \
        'touch $FLEXAI_INPUT_DIR/z' 'rm -rf $FLEXAI_INPUT_DIR/medical' 'mv $FLEXAI_INPUT_DIR/medical $FLEXAI_INPUT_DIR/y' \
        'echo no > sub/deep/eval.jsonl'; do
    (eval "$write") 2>/dev/null && echo "DONE: $write"
done
test "$(cat train.jsonl)" = '{"a": 1}' || exit 92
echo tried; exit 7
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data", DATA)
    return tmp_path / "data"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def seen(output: str) -> dict[str, str]:
    """What the job found, by its own digests."""
    found: dict[str, str] = json.loads(next(line for line in output.splitlines() if line.startswith("found "))[6:])
    return found


def digests(files: dict[str, bytes], below: str) -> dict[str, str]:
    return {f"{below}/{path}": hashlib.sha256(body).hexdigest() for path, body in files.items()}


def run(launcher: Launcher, name: str, *words: str | Path, code: int = 0) -> str:
    return launcher("training", "run", name, *words, "--launch", "exec", "--", "python", "-c", JOB, code=code)


# ── push, list, inspect, fetch, verify, delete ───────────────────────────────────────────────────────────────────────


def test_files_folders_and_places_become_one_dataset(launcher: Launcher, data: Path, tmp_path: Path) -> None:
    (tmp_path / "year=2024.csv").write_text("1,2\n")
    sources = [
        data,
        tmp_path / "year=2024.csv",
        f"{data}/train.jsonl=first/",
        f"{data}/sub=second",
        f"{data}/train.jsonl=t",
    ]
    words = [word for source in sources for word in ("--file", source)]
    assert "Pushed medical@v1 " in launcher("dataset", "push", "medical", *words)
    expected = DATA | {"year=2024.csv": b"1,2\n", "first/train.jsonl": DATA["train.jsonl"], "t": DATA["train.jsonl"]}
    expected |= {"second/deep/eval.jsonl": DATA["sub/deep/eval.jsonl"], "second/empty": b""}
    document = launcher.json("dataset", "inspect", "medical")
    assert document["kind"] == "dataset" and document["status"]["status"] == "available"
    assert {each["path"]: each["size"] for each in document["status"]["files"]} == {
        k: len(v) for k, v in expected.items()
    }
    assert document["status"]["file_count"] == 9 and document["status"]["size"] == sum(map(len, expected.values()))
    launcher("dataset", "fetch", "medical", "--destination", tmp_path / "out")
    assert content(tmp_path / "out") == expected
    assert launcher("checkpoint", "list") == "The store is empty.\n"
    assert "9 file(s): sound" in launcher("checkpoint", "check", "--read-data")


def test_a_name_has_versions_and_equal_data_has_one_digest(launcher: Launcher, data: Path, tmp_path: Path) -> None:
    push = ("dataset", "push", "medical", "--file", data)
    assert "Pushed medical@v1" in launcher(*push)
    assert "Unchanged, and not stored again: medical@v1" in launcher(*push)
    (data / "train.jsonl").write_bytes(b"other")
    assert "Pushed medical@v2" in launcher(*push)
    launcher("dataset", "fetch", "medical@v1", "--destination", tmp_path / "v1")
    assert content(tmp_path / "v1") == DATA
    launcher("dataset", "push", "again", "--file", tmp_path / "v1")
    listed = launcher.json("dataset", "list")
    assert [(each["metadata"]["name"], each["metadata"]["version"]) for each in listed] == [
        ("medical", 1), ("medical", 2), ("again", 1),
    ]  # fmt: skip
    first, second, again = (each["status"]["digest"] for each in listed)
    assert first == again != second
    launcher("dataset", "delete", "medical", "--yes")
    assert launcher.json("dataset", "inspect", "medical")["metadata"]["version"] == 1
    assert "No dataset 'medical@v2'" in launcher("dataset", "inspect", "medical@v2", code=66)
    assert "Nobody can answer here" in launcher("dataset", "delete", "again", code=64)
    (data / "train.jsonl").write_bytes(b"third")
    assert "Pushed medical@v3" in launcher(*push), "a number is given once"
    table = launcher("dataset", "list").splitlines()
    assert table[0].split() == ["NAME", "VERSION", "ID", "FILES", "SIZE", "STATUS", "CREATED"]
    assert [line.split()[:2] for line in table[1:]] == [["medical", "v1"], ["again", "v1"], ["medical", "v3"]]


def test_links_are_left_out_by_name_and_a_linked_source_is_what_it_leads_to(launcher: Launcher, data: Path) -> None:
    for number in range(9):
        (data / f"link-{number}").symlink_to("/etc/passwd")
    (data.parent / "linked").symlink_to(data)
    (data.parent / "train").symlink_to(data / "train.jsonl")
    words = [word for name in ("linked", "train=again", "train") for word in ("--file", data.parent / name)]
    output = launcher("dataset", "push", "medical", *words)
    assert "is a link or no file: link-0" in output and "links or no files: 4 more" in output
    paths = {each["path"] for each in launcher.json("dataset", "inspect", "medical")["status"]["files"]}
    assert paths == DATA.keys() | {"again", "train"}


def test_what_is_damaged_is_found_and_no_job_starts_with_it(launcher: Launcher, data: Path) -> None:
    launcher("dataset", "push", "medical", "--file", data)
    (stored,) = (launcher.home / "data/store/datasets/checkpoints").iterdir()
    assert "medical@v1: whole (4 file(s))" in launcher("dataset", "verify", "medical", "--read-data")
    (stored / "train.jsonl").chmod(0o644)
    (stored / "train.jsonl").write_bytes(b'{"a": 9}\n')
    assert "whole" in launcher("dataset", "verify", "medical"), "the size is right"
    output = launcher("dataset", "verify", "medical", "--read-data", code=65)
    assert "train.jsonl: its bytes are others" in output
    assert "datasets/checkpoints/" in launcher("checkpoint", "check", "--read-data", code=65)
    output = run(launcher, "j", "-D", "medical", code=65)
    assert "train.jsonl of dataset " in output and "launcher dataset verify " in output and "found" not in output
    (stored / "train.jsonl").unlink()
    assert "train.jsonl: it is missing" in launcher("dataset", "verify", "medical", code=65)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("push a/b --file DATA", 64, "no dataset name: it contains '/'"),
        ("push a=b --file DATA", 64, "Try a_b"),
        ("push .. --file DATA", 64, "is no dataset name"),
        ("push x@v2 --file DATA", 64, "ends like a version"),
        ("push x", 64, "Say once where the data is"),
        ("push x --file DATA --source-path y", 64, "Say once where the data is"),
        ("push x --source-path y", 64, "Say once where the data is"),
        ("push x --storage-provider lab", 64, "Say once where the data is"),
        ("push x --storage-provider lab --source-path y", 66, "'lab'"),
        ("push x --file DATA/nothing", 66, "there is no such file or folder"),
        ("push x --file DATA/nothing=y", 66, "/data/nothing: there is no such file or folder"),
        ("push x --file DATA=../y", 64, "DEST is a path in the dataset"),
        ("push x --file DATA=/y", 64, "it is absolute"),
        ("push x --file DATA=", 64, "it is empty"),
        ("push x --file DATA --file DATA/train.jsonl", 64, "would both be train.jsonl"),
        ("push x --file DATA/train.jsonl=a --file DATA/train.jsonl=a/b", 65, "a file and a folder at once"),
        ("push x --file DATA/train.jsonl=a --file DATA/train.jsonl=A", 65, "where case does not count"),
        ("push x --file DATA --include *.parquet", 66, "no file of it is taken"),
        ("push x --file EMPTY", 66, "the folder holds no file"),
        ("push x --file gopher://a/b", 64, "gopher"),
        ("inspect medcal", 66, "Nearest names: medical"),
        ("inspect medical@v9", 66, "No dataset 'medical@v9'"),
        ("inspect job:x", 64, "is no dataset"),
        ("inspect ./medical", 64, "launcher dataset push NAME"),
        ("fetch medical --destination DATA", 64, "is no empty folder"),
        ("verify medcal", 66, "Nearest names: medical"),
        ("delete medcal --yes", 66, "Nearest names: medical"),
    ],
)
def test_a_mistake_is_said_with_what_to_do(bad: Launcher, words: str, code: int, text: str) -> None:
    base = bad.home.parent
    replaced = words.replace("DATA", str(base / "data")).replace("EMPTY", str(base / "empty")).split()
    output = bad("dataset", *replaced, code=code)
    assert text in output and "Traceback" not in output, output


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        ("-D medcal", 66, "Nearest names: medical"),
        ("-D medical=a/b", 64, "it contains a slash"),
        ("-D medical=..", 64, "cannot be a folder's name"),
        ("-D medical=", 64, "it is empty"),
        ("-D medical=/abs", 64, "it is absolute"),
        ("-D medical -D medical@v1", 64, "would be at the same place (medical)"),
        ("-D medical=x -D medical@v1=x", 64, "would be at the same place (x)"),
        ("-D ./data", 64, "a job takes those of the store"),
        ("-D s3://bucket/data", 64, "launcher dataset push NAME"),
        ("-D job:x", 64, "is no dataset"),
    ],
)
def test_a_job_that_names_its_datasets_wrongly_does_not_start(bad: Launcher, flags: str, code: int, text: str) -> None:
    output = run(bad, "j", *flags.split(), code=code)
    assert text in output and "Traceback" not in output, output
    assert not (bad.home / "data" / "jobs" / "j").exists()


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    folder = tmp_path_factory.mktemp("bad")
    write(folder / "data", DATA)
    (folder / "empty").mkdir()
    launcher = Launcher(folder / "home")
    launcher("dataset", "push", "medical", "--file", folder / "data")
    return launcher


def test_a_push_is_seen_while_it_goes_on_and_goes_on_after_a_kill(launcher: Launcher, tmp_path: Path) -> None:
    write(tmp_path / "many", {f"{number % 7}/{number}": b"%d" % number for number in range(4000)})
    (journals := launcher.home / "data" / "pushes").mkdir(parents=True)

    def sent() -> int:
        return sum(path.read_bytes().count(b"\n") - 1 for path in journals.iterdir())

    def status() -> list[tuple[str, int | None]]:
        return [(each["status"]["status"], each["metadata"]["version"]) for each in launcher.json("dataset", "list")]

    process = launcher.start("dataset", "push", "many", "--file", tmp_path / "many")
    try:
        eventually(lambda: sent() > 20, "it sends")
        process.send_signal(signal.SIGSTOP)
        assert 20 < sent() < 4000
        assert status() == [("uploading", None)]
        assert launcher.json("dataset", "inspect", "many")["status"]["status"] == "uploading"
        assert "No dataset 'many'" in launcher("dataset", "verify", "many", code=66)
    finally:
        process.kill()
        process.communicate()
    before = sent()
    assert status() == [("error", None)]
    assert "upload" in launcher("checkpoint", "gc", "--older", "0s", "--dry-run")
    output = launcher("dataset", "push", "many", "--file", tmp_path / "many")
    assert f"Going on with a push that was cut off: {before} of 4000 files are in the store" in output
    assert status() == [("available", 1)]
    assert "many@v1: whole (4000 file(s))" in launcher("dataset", "verify", "many")
    process = launcher.start("dataset", "push", "cut", "--file", tmp_path / "many")
    eventually(lambda: sent() > 20, "it sends")
    process.kill()
    process.communicate()
    assert "the unfinished push of cut" in launcher("dataset", "delete", "cut", "--yes")
    assert status() == [("available", 1)] and list(journals.iterdir()) == []
    assert "Nothing is left over." in launcher("checkpoint", "gc", "--older", "0s")


def test_a_dataset_of_the_hub_comes_whole_and_pinned(launcher: Launcher, tmp_path: Path) -> None:
    files = {"README.md": b"# data", "train/0.parquet": os.urandom(5000), "pictures/a.png": os.urandom(2000)}
    write(
        tmp_path / "hub" / "datasets" / "org" / "medical",
        files | {"model.safetensors": b"x", "pytorch_model.bin": b"y"},
    )
    files |= {"model.safetensors": b"x", "pytorch_model.bin": b"y"}
    with hub_server(tmp_path / "hub") as hub:
        launcher.env |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
        launcher("storage", "create", "hub", "--provider", "huggingface", "--endpoint", hub.url)
        launcher("dataset", "push", "one", "--storage-provider", "hub", "--source-path", "org/medical")
        launcher("dataset", "push", "two", "--file", "hf://datasets/org/medical@main=inside", "--exclude", "*.bin")
    for name in ("one", "two"):
        launcher("dataset", "fetch", name, "--destination", tmp_path / name)
    assert content(tmp_path / "one") == files
    assert content(tmp_path / "two" / "inside") == {path: body for path, body in files.items() if path[-4:] != ".bin"}
    document = launcher.json("dataset", "inspect", "one")
    assert document["spec"]["sources"] == [f"hf://datasets/org/medical@{COMMIT}"]
    digest = next(each["sha256"] for each in document["status"]["files"] if each["path"] == "train/0.parquet")
    assert digest == hashlib.sha256(files["train/0.parquet"]).hexdigest()


# ── in a job ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_job_finds_them_and_its_checkpoints_say_which(launcher: Launcher, data: Path) -> None:
    for name in ("medical", "other"):
        launcher("dataset", "push", name, "--file", data)
    output = run(launcher, "ft", "-D", "medical", "-D", "other@v1=train")
    assert seen(output) == digests(DATA, "medical") | digests(DATA, "train")
    (medical, other) = (launcher.json("dataset", "inspect", name) for name in ("medical", "other"))
    expected = [
        {
            "name": each["metadata"]["name"],
            "version": 1,
            "id": each["metadata"]["id"],
            "digest": each["status"]["digest"],
        }
        for each in (medical, other)
    ]
    assert launcher.json("checkpoint", "inspect", "ft/checkpoint-1")["spec"]["lineage"]["datasets"] == expected
    assert f"dataset medical@v1 ({medical['metadata']['id']})" in launcher("checkpoint", "log", "ft/checkpoint-1")
    recorded = launcher.json("training", "inspect", "ft")["attempts"][0]["datasets"]
    folder = launcher.job("ft") / "input"
    assert [each["path"] for each in recorded] == [f"{folder}/medical", f"{folder}/train"]
    assert [{key: each[key] for key in expected[0]} for each in recorded] == expected
    assert {each["rung"] for each in recorded} <= {"bind", "userns", "landlock"} and not any(
        e["writable"] for e in recorded
    )
    assert "medical@v1 was given to 1 job(s)" in launcher("dataset", "delete", "medical", "--yes", code=64)
    launcher("dataset", "delete", "medical", "--yes", "--force")
    assert launcher.json("dataset", "list")[0]["metadata"]["name"] == "other"


def test_by_a_variable_and_by_a_job_file(launcher: Launcher, data: Path, tmp_path: Path) -> None:
    launcher("dataset", "push", "medical", "--file", data)
    (tmp_path / "job.yaml").write_text("dataset: medical=from-file\n")
    assert seen(run(launcher, "a", "--file", tmp_path / "job.yaml")).keys() == digests(DATA, "from-file").keys()
    launcher.env["LAUNCHER_DATASET"] = "medical=one, medical=two"
    assert len(seen(run(launcher, "b"))) == 2 * len(DATA)
    del launcher.env["LAUNCHER_DATASET"]
    launcher.env["LAUNCHER_DATASET_DIR"] = str(tmp_path / "in")
    command = ("--launch", "exec", "--", "cat", f"{tmp_path}/in/medical/sub/deep/eval.jsonl")
    assert '{"a": 2}' in launcher("fine-tuning", "run", "c", "-D", "medical", *command)
    assert "not in the dataset 'medical'" in launcher(
        "training", "run", "c", "-D", "medical", *command[:-1], f"{command[-1]}x", code=66
    )
    launcher.env["LAUNCHER_INPUT_DIR"] = str(tmp_path / "in")
    assert "lie in each other" in launcher("training", "run", "c", "-D", "medical", "--", "true", code=64)


def test_an_entrypoint_finds_them_where_the_variable_says(launcher: Launcher, data: Path, tmp_path: Path) -> None:
    launcher("dataset", "push", "medical", "--file", data)
    (tmp_path / "checkpoints").mkdir()
    launcher.env |= {
        "LAUNCHER_DATASET": "medical",
        "LAUNCHER_DEVICE": "cpu",
        "FLEXAI_INPUT_DIR": str(tmp_path / "input"),
        "FLEXAI_INPUT_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": str(tmp_path / "output"),
    }
    output = launcher(
        "entrypoint",
        "--name",
        "e",
        "--",
        "sh",
        "-c",
        "echo $FLEXAI_INPUT_DIR; cat $FLEXAI_INPUT_DIR/medical/train.jsonl",
    )
    assert f"{tmp_path}/input\n" in output and '{"a": 1}' in output


def test_a_job_that_is_started_again_has_the_data_that_it_had(launcher: Launcher, data: Path) -> None:
    launcher("dataset", "push", "medical", "--file", data)
    launcher.env["LAUNCHER_JOB_ID"] = "job-1"
    assert seen(run(launcher, "ft", "-D", "medical")) == digests(DATA, "medical")
    (data / "train.jsonl").write_bytes(b"newer")
    launcher("dataset", "push", "medical", "--file", data)
    assert seen(run(launcher, "ft", "-D", "medical=train", "--resume", "never")) == digests(DATA, "train")
    attempts = launcher.json("training", "inspect", "ft")["attempts"]
    assert [each["datasets"][0]["version"] for each in attempts] == [1, 1]
    del launcher.env["LAUNCHER_JOB_ID"]
    assert seen(run(launcher, "new", "-D", "medical"))["medical/train.jsonl"] == hashlib.sha256(b"newer").hexdigest()


def test_what_recovery_stores_says_it_too(launcher: Launcher, data: Path) -> None:
    launcher("dataset", "push", "medical", "--file", data)
    job = ("--launch", "exec", "--", "python", "-c", JOB + "print('written', flush=True)\nimport time; time.sleep(600)")
    process = launcher.start("training", "run", "crash", "-D", "medical", "--settle", "300s", *job)
    assert process.stdout and any(line.startswith("written") for line in process.stdout)
    process.kill()
    process.communicate()
    launcher("recover", "crash")
    lineage = launcher.json("checkpoint", "inspect", "crash/checkpoint-1")["spec"]["lineage"]
    assert [each["name"] for each in lineage["datasets"]] == ["medical"]


def test_a_volume_has_them_and_the_collector_says_which(launcher: Launcher, data: Path, tmp_path: Path) -> None:
    launcher("dataset", "push", "medical", "--file", data)
    volume = tmp_path / "volume"
    launcher("prepare", "--into", volume, "--name", "ft", "-D", "medical=train")
    assert content(volume / "input" / "train") == DATA
    assert {path.stat().st_mode & 0o222 for path in (volume / "input" / "train").rglob("*")} == {0}
    variables = dict(line.split("=", 1) for line in (volume / "launcher.env").read_text().splitlines())
    assert variables["FLEXAI_INPUT_DIR"] == "/input" and "LAUNCHER_INPUT_CHECKPOINT" not in variables
    there = {
        "FLEXAI_INPUT_DIR": str(volume / "input"),
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": str(volume / "output-checkpoint"),
    }
    subprocess.run(["python", "-c", JOB], env=launcher.env | there, check=True, capture_output=True)
    launcher("collect", volume)
    lineage = launcher.json("checkpoint", "inspect", "ft/checkpoint-1")["spec"]["lineage"]
    assert [(each["name"], each["version"]) for each in lineage["datasets"]] == [("medical", 1)]


@pytest.mark.parametrize(
    ("user", "rung"),
    [("root", "bind"), ("root", "landlock"), ("an ordinary user", "userns"), ("an ordinary user", "landlock")],
)
def test_the_job_cannot_change_them(public: Path, user: str, rung: str) -> None:
    if user == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    it = rig(public, user)
    write(public / "data", DATA)
    for path in (public / "data", public / "data/sub", public / "data/sub/deep"):
        path.chmod(0o755)
    assert it.run("dataset", "push", "medical", "--file", str(public / "data")).returncode == 0
    it.launcher.env["LAUNCHER_INPUT_GUARD"] = rung
    done = it.run("training", "run", "w", "-C", "base", "-D", "medical", "--launch", "exec", "--", "sh", "-c", WRITES)
    assert done.returncode == 7 and "tried" in done.stdout and "DONE" not in done.stdout, done.stdout + done.stderr
    assert "Dataset medical at " in done.stderr and f"read-only by: {rung}" in done.stderr
    if rung == "bind":  # A view for the job's time, where it asks for one; the dataset stays.
        done = it.run("training", "run", "w", "-D", "medical", "--input-writable", "--", "sh", "-c", WRITES)
        assert "DONE: touch x" in done.stdout, done.stdout + done.stderr
        assert it.run("dataset", "verify", "medical", "--read-data").returncode == 0
    entries = [content(path) for path in (it.launcher.home / "cache" / "checkpoints").iterdir()]
    assert DATA in entries


def test_what_a_job_changed_where_nothing_holds_is_found(launcher: Launcher, data: Path) -> None:
    launcher("dataset", "push", "medical", "--file", data)
    launcher.env["LAUNCHER_INPUT_GUARD"] = "none"
    command = (
        "--",
        "sh",
        "-c",
        "chmod u+w $FLEXAI_INPUT_DIR/medical/train.jsonl; echo >> $FLEXAI_INPUT_DIR/medical/train.jsonl",
    )
    assert "changed its input dataset 'medical'" in launcher("training", "run", "w", "-D", "medical", *command, code=65)
    del launcher.env["LAUNCHER_INPUT_GUARD"]
    assert seen(run(launcher, "again", "-D", "medical")) == digests(DATA, "medical")


def test_five_thousand_files(launcher: Launcher, tmp_path: Path) -> None:
    files = {f"{number // 250:02}/{number:04}.txt": b"%d\n" % number * 50 for number in range(5000)}
    write(tmp_path / "many", files)
    started = time.monotonic()
    launcher("dataset", "push", "many", "--file", tmp_path / "many")
    pushed = time.monotonic()
    assert seen(run(launcher, "cold", "-D", "many")) == digests(files, "many")
    cold = time.monotonic()
    run(launcher, "warm", "-D", "many")
    warm = time.monotonic()
    assert len(launcher.json("dataset", "inspect", "many")["status"]["files"]) == 5000
    print(f"5,000 files: push {pushed - started:.1f} s, job {cold - pushed:.1f} s, again {warm - cold:.1f} s")
    assert pushed - started < 60 and cold - pushed < 60


def test_in_an_s3_store(launcher: Launcher, s3_server: S3Server, data: Path, tmp_path: Path) -> None:
    bucket = s3_server.new_bucket()
    launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{bucket}/team"}
    files = DATA | {f"many/{number}": b"%d" % number for number in range(300)}
    write(tmp_path / "all", files)
    launcher("dataset", "push", "medical", "--file", tmp_path / "all")
    assert seen(run(launcher, "ft", "-D", "medical")) == digests(files, "medical")
    (identifier,) = (
        each["id"] for each in launcher.json("checkpoint", "inspect", "job:ft")["spec"]["lineage"]["datasets"]
    )
    # From the bucket, as any tool sees it: the files are plain objects.
    url = f"s3://{bucket}/team/datasets/checkpoints/{identifier}"
    assert "Pushed again@v1" in launcher("dataset", "push", "again", "--file", url)
    listed = launcher.json("dataset", "list")
    assert listed[0]["status"]["digest"] == listed[1]["status"]["digest"]
    assert "whole" in launcher("dataset", "verify", "again", "--read-data")
    output = launcher("checkpoint", "check", "--read-data")
    assert f"1 checkpoint(s), 2 dataset(s), {2 + 2 * len(files)} file(s): sound." in output
    launcher("dataset", "push", "some", "--file", f"{url}/shard.tar", "--file", f"{url}/train.jsonl=x/first.jsonl")
    launcher("dataset", "fetch", "some", "--destination", tmp_path / "some")
    assert content(tmp_path / "some") == {"shard.tar": b"no archive", "x/first.jsonl": DATA["train.jsonl"]}
    launcher("dataset", "delete", "again", "some", "--yes")
    assert [each["metadata"]["name"] for each in launcher.json("dataset", "list")] == ["medical"]


@pytest.fixture
def docker(launcher: Launcher, engine: str) -> Iterator[Launcher]:
    launcher.env["DOCKER_HOST"] = engine
    yield launcher


@pytest.mark.timeout(1500)  # The base image takes minutes to make where it is not there yet.
def test_in_a_container(docker: Launcher, data: Path) -> None:
    docker("dataset", "push", "medical", "--file", data)
    words = (
        "training",
        "run",
        "c",
        "--runner",
        "docker",
        "--image",
        BASE,
        "-D",
        "medical",
        "-D",
        "medical=again",
        "--",
    )
    output = docker(*words, "sh", "-c", f"echo at $FLEXAI_INPUT_DIR; ls /input; {WRITES}", code=7)
    assert "at /input\n" in output and "again\nmedical\n" in output and "tried" in output
    assert not re.search("^DONE", output, re.M), output
    recorded = docker.json("training", "inspect", "c")["attempts"][0]["datasets"]
    assert [(each["path"], each["rung"]) for each in recorded] == [
        ("/input/medical", "engine"),
        ("/input/again", "engine"),
    ]
    assert "not in the datasets" in docker(*words, "cat", "/input/medcal/train.jsonl", code=66)
