"""Batch normalisation over the images of all processes, on the CPU too."""

from __future__ import annotations

import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from liteseg.distributed import world_size


class CPUSyncBatchNorm(_BatchNorm):
    """What torch's SyncBatchNorm does, for CPU tensors, which that one refuses (as DistributedDataParallel refuses it).

    No BatchNorm2d, so that no fused training kernel takes its place.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 4:
            raise ValueError(f"batch_norm: input: expected [N, C, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims, shape = (0, 2, 3), (1, -1, 1, 1)
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
            y = y * self.weight.to(x.dtype).view(shape) + self.bias.to(x.dtype).view(shape)
        return y.to(input.dtype)


class LayerSync(TorchSyncBatchNorm):
    """Lightning's conversion to SyncBatchNorm on GPUs, to the one above on the CPU."""

    def apply(self, model: nn.Module) -> nn.Module:
        if torch.distributed.get_backend() == "nccl":
            return super().apply(model)
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = CPUSyncBatchNorm  # type: ignore[assignment]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module) is CPUSyncBatchNorm:
                module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        return super().revert(model)
