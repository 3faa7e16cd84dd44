"""One way to read a picture: value range, orientation and suffixes, the same for everything that reads one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import liteseg
from liteseg import data
from liteseg.cli import main
from liteseg.data import CAMVID_PALETTE, CamVid, Cityscapes, dataset
from liteseg.files import find_inputs, predict_files
from liteseg.reading import IMAGE_SUFFIXES, read_image, rgb_array, to_8_bits, turned
from tests.data import folders
from tests.data.deep import write_png, write_tiff

SIZE = folders.SIZE


def pixels(seed: int = 0, channels: int = 3) -> np.ndarray:
    """uint8 [H, W, C], black and white among them."""
    found = np.random.default_rng(seed).integers(0, 256, (*SIZE, channels), dtype=np.uint8)
    found[0, 0], found[-1, -1] = 0, 255
    return found


def deep(shallow: np.ndarray, white: int) -> np.ndarray:
    """The same picture with `white` for 255."""
    return np.rint(shallow.astype(np.float64) * white / 255).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_png_of_16_bits_holding_fewer(tmp_path: Path, bits: int, channels: int) -> None:
    shallow = pixels(channels=channels)
    path = write_png(tmp_path / "a.png", deep(shallow, 2**bits - 1))
    colours = shallow[:, :, :3] if channels > 2 else np.repeat(shallow[:, :, :1], 3, axis=2)
    assert np.array_equal(read_image(path), colours)


@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [12, 16])
def test_tiff_of_16_bits(tmp_path: Path, bits: int, channels: int, order: str, deflate: bool) -> None:
    shallow = pixels(channels=channels)
    path = write_tiff(tmp_path / "a.tif", deep(shallow, 2**bits - 1), order=order, deflate=deflate)
    assert np.array_equal(read_image(path), np.broadcast_to(shallow, (*SIZE, 3)))


def test_what_the_file_says_goes_before_what_its_samples_look_like(tmp_path: Path) -> None:
    dark = pixels(channels=1) // 8
    path = write_tiff(tmp_path / "a.tif", deep(dark, 4095), bits=12)
    assert np.array_equal(read_image(path)[:, :, :1], dark)
    grey = b"P5\n%d %d\n4095\n" % (SIZE[1], SIZE[0]) + deep(dark, 4095).astype(">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(grey)
    assert np.array_equal(read_image(tmp_path / "a.ppm")[:, :, :1], dark)


def test_given_value_range(tmp_path: Path) -> None:
    dark = pixels(channels=3) // 8
    path = write_png(tmp_path / "a.png", deep(dark, 4095))
    assert read_image(path).max() > 60, "read off the picture, which has no white"
    assert np.array_equal(read_image(path, 4095), dark)
    offset = write_png(tmp_path / "b.png", 7000 + deep(dark, 2000))
    assert np.array_equal(read_image(offset, (7000, 9000)), dark)
    # what is beyond is black or white
    assert read_image(offset, (7000, 7100)).max() == 255 and read_image(offset, (7100, 9000)).min() == 0
    # pictures of 8 bits have theirs
    shallow = pixels(1)
    Image.fromarray(shallow).save(tmp_path / "c.png")
    assert np.array_equal(read_image(tmp_path / "c.png", 4095), shallow)
    # and of floating-point numbers nothing can be read off
    Image.fromarray(dark[:, :, 0].astype(np.float32) / 255).save(tmp_path / "d.tif")
    assert np.array_equal(read_image(tmp_path / "d.tif", 1.0), np.repeat(dark[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("wrong", [0, -5, (5, 5), (9, 1), (1, 2, 3), float("nan")])
def test_wrong_value_ranges(tmp_path: Path, wrong: object) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    for act in (
        lambda: read_image(tmp_path / "a.png", wrong),
        lambda: dataset("camvid", folders.camvid(tmp_path), "train", value_range=wrong),
    ):
        with pytest.raises(ValueError, match="value_range: expected a number above 0 or two rising numbers"):
            act()


def test_black_frame_stays_black() -> None:
    assert not to_8_bits(np.zeros((4, 4), np.uint16)).any()
    assert to_8_bits(np.zeros((0, 4), np.uint16)).shape == (0, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path: Path, orientation: int) -> None:
    upright = pixels()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = turned(upright, orientation, back=True)
    assert np.array_equal(turned(stored, orientation), upright)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), upright)
    # Pillow turns these itself
    assert np.array_equal(
        read_image(write_tiff(tmp_path / "a.tif", deep(stored, 65535), orientation=orientation)), upright
    )


class _Brightness(nn.Module):
    """Class 1 where a pixel is brighter than its right neighbour: the labels show how the picture lay."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        grey = x.mean(1, keepdim=True)
        return nn.functional.pad((grey[..., :-1] - grey[..., 1:]), (0, 1)) * x.new_tensor([-1.0, 1.0]).view(1, 2, 1, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_predict_sees_an_upright_picture_and_labels_lie_on_the_given_one(tmp_path: Path, orientation: int) -> None:
    upright = pixels()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = turned(upright, orientation, back=True)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    model = _Brightness()
    expected = liteseg.predict(model, upright)
    with Image.open(tmp_path / "a.png") as image:
        labels = liteseg.predict(model, image)
        assert labels.shape == stored.shape[:2] == np.asarray(image).shape[:2]
    assert model.seen == [(1, 3, *SIZE)] * 2
    assert np.array_equal(turned(labels, orientation), expected)


def test_every_reader_sees_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prediction, evaluation, training, demo and figures, on 12 bits that lie in 16."""
    from liteseg import demo
    from liteseg.bench import figures

    shallow = pixels()
    root = folders.camvid(tmp_path / "camvid", {"train": 1, "val": 1})
    path = write_png(root / "val" / "val_000.png", deep(shallow, 4095))

    sample = CamVid(root, "val").load(0)
    assert np.array_equal(sample.image, shallow)
    assert np.array_equal(data.read_image(path), shallow)
    with Image.open(path) as image:
        assert np.array_equal(rgb_array(image), shallow)

    seen: list[np.ndarray] = []
    model = liteseg.create_model("liteseg_mobilenetv2", 11).eval()
    for reader in ("files.predict_at", "demo.predict"):
        monkeypatch.setattr(f"liteseg.{reader}", lambda model, image, **_: _kept(seen, image))
    predict_files(model, [str(path)], tmp_path / "out", palette=CAMVID_PALETTE, progress=False)
    monkeypatch.setattr(demo, "compare", lambda model, fused, image, **_: _kept(seen, image))
    demo.demo(model, image=path, out=tmp_path / "out")
    monkeypatch.setattr(figures, "figure3", lambda models, samples, *_: seen.extend(image for image, _ in samples))
    for more in (("--image", str(path)), ("--data", str(root), "--dataset", "camvid", "--count", "1")):
        assert main(["benchmark", "figures", "--figure", "3", *more, "--out", str(tmp_path / "out")]) == 0
    assert len(seen) == 5 and all(np.array_equal(image, shallow) for image in seen)


def _kept(seen: list[np.ndarray], image: np.ndarray) -> np.ndarray:
    seen.append(image)
    return np.zeros(image.shape[:2], np.uint8)


@pytest.mark.parametrize(
    ("options", "value_range"),
    [((), 1023), (("--value-range", "4095"), 4095), (("--value-range", "100:700"), (100, 700))],
    ids=["read off", "white", "black and white"],
)
def test_value_range_on_the_command_line(tmp_path: Path, options: tuple[str, ...], value_range: object) -> None:
    samples = deep(pixels(), 800)
    path, out = write_png(tmp_path / "a.png", samples), tmp_path / "out"
    assert main(["predict", str(path), "--weights", "camvid", "--alpha", "0", "--out", str(out), *options]) == 0
    assert np.array_equal(read_image(out / "a_overlay.png"), to_8_bits(samples, value_range))


def test_wrong_value_range_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "9:1", "bright"):
        assert main(["predict", "a.png", "--weights", "camvid", "--value-range", wrong]) == 2
        assert "--value-range: expected" in capsys.readouterr().err


def test_one_list_of_suffixes_and_no_hidden_files(tmp_path: Path) -> None:
    root = folders.camvid(tmp_path, {"train": 1}, lists=False)
    names = {"train_000.png"}
    for suffix in sorted(IMAGE_SUFFIXES - {".png"}) + [".PNG"]:
        name = f"a{suffix.strip('.')}{suffix}"
        Image.fromarray(pixels()).convert("RGB").save(root / "train" / name)
        folders.write_label(root / "trainannot" / f"{Path(name).stem}.png", np.zeros(SIZE, np.uint8))
        names.add(name)
    for hidden in ("._train_000.png", ".DS_Store", ".hidden.jpg"):
        (root / "train" / hidden).write_bytes(b"not a picture")
    (root / "train" / ".thumbnails").mkdir()
    (root / "train" / ".thumbnails" / "t.png").write_bytes(b"not a picture")
    trained = CamVid(root, "train")
    assert {path.name for path, _ in trained.items} == names
    for recursive in (False, True):
        predicted, failures = find_inputs([str(root / "train")], tmp_path / "out", recursive=recursive)
        assert not failures and {one.path.name for one in predicted} == names
    assert all(trained.load(i).image.shape == (*SIZE, 3) for i in range(len(trained)))


def test_hidden_files_of_cityscapes(tmp_path: Path) -> None:
    root = folders.cityscapes(tmp_path, "zips", "fine", ("val",))
    city = root / "leftImg8bit" / "val" / "ulm"
    (city / "._ulm_000000_000019_leftImg8bit.png").write_bytes(b"not a picture")
    (root / "leftImg8bit" / "val" / ".ulm").mkdir()
    (root / "leftImg8bit" / "val" / ".ulm" / "x_leftImg8bit.png").write_bytes(b"not a picture")
    assert len(Cityscapes(root, "val")) == 4


def test_video_of_16_bits(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from liteseg.video import _Reader

    frames = [np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1)) // divisor for divisor in (1, 8)]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(deep(frame, 4095), format="gray16le")))
        container.mux(stream.encode())
    for value_range in (None, 4095, (0, 4095)):
        read = _Reader(value_range)
        with av.open(str(tmp_path / "a.mkv")) as container:
            got = [read(frame) for frame in container.decode(video=0)]
        # the second frame is dark, and stays so
        assert all(np.array_equal(a[:, :, 1], b) for a, b in zip(got, frames, strict=True))
        assert got[0].shape == (48, 64, 3)
