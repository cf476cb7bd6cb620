"""Small checkpoints for the tests of stores, committed as the launcher commits them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.checkpoint.manifest import SCHEMA, Facts, File, Lineage, Manifest, Origin
from launcher.ids import new_id
from launcher.push import fetch
from launcher.store.store import Aborted, Checkpoint, Store
from launcher.store.upload import upload_files
from launcher.transfer.places import open_place


def open_store(url: str, *, timeout: float = 60, index: str | None = None) -> Store:
    """The store at a path or URL."""
    return Store(open_place(url, timeout=timeout, environ=os.environ), timeout=timeout, threads=2, index=index)


def tiny_checkpoint(folder: Path) -> Path:
    """A new folder with a whole checkpoint of some hundred bytes: a configuration and one tensor."""
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    (folder / "config.json").write_text('{"architectures": ["Tiny"], "model_type": "tiny"}')
    return folder


def upload(store: Store, files: Mapping[str, bytes], identifier: str) -> tuple[File, ...]:
    """The first half: files without a manifest."""
    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, path).write_bytes(content)
        return upload_files(store, identifier, folder, files, threads=1, on_bytes=lambda count: None)


def manifest(
    name: str,
    files: tuple[File, ...],
    identifier: str,
    *,
    job: str = "",
    run: str = "run-1",
    facts: Facts = Facts(),
    parents: tuple[str, ...] = (),
) -> Manifest:
    """A manifest; `job`: the name of the job that wrote it, as NAME or, for other folders than its root, NAME/FOLDER."""
    path = name.removeprefix(f"{job}/") if name != job else "."
    return Manifest(
        schema=SCHEMA,
        id=identifier,
        name=name,
        created=time.time(),
        writer="test",
        format="unknown",
        files=files,
        size=sum(file.size for file in files),
        facts=facts,
        origin=Origin(run, job, path) if job else None,
        lineage=Lineage(parents=parents),
    )


def commit(
    store: Store,
    name: str,
    files: Mapping[str, bytes],
    *,
    job: str = "",
    run: str = "run-1",
    facts: Facts = Facts(),
    parents: tuple[str, ...] = (),
) -> Checkpoint:
    """Uploads and commits; under another id where gc was faster, as the collector does."""
    while True:
        identifier = new_id()
        stored = upload(store, files, identifier)
        try:
            return store.commit(manifest(name, stored, identifier, job=job, run=run, facts=facts, parents=parents))
        except Aborted:
            continue


def fetched(store: Store, ref: str, folder: str) -> dict[str, bytes]:
    """Path to bytes of a checkpoint, fetched as a person does; `folder` is a place for the files meanwhile."""
    target = Path(folder, new_id())
    try:
        fetch(store, ref, str(target), threads=2, emit=lambda event: None)
        return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    finally:
        for each in (target, target.with_name(f"{target.name}.part")):
            shutil.rmtree(each, ignore_errors=True)
