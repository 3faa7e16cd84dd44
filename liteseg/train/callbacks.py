"""Averaged weights, the checkpoint that a run goes on from, and pictures of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import Callback, Checkpoint, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from liteseg.data import MEAN, STD
from liteseg.image_io import overlay
from liteseg.palette import colorize, palette_for

from .interruption import Interruption


class EMA(WeightAveraging):
    """Exponential moving average of weights and batch-norm statistics, used for validation and export.

    The factor is min(decay, (1 + n) / (10 + n)) at the n-th step: with a fixed decay the random head of the first steps
    would still hold a quarter of the average after 700 steps (decay 0.998).

    Args:
        decay: of the average, in 0..1.
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema_decay: expected a number between 0 and 1, or 0 for none, got {decay}")

        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            # counters of batch norm are integers: the newest value is the right one
            if not averaged.is_floating_point():
                return current.clone()
            n = int(count)
            return averaged.lerp(current.to(averaged.dtype), 1.0 - min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)


class LastCheckpoint(Checkpoint):
    """Writes one file at the end of every epoch, every few steps where asked to, and when the run is interrupted.

    Args:
        path: of the file.
        every_steps: optimizer steps between two; 0 for the ends of epochs only.
        interruption: what it asks whether to stop, after every step.
    """

    def __init__(self, path: Path, every_steps: int = 0, interruption: Interruption | None = None) -> None:
        if every_steps < 0:
            raise ValueError(f"checkpoint_steps: expected at least 0, got {every_steps}")
        self.path, self.every_steps = path, every_steps
        self._interruption = interruption or Interruption()
        self._saved_at = 0

    def _save(self, trainer: pl.Trainer) -> Path | None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(self.path)
        return self.path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._interruption.training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # the last batch of an epoch is followed by its end
        if batch_idx + 1 >= trainer.num_training_batches:
            return
        # gradients that wait for those of other batches are in no checkpoint
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self._interruption.asked(trainer):
            self._interruption.stop(trainer, self._save(trainer))
        # with accumulated gradients several batches end at one step
        if self.every_steps and step % self.every_steps == 0 and step != self._saved_at:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self._save(trainer)
        if self._interruption.asked(trainer):
            self._interruption.stop(trainer, path)


class Pictures(Callback):
    """Shows the first validation pictures in TensorBoard: prediction over the picture, beside the truth.

    Args:
        count: number of pictures.
        width: wider pictures are made this wide.
    """

    def __init__(self, count: int = 4, width: int = 640) -> None:
        self.count, self.width = count, width
        self._shown = 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        logger = trainer.logger
        if outputs is None or not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        config = pl_module.model.config
        palette = palette_for(config.class_names, config.num_classes)
        for picture, truth, labels in zip(batch["image"], batch["label"], outputs, strict=True):
            if self._shown >= self.count:
                return
            height, width = truth.shape
            factor = min(1.0, self.width / width)
            size = (max(1, round(width * factor)), max(1, round(height * factor)))
            image = np.asarray(Image.fromarray(_pixels(picture)).resize(size))
            ids, wanted = (
                np.asarray(Image.fromarray(one.cpu().numpy()).resize(size, Image.Resampling.NEAREST))
                for one in (labels, truth)
            )
            # void is black in the truth
            both = np.concatenate([overlay(image, ids, palette), colorize(wanted, palette)], axis=1)
            logger.experiment.add_image(f"val/{self._shown}", both, trainer.global_step, dataformats="HWC")
            self._shown += 1


def _pixels(image: Tensor) -> np.ndarray:
    """Normalised [3, H, W] back to uint8 [H, W, 3]."""
    pixels = image.float().cpu().permute(1, 2, 0).numpy() * STD + MEAN
    return np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)
