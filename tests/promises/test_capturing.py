"""A capture is out of the writer's reach, on every kind of file system: reflinks on XFS, hard links on ext4, held descriptors
(and links) on tmpfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture
from launcher.outputs.filesystem import RUNGS, Rung, network
from tests.campaigns import quick_writer
from tests.conftest import REQUIRE_ALL
from tests.support.cli import ROOT
from tests.support.filesystems import KernelCannot, PartMissing, mounted
from tests.support.watching import Watching, eventually, forget, read, save_trainer, state_of

SETTINGS: list[tuple[str, tuple[Rung, ...], str]] = [
    ("xfs", RUNGS, "reflink"),
    ("ext4", RUNGS, "link"),
    ("tmpfs", RUNGS, "link"),
    ("tmpfs", ("held",), "held"),
]


@pytest.fixture(params=SETTINGS, ids=lambda each: f"{each[0]}-{each[2]}")
def setting(request: pytest.FixtureRequest) -> Iterator[tuple[Path, tuple[Rung, ...], str]]:
    """A real file system, the ways that may be tried on it, and the one that has to be found."""
    kind, rungs, how = request.param
    try:
        with mounted(kind) as folder:
            yield folder, rungs, how
    except PartMissing as error:
        if REQUIRE_ALL:
            pytest.fail(f"{error} is missing: tests/support/install")
        pytest.skip(f"{error} is missing")
    except KernelCannot as error:
        pytest.skip(f"this machine cannot: {error}")


def test_what_rotation_deletes_stays_readable(setting: tuple[Path, tuple[Rung, ...], str], tmp_path: Path) -> None:
    """From any process of ours, with every byte, while the spool is on another file system."""
    folder, rungs, how = setting
    output = folder / "output"
    watching = Watching(
        output, rungs=rungs, settle=30, spool=tmp_path / "spool" if how != "reflink" else folder / "spool"
    )
    for step in (1, 2, 3):
        save_trainer(output / f"checkpoint-{step}", 1, step)
        watching.wait(f"job/checkpoint-{step}")
        shutil.rmtree(output / f"checkpoint-{step}")
    assert watching.finish() == []
    assert [each.how for each in watching.captured] == [how] * 3
    assert [state_of(read(each) or {}, 1, (1, 2, 3), quick_writer.content) for each in watching.captured] == [1, 2, 3]
    assert [each.step for each in watching.captured] == [1, 2, 3]
    program = (
        "import sys, msgspec; from launcher.outputs import capture as c; from tests.support.watching import read; "
        "from pathlib import Path; print([len(read(each)) for each in c.load(Path(sys.argv[1]))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, watching.spool], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == str([len(quick_writer.content(1, 1))] * 3), done.stderr
    for capture in watching.captured:
        forget(watching, capture)
    assert list(watching.spool.iterdir()) == [] and not (output / ".launcher").exists()


def test_what_is_rewritten_in_place_is_kept_or_noticed(setting: tuple[Path, tuple[Rung, ...], str]) -> None:
    """The capture is what it was, or says that it is not; the newer state is captured too, by a copy where it is small."""
    folder, rungs, how = setting
    output = folder / "output"
    watching = Watching(output, rungs=rungs, settle=30)
    for step in (1, 2, 3):
        save_trainer(output / "checkpoint-1", 1, step)
        eventually(lambda step=step: len(watching.captured) == step, f"state {step}")
    assert watching.finish() == []
    states = [
        (content := read(each)) and state_of(content, 1, (1, 2, 3), quick_writer.content) for each in watching.captured
    ]
    later = "reflink" if how == "reflink" else "copy"
    assert [each.how for each in watching.captured] == [how, later, later]
    assert states == [1 if how == "reflink" else None, 2, 3]


def test_a_flat_file_is_not_linked(setting: tuple[Path, tuple[Rung, ...], str]) -> None:
    folder, rungs, how = setting
    output = folder / "output"
    watching = Watching(output, rungs=rungs, settle=30)
    for step in (1, 2, 3):
        (output / "last.ckpt").write_bytes(quick_writer.content(1, step)["optimizer.pt"])
        eventually(lambda step=step: len(watching.captured) == step, f"state {step}")
    watching.finish()
    assert [each.how for each in watching.captured] == ["reflink" if how == "reflink" else "copy"] * 3
    found = [(read(each) or {})["last.ckpt"] for each in watching.captured]
    assert found == [quick_writer.content(1, step)["optimizer.pt"] for step in (1, 2, 3)]


def test_held_descriptors_are_closed_once_stored(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "output", rungs=("held",), settle=0.1)
    save_trainer(watching.output / "checkpoint-1", 1, 1)
    watching.wait("job/checkpoint-1")
    first = watching.captured[0]
    assert first.holder == os.getpid() and set(first.descriptors) == set(first.files)
    names = {os.readlink(f"/proc/self/fd/{fd}") for fd in first.descriptors.values()}
    forget(watching, first)
    save_trainer(watching.output / "checkpoint-2", 1, 2)
    watching.wait("job/checkpoint-2")

    def closed() -> bool:
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return not names & {os.readlink(each) for each in links if os.path.lexists(each)}

    eventually(closed, "its descriptors are closed")
    watching.finish()
    assert captures.load(watching.spool) == [watching.captured[1]]


LIMITED = """
import resource, sys, shutil
from pathlib import Path
from tests.campaigns.quick_writer import content
from tests.support.watching import Watching, read
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
watching = Watching(Path(sys.argv[1]), rungs=("held",), settle=0.2)
folder = watching.output / "step-1"
folder.mkdir()
for number in range(1500):
    (folder / f"part-{number}.npy").write_bytes(b"%d" % number)
(folder / "model.pt").write_bytes(content(1, 1)["scheduler.pt"])
watching.wait("job/step-1")
shutil.rmtree(folder)
watching.finish()
print([(each.how, len(read(each))) for each in watching.captured])
"""


@pytest.mark.parametrize(("limits", "how"), [(("400", "20000"), "held"), (("400", "400"), "copy")])
def test_the_limit_of_descriptors_is_raised_or_copies_are_made(
    tmp_path: Path, limits: tuple[str, str], how: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "output", *limits],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == str([(how, 1501)]), done.stdout + done.stderr


POLLED = """
import ctypes, os, sys
from pathlib import Path
from tests.support.watching import Watching, save_trainer, eventually
first = Watching(Path(sys.argv[1] + "-first"), settle=0.2)  # Imports what a stranger may not read.
save_trainer(first.output / "checkpoint-1", 1, 1)
first.wait("job/checkpoint-1")
first.finish()
os.setresuid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0:
    pass
watching = Watching(Path(sys.argv[1]), settle=0.2)
for step in (1, 2, 3):
    save_trainer(watching.output / f"checkpoint-{step}", 1, step)
    watching.wait(f"job/checkpoint-{step}")
watching.finish()
print(watching.names, [event.kind for event in watching.events][0])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to use up the inotify instances of somebody else")
def test_without_inotify_scans_find_everything(tmp_path: Path) -> None:
    """All inotify instances of a user are taken, as by an editor and a desktop: said once, and scanned instead."""
    import tempfile

    home = Path(tempfile.mkdtemp(prefix="launcher-polled-"))
    home.chmod(0o777)
    try:
        user = str(100_000 + os.getpid() % 100_000)
        done = subprocess.run(
            [sys.executable, "-c", POLLED, home / "output", user], cwd=ROOT, capture_output=True, text=True, timeout=240
        )
    finally:
        shutil.rmtree(home)
    names = [f"job/checkpoint-{step}" for step in (1, 2, 3)]
    assert done.stdout.strip() == f"{names} watch-degraded", done.stdout + done.stderr


def test_a_capture_survives_being_written_down(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "output", settle=0.1)
    save_trainer(watching.output / "checkpoint-1", 1, 1)
    watching.wait("job/checkpoint-1")
    watching.finish()
    assert msgspec.json.decode(msgspec.json.encode(watching.captured[0]), type=Capture) == watching.captured[0]
    (watching.spool / "0190aaaa-0000-7000-8000-000000000000" / "files").mkdir(parents=True)  # A crash in between.
    assert captures.load(watching.spool) == watching.captured
    assert [each.name for each in watching.spool.iterdir()] == [watching.captured[0].id]


def test_a_local_file_system_is_no_network() -> None:
    assert network("/proc") is None and network("/") not in ("NFS", "Lustre")
