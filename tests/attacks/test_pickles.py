"""Pickles that would run code or exhaust memory: nothing is executed, nothing is called safe, and it takes little."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import push
from launcher.checkpoint import safety
from launcher.checkpoint.tree import Folder
from launcher.errors import UnsafePickle
from launcher.events import Event
from launcher.settings import Settings, resolve_defaults
from launcher.store.store import Store
from launcher.verify import verify
from tests.campaigns import layouts
from tests.support.cli import Launcher
from tests.support.hostile_pickles import Case, call, cases


def _written(case: Case, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path, data in case.files.items():
        (folder / path).write_bytes(data)
    return folder


def test_no_hostile_pickle_is_executed_or_called_safe_by_push_verify_or_list(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    settings = resolve_defaults(Settings(store=str(tmp_path / "store")), {"HOME": str(tmp_path)})
    store = Store.open(settings, {})
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    every = cases(canary)
    for number, case in enumerate(every):
        folder = _written(case, tmp_path / "hostile" / str(number))
        started = time.process_time()
        found = verify(str(folder), lambda: store, read_data=False, settings=settings, environ={})
        slowest = max(slowest, time.process_time() - started)
        assert found["safety"]["findings"], case.name
        with pytest.raises(UnsafePickle):
            push.push(store, f"deny-{number}", str(folder), threads=4, force=True, emit=_silent, pickles="deny")
        said: list[Event] = []
        push.push(store, f"warn-{number}", str(folder), threads=4, force=True, emit=said.append, pickles="warn")
        assert [each.kind for each in said].count("unsafe-pickle") == 1, case.name
    listed = store.checkpoints()
    assert len(listed) == len(every) and all(each.manifest.safety for each in listed)
    assert not canary.exists()
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{len(every)} hostile checkpoints through push, verify, list: 0 executed, 0 without a finding, all refused by deny; "
        f"slowest {slowest:.1f} s of processor time, {memory:.0f} MB"
    )
    assert slowest < 30 and memory < 400


def _silent(event: Event) -> None:
    """Nobody listens."""


def test_the_hostile_pickles_are_alive(tmp_path: Path) -> None:
    """The control: loaded by pickle itself, in a process of its own, each of these does create the canary."""
    canary = tmp_path / "canary"
    alive = [case for case in cases(canary) if case.raw]
    several = (
        "import os, pickle, sys\n"
        "for path in sys.argv[2:]:\n"
        "    try: pickle.load(open(path, 'rb'))\n"
        "    except Exception: pass\n"
        "    print(path, os.path.exists(sys.argv[1]))\n"
        "    os.path.exists(sys.argv[1]) and os.unlink(sys.argv[1])\n"
    )
    paths = []
    for number, case in enumerate(alive):
        paths.append(tmp_path / f"{number}.pkl")
        paths[-1].write_bytes(case.raw or b"")
    done = subprocess.run(
        [sys.executable, "-c", several, canary, *paths], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    ran = [line.endswith(" True") for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert ran == [True] * len(alive), [case.name for case, each in zip(alive, ran) if not each]
    print(f"{len(alive)} of {len(alive)} raw pickles run when they are loaded")


def test_what_fickling_finds_is_found_here(tmp_path: Path) -> None:
    """A second opinion on every bare pickle: whatever fickling does not call likely safe has a finding of ours."""
    import fickling.analysis
    import fickling.fickle

    missed, compared, safe = [], 0, []
    for case in cases(tmp_path / "canary"):
        for path, data in case.files.items():
            if len(data) > 10_000 or data.startswith(b"PK"):
                continue  # it takes minutes for some of the bombs
            try:
                result = fickling.analysis.check_safety(fickling.fickle.Pickled.load(io.BytesIO(data)))
            except Exception:  # what it cannot read says nothing
                continue
            compared += 1
            likely_safe = result.severity is fickling.analysis.Severity.LIKELY_SAFE
            ours = safety.look(Folder.single(str(_one(tmp_path / f"{compared}", path, data)))).findings
            if likely_safe and ours:
                safe.append(case.name)
            elif not likely_safe and not ours and len(case.files) == 1:
                missed.append(case.name)
    print(
        f"{compared} pickles: {len(missed)} found by fickling alone, {len(safe)} found here alone ({', '.join(safe)})"
    )
    assert not missed


def _one(folder: Path, path: str, data: bytes) -> Path:
    folder.mkdir()
    (folder / path).write_bytes(data)
    return folder / path


def test_ordinary_checkpoints_have_no_findings(tmp_path: Path) -> None:
    layouts.write(tmp_path)
    found = {folder.name: safety.look(Folder.scan(str(folder))) for folder in tmp_path.iterdir()}
    assert {name: each.findings for name, each in found.items() if each.findings} == {}
    assert "torch._utils._rebuild_tensor_v2" in found["trainer"].imports
    print(
        f"{len(found)} layouts: 0 findings, {len({name for each in found.values() for name in each.imports})} names imported"
    )


def test_a_job_that_saves_a_hostile_pickle(launcher: Launcher, tmp_path: Path) -> None:
    """deny: not collected, by name in the report, nothing left to recover; warn: collected, and said once."""
    script = tmp_path / "train.py"
    evil = call("os", "system", f"touch {tmp_path}/canary")
    script.write_text(
        "import os, pathlib\n"
        "out = pathlib.Path(os.environ['FLEXAI_OUTPUT_CHECKPOINT_DIR'], 'step-1')\n"
        "out.mkdir()\n"
        f"(out / 'model.pt').write_bytes({_zip_of(evil)!r})\n"
    )
    said = launcher("training", "run", "denied", "--pickles", "deny", "--launch", "exec", "--", "python", str(script))
    assert "denied/step-1 is refused by --pickles deny" in said and "os.system" in said
    assert launcher.json("training", "checkpoints", "denied") == []
    said = launcher("training", "run", "warned", "--launch", "exec", "--", "python", str(script))
    assert said.count("loading its pickles may run code") == 1
    assert launcher.json("checkpoint", "inspect", "warned/step-1")["status"]["safety"]["findings"]
    said = launcher("training", "run", "next", "-C", "warned/step-1", "--pickles", "deny", "--", "true", code=65)
    assert "warned/step-1 is refused" in said
    launcher("checkpoint", "verify", "warned/step-1")
    assert not (tmp_path / "canary").exists()
    assert os.listdir(launcher.job("denied") / "spool") == []


def _zip_of(data: bytes) -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()
