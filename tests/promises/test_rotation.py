"""A short slice of the campaign (tests/campaigns/rotation.py): saves every step, keeps one, none is lost."""

from __future__ import annotations

import pytest

from tests.campaigns import rotation


@pytest.mark.parametrize("words", ["--runs 2 --steps 20", "--runs 1 --steps 10 --processes 2"])
def test_rotation_loses_no_checkpoint(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rotation", *words.split()])
    assert rotation.main() == 0
    assert " 0 reported as missed, 0 lost" in capsys.readouterr().out
