"""What would mislead the next attempt is moved aside, and nothing else with it."""

from __future__ import annotations

from pathlib import Path

from launcher.outputs import salvage
from tests.campaigns import quick_writer


def test_a_torn_checkpoint_goes_and_the_folder_that_holds_the_others_stays(tmp_path: Path) -> None:
    """accelerate's automatic naming: `checkpoints/checkpoint_N`."""
    root = tmp_path / "output"
    for number in (1, 2, 3):
        folder = root / "checkpoints" / f"checkpoint_{number}"
        folder.mkdir(parents=True)
        for name, data in quick_writer.content(1, number).items():
            (folder / name).write_bytes(data)
    (root / "checkpoints/checkpoint_3/optimizer.pt").write_bytes(b"")
    moved = salvage.put_aside(
        str(root), tmp_path / "aside", chosen="checkpoints/checkpoint_2", since=0, world_size=1,
        resumable=lambda format, tree: True,
    )  # fmt: skip
    assert [each.path for each in moved] == ["checkpoints/checkpoint_3"], moved
    assert "optimizer.pt" in moved[0].reason
    assert sorted(path.name for path in (root / "checkpoints").iterdir()) == ["checkpoint_1", "checkpoint_2"]
    assert (tmp_path / "aside/checkpoints/checkpoint_3/model.safetensors").exists()
