"""The Trainer's example whose just-in-time save takes long: `python slow_save.py SECONDS [its arguments]`."""

import runpy
import sys
import time
from pathlib import Path

from transformers import Trainer
from transformers.trainer_jit_checkpoint import CheckpointManager

seconds = float(sys.argv.pop(1))
save, in_time = Trainer._save_optimizer_and_scheduler, CheckpointManager.execute_jit_checkpoint


def slowly(manager):
    """The save waits in its middle: the model is written, the optimizer is not."""

    def wait(trainer, folder):
        print(f"saving step {trainer.state.global_step}", flush=True)
        time.sleep(seconds)
        save(trainer, folder)

    Trainer._save_optimizer_and_scheduler = wait
    try:
        in_time(manager)
    finally:
        Trainer._save_optimizer_and_scheduler = save


CheckpointManager.execute_jit_checkpoint = slowly
runpy.run_path(str(Path(__file__).parents[2] / "examples" / "stopping" / "trainer.py"), run_name="__main__")
