"""The LightningModule: network, loss, optimizer and scores."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

import liteseg_kernels as lk
from liteseg.metrics import ConfusionMatrix
from liteseg.models import LiteSeg, Network, create_model

from .schedule import learning_rate_factor


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite."""


def log_class_weights(shares: np.ndarray) -> np.ndarray:
    """Loss weights `1 / log(1.10 + share)`, scaled to mean 1. shares: float [K], shares of the labelled pixels."""
    weights = 1.0 / np.log(1.10 + shares)
    return weights / weights.mean()


class SegmentationModule(pl.LightningModule):
    """Trains a LiteSeg model on dict batches: image float [N, 3, H, W], label uint8 [N, H, W], path list of str.

    Args:
        name: model, see `liteseg.list_models()`.
        num_classes: None takes the data set's.
        class_names: stored with the weights; the command line fills in the data set's.
        switches: further arguments of `liteseg.create_model`, such as output_stride.
        input_scale: factor by which images are resized before this network; stored with the weights.
        backbone_weights: ImageNet weights of the backbone.
        weights: weights file to start from (all of the network); excludes backbone_weights.
        class_weights: "log" weighs classes by their share of the training pixels (see `log_class_weights`); "none".
        reduction: "mean" over labelled pixels, or "sum_per_image" (summed, divided by the batch size).
        label_smoothing: share of the target spread over all classes.
        backbone_lr: initial learning rate of the backbone, where the model has one.
        head_lr: initial learning rate of everything else.
        momentum: of SGD.
        nesterov: Nesterov momentum.
        weight_decay: applied to every parameter, batch norm included, as the authors do.
        warmup_steps: steps of linear warm-up.
        power: of the polynomial decay.
        hold_epochs: 0 decays every step; n > 0 moves the rate every n epochs (see `learning_rate_factor`).
    """

    def __init__(
        self,
        name: str = "liteseg_mobilenetv2",
        num_classes: int | None = None,
        class_names: tuple[str, ...] | None = None,
        switches: dict[str, Any] | None = None,
        input_scale: float = 1.0,
        backbone_weights: str | None = None,
        weights: str | None = None,
        class_weights: Literal["log", "none"] = "none",
        reduction: Literal["mean", "sum_per_image"] = "mean",
        label_smoothing: float = 0.0,
        backbone_lr: float = 0.01,
        head_lr: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 1e-4,
        warmup_steps: int = 0,
        power: float = 0.9,
        hold_epochs: int = 0,
    ) -> None:
        super().__init__()
        if weights is not None and backbone_weights is not None:
            raise ValueError("model: expected one of weights and backbone_weights, got both")
        if num_classes is None:
            num_classes = 19 if class_names is None else len(class_names)
        if weights is None and backbone_weights is None:
            rank_zero_warn(
                "TRAINING FROM SCRATCH: no --model.backbone_weights. The backbone starts from random numbers; expect a "
                "far lower mIoU than with ImageNet weights, and give it many more epochs."
            )
        model: Any = create_model(
            name,
            num_classes=num_classes,
            weights=weights,
            backbone_weights=backbone_weights,
            class_names=class_names,
            input_scale=input_scale,
            **(switches or {}),
        )
        self.model: Network = model.to(memory_format=torch.channels_last)
        # counted anew from the training labels at every start, so checkpoints do not hold it
        self.loss_weight: Tensor | None
        self.register_buffer(
            "loss_weight", torch.ones(num_classes) if class_weights == "log" else None, persistent=False
        )
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.argmax = lk.UpsampleArgmax()
        self.backbone_lr, self.head_lr = backbone_lr, head_lr
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.warmup_steps, self.power, self.hold_epochs = warmup_steps, power, hold_epochs
        self.scores = ConfusionMatrix(num_classes)
        self._loss_sum, self._loss_count, self._epoch_started = 0.0, 0, 0.0

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.loss_weight is not None:
            trainer: Any = self.trainer
            weights = log_class_weights(trainer.datamodule.train_set.class_shares())
            self.loss_weight.copy_(torch.from_numpy(weights))

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of logits [N, K, h, w] against labels uint8 [N, H, W]; full-size logits are never made."""
        return lk.functional.upsample_cross_entropy(
            logits, label, weight=self.loss_weight, reduction=self.reduction, label_smoothing=self.label_smoothing
        )

    def on_train_epoch_start(self) -> None:
        self._loss_sum, self._loss_count, self._epoch_started = 0.0, 0, time.monotonic()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        loss = self.loss(self.model.low_resolution_logits(images), batch["label"])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NotFiniteError(
                f"training: loss: expected a finite number, got {value} at step {self.global_step} "
                f"(epoch {self.current_epoch}); the batch's files: {', '.join(batch['path'])}"
            )
        self._loss_sum += value
        self._loss_count += 1
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def on_train_epoch_end(self) -> None:
        rank_zero_info(
            f"epoch {self.current_epoch + 1}/{self.trainer.max_epochs}: loss {self._loss_sum / self._loss_count:.4f}, "
            f"{time.monotonic() - self._epoch_started:.0f} s"
        )

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        logits = self.model.low_resolution_logits(images)
        self.scores.update(self.argmax(logits, batch["label"].shape[-2:]), batch["label"])

    def on_validation_epoch_end(self) -> None:
        # every process looks at all validation images, so they agree and one of them can speak
        names = self.model.config.class_names or tuple(map(str, range(self.scores.num_classes)))
        for name, iou in zip(names, self.scores.class_iou(), strict=True):
            if not math.isnan(iou):
                self.log(f"val_iou/{name}", float(iou), rank_zero_only=True)
        self.log("val/miou", self.scores.mean_iou(), prog_bar=True)
        self.log("val/pixel_accuracy", self.scores.pixel_accuracy(), rank_zero_only=True)
        if not self.trainer.sanity_checking:
            rank_zero_info(
                f"epoch {self.current_epoch + 1}: val mIoU {100 * self.scores.mean_iou():.2f} %, "
                f"pixel accuracy {100 * self.scores.pixel_accuracy():.2f} %"
            )

    def configure_optimizers(self) -> Any:
        # the peers have no part that ImageNet weights go into
        backbone = list(self.model.backbone.parameters()) if isinstance(self.model, LiteSeg) else []
        known = {id(parameter) for parameter in backbone}
        head = [parameter for parameter in self.model.parameters() if id(parameter) not in known]
        optimizer = torch.optim.SGD(
            [{"params": backbone, "lr": self.backbone_lr}, {"params": head, "lr": self.head_lr}],
            lr=self.head_lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
        total = int(self.trainer.estimated_stepping_batches)
        per_epoch = max(total // max(self.trainer.max_epochs or 1, 1), 1)

        def factor(step: int) -> float:
            return learning_rate_factor(
                step,
                total_steps=total,
                steps_per_epoch=per_epoch,
                warmup_steps=self.warmup_steps,
                power=self.power,
                hold_epochs=self.hold_epochs,
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
