"""What the watcher sees, by the way each library writes (measured): whole checkpoints are captured, each once, never between
two states, and what is not collected is named with its reason."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from launcher.outputs.capture import Capture
from tests.campaigns import quick_writer
from tests.support.watching import Watching, eventually, read, save_trainer, state_of

FILES = list(quick_writer.content(1, 1))
TORCH = quick_writer.torch_file("model", {"w": b"x" * 5000})


def tensors(value: bytes = b"x" * 1000) -> bytes:
    """A safetensors file."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(value)], "data_offsets": [0, len(value)]}}).encode()
    return struct.pack("<Q", len(header)) + header + value


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


# ── where checkpoints are ────────────────────────────────────────────────────────────────────────────────────────────


def test_folders_in_containers_are_checkpoints_of_their_own(output: Path) -> None:
    """accelerate's automatic naming, trials, a Trainer below a folder of its own; a pipeline's components are no checkpoints."""
    watching = Watching(output)
    for folder in ("checkpoints/checkpoint_0", "checkpoints/checkpoint_1", "run-1/checkpoint-5", "exp1/checkpoint-5"):
        save_trainer(output / folder, 1, 1)
    for name, data in quick_writer.root_content(1, 2).items():
        (output / "exp1" / name).write_bytes(data)
    for component in ("unet", "vae"):
        (output / "pipeline" / component).mkdir(parents=True)
        (output / "pipeline" / component / "config.json").write_text('{"_class_name": "Model"}')
        (output / "pipeline" / component / "diffusion_pytorch_model.safetensors").write_bytes(tensors())
    (output / "pipeline" / "model_index.json").write_text(
        '{"_class_name": "Pipe", "unet": ["d", "M"], "vae": ["d", "M"]}'
    )
    names = {f"job/{each}" for each in ("checkpoints/checkpoint_0", "checkpoints/checkpoint_1", "run-1/checkpoint-5")}
    names |= {"job/exp1/checkpoint-5", "job/exp1", "job/pipeline"}
    watching.wait(*names)
    assert watching.finish() == []
    assert sorted(watching.names) == sorted(names)
    by_name = {each.name: each for each in watching.captured}
    assert set(by_name["job/exp1"].files) == set(quick_writer.root_content(1, 2))


def test_a_folder_that_appears_by_one_rename_is_captured(output: Path) -> None:
    """transformers 4.37 and Orbax: everything under a temporary name, then one rename of the folder."""
    watching = Watching(output, settle=30)
    save_trainer(output / "tmp-checkpoint-3", 1, 3)
    assert watching.names == []
    (output / "tmp-checkpoint-3").rename(output / "checkpoint-3")
    watching.wait("job/checkpoint-3")
    assert watching.finish() == []
    assert watching.names == ["job/checkpoint-3"]


def test_further_folders_are_watched_even_if_they_come_later(output: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "results"
    watching = Watching(output, also=[str(other)])
    save_trainer(other / "checkpoint-1", 1, 1)
    watching.wait("job/results/checkpoint-1")
    save_trainer(other / "checkpoint-2", 1, 2)
    watching.wait("job/results/checkpoint-2")
    assert watching.finish() == []
    assert [each.path for each in watching.captured] == [f"{other}/checkpoint-1", f"{other}/checkpoint-2"]


def test_what_was_there_before_is_not_the_jobs(output: Path) -> None:
    save_trainer(output / "checkpoint-1", 1, 1)
    (output / "old.pt").write_bytes(TORCH)
    watching = Watching(output)
    save_trainer(output / "checkpoint-2", 1, 2)
    watching.wait("job/checkpoint-2")
    assert watching.finish() == [] and watching.names == ["job/checkpoint-2"]


# ── when they are whole ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_rank_s_random_state_belongs_to_it(output: Path) -> None:
    """A second rank's file came 1.94 s after trainer_state.json (measured); nothing else moves meanwhile."""
    watching = Watching(output, world_size=2, settle=0.1)
    folder = output / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "rng_state_0.pth").write_bytes(TORCH)
    save_trainer(folder, 1, 1, names=[name for name in FILES if name != "rng_state.pth"])
    time.sleep(1)
    assert watching.names == []
    (folder / "rng_state_1.pth").write_bytes(TORCH)
    watching.wait("job/checkpoint-1")
    assert watching.finish() == []
    assert [set(each.files) >= {"rng_state_0.pth", "rng_state_1.pth"} for each in watching.captured] == [True]


@pytest.mark.parametrize("ended_well", [True, False])
def test_a_folder_that_is_written_again_is_never_captured_in_between(output: Path, ended_well: bool) -> None:
    """A restarted Trainer truncates the files one by one, and the old trainer_state.json stays valid to the end."""
    watching = Watching(output, settle=0.05)
    save_trainer(output / "checkpoint-1", 1, 1)
    watching.wait("job/checkpoint-1")
    save_trainer(output / "checkpoint-1", 1, 2, pause=0.4)  # Eight times longer than quiet needs.
    eventually(lambda: len(watching.captured) == 2, "the second state")
    assert state_of(read(watching.captured[1]) or {}, 1, (1, 2), quick_writer.content) == 2
    save_trainer(output / "checkpoint-1", 1, 3, pause=0.4, names=FILES[:-1])
    salvage = watching.finish(well=ended_well)
    assert len(watching.captured) == 2
    assert [path for path, _ in salvage] == ["checkpoint-1"]
    assert "trainer_state.json is still the earlier save's" in salvage[0][1].reasons[0]


def test_a_script_that_saves_only_its_model_again_is_understood(output: Path) -> None:
    """Where no last file proves anything, a folder of which only some files are new needs a longer quiet, and gets it."""
    watching = Watching(output, settle=0.1)
    (output / "model").mkdir(parents=True)
    (output / "model" / "tokenizer.json").write_text("{}")
    for step in range(3):
        (output / "model" / "model.safetensors").write_bytes(tensors(b"%04d" % step))
        eventually(lambda step=step: len(watching.captured) == step + 1, f"state {step}")
    assert watching.finish() == []
    assert len(watching.captured) == 3


def test_what_is_open_for_writing_is_not_whole(output: Path) -> None:
    watching = Watching(output, settle=0.05)
    (output / "step-1").mkdir(parents=True)
    with open(output / "step-1" / "model.pt", "wb") as file:
        file.write(TORCH)
        file.flush()
        time.sleep(1)
        assert watching.names == []
    watching.wait("job/step-1")
    watching.finish()


def test_the_next_checkpoint_proves_that_the_last_one_is_over(output: Path) -> None:
    """Formats that no last file proves need quiet, or a newer sibling: rotation right after it takes nothing away."""
    watching = Watching(output, settle=60)
    for step in range(6):
        (output / f"step-{step}").mkdir(parents=True)
        eventually(lambda step=step: step == 0 or f"job/step-{step - 1}" in watching.names, "the one before")
        if step:
            shutil.rmtree(output / f"step-{step - 1}")
        (output / f"step-{step}" / "model.pt").write_bytes(TORCH)
    watching.finish()
    assert watching.names == [f"job/step-{step}" for step in range(6)]


def test_a_half_deleted_folder_is_no_checkpoint(output: Path) -> None:
    """Without optimizer and random states it passes for a whole `save_only_model` one: only the deletions tell."""
    watching = Watching(output, settle=0.05)
    save_trainer(output / "checkpoint-1", 1, 1, names=[name for name in FILES if name != "rng_state.pth"])
    time.sleep(0.5)
    assert watching.names == []  # Its random state is missing.
    for name in ("optimizer.pt", "scheduler.pt"):
        (output / "checkpoint-1" / name).unlink()
    time.sleep(0.5)
    salvage = watching.finish(well=False)
    assert watching.names == []
    assert salvage[0][1].reasons == ("files of it were deleted",)


def test_what_goes_before_it_can_be_captured_is_named(output: Path) -> None:
    watching = Watching(output, settle=60)
    (output / "step-1").mkdir(parents=True)
    (output / "step-1" / "model.pt").write_bytes(TORCH)
    shutil.rmtree(output / "step-1")
    eventually(lambda: watching.reported, "it is reported")
    watching.finish()
    assert list(watching.reported) == ["job/step-1"]
    assert "before it could be" in watching.reported["job/step-1"]


# ── flat files and the root's own checkpoint ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["renamed in", "copied in place"])
def test_flat_files_are_captured_at_once(output: Path, tmp_path: Path, how: str) -> None:
    """Lightning: moved in from TMPDIR (one MOVED_TO, no close), or copied in place and its times set after the close; the
    older one is deleted at the next save."""
    watching = Watching(output, settle=30)
    for step in range(5):
        name = f"epoch={step}-step={step * 8}.ckpt"
        (tmp_path / "made").write_bytes(TORCH)
        if how == "renamed in":
            (tmp_path / "made").rename(output / name)
        else:
            shutil.copyfile(tmp_path / "made", output / name)
            os.utime(output / name, (1, 1))
        watching.wait(f"job/{name}")
        (output / name).unlink()
    (output / "train.log").write_text("no tensors")
    (output / "results.json").write_text("{}")
    assert watching.finish() == []
    assert set(watching.names) == {f"job/epoch={step}-step={step * 8}.ckpt" for step in range(5)}
    assert [event.kind for event in watching.events].count("flat-file") == 1


def test_the_roots_own_checkpoint_is_one(output: Path) -> None:
    watching = Watching(output, settle=0.4)
    for step in (1, 2):
        for name, data in quick_writer.root_content(1, step).items():
            (output / name).write_bytes(data)
        eventually(lambda step=step: watching.names.count("job") == step, f"the root's state {step}")
    (output / "events.log").write_text("an output")
    assert watching.finish() == []
    assert watching.names == ["job", "job"]
    assert [state_of(read(each) or {}, 1, (1, 2), quick_writer.root_content) for each in watching.captured] == [1, 2]


# ── what cannot be collected, and what must not disturb ──────────────────────────────────────────────────────────────


def test_odd_names_are_kept_or_named(output: Path) -> None:
    watching = Watching(output)
    good = ["with space", "ünïcödé-数", "x" * 255, "a'b\"c$d"]
    for name in good:
        (output / name).mkdir(parents=True)
        (output / name / "model.pt").write_bytes(TORCH)
    (output / "long").mkdir()
    (output / "long" / ("y" * 252 + ".pt")).write_bytes(TORCH)
    bad = {"new\nline": "control", "twins": "case does not count", "not-utf8": "UTF-8", "bell": "control"}
    for folder, name in (("new\nline", "model.pt"), ("not-utf8", "m\udcff.pt"), ("bell", "m\a.pt")):
        (output / folder).mkdir()
        (output / folder / name).write_bytes(TORCH)
    (output / "twins").mkdir()
    (output / "twins" / "Model.pt").write_bytes(TORCH)
    (output / "twins" / "model.pt").write_bytes(TORCH)
    save_trainer(output / "checkpoint-9", 1, 9)
    assert watching.finish() == []
    assert sorted(each.path for each in watching.captured) == sorted([*good, "long", "checkpoint-9"])
    reported = {
        event.facts["path"]: event.facts["reason"] for event in watching.events if event.kind == "checkpoint-skipped"
    }
    assert len(reported) == len(bad)
    for folder, rule in bad.items():
        assert rule in reported[folder.replace("\n", "\\n")]


def test_links_and_special_files_are_reported_once_and_never_opened(output: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.pt"
    secret.write_bytes(TORCH)
    watching = Watching(output)
    folder = output / "checkpoint-1"
    save_trainer(folder, 1, 1, names=FILES[:-1])
    (folder / "link.pt").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        (output / "dangling.pt").symlink_to(tmp_path / "nothing")
        (output / "latest").symlink_to("checkpoint-1")
        (output / "away").symlink_to(tmp_path)
        save_trainer(folder, 1, 1, names=FILES[-1:])
        watching.wait("job/checkpoint-1")
        assert watching.finish() == []
    assert set(watching.captured[0].files) == set(FILES)
    paths = [event.facts["path"] for event in watching.events if event.kind == "checkpoint-skipped"]
    assert sorted(paths) == sorted(
        ["checkpoint-1/link.pt", "checkpoint-1/pipe", "checkpoint-1/socket", "dangling.pt", "away"]
    )
    assert all("job/latest" not in name for name in watching.names)


def test_sparse_files_are_captured(output: Path) -> None:
    watching = Watching(output)
    (output / "step-1").mkdir(parents=True)
    with open(output / "step-1" / "model.safetensors", "wb") as file:
        size = 1 << 30
        header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    watching.wait("job/step-1")
    watching.finish()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may not read")
def test_unreadable_files_are_reported_and_the_rest_is_collected() -> None:
    import tempfile

    home = Path(tempfile.mkdtemp(prefix="launcher-unreadable-"))
    home.chmod(0o777)
    before = os.geteuid()
    os.seteuid(65534)
    try:
        watching = Watching(home / "output")
        for name, mode in (("step-1", 0), ("step-2", 0o600), ("step-3", 0o600)):
            (watching.output / name).mkdir()
            with open(os.open(watching.output / name / "model.pt", os.O_WRONLY | os.O_CREAT, mode), "wb") as file:
                file.write(TORCH)
            if name == "step-2":
                (watching.output / name).chmod(0)
        watching.finish()
    finally:
        os.seteuid(before)
        shutil.rmtree(home)
    assert watching.names == ["job/step-3"]
    assert set(watching.reported) == {"job/step-1", "job/step-2"}
    assert all("cannot be read (Permission denied)" in each for each in watching.reported.values())


def test_ten_thousand_small_files_are_one_checkpoint(output: Path) -> None:
    watching = Watching(output, settle=0.5)
    folder = output / "step-1"
    folder.mkdir(parents=True)
    for number in range(10_000):
        (folder / f"part-{number:05}.npy").write_bytes(b"%d" % number)
    (folder / "model.pt").write_bytes(TORCH)
    watching.wait("job/step-1")
    assert watching.finish() == []
    assert [len(each.files) for each in watching.captured] == [10_001]


def test_lost_events_are_made_up_for_by_a_scan(output: Path) -> None:
    """The kernel's queue overflows while the watcher is busy; what was written meanwhile is found all the same."""
    busy, go_on = threading.Event(), threading.Event()

    def block(capture: Capture) -> None:
        busy.set()
        go_on.wait(120)

    watching = Watching(output, on_capture=block)
    save_trainer(output / "checkpoint-1", 1, 1)
    assert busy.wait(60)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with open(output / "noise-0", "wb"):
        pass
    for number in range(limit // 2 + 100):  # Two different events each: the kernel merges equal ones.
        os.rename(output / f"noise-{number}", output / f"noise-{number + 1}")
    save_trainer(output / "checkpoint-2", 1, 2)
    go_on.set()
    watching.wait("job/checkpoint-2")
    assert watching.finish() == []
    assert "watch-overflow" in [event.kind for event in watching.events]
    assert watching.names == ["job/checkpoint-1", "job/checkpoint-2"]


def test_a_large_folder_of_outputs_delays_no_capture(output: Path) -> None:
    """Walking thousands of files takes longer than a checkpoint may live: events are seen to in between."""
    watching = Watching(output, settle=0.1)
    for number in range(6_000):
        if number % 1500 == 0:
            (output / "records" / f"part-{number}").mkdir(parents=True)
        (output / "records" / f"part-{number // 1500 * 1500}" / f"{number}.json").write_text("{}")
    for step in range(1, 11):  # Each change makes the large folder to be walked again.
        (output / "records" / "part-0" / "last.json").write_text(str(step))
        time.sleep(0.1)
        save_trainer(output / f"checkpoint-{step}", 1, step)
        watching.wait(f"job/checkpoint-{step}")
        shutil.rmtree(output / f"checkpoint-{step}")
    assert watching.finish() == []
    assert watching.names == [f"job/checkpoint-{step}" for step in range(1, 11)]
