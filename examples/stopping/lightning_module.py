"""Lightning: the Trainer leaves at the end of the batch when it is told to stop, and ModelCheckpoint saves on the way out."""

import os
import time

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class Module(lightning.LightningModule):
    """One linear layer."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(16, 4)

    def training_step(self, batch, index):
        return self.network(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Pace(Callback):
    """Waits after every step, so that a tiny model can stand for a slow one."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == 1:
            print("training", flush=True)
        time.sleep(0.1)


def main():
    folder = os.path.join(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], "lightning")
    trainer = lightning.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Pace(), ModelCheckpoint(dirpath=folder, save_on_exception=True, every_n_epochs=1000)],
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(1024, 16), batch_size=2))


if __name__ == "__main__":
    main()
