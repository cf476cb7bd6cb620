"""MkDocs' hook: which page is where, and the two pages that lie outside of docs/ (the README, what was measured)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = {"index.md": "README.md", "results.md": "benchmarks/RESULTS.md"}
SECTIONS = {
    "Begin": "index quickstart contract",
    "Guides": "guides/trainer guides/accelerate guides/trl guides/diffusers guides/torch-save guides/distributed"
    " resume serving checkpoints datasets source secrets jobs guides/clouds sources guides/docker python",
    "Containers": "images entrypoint sidecar stopping health",
    "Reference": "commands flexai settings json errors troubleshooting verdict formats libraries store store-format",
    "How it works": "design inputs cache transfer results",
}
"""The pages of each section, in order, without `.md`. One that is not there is left out; one that is not named comes last."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside, and makes the navigation of what is there."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=_at_home((ROOT / source).read_text())))
    there = {file.src_uri for file in files.documentation_pages()}
    nav: dict[str, list[str]] = {}
    for title, pages in SECTIONS.items():
        nav[title] = [f"{page}.md" for page in pages.split() if f"{page}.md" in there]
    nav["How it works"] += sorted(there - {page for pages in nav.values() for page in pages})
    config["nav"] = [{title: pages} for title, pages in nav.items()]
    return files


def _at_home(text: str) -> str:
    """A page with its links as they are from docs/; those to other folders become their text."""
    text = re.sub(r"\]\(docs/", "](", text).replace("](benchmarks/RESULTS.md)", "](results.md)")
    return re.sub(r"\[([^\]]+)\]\((?:examples|benchmarks|tests|images|scripts)[^)]*\)", r"`\1`", text)
