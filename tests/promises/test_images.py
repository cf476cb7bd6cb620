"""The images: reproducible, pinned by hash, not root, with a bill of materials; and the launcher alone in any other image."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import images
from tests.support.cli import ROOT

pytestmark = pytest.mark.timeout(1500)  # The first test waits for the images.

PYTHON = "3.11"
"""The base image's."""


def test_two_builds_have_the_same_layers(engine: str, job_image: str) -> None:
    tag = f"launcher-test:{uuid.uuid4().hex[:8]}"
    images.build(engine, "--base", images.BASE, "--device", "cpu", "--tag", tag)
    try:
        first, second = images.layers(engine, job_image), images.layers(engine, tag)
        print(f"{len(second.split())} layers, the same in both builds: {first == second}")
        assert first == second
    finally:
        images.docker(engine, "rmi", tag)


def test_the_image_says_what_it_is_and_is_not_root(engine: str, job_image: str) -> None:
    config = json.loads(images.docker(engine, "image", "inspect", job_image).stdout)[0]["Config"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert config["User"] == "1000"
    assert labels["title"] == "launcher" and labels["licenses"] == "Apache-2.0" and labels["base.name"] == images.BASE
    assert (
        labels["base.digest"].startswith("sha256:") and labels["version"] and labels["revision"] and labels["created"]
    )
    read = images.docker(engine, "run", "--rm", "--entrypoint", "cat", job_image, "/opt/launcher/sbom.cdx.json").stdout
    bill = json.loads(read)
    assert bill["bomFormat"] == "CycloneDX"
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in bill["components"]}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "images/requirements.lock").read_text(), re.M))
    print(f"user {config['User']}, {len(bill['components'])} components in the bill of materials")
    assert found.items() >= pinned.items() and found.keys() == pinned.keys() | {"launcher"}


def test_the_lock_has_every_dependency_by_hash() -> None:
    text = (ROOT / "images/requirements.lock").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", text, re.M))
    body = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    assert body
    wanted = [Requirement(each) for each in re.findall(r'"(.*?)"', body[1])]
    assert [each.name for each in wanted if not each.specifier.contains(pinned.get(each.name, "0"))] == []
    blocks = re.split(r"^(?=[\w-]+==)", text, flags=re.M)[1:]
    assert len(blocks) == len(pinned) and all("--hash=sha256:" in block for block in blocks)
    print(f"{len(pinned)} packages pinned, {text.count('--hash=')} hashes")


def test_the_launcher_alone_is_copied_into_another_image(engine: str, job_image: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex[:8]
    layer, image = f"launcher-test:layer-{mark}", f"launcher-test:copied-{mark}"
    size = images.build(engine, "--python", PYTHON, "--tag", layer)
    try:
        (tmp_path / "Dockerfile").write_text(
            f"FROM {images.BASE}\n"
            f"COPY --from={layer} /opt/launcher /opt/launcher\n"
            'ENTRYPOINT ["env", "--block-signal=TERM,INT,HUP", "/opt/launcher/bin/launcher", "entrypoint", "--"]\n'
        )
        built = images.docker(engine, "build", "--network", "none", "--tag", image, tmp_path)
        assert built.returncode == 0, built.stderr
        words = ("run", "--rm", "--network", "none", "--user", "1234567:0", "--read-only", "--tmpfs", "/tmp")
        job = "mkdir $FLEXAI_OUTPUT_CHECKPOINT_DIR/x; exit 42"
        variables = ("--env", "LAUNCHER_NAME=x", "--env", "LAUNCHER_KEEP=last=1")
        done = images.docker(engine, *words, *variables, image, "sh", "-c", job)
        assert done.returncode == 42 and "Exit code 42" in done.stderr, done.stderr
        print(f"the launcher alone, for Python {PYTHON}: {size.split()[1]} bytes")
    finally:
        images.docker(engine, "rmi", image, layer)


def test_a_python_that_it_is_not_for_is_told(tmp_path: Path) -> None:
    for name in ("bin", "lib", "cp327"):
        (tmp_path / name).mkdir()
    program = tmp_path / "bin" / "launcher"
    program.write_bytes((ROOT / "images/launcher").read_bytes())
    done = subprocess.run(["python3", "-I", program, "--help"], capture_output=True, text=True)
    assert done.returncode == 78 and done.stderr.endswith("and this launcher is for 3.27.\n"), done.stderr
