"""Short slices of the campaigns (tests/campaigns/races.py, rewrites.py): nothing broken is committed, nothing whole is lost
without a word, two states are never mixed. Each prints its figures."""

from __future__ import annotations

import pytest

from tests.campaigns import races, rewrites
from tests.conftest import REQUIRE_ALL
from tests.support.filesystems import KernelCannot, PartMissing


def test_every_checkpoint_of_a_quick_writer_is_collected_or_named() -> None:
    figures, violations = races.campaign(2, seed=1, steps=15, pace=2.0, kind="tmp")
    print(dict(figures))
    assert violations == []
    assert figures["whole"] == 30 == figures["collected"] + figures["named"]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
def test_rewriting_in_place_never_mixes_two_states(kind: str) -> None:
    try:
        figures, violations = rewrites.campaign(8, seed=1, kind=kind, settle=0.5)
    except PartMissing as error:
        if REQUIRE_ALL:
            pytest.fail(f"{error} is missing: tests/support/install")
        pytest.skip(f"{error} is missing")
    except KernelCannot as error:
        pytest.skip(f"this machine cannot: {error}")
    print(dict(figures))
    assert violations == []
    assert figures["committed"] > 0
