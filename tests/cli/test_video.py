"""Videos: every frame painted, turned upright, written whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liteseg.data import CAMVID_PALETTE
from liteseg.errors import MissingExtraError
from liteseg.image_io import overlay
from liteseg.predict import predict
from liteseg.video import predict_video

from .conftest import SIZE, picture

av = pytest.importorskip("av")


def write_video(path: Path, frames: list[np.ndarray], *, rotation: int = 0, rate: int = 10) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


def test_every_frame_is_painted(run, model, weights, tmp_path) -> None:
    source = write_video(tmp_path / "drive.mp4", [picture(i) for i in range(4)])
    out = tmp_path / "out"
    code, printed, err = run("predict", source, "--weights", weights, "--out", out, "--alpha", "1", "--no-fuse")
    assert code == 0 and "4/4" in err
    assert printed.strip() == str(out / "drive_overlay.mp4")
    assert [p.name for p in out.iterdir()] == ["drive_overlay.mp4"]
    frames, rate = read_video(out / "drive_overlay.mp4")
    assert rate == 10
    assert len(frames) == 4 and frames[0].shape == (*SIZE, 3)
    decoded, _ = read_video(source)
    for frame, shown in zip(decoded, frames, strict=True):
        expected = overlay(frame, predict(model, frame), CAMVID_PALETTE, 1.0)
        # the video is compressed with halved colour resolution
        assert np.abs(expected.astype(int) - shown).mean() < 25
        assert np.abs(expected.astype(int) - shown).mean() < np.abs(frame.astype(int) - shown).mean()


def test_odd_sides_grow_by_one_pixel(model, tmp_path) -> None:
    source = write_video(tmp_path / "odd.mkv", [picture(0, (65, 97))])
    assert predict_video(model, source, tmp_path / "out.mp4", palette=CAMVID_PALETTE) == 1
    assert read_video(tmp_path / "out.mp4")[0][0].shape == (66, 98, 3)


def test_rotated_video_is_turned_upright(model, tmp_path) -> None:
    upright = picture()
    # stored turned clockwise, to be shown turned a quarter counter-clockwise
    stored = np.ascontiguousarray(np.rot90(upright, -1))
    source = write_video(tmp_path / "phone.mp4", [stored], rotation=90)
    predict_video(model, source, tmp_path / "out.mp4", palette=CAMVID_PALETTE, alpha=0.0)
    shown = read_video(tmp_path / "out.mp4")[0][0]
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).mean() < np.abs(shown[::-1, ::-1].astype(int) - upright).mean() / 2


@pytest.mark.parametrize("content", [b"", b"not a video" * 100])
def test_bad_video_is_refused_and_leaves_nothing(refused, weights, tmp_path, content) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    line = refused("predict", tmp_path / "bad.mp4", "--weights", weights, "--out", tmp_path / "out")
    assert "bad.mp4: not a video that can be read" in line
    assert not (tmp_path / "out").exists()


def test_frames_that_are_too_small_name_the_video(model, tmp_path) -> None:
    source = write_video(tmp_path / "tiny.mp4", [picture(0, (16, 48))])
    with pytest.raises(ValueError, match="tiny.mp4: predict: image: expected height and width of at least 32"):
        predict_video(model, source, tmp_path / "out" / "a.mp4", palette=CAMVID_PALETTE)
    assert list((tmp_path / "out").iterdir()) == []


def test_sound_alone_is_no_video(model, tmp_path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="sound.mp4: expected a video stream, got none"):
        predict_video(model, tmp_path / "sound.mp4", tmp_path / "out.mp4", palette=CAMVID_PALETTE)


def test_missing_file_and_wrong_result_name(model, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="none.mp4: no such file"):
        predict_video(model, tmp_path / "none.mp4", tmp_path / "out.mp4", palette=CAMVID_PALETTE)
    source = write_video(tmp_path / "a.mp4", [picture()])
    with pytest.raises(ValueError, match="out: expected a name ending in .mp4"):
        predict_video(model, source, tmp_path / "out.avi", palette=CAMVID_PALETTE)


def test_without_pyav_the_extra_is_named(model, refused, weights, tmp_path, monkeypatch) -> None:
    source = write_video(tmp_path / "a.mp4", [picture()])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'pip install "liteseg\[video\]"'):
        predict_video(model, source, tmp_path / "out.mp4", palette=CAMVID_PALETTE)
    assert 'pip install "liteseg[video]"' in refused("predict", source, "--weights", weights, "--out", tmp_path / "out")


def test_labels_of_every_frame(run, model, weights, tmp_path) -> None:
    source = write_video(tmp_path / "a.mp4", [picture(i) for i in range(3)])
    out = tmp_path / "out"
    stale = out / "a_labels" / "00099.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    arguments = ("--weights", weights, "--out", out, "--labels-only", "--no-fuse", "--quiet")
    code, printed, _ = run("predict", source, *arguments)
    assert (code, printed.strip()) == (0, str(out / "a_labels"))
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == [
        "a_labels",
        *(f"a_labels/0000{i}.png" for i in range(3)),
    ]
    for index, frame in enumerate(read_video(source)[0]):
        with Image.open(out / "a_labels" / f"0000{index}.png") as image:
            assert image.mode == "P" and np.array_equal(np.array(image), predict(model, frame))
    # they are results, not pictures to segment
    assert "no pictures or videos" in run("predict", out, *arguments, "--recursive")[2]


def test_confidence_fades_videos_too(model, tmp_path) -> None:
    source = write_video(tmp_path / "a.mp4", [picture()])
    shown = []
    for sure in (False, True):
        predict_video(model, source, tmp_path / "out.mp4", palette=CAMVID_PALETTE, alpha=1.0, confidence=sure)
        shown.append(read_video(tmp_path / "out.mp4")[0][0].astype(int))
    frame = read_video(source)[0][0]
    assert np.abs(shown[1] - frame).mean() < np.abs(shown[0] - frame).mean()
