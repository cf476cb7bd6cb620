"""Many writers, one name: every version number once, every checkpoint named once.

    python -m tests.campaigns.versions [--writers 16] [--commits 50] [--store URL] [--faults] [--seed 1]

Each writer is a process of its own that commits checkpoints under the same name. Afterwards the name's versions must be 1 to
writers × commits without a gap, each checkpoint once, every announced one readable, and what each writer was told must be
what the store says. With --faults (of a store on S3), a tenth of the requests that create manifests and names is answered
wrongly: refused, cut, or answered with an error after the object has landed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher.checkpoint.manifest import SCHEMA, Manifest
from launcher.ids import new_id
from launcher.store.store import Store
from launcher.store.upload import upload_files
from launcher.transfer.places import open_place
from tests.support.cli import ROOT
from tests.support.fault_proxy import FaultProxy

FAULTS = ("500", "503", "409", "cut", "close", "500-after-landing", "cut-after-landing", "close-after-landing")


def open_store(url: str) -> Store:
    return Store(open_place(url, timeout=30, environ=os.environ), timeout=30, threads=2)


def write(url: str, commits: int) -> None:
    """One writer: prints a JSON list of [id, version] as it was told."""
    store = open_store(url)
    told = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(commits):
            (Path(folder) / "model.bin").write_bytes(os.urandom(100) + str(number).encode())
            identifier = new_id()
            files = upload_files(store, identifier, folder, ["model.bin"], threads=1, on_bytes=lambda count: None)
            manifest = Manifest(
                schema=SCHEMA,
                id=identifier,
                name="shared",
                created=time.time(),
                writer="campaign",
                format="unknown",
                files=files,
                size=sum(file.size for file in files),
            )
            told.append([identifier, store.commit(manifest).version])
    print(json.dumps(told))


def campaign(url: str, writers: int, commits: int) -> str:
    """Runs the writers and checks; returns the line of figures. Raises AssertionError where the promise is broken."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.campaigns.versions", "--store", url, "--commits", str(commits), "--write"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(writers)]
    told: dict[str, int] = {}
    for process in processes:
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0
        told.update(dict(json.loads(output)))
    store = open_store(url)
    found = {each.manifest.id: each.version for each in store.checkpoints()}
    assert found == told, "what the writers were told is not what the store says"
    assert sorted(told.values()) == list(range(1, writers * commits + 1)), "a version is missing or doubled"
    seconds = time.monotonic() - started
    return (
        f"{writers} writers × {commits} commits: versions 1 to {len(told)}, each once, all readable ({seconds:.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--store", help="default: a temporary folder")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.store, arguments.commits)
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if arguments.faults:
            proxy = stack.enter_context(FaultProxy(os.environ["AWS_ENDPOINT_URL"]))
            chance = random.Random(arguments.seed)
            words = [chance.choice(FAULTS) if chance.random() < 0.1 else "ok" for _ in range(20_000)]
            rule = proxy.on("PUT", "/(manifests|names)/", " ".join(words))
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        print(campaign(arguments.store or f"{folder}/store", arguments.writers, arguments.commits))
        if arguments.faults:
            wrong = sum(word != "ok" for word in rule.seen)
            print(f"{wrong} of {len(rule.seen)} requests to create a manifest or a name were answered wrongly")


if __name__ == "__main__":
    main()
