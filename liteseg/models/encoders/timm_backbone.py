"""timm's backbones as encoders, by their own modules: only what is behind them has fused kernels."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import torch
from torch import nn

from liteseg.errors import UserError
from liteseg.models.encoders.base import Encoder
from liteseg_kernels.plan import Program, Unplannable

PREFIX = "timm/"

_STRIDE = 32
_LOW_LEVEL_STRIDE = 4
# as DeepLabv3+ reduces its low-level feature, where that has more
_DECODER_CHANNELS = 48


def _timm(encoder: str) -> Any:
    """The library, which has no extra: asked for by name, it brings a torchvision, and that another torch."""
    try:
        import timm
    except ImportError as missing:
        # timm is there, and what it needs is not
        cause = f" ({missing})" if missing.name != "timm" else ""
        raise UserError(
            f'encoder: {encoder} needs the package "timm"{cause}: pip install --no-deps timm, beside huggingface_hub '
            "and the torchvision of your torch (docs/extending.md)"
        ) from missing
    return timm


class TimmBackbone(Encoder, reads_channels=True):
    """A timm backbone: float [N, in_channels, H, W] -> (its last map at stride 4, its last map [N, C, H/s, W/s]).

    The modules are timm's, under `net` (its ``features_only`` form), and so are their initial weights; no weights are
    fetched. ``output_stride`` s is 32, or 16 or 8 where timm's model takes that; sizes round as the model does it.

    Attributes:
        encoder: ``"timm/<name of the model>"``, for example ``"timm/mobilenetv3_large_100"``.

    Raises:
        UserError: timm is not installed.
        ValueError: timm has no such model, none with a map at stride 4 in front of one at `output_stride`, or not at
            this one.
    """

    output_strides = (32, 16, 8)

    def __init__(self, encoder: str, output_stride: int = _STRIDE, in_channels: int = 3) -> None:
        super().__init__(output_stride, in_channels)
        self.encoder = encoder
        self.net = self._made()
        info: Any = self.net.feature_info
        strides, channels = info.reduction(), info.channels()
        if _LOW_LEVEL_STRIDE not in strides[:-1] or strides[-1] != output_stride:
            raise ValueError(
                f"encoder: {encoder}: expected maps at strides {_LOW_LEVEL_STRIDE} and, last, {output_stride}, got "
                f"{strides}"
            )
        # models without a word on it have them as torch has
        self._channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        # of several maps the last one
        self._low_level = len(strides) - 1 - strides[::-1].index(_LOW_LEVEL_STRIDE)
        self.low_level_channels, self.out_channels = channels[self._low_level], channels[-1]
        self.decoder_channels = _DECODER_CHANNELS if self.low_level_channels > _DECODER_CHANNELS else None

    def _made(self, **options: Any) -> nn.Module:
        timm = _timm(self.encoder)
        name = self.encoder.removeprefix(PREFIX)
        options |= {"features_only": True, "in_chans": self.in_channels}
        try:
            if self.output_stride != _STRIDE:
                # models that have none refuse it in ways of their own
                options["output_stride"] = self.output_stride
            return timm.create_model(name, **options)
        except (RuntimeError, TypeError, AssertionError, NotImplementedError) as refused:
            # an assertion may have no text
            reason = str(refused) or repr(refused)
            raise ValueError(f"encoder: {self.encoder}: timm refuses {options}: {reason}") from refused

    def load_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Copy the weights of timm's whole model from a file, its classifier left out."""
        donor = self._made(pretrained=True, pretrained_cfg_overlay={"file": os.fspath(path)})
        self.net.load_state_dict(donor.state_dict())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.net(x)
        low_level, encoded = maps[self._low_level], maps[-1]
        if self._channels_last:
            return low_level.permute(0, 3, 1, 2), encoded.permute(0, 3, 1, 2)
        return low_level, encoded

    def lower(self, program: Program, x: int) -> NoReturn:
        raise Unplannable(f"{self.encoder} runs by timm's modules")
