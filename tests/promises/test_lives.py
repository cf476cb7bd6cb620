"""A slice of `tests.campaigns.lives`: kill -9 at random moments, and a start under the same id after each."""

from __future__ import annotations

import pytest

from tests.campaigns.lives import campaign


@pytest.mark.timeout(900)
def test_a_job_that_is_killed_again_and_again_ends_as_if_it_had_not_been() -> None:
    figures = campaign(8, seed=4, workers=2)
    print(figures.text())
    assert not figures.violations, "\n".join(figures.violations)
    assert figures.resumed and figures.kills.total() >= 8
