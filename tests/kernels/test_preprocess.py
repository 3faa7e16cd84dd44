"""preprocess against torch.nn.functional.interpolate and the normalisation written out, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from .suite import Case, as_layout, assert_near, check_wrong_input, enter, lk, opcheck, parametrise

F = lk.functional
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def oracle(
    image: Tensor, size: tuple[int, int] | None = None, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    x = (image if image.dim() == 4 else image[None]).permute(0, 3, 1, 2).double()
    if size is not None:
        x = tf.interpolate(x, size, mode="bilinear", align_corners=False)
    offset, spread = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
    return (x / 255 - offset) / spread


def case(name: str, shape: tuple[int, ...], slow: bool = False, **options: Any) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        return {"image": torch.randint(256, shape, generator=g, dtype=torch.uint8)}

    return Case(name, make, options, slow)


CASES = [
    case("one pixel", (1, 1, 3)),
    case("one picture", (5, 7, 3)),
    case("a batch", (2, 5, 7, 3)),
    case("one pixel to a map", (1, 1, 3), size=(3, 4)),
    case("larger", (4, 5, 3), size=(9, 7)),
    case("smaller", (9, 8, 3), size=(4, 3)),
    case("to one pixel", (4, 5, 3), size=(1, 1)),
    case("the same size, asked for", (4, 5, 3), size=(4, 5)),
    case("one channel", (2, 4, 5, 1), size=(5, 3), mean=(0.5,), std=(2.0,)),
    case("one channel, the same size", (3, 5, 1), size=(4, 5), mean=(0.5,), std=(2.0,)),
    case("four channels", (4, 5, 4), mean=(0.0, 0.1, 0.2, 0.3), std=(1.0, 1.0, 0.5, 0.25)),
    case("31 channels", (2, 3, 31), mean=(0.5,) * 31, std=(0.25,) * 31),
    case("batch 0", (0, 4, 5, 3), size=(3, 3)),
    case("a video frame", (2, 90, 161, 3), size=(63, 127), slow=True),
]


@parametrise("preprocess", CASES)
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_forward(world_name: str, case: Case, channels_last: bool) -> None:
    image = case.make(torch.Generator().manual_seed(0))["image"]
    expected = oracle(image, **case.options)
    with enter(world_name) as here:
        for dtype in here.dtypes:
            for layout in ("nchw", "sliced", "unaligned", "transposed", "cropped"):
                given = image.to(here.device)
                # without the last channels, as of a picture with transparency
                given = torch.cat([given, 255 - given], -1)[..., : given.shape[-1]] if layout == "cropped" else given
                # a CHW picture seen as HWC, or a strided, unaligned view
                given = given.transpose(-1, -3).contiguous().transpose(-1, -3) if layout == "transposed" else given
                given = as_layout(given, layout) if layout in ("sliced", "unaligned") else given
                actual = F.preprocess(given, **case.options, dtype=dtype, channels_last=channels_last)
                assert actual.dtype == dtype
                # float32 sampling positions: over 160 pixels they are off by up to 160 * 2^-24 of a pixel
                assert_near(actual, expected, dtype, f"{case.name}, {layout}", 16.0 if case.slow else 2.0)
                wanted = torch.channels_last if channels_last else torch.contiguous_format
                assert actual.is_contiguous(memory_format=wanted), layout


def test_defaults_are_those_of_imagenet_pictures() -> None:
    out = F.preprocess(torch.full((2, 2, 3), 255, dtype=torch.uint8))
    assert out.shape == (1, 3, 2, 2) and out.dtype == torch.float32
    expected = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(out[0, :, 1, 1], expected)


def test_takes_the_pixels_of_a_numpy_picture() -> None:
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    out = F.preprocess(torch.from_numpy(picture), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    torch.testing.assert_close(out[0].permute(1, 2, 0), torch.from_numpy(picture).float())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_registration(dtype: torch.dtype, channels_last: bool) -> None:
    image = torch.randint(256, (2, 4, 5, 3), dtype=torch.uint8)
    args = image, [7, 6], list(MEAN), list(STD), dtype, channels_last
    opcheck(torch.ops.liteseg.preprocess.default, args, layouts=("nchw", "sliced"))


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("floating picture", TypeError, "image: expected dtype uint8, got float32", {"image": torch.rand(4, 5, 3)}),
    (
        "two axes",
        ValueError,
        r"image: expected \[H, W, C\] or \[N, H, W, C\], got \[4, 5\]",
        {"image": torch.ones(4, 5).byte()},
    ),
    ("no row", ValueError, r"image: expected \[H, W, C\].*got \[1, 0, 5, 3\]", {"image": torch.ones(0, 5, 3).byte()}),
    ("an array", TypeError, "image: expected a tensor, got ndarray", {"image": np.zeros((4, 5, 3), np.uint8)}),
    (
        "channels first",
        ValueError,
        "mean: expected 5 numbers, one a channel, got",
        {"image": torch.ones(3, 4, 5).byte()},
    ),
    ("one deviation", ValueError, r"std: expected 3 numbers, one a channel, got \[1.0\]", {"std": (1.0,)}),
    ("deviation 0", ValueError, "std: expected positive numbers, got", {"std": (1.0, 0.0, 1.0)}),
    ("deviation NaN", ValueError, "std: expected positive numbers, got", {"std": (1.0, float("nan"), 1.0)}),
    ("mean is a number", TypeError, "mean: expected a list or tuple, got float", {"mean": 0.5}),
    ("mean of text", TypeError, "mean: expected a number, got 'r'", {"mean": ("r", "g", "b")}),
    ("negative size", ValueError, r"size: expected at least 1, got \(4, -1\)", {"size": (4, -1)}),
    ("float size", TypeError, "size: expected ints, got 0.5", {"size": 0.5}),
    ("integer result", TypeError, "dtype: expected a floating dtype, got torch.int64", {"dtype": torch.int64}),
    ("dtype by name", TypeError, "dtype: expected a floating dtype, got 'half'", {"dtype": "half"}),
    ("layout", TypeError, "channels_last: expected True or False, got None", {"channels_last": None}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    check_wrong_input("preprocess", {"image": torch.ones(4, 5, 3, dtype=torch.uint8)} | change, error, text)
