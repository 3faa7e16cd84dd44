"""Named shapes of the microbenchmarks, each that of a layer of LiteSeg (see the encoders and the head)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SeparableShape:
    """x [n, c, h, w] -> [n, out, h, w] by a k x k depthwise (dilated, same padding) and a pointwise convolution."""

    n: int
    c: int
    h: int
    w: int
    out: int
    k: int = 3
    dilation: int = 1


@dataclass(frozen=True)
class InvertedShape:
    """x [n, c, h, w] -> [n, out, h / stride, w / stride] through `hidden` channels."""

    n: int
    c: int
    h: int
    w: int
    hidden: int
    out: int
    stride: int = 1


@dataclass(frozen=True)
class UpsampleShape:
    """logits [n, k, h, w] -> labels [n, height, width]."""

    n: int
    k: int
    h: int
    w: int
    height: int
    width: int


# LiteSeg-MobileNetV2 on a 360 x 640 picture
SEPARABLE = {
    "daspp.atrous[rate 6], 360x640": SeparableShape(1, 1280, 12, 20, 96, dilation=6),
    "decoder.0, 360x640": SeparableShape(1, 120, 90, 160, 96),
    "decoder.1, 360x640": SeparableShape(1, 96, 90, 160, 96),
}
INVERTED = {
    "features.2, 360x640": InvertedShape(1, 16, 180, 320, 96, 24, 2),
    "features.3, 360x640": InvertedShape(1, 24, 90, 160, 144, 24),
    "features.8, 360x640": InvertedShape(1, 64, 23, 40, 384, 64),
    "features.15, 360x640": InvertedShape(1, 160, 12, 20, 960, 160),
}
UPSAMPLE = {
    "output, 360x640": UpsampleShape(1, 19, 90, 160, 360, 640),
    "output, 1024x2048": UpsampleShape(1, 19, 256, 512, 1024, 2048),
}
