"""The LightningModule: network, loss, optimizer and scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

import liteseg_kernels as lk
from liteseg.data import VOID
from liteseg.distributed import mean_over_processes, sum_counts, world_size
from liteseg.imports import imported
from liteseg.metrics import ConfusionMatrix
from liteseg.models import LiteSeg, Network, create_model

from .schedule import learning_rate_factor


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite."""


def log_class_weights(shares: np.ndarray) -> np.ndarray:
    """Loss weights `1 / log(1.10 + share)`, scaled to mean 1. shares: float [K], shares of the labelled pixels."""
    weights = 1.0 / np.log(1.10 + shares)
    return weights / weights.mean()


def hard_pixels(losses: Tensor, label: Tensor, threshold: float, keep: float) -> Tensor:
    """Which pixels online hard example mining learns from: bool [N, H, W].

    Those whose loss is above -log(threshold), and at least the share `keep` of all pixels, hardest first. Pixels of
    equal loss stand or fall together and void never counts, so the choice depends on no order.
    """
    at_least = max(1, int(keep * losses.numel()))
    limit = torch.topk(losses.flatten(), at_least, sorted=False).values.min().clamp(max=-math.log(threshold))
    return (losses >= limit) & (label != VOID)


class SegmentationModule(pl.LightningModule):
    """Trains a LiteSeg model on dict batches: image float [N, 3, H, W], label uint8 [N, H, W], path list of str.

    Args:
        name: model, see `liteseg.list_models()`.
        num_classes: None takes the data set's.
        class_names: stored with the weights; the command line fills in the data set's.
        switches: further arguments of `liteseg.create_model`, such as output_stride.
        input_scale: factor by which images are resized before this network; stored with the weights.
        backbone_weights: ImageNet weights of the backbone.
        weights: weights file or bundled weights to start from; excludes backbone_weights.
        weights_mode: what is taken from them: "all"; "all-but-classifier", everything but the last layer, for other
            classes; "backbone", the backbone alone, for another head too.
        class_weights: "log" weighs classes by their share of the training pixels (see `log_class_weights`); "none".
        criterion: path of a function of your own, such as mine.dice, in the place of cross-entropy and its options:
            (logits [N, K, h, w] before the last upsampling, label uint8 [N, H, W] with 255 for void) -> scalar.
        reduction: "mean" over labelled pixels, or "sum_per_image" (summed, divided by the batch size).
        label_smoothing: share of the target spread over all classes.
        ohem_threshold: above 0: online hard example mining, learning only from pixels whose (weighted) loss is above
            -log of it, such as 0.7. Beyond the loss of every pixel (4 bytes) it needs no full-size memory. With several
            processes each picks from its own images.
        ohem_keep: share of all pixels that it learns from at least.
        backbone_lr: initial learning rate of the backbone, where the model has one.
        head_lr: initial learning rate of everything else.
        momentum: of SGD.
        nesterov: Nesterov momentum.
        reset_momentum: forget the momentum whenever the rate moves, as the authors do (with hold_epochs only).
        weight_decay: applied to every parameter, batch norm included, as the authors do.
        decay_norms: false spares biases and batch norm the weight decay.
        warmup_steps: steps of linear warm-up.
        power: of the polynomial decay.
        hold_epochs: 0 decays every step; n > 0 moves the rate every n epochs (see `learning_rate_factor`).
        val_flip: validate with logits averaged with those of the mirrored image (twice the work).
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
        weights_mode: Literal["all", "all-but-classifier", "backbone"] = "all",
        class_weights: Literal["log", "none"] = "none",
        criterion: str | None = None,
        reduction: Literal["mean", "sum_per_image"] = "mean",
        label_smoothing: float = 0.0,
        ohem_threshold: float = 0.0,
        ohem_keep: float = 0.0625,
        backbone_lr: float = 0.01,
        head_lr: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        reset_momentum: bool = False,
        weight_decay: float = 1e-4,
        decay_norms: bool = True,
        warmup_steps: int = 0,
        power: float = 0.9,
        hold_epochs: int = 0,
        val_flip: bool = False,
    ) -> None:
        super().__init__()
        for option, value in (("ohem_threshold", ohem_threshold), ("ohem_keep", ohem_keep)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"model: {option}: expected a number from 0 to below 1, got {value}")
        if reset_momentum and hold_epochs == 0:
            raise ValueError("model: reset_momentum: expected hold_epochs above 0, got a rate that moves every step")
        self.criterion = None if criterion is None else imported(criterion, "model: criterion")
        if self.criterion is not None:
            if not callable(self.criterion):
                raise ValueError(f"model: criterion: expected a function, got {criterion}: {self.criterion!r}")
            if class_weights != "none" or label_smoothing or ohem_threshold or reduction != "mean":
                raise ValueError(
                    "model: criterion: expected class_weights none, reduction mean, and neither label_smoothing nor "
                    f"ohem_threshold, which are cross-entropy's; got them with {criterion}"
                )
        if weights is not None and backbone_weights is not None:
            raise ValueError("model: expected one of weights and backbone_weights, got both")
        if num_classes is None:
            num_classes = 19 if class_names is None else len(class_names)
        model: Any = create_model(
            name,
            num_classes=num_classes,
            weights=weights,
            weights_mode=weights_mode,
            backbone_weights=backbone_weights,
            class_names=class_names,
            input_scale=input_scale,
            **(switches or {}),
        )
        # the peers have no backbone that could be given
        self._from_nothing = weights is None and backbone_weights is None and isinstance(model, LiteSeg)
        self.model: Network = model.to(memory_format=torch.channels_last)
        # counted anew from the training labels at every start, so checkpoints do not hold it
        self.loss_weight: Tensor | None
        self.register_buffer(
            "loss_weight", torch.ones(num_classes) if class_weights == "log" else None, persistent=False
        )
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.argmax = lk.UpsampleArgmax()
        self.backbone_lr, self.head_lr = backbone_lr, head_lr
        self.ohem_threshold, self.ohem_keep = ohem_threshold, ohem_keep
        self.momentum, self.nesterov, self.reset_momentum = momentum, nesterov, reset_momentum
        self.weight_decay, self.decay_norms = weight_decay, decay_norms
        self.warmup_steps, self.power, self.hold_epochs = warmup_steps, power, hold_epochs
        self.val_flip = val_flip
        self.scores = ConfusionMatrix(num_classes)
        self._factor: Callable[[int], float] = lambda step: 1.0
        self._loss_sum, self._loss_count, self._epoch_started = 0.0, 0, 0.0

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.loss_weight is not None:
            trainer: Any = self.trainer
            train_set = trainer.datamodule.train_set
            # each process reads its share of the labels
            counts = train_set.class_counts(range(trainer.global_rank, len(train_set), trainer.world_size))
            total = trainer.strategy.reduce(torch.from_numpy(counts).to(self.device), reduce_op="sum").cpu().numpy()
            weights = log_class_weights(total / max(int(total.sum()), 1))
            self.loss_weight.copy_(torch.from_numpy(weights))

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of logits [N, K, h, w] against labels uint8 [N, H, W]; full-size logits are never made.

        Or the criterion that was given.

        With several processes a mean is over the labelled pixels of all of them, once gradients are averaged.
        """

        if self.criterion is not None:
            return self.criterion(logits, label)

        def cross_entropy(reduction: str) -> Tensor:
            return lk.functional.upsample_cross_entropy(
                logits, label, weight=self.loss_weight, reduction=reduction, label_smoothing=self.label_smoothing
            )

        if self.ohem_threshold > 0:
            losses = cross_entropy("none")
            chosen = hard_pixels(losses.detach(), label, self.ohem_threshold, self.ohem_keep)
            total = (losses * chosen).sum()
        elif self.reduction == "sum_per_image" or world_size() == 1:
            return cross_entropy(self.reduction)
        else:
            chosen = label != VOID
            total = cross_entropy("sum")
        if self.reduction == "sum_per_image":
            return total / len(label)
        if self.loss_weight is not None:
            table = F.pad(self.loss_weight, (0, 256 - len(self.loss_weight)))
            weight = (table[label.int()] * chosen).sum()
        else:
            weight = chosen.sum().float()
        weight = mean_over_processes(weight)
        return total / torch.where(weight == 0, 1, weight)

    def on_fit_start(self) -> None:
        # a run that goes on has trained weights
        if self._from_nothing and self.trainer.ckpt_path is None:
            rank_zero_warn(
                "TRAINING FROM SCRATCH: no --model.backbone_weights. The backbone starts from random numbers; expect a "
                "far lower mIoU than with ImageNet weights, and give it many more epochs."
            )

    def on_train_start(self) -> None:
        # a run that goes on within an epoch has no start of this epoch
        self._epoch_started = time.monotonic()

    def on_train_epoch_start(self) -> None:
        self._loss_sum, self._loss_count, self._epoch_started = 0.0, 0, time.monotonic()
        step = self.global_step
        if self.reset_momentum and step > 0 and self._factor(step) != self._factor(step - 1):
            # what a new optimizer would start from
            self.trainer.optimizers[0].state.clear()

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
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        rank_zero_info(
            f"epoch {self.current_epoch + 1}/{self.trainer.max_epochs}: loss {self._loss_sum / self._loss_count:.4f}, "
            f"{time.monotonic() - self._epoch_started:.0f} s"
        )

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()
        if world_size() > 1:
            # they differ only where batch norm is not synchronised
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: dict[str, Any] | None, batch_idx: int) -> Tensor | None:
        """Counts one batch; gives its predicted classes, uint8 [N, H, W]. None where no image could be read."""
        if batch is None:
            return None
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        logits = self.model.low_resolution_logits(images)
        if self.val_flip:
            logits = (logits + self.model.low_resolution_logits(images.flip(-1)).flip(-1)) / 2
        labels = self.argmax(logits, batch["label"].shape[-2:])
        self.scores.update(labels, batch["label"])
        return labels

    def on_validation_epoch_end(self) -> None:
        # from here on all processes hold the counts of all images, so they agree and one of them can speak
        sum_counts(self.scores)
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
        groups: list[dict[str, Any]] = []
        for parameters, rate in ((backbone, self.backbone_lr), (head, self.head_lr)):
            if self.decay_norms:
                groups.append({"params": parameters, "lr": rate})
            else:
                # everything with one dimension: biases, batch norm's factors and offsets
                groups.append({"params": [p for p in parameters if p.ndim > 1], "lr": rate})
                groups.append({"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
        optimizer = torch.optim.SGD(
            groups, lr=self.head_lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
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

        self._factor = factor
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
