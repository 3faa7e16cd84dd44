"""Segmenting a video, frame by frame: into a video with the classes painted over it, or into label files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from liteseg.atomic import atomic_folder, atomic_path
from liteseg.errors import MissingExtraError
from liteseg.image_io import overlay, write_labels
from liteseg.palette import Palette
from liteseg.predict import evaluating, labels_and_confidence, predict_at
from liteseg.progress import progress_bar
from liteseg.reading import SampleRange, to_8_bits, white_level

__all__ = ["VIDEO_SUFFIXES", "label_video", "predict_video"]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("segmenting a video", "video", "av") from error
    return av


class _Reader:
    """Frames as uint8 [H, W, 3] RGB, read as pictures are: upright, from black to white whatever the number of bits.

    Only samples of 16 bits can hold fewer; formats of 10 and 12 bits say so themselves. What is read off the frames
    only grows, so that a video does not flicker.
    """

    def __init__(self, value_range: SampleRange) -> None:
        self.value_range = value_range
        self._white = 0

    def __call__(self, frame: Any) -> np.ndarray:
        # phones store portrait lying
        return np.ascontiguousarray(np.rot90(self._pixels(frame), frame.rotation // 90))

    def _pixels(self, frame: Any) -> np.ndarray:
        components = frame.format.components
        if max(component.bits for component in components) < 16:
            return frame.to_ndarray(format="rgb24")
        deep = frame.to_ndarray(format="gray16le" if len(components) == 1 else "rgb48le")
        if self.value_range is None:
            self._white = max(self._white, white_level(deep))
        pixels = to_8_bits(deep, self._white if self.value_range is None else self.value_range)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _even(pixels: np.ndarray) -> np.ndarray:
    """Repeats the last row or column where a side is odd: 4:2:0 video has none."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _frames(container: Any, stream: Any, path: Path, av: ModuleType) -> Iterator[Any]:
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: damaged video: {error.strerror}") from error


@contextmanager
def _opened(source: Path, value_range: SampleRange, progress: bool) -> Iterator[tuple[Fraction, Iterator[np.ndarray]]]:
    """Frame rate of the first video stream of a file, and its frames, uint8 [H, W, 3] RGB of one size."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file")
    av = _import_av()
    try:
        container = av.open(os.fspath(source))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{source}: not a video that can be read: {error.strerror}") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{source}: expected a video stream, got none")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"

        def frames() -> Iterator[np.ndarray]:
            read = _Reader(value_range)
            size: tuple[int, ...] | None = None
            found = _frames(container, stream, source, av)
            total = stream.frames or None
            bar = progress_bar(found, desc=source.name, unit="frame", total=total, show=progress)
            for count, frame in enumerate(bar):
                pixels = read(frame)
                size = size or pixels.shape
                if pixels.shape != size:
                    raise ValueError(
                        f"{source}: expected frames of {size[0]}x{size[1]} throughout, got "
                        f"{pixels.shape[0]}x{pixels.shape[1]} in frame {count}"
                    )
                yield pixels
            if size is None:
                raise ValueError(f"{source}: expected at least one frame, got none")

        yield stream.average_rate or stream.guessed_rate or Fraction(25), frames()


def predict_video(
    model: nn.Module,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    palette: Palette,
    alpha: float = 0.5,
    confidence: bool = False,
    scale: float | None = None,
    value_range: SampleRange = None,
    progress: bool = False,
) -> int:
    """Writes a video with the classes of every frame painted over it.

    H.264 in MP4 (MPEG-4 part 2 where PyAV lacks libx264), the frame rate of the source, no sound. Odd sides grow by one
    pixel. The file appears under its name only when it is complete.

    Args:
        path: any video PyAV can decode; its first video stream is taken.
        out: name of the result, ending in ``.mp4``.
        palette: K rows of R, G, B.
        alpha: share of the class colour, 0..1.
        confidence: paint fainter where the network is less sure (:func:`liteseg.image_io.overlay`).
        scale: input scale; ``model.config.input_scale`` by default.
        value_range: of videos with 16 bits a sample; read off the frames by default.
        progress: show a progress bar on stderr.

    Returns:
        The number of frames written.

    Raises:
        MissingExtraError: PyAV is not installed.
        FileNotFoundError: no such file.
        ValueError: not a video, a damaged one, or frames smaller than 32 pixels; the text names the file.
    """
    source = Path(path)
    if Path(out).suffix.lower() != ".mp4":
        raise ValueError(f"predict_video: out: expected a name ending in .mp4, got {str(out)!r}")
    with _opened(source, value_range, progress) as (rate, frames):
        av = _import_av()
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        count = 0
        with (
            evaluating(model) as ready,
            atomic_path(out) as temporary,
            av.open(os.fspath(temporary), "w", format="mp4") as sink,
        ):
            target: Any = None
            for pixels in frames:
                if target is None:
                    target = sink.add_stream(codec, rate=rate)
                    target.height, target.width = _even(pixels).shape[:2]
                    target.pix_fmt = "yuv420p"
                sure = None
                with _naming(source):
                    if confidence:
                        labels, sure = labels_and_confidence(ready, pixels, scale=scale)
                    else:
                        labels = predict_at(ready, pixels, scale=scale)
                painted = overlay(pixels, labels, palette, alpha, sure)
                sink.mux(target.encode(av.VideoFrame.from_ndarray(_even(painted), format="rgb24")))
                count += 1
            sink.mux(target.encode(None))
    return count


def label_video(
    model: nn.Module,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    palette: Palette,
    scale: float | None = None,
    value_range: SampleRange = None,
    progress: bool = False,
) -> int:
    """Writes the label map of every frame, ``00000.png`` and so on as :func:`liteseg.image_io.write_labels` does.

    The folder appears under its name only when it is complete, and takes the place of one of that name. Arguments,
    results and errors are those of :func:`predict_video`, but for

    Args:
        out: name of the folder.
    """
    source = Path(path)
    count = 0
    with (
        _opened(source, value_range, progress) as (_, frames),
        evaluating(model) as ready,
        atomic_folder(out) as temporary,
    ):
        for pixels in frames:
            with _naming(source):
                labels = predict_at(ready, pixels, scale=scale)
            write_labels(temporary / f"{count:05d}.png", labels, palette)
            count += 1
    return count


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """What is wrong with a frame is wrong with its file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
