"""depthwise_conv2d against torch.nn.functional.conv2d in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from .suite import (
    Case,
    as_layout,
    check_backward,
    check_double_backward_refused,
    check_forward,
    check_wrong_input,
    enter,
    lk,
    opcheck,
    parametrise,
    randn,
)

F = lk.functional


def oracle(x: Tensor, weight: Tensor, **geometry: Any) -> Tensor:
    return tf.conv2d(x, weight, None, groups=x.shape[1], **geometry)


def case(name: str, *shape: int, kernel: int | tuple[int, int] = 3, slow: bool = False, **geometry: Any) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        return {"x": randn(g, *shape), "weight": randn(g, shape[1], 1, *size)}

    return Case(name, make, geometry, slow)


CASES = [
    case("one pixel", 1, 1, 1, 1, padding=1),
    case("map smaller than the kernel", 2, 3, 2, 1, padding=1),
    case("24 channels", 2, 24, 5, 7, padding=1),
    case("31 channels, stride 2", 2, 31, 6, 9, padding=1, stride=2),
    case("stride 2, even sizes", 1, 16, 8, 4, padding=1, stride=2),
    case("stride (1, 2)", 1, 5, 7, 8, padding=1, stride=(1, 2)),
    case("stride (3, 1), no padding", 1, 5, 9, 8, stride=(3, 1)),
    case("dilation beyond the map", 1, 6, 3, 4, dilation=9, padding=9),
    case("dilation 3, stride 2", 2, 17, 11, 9, dilation=3, padding=3, stride=2),
    case("kernel 5", 1, 4, 7, 6, kernel=5, padding=2),
    case("kernel (1, 4)", 1, 4, 3, 9, kernel=(1, 4), padding=(0, 3), stride=2),
    case("kernel 1, stride 2", 1, 4, 5, 5, kernel=1, stride=2),
    case("empty batch", 0, 4, 5, 5, padding=1),
    case("MobileNetV2's, stride 2", 2, 96, 44, 61, padding=1, stride=2, slow=True),
    case("384 channels, 127 wide", 1, 384, 5, 127, padding=1, slow=True),
]


@parametrise("depthwise_conv2d", CASES)
def test_forward(world_name: str, case: Case) -> None:
    check_forward(F.depthwise_conv2d, oracle, world_name, case, maps=("x",))


@parametrise("depthwise_conv2d", CASES, also="depthwise_conv2d_backward")
def test_backward(world_name: str, case: Case) -> None:
    check_backward(F.depthwise_conv2d, oracle, world_name, case, maps=("x",))


@pytest.mark.parametrize("factor", [1.0, 2.0**-7, 3.0, 0.8125])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_every_value_of_a_half_type(layout: str, dtype: torch.dtype, factor: float) -> None:
    """Widened, multiplied and rounded as torch does it: subnormals, infinities, NaN, ties and overflows."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 16, 64, 64)
    with enter("cpu"):
        out = F.depthwise_conv2d(as_layout(x, layout), torch.full((16, 1, 1, 1), factor, dtype=dtype))
    expected = (x.float() * factor).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_registration() -> None:
    geometry = [2, 1], [1, 1], [1, 1]
    x, weight = torch.randn(2, 6, 7, 8, requires_grad=True), torch.randn(6, 1, 3, 3, requires_grad=True)
    opcheck(torch.ops.liteseg.depthwise_conv2d.default, (x, weight, *geometry))
    args = torch.randn(2, 6, 4, 8), x.detach(), weight.detach(), *geometry
    for mask in ([True, True], [False, True]):
        opcheck(torch.ops.liteseg.depthwise_conv2d_backward.default, (*args, mask), maps=(0, 1))


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 6, 7, 8, requires_grad=True)
    check_double_backward_refused("depthwise_conv2d", F.depthwise_conv2d(x, torch.randn(6, 1, 3, 3)), x)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has three axes", ValueError, r"x: expected \[N, C, H, W\], got \[6, 7, 8\]", {"x": torch.randn(6, 7, 8)}),
    ("weight shape", ValueError, r"weight: expected \[6, 1, kh, kw\]", {"weight": torch.randn(6, 6, 3, 3)}),
    ("dtype mix", TypeError, "weight: expected x's dtype float32", {"weight": torch.randn(6, 1, 3, 3).half()}),
    ("kernel beyond the map", ValueError, "x: expected a height of at least", {"dilation": 9}),
    ("zero stride", ValueError, "stride: expected at least 1, got 0", {"stride": 0}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    arguments = {"x": torch.randn(2, 6, 7, 8), "weight": torch.randn(6, 1, 3, 3)}
    check_wrong_input("depthwise_conv2d", arguments | change, error, text)
