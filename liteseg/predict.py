"""From pictures to label maps, without ever making the full-size logits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from liteseg.data import MEAN, STD
from liteseg.reading import SampleRange, orientation, read_image, rgb_array, turned
from liteseg_kernels import _loader
from liteseg_kernels import functional as F
from liteseg_kernels.eval_view import eval_view
from liteseg_kernels.runtime import checked_logits
from liteseg_kernels.runtime import labels as labels_of

__all__ = [
    "MIN_SIZE",
    "Output",
    "evaluating",
    "full_size_logits",
    "input_size",
    "labels_and_confidence",
    "predict",
    "predict_at",
    "segment",
]

MIN_SIZE = 32

Picture = Image.Image | np.ndarray | str | os.PathLike[str]
Output = Literal["labels", "logits", "probabilities"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Inference mode inside the block, for the model that it gives: `model` in eval mode.

    That is `model` itself where all of it is in eval mode, else a view of it (:func:`liteseg_kernels.eval_view`):
    neither modes nor buffers of `model` change, so several threads may use it, and one may train it.
    """
    _loader.warn_without_kernels()
    ready = eval_view(model)
    with torch.inference_mode():
        yield ready


def _parameter(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the model is and what it computes in; CPU and float32 for a model without parameters or buffers."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def input_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width the network runs at for a picture of ``size``; ValueError where a side falls below 32."""
    if not scale > 0:
        raise ValueError(f"predict: scale: expected a number above 0, got {scale}")
    height, width = round(size[0] * scale), round(size[1] * scale)
    if min(height, width) < MIN_SIZE:
        at = "" if scale == 1 else f" after scaling by {scale:g}"
        raise ValueError(f"predict: image: expected height and width of at least {MIN_SIZE}{at}, got {height}x{width}")
    return height, width


def segment(model: nn.Module, x: torch.Tensor, size: tuple[int, int], *, flip: bool = False) -> torch.Tensor:
    """Deprecated: :func:`liteseg_kernels.runtime.labels`."""
    warnings.warn(
        "liteseg.predict.segment is deprecated: use liteseg_kernels.runtime.labels", DeprecationWarning, stacklevel=2
    )
    return labels_of(model, x, size, flip=flip)


def full_size_logits(model: nn.Module, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The logits whose arg max `liteseg_kernels.runtime.labels` gives: float32 [N, K, H, W], at ``size`` (H, W)."""
    low = checked_logits(model, x).float()
    align_corners = getattr(model, "align_corners", True)
    return nn.functional.interpolate(low, size=size, mode="bilinear", align_corners=align_corners)


def _probabilities(model: nn.Module, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return full_size_logits(model, x, size).softmax(1)


# what becomes of normalised input, at a size
_OUTPUTS: dict[str, Callable[[nn.Module, torch.Tensor, tuple[int, int]], torch.Tensor]] = {
    "labels": labels_of,
    "logits": full_size_logits,
    "probabilities": _probabilities,
}


def labels_and_confidence(
    model: nn.Module, image: np.ndarray, *, scale: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of one picture: uint8 [H, W], the classes, and float32 [H, W], the probability that the network gives each.

    Makes the full-size logits, once. Arguments are those of :func:`predict_at`, which is inside :func:`evaluating`.
    """
    logits = torch.from_numpy(predict_at(model, image, scale=scale, output="logits"))
    best, labels = logits.max(0)
    confidence = (best - logits.logsumexp(0)).exp()
    return labels.to(torch.uint8).numpy(), confidence.numpy()


def _in_channels(model: nn.Module) -> int:
    """Channels of the model's input; 3 for models that do not say."""
    return int(getattr(getattr(model, "config", None), "in_channels", 3))


def _check_pixels(image: np.ndarray) -> np.ndarray:
    """The array as uint8 [N, H, W, 3]."""
    if image.dtype != np.uint8:
        raise TypeError(f"predict: image: expected a uint8 array of RGB values 0..255, got {image.dtype}")
    if image.ndim not in (3, 4) or image.shape[-1] != 3:
        raise ValueError(
            f"predict: image: expected an RGB array [H, W, 3] or [N, H, W, 3], got {list(image.shape)}"
            + (" (greyscale or channels first?)" if image.ndim in (2, 3) else "")
        )
    return image if image.ndim == 4 else image[None]


def predict_at(
    model: nn.Module,
    image: np.ndarray,
    size: tuple[int, int] | None = None,
    *,
    scale: float | None = None,
    flip: bool = False,
    output: Output = "labels",
) -> np.ndarray:
    """Label maps of pictures of one size, inside :func:`evaluating`: what :func:`predict` and ``evaluate`` share.

    Args:
        image: uint8 [H, W, 3] or [N, H, W, 3] RGB.
        size: (H, W) of the labels; the picture's own by default.
        scale: the network runs at round(scale * H) x round(scale * W); ``model.config.input_scale`` by default, 1 for
            models that have none.
        flip: average with the mirrored picture; labels only.
        output: see :func:`predict`.

    Returns:
        uint8 [H, W] or [N, H, W]; for another output float32 [K, H, W] or [N, K, H, W].
    """
    if flip and output != "labels":
        raise ValueError(f"predict: flip: expected labels to be wanted, got {output}")
    pixels = _check_pixels(image)
    channels = _in_channels(model)
    if channels != 3:
        raise ValueError(
            f"predict: image: expected a normalised tensor [N, {channels}, H, W] for a model of {channels} channels, "
            "got an RGB picture"
        )
    if scale is None:
        scale = float(getattr(getattr(model, "config", None), "input_scale", 1.0))
    full = (pixels.shape[1], pixels.shape[2])
    at = input_size(full, scale)
    device, dtype = _parameter(model)
    # torch cannot wrap read-only or negative-stride memory
    source = torch.from_numpy(pixels if pixels.flags.c_contiguous and pixels.flags.writeable else pixels.copy())
    x = F.preprocess(source.to(device), None if at == full else at, mean=MEAN, std=STD, dtype=dtype)
    to = full if size is None else size
    found = labels_of(model, x, to, flip=True) if flip else _OUTPUTS[output](model, x, to)
    result = found.cpu().numpy()
    return result if image.ndim == 4 else result[0]


# a path is a sequence too, so it comes before them
@overload
def predict(
    model: nn.Module, image: torch.Tensor, *, scale: float | None = None, output: Output = "labels"
) -> torch.Tensor: ...
@overload
def predict(  # type: ignore[overload-overlap]
    model: nn.Module,
    image: Picture,
    *,
    scale: float | None = None,
    value_range: SampleRange = None,
    output: Output = "labels",
) -> np.ndarray: ...
@overload
def predict(
    model: nn.Module,
    image: Sequence[Picture],
    *,
    scale: float | None = None,
    value_range: SampleRange = None,
    output: Output = "labels",
) -> list[np.ndarray]: ...


def predict(
    model: nn.Module,
    image: Any,
    *,
    scale: float | None = None,
    value_range: SampleRange = None,
    output: Output = "labels",
) -> Any:
    """Class of every pixel, or how sure the network is of each class there.

    For labels the full-size logits are never made: they come straight from the low-resolution logits. A model whose
    class has no ``low_resolution_logits`` works too, from the logits its ``forward`` returns. Runs in inference mode
    and as in eval mode, whatever mode the model is in, which neither changes nor is disturbed by other threads' use of
    the model. To use a compiled network, put it in eval mode and compile the method that is called:
    ``model.low_resolution_logits = torch.compile(model.low_resolution_logits)``.

    Args:
        model: any model of this library, fused or not, or a module that maps [N, 3, H, W] to logits [N, K, h, w].
        image: one of

            * a PIL image of any mode (greyscale is repeated, alpha dropped, more than 8 bits are scaled to 8). The
              network sees it upright, by its EXIF orientation, and the labels are turned back, so that they lie on the
              image as given,
            * the path of a picture, read as :func:`liteseg.reading.read_image` does: labels lie on it as viewers show
              it, turned by its EXIF orientation,
            * a uint8 array [H, W, 3] or [N, H, W, 3], RGB,
            * a list or tuple of such pictures, sizes may differ,
            * a float tensor [N, 3, H, W], already normalised, on the model's device (the only input of a model with
              ``in_channels`` other than 3, [N, in_channels, H, W]).
        scale: for pictures: the network runs at round(scale * H) x round(scale * W), bilinear; by default what the
            weights say (``model.config.input_scale``). Labels come back at the picture's own size. Not for tensors,
            whose size is the caller's choice.
        value_range: of PIL images and files with more than 8 bits a sample: the sample that is white (black is 0), or
            those that are black and white; read off the image by default (:func:`liteseg.reading.rgb_array`).
        output: "labels"; "logits", whose arg max the labels are, or "probabilities", their softmax: float32 with one
            value for each of the K classes, [K, H, W] in the place of [H, W], so K times four the bytes.

    Returns:
        uint8 ids: NumPy [H, W] for a picture, [N, H, W] for an array of them, a list for a list; for a tensor a tensor
        [N, H, W] on its device.

    Raises:
        TypeError, ValueError: another type, dtype or shape; height or width below 32 (after scaling); more than 256
            classes; a file that is no picture.
        FileNotFoundError: no such file.

    Example:
        >>> import numpy as np, liteseg
        >>> model = liteseg.create_model("liteseg_mobilenetv2", num_classes=11)
        >>> labels = liteseg.predict(model, np.zeros((64, 96, 3), np.uint8))
        >>> labels.shape, labels.dtype
        ((64, 96), dtype('uint8'))
    """
    if output not in get_args(Output):
        raise ValueError(f"predict: output: expected one of {', '.join(get_args(Output))}, got {output!r}")
    with evaluating(model) as ready:
        result = _predict(ready, image, scale, value_range, output)
    # an inference tensor would refuse the caller's in-place edits
    return result.clone() if isinstance(result, torch.Tensor) else result


def _predict(model: nn.Module, image: Any, scale: float | None, value_range: Any, output: Output) -> Any:
    if isinstance(image, torch.Tensor):
        if scale is not None:
            raise ValueError("predict: scale: expected None for a tensor (resize it yourself), got a number")
        _check_tensor(model, image)
        return _OUTPUTS[output](model, image, (image.shape[2], image.shape[3]))
    if isinstance(image, (list, tuple)):
        return [_predict(model, one, scale, value_range, output) for one in image]
    if isinstance(image, (str, os.PathLike)):
        return predict_at(model, read_image(image, value_range), scale=scale, output=output)
    if isinstance(image, Image.Image):
        pixels = rgb_array(image, value_range)
        lies = orientation(image)
        found = predict_at(model, turned(pixels, lies), scale=scale, output=output)
        # classes last, as turned() has it
        back = turned(np.moveaxis(found, (-2, -1), (0, 1)), lies, back=True)
        return np.ascontiguousarray(np.moveaxis(back, (0, 1), (-2, -1)))
    if not isinstance(image, np.ndarray):
        raise TypeError(
            "predict: image: expected a PIL image, a path, a uint8 array [H, W, 3], a list of them or a float tensor "
            f"[N, 3, H, W], got {type(image).__name__}"
        )
    return predict_at(model, image, scale=scale, output=output)


def _check_tensor(model: nn.Module, x: torch.Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(
            "predict: image: expected a floating-point tensor, already normalised (uint8 pictures are taken as NumPy "
            f"arrays), got {x.dtype}"
        )
    channels = _in_channels(model)
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"predict: image: expected a tensor [N, {channels}, H, W], got {list(x.shape)}")
    if min(x.shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"predict: image: expected height and width of at least {MIN_SIZE}, got {x.shape[2]}x{x.shape[3]}"
        )
    device, dtype = _parameter(model)
    if x.device != device:
        raise ValueError(f"predict: image: expected a tensor on the model's device {device}, got {x.device}")
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"predict: image: expected the model's dtype {dtype}, got {x.dtype}")
