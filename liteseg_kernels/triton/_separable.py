"""What the passes of separable_conv2d share: the launch table, and the tiles that several kernels compute."""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import activation_gradient, offsets

# taps of kernels up to 5 x 5 are unrolled; beyond, the code would be too long
_MOST_UNROLLED = tl.constexpr(25)


@triton.jit
def _tap(total, x, depthwise, iy, ix, c, offset, H, W, C, ky, kx, x_strides, d_strides, dilation):
    y = iy + ky * dilation[0]
    z = ix + kx * dilation[1]
    inside = (y >= 0) & (y < H) & (z >= 0) & (z < W)
    shift = ky * dilation[0] * x_strides[2] + kx * dilation[1] * x_strides[3]
    value = tl.load(x + offset + shift, mask=inside[:, None] & (c < C)[None, :], other=0.0)
    weight = tl.load(depthwise + c * d_strides[0] + ky * d_strides[2] + kx * d_strides[3], mask=c < C, other=0.0)
    return total + value.to(tl.float32) * weight.to(tl.float32)[None, :]


@triton.jit
def depthwise_tile(
    x,  # [N, C, H, W]
    depthwise,  # [C, 1, KH, KW], or None: x's own values at the one tap
    n,  # image, int64
    oy,  # [P], output rows
    ox,  # [P], output columns
    c,  # [BC]
    C,
    H,
    W,
    x_strides,
    d_strides,
    stride,
    padding,
    dilation,
    KH: tl.constexpr,
    KW: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The depthwise convolution's float32 values at pixels (oy, ox) and channels c: [P, BC]."""
    iy = oy * stride[0] - padding[0]
    ix = ox * stride[1] - padding[1]
    x += n * x_strides[0]
    offset = offsets(iy, ix, c, x_strides, WIDE)
    total = tl.zeros(offset.shape, tl.float32)
    if depthwise is None:
        inside = (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        total += tl.load(x + offset, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    elif KH * KW <= _MOST_UNROLLED:
        for ky in tl.static_range(KH):
            for kx in tl.static_range(KW):
                total = _tap(
                    total, x, depthwise, iy, ix, c, offset, H, W, C, ky, kx, x_strides, d_strides, dilation
                )  # fmt: skip
    else:
        for ky in range(KH):
            for kx in range(KW):
                total = _tap(
                    total, x, depthwise, iy, ix, c, offset, H, W, C, ky, kx, x_strides, d_strides, dilation
                )  # fmt: skip
    return total


@triton.jit
def gradient_tile(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    n,  # image, int64
    oy,  # [P]
    ox,  # [P]
    o,  # [BO]
    CO,
    HO,
    WO,
    g_strides,
    y_strides,
    negative_slope,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradient before the activation: [P, BO] float32, zero outside."""
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    pointers = grad + n * g_strides[0] + offsets(oy, ox, o, g_strides, WIDE)
    g = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION != 0:
        pointers = output + n * y_strides[0] + offsets(oy, ox, o, y_strides, WIDE)
        y = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        g = activation_gradient(g, y, ACTIVATION, negative_slope)
    return g
