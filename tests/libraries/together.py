"""Several scripts in one process, one after the other: `python together.py NAME…`; imports are what takes them long."""

import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

for name in sys.argv[1:]:
    sys.argv = [str(Path(__file__).with_name(f"{name}.py"))]
    runpy.run_path(sys.argv[0], run_name="__main__")
    AcceleratorState._reset_state(reset_partial_state=True)
