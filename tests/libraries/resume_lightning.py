"""Lightning, going on where it was interrupted: last.ckpt in the output directory, if it is there."""

import os
import time
from pathlib import Path

import lightning
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

OUT = Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
STEPS = 6


class Module(lightning.LightningModule):
    """The plain network; one step an epoch. Lightning restores no random state, so there is none."""

    def __init__(self):
        super().__init__()
        self.network = tiny.network()

    def training_step(self, batch, index):
        loss = self.network(batch).square().mean()
        print(f"step {self.global_step + 1} loss {loss.item().hex()}", flush=True)
        return loss

    def on_train_epoch_end(self):
        time.sleep(0.3)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


keep = ModelCheckpoint(dirpath=OUT, filename="{step}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
trainer = lightning.Trainer(
    max_epochs=STEPS, accelerator="cpu", devices=1, logger=False, callbacks=[keep], enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
data = torch.utils.data.DataLoader(torch.ones(2, 16), batch_size=2)
trainer.fit(Module(), data, ckpt_path=os.environ.get("LAUNCHER_RESUME_CHECKPOINT"))
