"""The pages that are made from the code are those of the code."""

from __future__ import annotations

from tests.support import docs


def test_the_generated_pages_are_current() -> None:
    assert docs.ERRORS.read_text() == docs.errors_page(), "run: python -m tests.support.docs"
    assert docs.SETTINGS.read_text() == docs.settings_page(), "run: python -m tests.support.docs"
