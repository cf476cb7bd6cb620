"""The examples of the documentation run as they are written, each page in a folder of its own with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import pages
from tests.support.cli import Launcher
from tests.support.images import BASE
from tests.support.s3_server import S3Server

PAGES = pages.pages()
# The page about Docker waits for the base image, which takes minutes to make where it is not there yet.
pytestmark = pytest.mark.timeout(1500)


def test_the_pages_that_run_are_these() -> None:
    guides = {"accelerate", "clouds", "diffusers", "distributed", "docker", "torch-save", "trainer", "trl"}
    others = {"contract.md", "python.md", "quickstart.md", "store-format.md"}
    assert others | {f"guides/{each}.md" for each in guides} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_example_of_a_page(
    page: str, launcher: Launcher, tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if page == "guides/clouds.md":
        server: S3Server = request.getfixturevalue("s3_server")
        assert server.request("PUT", "/models")[0] in (200, 409)
        launcher.env |= server.env()
    if page == "guides/docker.md":
        launcher.env |= {"DOCKER_HOST": request.getfixturevalue("engine"), "IMAGE": BASE}
    launcher.env["LAUNCHER_DEVICE"] = "cpu"
    (tmp_path / "model").symlink_to(tiny_model)
    assert pages.run(page, launcher, tmp_path) >= 1
