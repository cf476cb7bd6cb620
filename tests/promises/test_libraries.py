"""Every library's checkpoints are recognised, whole, collected, and loaded again by the library itself, tensor for tensor.

The whole matrix is tests/campaigns/libraries.py. Here each library writes once: on two processes where that makes a difference.
"""

from __future__ import annotations

import pytest

from tests.campaigns.libraries import MATRIX, Run, matrix, show
from tests.support.cli import Launcher

SHARDED = ("distributed_checkpoint", "fsdp_state", "deepspeed_engine")
RUNS = (
    Run(tuple(script for script in MATRIX if script not in SHARDED), 1),
    *(Run((script,), 2) for script in ("trainer", "accelerate_state", *SHARDED)),
)


@pytest.mark.timeout(900)
def test_what_every_library_writes_is_collected_whole_and_loads_again_with_equal_tensors(launcher: Launcher) -> None:
    rows = matrix(launcher, RUNS)
    print(show(rows))
    assert not [row for row in rows if row.wrong], show(rows)
    assert len(rows) > 50
