"""liteseg.predict: inputs of every kind, labels equal to the arg max of full-size logits, modes restored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg.data import MEAN, STD

from .conftest import SIZE, picture


def normalised(image: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def full_size_logits(model: nn.Module, image: np.ndarray, scale: float = 1.0) -> torch.Tensor:
    """The way predict never goes: every step in plain torch, logits [1, K, H, W] at full size."""
    height, width = image.shape[:2]
    with torch.no_grad():
        x = normalised(image)
        if scale != 1:
            size = (round(height * scale), round(width * scale))
            x = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        logits = model.low_resolution_logits(x)
        return nn.functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)


def full_size_labels(model: nn.Module, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """What predict must equal."""
    return full_size_logits(model, image, scale).argmax(1)[0].numpy()


@pytest.mark.parametrize("size", [SIZE, (65, 97), (33, 130)], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_labels_equal_argmax_of_full_size_logits(model, size, fused) -> None:
    image = picture(3, size)
    labels = liteseg.predict(lk.fuse(model) if fused else model, image)
    assert labels.shape == size and labels.dtype == np.uint8
    logits = full_size_logits(model, image)[0]
    expected = logits.argmax(0).numpy()
    assert len(np.unique(expected)) > 2
    # of so few pixels a single tie within rounding is more than 0.01 %
    best, second = logits.topk(2, 0).values
    clear = (best - second > 1e-5 * logits.abs().max()).numpy()
    assert clear.mean() > 0.999 and (labels == expected)[clear].all()


def test_float_tensor_gives_tensor_with_the_same_labels(model) -> None:
    images = [picture(1), picture(2)]
    x = torch.cat([normalised(image) for image in images])
    labels = liteseg.predict(model, x)
    assert labels.dtype == torch.uint8 and labels.shape == (2, *SIZE)
    with torch.no_grad():
        expected = model(x).argmax(1)
    assert (labels == expected).double().mean() >= 0.9999
    # an ordinary tensor, not one that only inference mode may edit
    labels[labels == 0] = 255


def test_kinds_of_pictures_agree(model) -> None:
    images = np.stack([picture(1), picture(2)])
    expected = [liteseg.predict(model, image) for image in images]
    assert not np.array_equal(*expected)
    batch = liteseg.predict(model, images)
    assert batch.shape == images.shape[:3] and (batch == np.stack(expected)).mean() >= 0.9999
    assert np.array_equal(liteseg.predict(model, Image.fromarray(images[0])), expected[0])
    listed = liteseg.predict(model, [images[0], Image.fromarray(images[1][:40])])
    assert np.array_equal(listed[0], expected[0]) and listed[1].shape == (40, SIZE[1])
    # flipped twice: negative strides; read-only memory
    view = images[0][:, ::-1].copy()[:, ::-1]
    view.flags.writeable = False
    assert np.array_equal(liteseg.predict(model, view), expected[0])


def test_grey_and_alpha_pil_images_are_converted(model) -> None:
    grey = picture(4)[:, :, 0]
    expected = liteseg.predict(model, np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(liteseg.predict(model, Image.fromarray(grey)), expected)
    with_alpha = Image.fromarray(grey).convert("RGBA")
    with_alpha.putalpha(0)
    assert np.array_equal(liteseg.predict(model, with_alpha), expected)


def test_input_scale_of_the_weights_is_applied_to_pictures_only(model) -> None:
    scaled = liteseg.create_model("liteseg_mobilenetv2", num_classes=11, input_scale=1.5)
    scaled.load_state_dict(model.state_dict())
    scaled.eval()
    image = picture(5, (50, 71))
    labels = liteseg.predict(scaled, image)
    assert (labels == full_size_labels(model, image, 1.5)).mean() >= 0.9999
    assert (labels != liteseg.predict(model, image)).any()
    assert np.array_equal(liteseg.predict(model, image, scale=1.5), labels)
    assert np.array_equal(liteseg.predict(scaled, image, scale=1), liteseg.predict(model, image))
    x = normalised(image)
    assert torch.equal(liteseg.predict(scaled, x), liteseg.predict(model, x))
    with pytest.raises(ValueError, match="scale: expected None for a tensor"):
        liteseg.predict(model, x, scale=2.0)


class _Recorder(nn.Module):
    """A foreign network with full-size logits; remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.drop = nn.Dropout(0.5)
        # a view of the network appends to the same list
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, self.drop.training, torch.is_inference_mode_enabled(), x.dtype))
        return self.drop(self.conv(x))


def test_plain_module_and_training_flags(model) -> None:
    foreign = _Recorder().train()
    foreign.conv.eval()
    image = picture()
    labels = liteseg.predict(foreign, image)
    assert foreign.seen == [(False, False, True, torch.float32)]
    assert (foreign.training, foreign.drop.training, foreign.conv.training) == (True, True, False)
    with torch.no_grad():
        expected = foreign.eval()(normalised(image)).argmax(1)[0].numpy()
    assert (labels == expected).mean() >= 0.9999


def test_training_flag_comes_back_after_an_error() -> None:
    class Broken(_Recorder):
        def forward(self, x):
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        liteseg.predict(broken, picture())
    assert broken.training and broken.drop.training


def test_half_precision_model_gets_half_precision_input(model) -> None:
    foreign = _Recorder().to(torch.bfloat16)
    liteseg.predict(foreign, picture())
    assert foreign.seen[0][3] == torch.bfloat16


SMALL = np.zeros((31, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros(SIZE, np.uint8), ValueError, r"expected an RGB array \[H, W, 3\].*got \[64, 96\] \(greyscale"),
        (np.zeros((3, *SIZE), np.uint8), ValueError, r"expected an RGB array \[H, W, 3\].*got \[3, 64, 96\]"),
        (np.zeros((*SIZE, 4), np.uint8), ValueError, r"got \[64, 96, 4\]"),
        (np.zeros((*SIZE, 3), np.float32), TypeError, "expected a uint8 array of RGB values 0..255, got float32"),
        (SMALL, ValueError, "expected height and width of at least 32, got 31x64"),
        (Image.fromarray(SMALL), ValueError, "expected height and width of at least 32, got 31x64"),
        (torch.zeros(1, 3, 64, 31), ValueError, "expected height and width of at least 32, got 64x31"),
        (torch.zeros(3, 64, 96), ValueError, r"expected a tensor \[N, 3, H, W\], got \[3, 64, 96\]"),
        (torch.zeros(1, 4, 64, 96), ValueError, r"expected a tensor \[N, 3, H, W\], got \[1, 4, 64, 96\]"),
        (torch.zeros(1, 3, 64, 96, dtype=torch.uint8), TypeError, "expected a floating-point tensor.*got torch.uint8"),
        (torch.zeros(1, 3, 64, 96).double(), TypeError, "expected the model's dtype torch.float32, got torch.float64"),
        (torch.zeros(1, 3, 64, 96, device="meta"), ValueError, "expected a tensor on the model's device cpu, got meta"),
        (7, TypeError, "expected a PIL image, a path, a uint8 array .* got int"),
    ],
)
def test_bad_images_are_named(model, image, error, words) -> None:
    with pytest.raises(error, match=f"predict: image: .*{words}"):
        liteseg.predict(model, image)


def test_scale_that_makes_the_input_too_small_or_is_not_positive(model) -> None:
    with pytest.raises(ValueError, match="at least 32 after scaling by 0.25, got 16x24"):
        liteseg.predict(model, picture(), scale=0.25)
    with pytest.raises(ValueError, match="scale: expected a number above 0, got 0"):
        liteseg.predict(model, picture(), scale=0)


def test_models_that_give_no_logits_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model: expected logits \[1, K, H, W\], got \[1, 18432\]"):
        liteseg.predict(nn.Flatten(), picture())
    with pytest.raises(ValueError, match="at most 256 classes"):
        liteseg.predict(nn.Conv2d(3, 257, 1), picture())


def test_config_is_not_changed_by_predict(model) -> None:
    before = dataclasses.asdict(model.config), {k: v.clone() for k, v in model.state_dict().items()}
    liteseg.predict(model, picture())
    assert dataclasses.asdict(model.config) == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())


def test_paths_are_read_as_viewers_show_them(model, tmp_path) -> None:
    image = picture(3, (64, 80))
    expected = liteseg.predict(model, image)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(liteseg.predict(model, tmp_path / "a.png"), expected)
    assert np.array_equal(liteseg.predict(model, [str(tmp_path / "a.png"), image])[0], expected)
    exif = Image.Exif()
    # stored lying, shown upright
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(tmp_path / "lying.png", exif=exif)
    assert np.array_equal(liteseg.predict(model, tmp_path / "lying.png"), expected)
    with pytest.raises(FileNotFoundError, match="none.png: no such file"):
        liteseg.predict(model, "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="text.png: not a picture"):
        liteseg.predict(model, str(tmp_path / "text.png"))


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("fused", [False, True])
def test_logits_and_probabilities(model, fused, scale) -> None:
    image = picture(3, (65, 97))
    network = lk.fuse(model) if fused else model
    expected = full_size_logits(model, image, scale)[0]
    logits = liteseg.predict(network, image, scale=scale, output="logits")
    assert logits.shape == (11, 65, 97) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    shares = liteseg.predict(network, image, scale=scale, output="probabilities")
    np.testing.assert_allclose(shares, expected.softmax(0), atol=1e-3)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    labels = liteseg.predict(network, image, scale=scale)
    assert (logits.argmax(0) == labels).mean() >= 0.9999


def test_outputs_of_batches_tensors_and_lying_pictures(model) -> None:
    images = np.stack([picture(1), picture(2)])
    one, two = (liteseg.predict(model, image, output="logits") for image in images)
    batch = liteseg.predict(model, images, output="logits")
    assert batch.shape == (2, 11, *SIZE)
    np.testing.assert_allclose(batch, np.stack([one, two]), atol=1e-4)
    listed = liteseg.predict(model, [images[0], images[1][:40]], output="probabilities")
    assert [part.shape for part in listed] == [(11, *SIZE), (11, 40, SIZE[1])]
    tensor = liteseg.predict(model, normalised(images[0]), output="logits")
    assert isinstance(tensor, torch.Tensor) and not tensor.is_inference()
    np.testing.assert_allclose(tensor[0], one, atol=1e-3)
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(images[0])))
    lying.getexif()[0x0112] = 6
    found = liteseg.predict(model, lying, output="logits")
    np.testing.assert_allclose(np.rot90(found, -1, axes=(1, 2)), one, atol=1e-4)
    with pytest.raises(ValueError, match="predict: output: expected one of labels, logits, probabilities, got 'ids'"):
        liteseg.predict(model, images[0], output="ids")
