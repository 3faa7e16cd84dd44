"""Batch normalisation over the images of all processes, on the CPU too."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from liteseg.distributed import world_size


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, which refuses CPU tensors, with the same sums for them."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self.training or world_size() == 1:
            return super().forward(input)
        x = input.float()
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = all_reduce(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = all_reduce(x.sum(dims)) / count
        # squares of what is left after the mean: sums of plain squares would cancel
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(dims)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * (count / (count - 1)), rate)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.float().view(shape) + self.bias.float().view(shape)
        return y.to(input.dtype)


class LayerSync(TorchSyncBatchNorm):
    """Lightning's conversion to SyncBatchNorm, to the one above."""

    def apply(self, model: nn.Module) -> nn.Module:
        converted: Any = super().apply(model)
        for module in converted.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = SyncBatchNorm
        return converted
