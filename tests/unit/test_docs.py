"""The pages that are made from the code are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import docs


@pytest.mark.parametrize("path", docs.PAGES, ids=lambda path: path.name)
def test_the_generated_pages_are_current(path: Path) -> None:
    assert path.read_text() == docs.PAGES[path](), "run: python -m tests.support.docs"
