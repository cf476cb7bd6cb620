"""Lightning: ModelCheckpoint with the newest two and last.ckpt, moved within a file system and from another one."""

import tempfile

import lightning
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class Module(lightning.LightningModule):
    """The plain network, trained on ones."""

    def __init__(self, width=16):
        super().__init__()
        self.save_hyperparameters()
        self.network = tiny.network()

    def training_step(self, batch, index):
        loss = self.network(batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Remember(ModelCheckpoint):
    """ModelCheckpoint that also writes down what it saved."""

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        tiny.remember(filepath.rpartition("/")[2], model=trainer.lightning_module.state_dict())


def fit(name):
    """Trains, and keeps the newest two checkpoints and the last one."""
    keep = Remember(
        dirpath=tiny.output(),
        filename=name + "-{step}",
        every_n_train_steps=2,
        save_top_k=2,
        monitor="step",
        mode="max",
        save_last=True,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=tiny.processes(),
        strategy="ddp" if tiny.processes() > 1 else "auto",
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(24, 16), batch_size=2))


if __name__ == "__main__":
    fit("renamed")  # Lightning writes in the folder for temporary files, and moves: by a rename where it can,
    tempfile.tempdir = "/dev/shm"
    fit("copied")  # else by a copy, in place.
    tiny.leave()
