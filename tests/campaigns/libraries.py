"""Every library really writes under the launcher, and its own loader reads from the store what was written.

    python -m tests.campaigns.libraries [--only SCRIPT…] [--processes 1 2]

Each script of tests/libraries is a job; its checkpoints must be the expected ones and no others: recognised, whole, collected
under the name of their folder, and described (step, library and its version, what they are ready for, with which base). One
more job gets all of them as its input, read-only, and loads each with the library's own loader: every tensor must be the one
that the script had in memory. Prints the matrix; the exit code is 1 where a field of it is empty.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.checkpoint import formats
from launcher.checkpoint.judgement import Context
from launcher.checkpoint.tree import Folder
from tests.support.cli import Launcher


@dataclass(frozen=True)
class Layout:
    """A checkpoint that a script writes, and what must be known of it. `path`: below the output directory, may be a pattern."""

    path: str
    format: str
    library: str
    """The one that the facts name."""
    version: bool = False
    """Whether the files tell the library's version."""
    step: int | None = None
    resume: bool = False
    inference: bool = False
    base: str = ""
    """The base model that inference needs beside it."""
    processes: tuple[int, ...] = (1, 2)
    rewritten: bool = False
    """The script writes it more than once, so that it may have several versions."""


def _trainer(path: str, step: int, *, resume: bool = True, processes: tuple[int, ...] = (1, 2)) -> Layout:
    return Layout(path, "transformers-trainer", "transformers", True, step, resume, True, processes=processes)


def _pretrained(path: str) -> Layout:
    return Layout(path, "transformers-pretrained", "transformers", True, inference=True)


def _state(path: str, processes: tuple[int, ...] = (1, 2)) -> Layout:
    return Layout(path, "accelerate", "accelerate", resume=True, processes=processes)


def _lightning(path: str, step: int, *, rewritten: bool = False) -> Layout:
    return Layout(path, "lightning", "lightning", True, step, True, rewritten=rewritten)


BASE = "tiny/base"
MATRIX: dict[str, tuple[Layout, ...]] = {
    "trainer": (
        _trainer("checkpoint-2", 2),
        _trainer("checkpoint-4", 4),
        _pretrained("."),
        _trainer("weights-only/checkpoint-1", 1, resume=False),
        _trainer("weights-only/checkpoint-2", 2, resume=False),
        _trainer("just-in-time/checkpoint-*", -1, processes=(1,)),
    ),
    "save_pretrained": (_pretrained("single"), _pretrained("sharded"), _pretrained("bin")),
    "accelerate_state": (
        _state("state"),
        Layout("model", "safetensors", "safetensors"),
        _state("checkpoints/checkpoint_0"),
        _state("checkpoints/checkpoint_1"),
    ),
    "peft_adapters": (
        Layout("adapter", "peft", "peft", True, inference=True, base=BASE),
        Layout("adapters", "peft", "peft", True, inference=True, base=BASE),
        Layout("trained/checkpoint-2", "transformers-trainer", "peft", True, 2, True, True, BASE),
    ),
    "trl_trainers": (
        Layout("sft/checkpoint-2", "trl", "trl", False, 2, True, True),
        Layout("dpo/checkpoint-2", "trl", "trl", False, 2, True, True, BASE),
    ),
    "diffusers_pipeline": (
        Layout("pipeline", "diffusers-pipeline", "diffusers", True, inference=True),
        Layout("unet", "diffusers-model", "diffusers", True),
        Layout("unet-sharded", "diffusers-model", "diffusers", True),
        _state("checkpoint-500"),
    ),
    "plain_files": (
        Layout("torch", "torch-save", "torch", step=1001),
        Layout("step-1000.pt", "torch-save", "torch", step=1002),
        Layout("torch-old", "torch-save", "torch", step=1003),
        Layout("safetensors", "safetensors", "safetensors"),
        Layout("numpy", "numpy", "numpy"),
    ),
    "distributed_checkpoint": (
        Layout("saved", "torch-dcp", "torch", resume=True),
        Layout("async", "torch-dcp", "torch", resume=True),
        Layout("file-per-tensor", "torch-dcp", "torch", resume=True),
        Layout("sharded", "torch-dcp", "torch", resume=True, processes=(2,)),
    ),
    "fsdp_state": (
        _state("state-sharded", (2,)),
        _state("state-full", (2,)),
        Layout("trainer-sharded/checkpoint-2", "transformers-trainer", "transformers", False, 2, True, processes=(2,)),
        _trainer("trainer-full/checkpoint-2", 2, processes=(2,)),
    ),
    "lightning_trainer": (
        *(_lightning(f"{how}-step={step}.ckpt", step) for how in ("renamed", "copied") for step in (2, 4, 6)),
        _lightning("last.ckpt", 6, rewritten=True),
        _lightning("last-v1.ckpt", 6, rewritten=True),
    ),
    "deepspeed_engine": tuple(
        Layout(f"global_step{step}", "deepspeed", "deepspeed", True, step, True) for step in (1, 2)
    ),
    "orbax_manager": tuple(Layout(str(step), "orbax", "orbax", resume=True) for step in (1, 2, 3)),
    "gguf_writer": (Layout("gguf", "gguf", "gguf", inference=True),),
}
"""What each script of tests/libraries writes. Step -1: whatever its name says."""
COLUMNS = ("recognised", "whole", "collected", "described", "loaded equal")


@dataclass(frozen=True)
class Run:
    """A job: one script under torchrun, or several in one process without it."""

    scripts: tuple[str, ...]
    processes: int

    @property
    def name(self) -> str:
        return f"{self.scripts[0] if len(self.scripts) == 1 else 'together'}-{self.processes}"

    @property
    def words(self) -> list[str]:
        if len(self.scripts) > 1:
            return ["--launch", "exec", "--", "tests/libraries/together.py", *self.scripts]
        return ["--accels", str(self.processes), "--", f"tests/libraries/{self.scripts[0]}.py"]


@dataclass
class Row:
    """One checkpoint of one run: what is proven of it, and what is wrong."""

    run: str
    script: str
    path: str
    proven: dict[str, bool] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    identifier: str = ""

    @property
    def folder(self) -> str:
        """Where the loading job finds it below its input directory; `-C REF=FOLDER` takes no `=` in FOLDER."""
        return f"{self.run}/{self.script}/{'root' if self.path == '.' else self.path}".replace("=", "-")


def write(launcher: Launcher, run: Run) -> list[Row]:
    """Runs scripts as a job, and compares what was collected with what they must have written."""
    flags = ["-E", f"REFERENCE={launcher.home / 'references' / run.name}", "-E", "OMP_NUM_THREADS=1"]
    launcher("training", "run", run.name, *flags, *run.words, timeout=600)
    collected: dict[str, list[Any]] = {}
    for each in launcher.json("training", "checkpoints", run.name):
        collected.setdefault(each["spec"]["origin"]["path"], []).append(each)
    record = json.loads((launcher.job(run.name) / "record.json").read_text())
    skipped = {each["name"]: each["reason"] for each in record["skipped"]}
    rows = []
    layouts = [(script, layout) for script in run.scripts for layout in MATRIX[script]]
    for script, layout in layouts:
        if run.processes not in layout.processes:
            continue
        path = next((path for path in collected if fnmatch.fnmatchcase(path, layout.path)), layout.path)
        row = Row(run.name, script, path)
        rows.append(row)
        versions = collected.pop(path, [])
        if versions:
            _compare(row, layout, launcher, versions, run.processes)
        else:
            row.wrong.append(f"not collected ({skipped.get(f'{run.name}/{path}', 'nothing is said of it')})")
    for path, versions in collected.items():
        reason = f"collected as {versions[-1]['status']['format']}, and is no checkpoint"
        rows.append(Row(run.name, run.scripts[0], path, wrong=[reason]))
    return rows


def _compare(row: Row, layout: Layout, launcher: Launcher, versions: list[Any], processes: int) -> None:
    newest = versions[-1]
    status, facts, ready = newest["status"], newest["status"]["facts"], newest["status"]["ready"]
    row.identifier = newest["metadata"]["id"]
    stored = launcher.home / "data" / "store" / "checkpoints" / row.identifier
    judgement = formats.judge(Folder.scan(str(stored)), Context(world_size=processes))
    row.proven = {"recognised": status["format"] == layout.format, "whole": judgement.whole, "collected": True}
    if not row.proven["recognised"]:
        row.wrong.append(f"recognised as {status['format']}")
    row.wrong += judgement.reasons
    name = row.run if row.path == "." else f"{row.run}/{row.path}"
    step = int(row.path.rpartition("-")[2]) if layout.step == -1 else layout.step
    wanted: dict[str, object] = {
        "name": name,
        "version": newest["metadata"]["version"] if layout.rewritten else 1,
        "library": layout.library,
        "library_version": importlib.metadata.version(layout.library) if layout.version else None,
        "step": step,
        "resume": layout.resume,
        "inference": layout.inference,
        "base": layout.base,
    }
    found = {key: newest["metadata"].get(key, facts.get(key, ready.get(key))) for key in wanted}
    other = [f"{key} is {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]]
    row.proven["described"] = not other
    row.wrong += other


def load(launcher: Launcher, rows: list[Row]) -> None:
    """One job that has every collected checkpoint as its input and loads it."""
    inputs = [word for row in rows if row.identifier for word in ("-C", f"{row.identifier}={row.folder}")]
    output = launcher(
        "training", "run", "load", *inputs, "--launch", "exec", "-E", f"REFERENCE={launcher.home / 'references'}",
        "--", "tests/libraries/load.py", timeout=600,
    )  # fmt: skip
    found = {name: (int(equal), int(all)) for name, equal, all in re.findall(_LOADED, output)}
    failed = dict(re.findall(r"not loaded (\S+): (.*)", output))
    for row in rows:
        equal, every = found.get(row.folder, (0, 0))
        row.proven["loaded equal"] = 0 < equal == every
        if not row.proven["loaded equal"] and row.identifier:
            row.wrong.append(failed.get(row.folder, f"{equal} of {every} tensors are equal"))
    return output


_LOADED = r"(?<!not )loaded (\S+): (\d+) of (\d+) tensors equal"


def matrix(launcher: Launcher, runs: Iterable[Run]) -> list[Row]:
    """Every run, written and loaded again."""
    rows = [row for run in runs for row in write(launcher, run)]
    load(launcher, rows)
    return rows


def show(rows: list[Row]) -> str:
    """The matrix as a table, with what is wrong below."""
    wide = max(len(f"{row.run}/{row.path}") for row in rows)
    lines = [f"{'run/checkpoint':{wide}}  " + "  ".join(COLUMNS)]
    for row in rows:
        cells = ("yes" if row.proven.get(column) else "NO" for column in COLUMNS)
        lines.append(
            f"{row.run + '/' + row.path:{wide}}  " + "  ".join(f"{cell:{len(c)}}" for cell, c in zip(cells, COLUMNS))
        )
    lines += [f"  {row.run}/{row.path}: {each}" for row in rows for each in row.wrong]
    counts = ", ".join(f"{sum(bool(row.proven.get(column)) for row in rows)} {column}" for column in COLUMNS)
    return "\n".join([*lines, f"{len(rows)} checkpoints: {counts}, {sum(bool(row.wrong) for row in rows)} wrong"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(MATRIX), choices=list(MATRIX), metavar="SCRIPT")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2])
    arguments = parser.parse_args()
    runs = [
        Run((script,), processes)
        for script in arguments.only
        for processes in arguments.processes
        if any(processes in layout.processes for layout in MATRIX[script])
    ]
    home = Path(tempfile.mkdtemp())
    started = time.monotonic()
    try:
        rows = matrix(Launcher(home), runs)
    finally:
        subprocess.run(["chmod", "-R", "u+w", home], check=False)
        shutil.rmtree(home, ignore_errors=True)
    print(show(rows))
    print(f"{len(runs)} runs, {time.monotonic() - started:.0f} s")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
