"""The documentation as a site: built with --strict, whole, and with nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT

_LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"|<link[^>]*\shref=\"([^\"]+)\"|url\(([^)]+)\)"
)
_UNMADE = re.compile(r"<p>(?:(?!</p>).)*?\n(?:- |\| |```)", re.S)
"""A list, table or block that Markdown took for text, because no empty line is before it."""


def build(root: Path, site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", root / "docs/site/mkdocs.yml", "-d", site],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(ROOT, folder)
    return folder


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    sources = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    made = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")} - {Path("404.md")}
    assert made == sources | {Path("index.md"), Path("results.md")} and len(made) >= 30
    index = (site / "index.html").read_text()
    assert not [page for page in made if f'href="{page.with_suffix(".html")}"' not in index]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    loaded = [(path.name, url) for path in files for urls in _LOADED.findall(path.read_text()) for url in urls if url]
    assert len(loaded) > 2 * len(files)
    assert not [each for each in loaded if re.match(r"[\"']?(https?:)?//", each[1])]


def test_what_looks_like_a_list_or_a_table_is_one(site: Path) -> None:
    found = {path.name: _UNMADE.findall(path.read_text()) for path in site.rglob("*.html")}
    assert not {name: texts for name, texts in found.items() if texts}


def test_a_page_that_comes_later_finds_its_place(tmp_path: Path) -> None:
    for name in ("docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    for page in ("json", "unforeseen"):
        (tmp_path / f"docs/{page}.md").write_text(f"# The page {page}\n")
    build(tmp_path, tmp_path / "made")
    index = (tmp_path / "made/index.html").read_text()
    assert index.index("Settings") < index.index("The page json") < index.index("Exit codes and errors")
    assert index.index("How it works") < index.index("The page unforeseen")
