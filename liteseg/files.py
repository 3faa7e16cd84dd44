"""Which files a command line names, what their results are called, and segmenting them one by one."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from liteseg.distributed import gather, rank, world_size
from liteseg.image_io import add_legend, overlay, write_image, write_labels
from liteseg.palette import Palette
from liteseg.predict import evaluating, labels_and_confidence, predict_at
from liteseg.progress import progress_bar
from liteseg.reading import IMAGE_SUFFIXES, SampleRange, files_in, read_image
from liteseg.video import VIDEO_SUFFIXES, label_video, predict_video

__all__ = ["Input", "Outcome", "find_inputs", "predict_files"]

LABELS_END = "_labels.png"
OVERLAY_END = "_overlay.png"
VIDEO_END = "_overlay.mp4"
# a folder, of a video's frames
FRAMES_END = "_labels"


@dataclass(frozen=True)
class Input:
    """One file to segment, and the name of its results (relative to the output folder, without their endings)."""

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def results(self, out: Path, labels_only: bool) -> list[Path]:
        """The files, or the folder, that segmenting this one writes."""
        base = str(out / self.name)
        if self.is_video:
            return [Path(base + (FRAMES_END if labels_only else VIDEO_END))]
        return [Path(base + LABELS_END)] if labels_only else [Path(base + LABELS_END), Path(base + OVERLAY_END)]


@dataclass
class Outcome:
    """What became of the inputs: files written, renamed results, and the reason of every failure."""

    written: list[Path] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: int = 0


def _is_result(path: Path, out: Path) -> bool:
    if not path.resolve().is_relative_to(out.resolve()):
        return False
    frame = path.parent.name.endswith(FRAMES_END) and path.parent.resolve() != out.resolve()
    return frame or path.name.endswith((LABELS_END, OVERLAY_END, VIDEO_END))


def _in_folder(folder: Path, recursive: bool, out: Path) -> list[Path]:
    found = files_in(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES, recursive=recursive)
    # results of an earlier run into the same folder are not inputs of this one
    return [path for path in found if not _is_result(path, out)]


def find_inputs(given: Iterable[str], out: Path, *, recursive: bool = False) -> tuple[list[Input], list[str]]:
    """Files behind the given names: files, folders, globs.

    A file found twice is taken once. Inside a folder given with ``recursive``, results keep the sub-folder.

    Returns:
        The inputs, and one reason for every given name that stands for nothing.
    """
    found: dict[Path, Input] = {}
    failures: list[str] = []

    def add(path: Path, name: Path) -> None:
        found.setdefault(path.resolve(), Input(path, name))

    for text in given:
        path = Path(text)
        if path.is_dir():
            files = _in_folder(path, recursive, out)
            if not files:
                deeper = "" if recursive else " (sub-folders are searched with --recursive)"
                failures.append(f"{text}: no pictures or videos in this folder{deeper}")
            for file in files:
                add(file, file.relative_to(path).with_suffix(""))
        elif path.exists() or not glob.has_magic(text):
            if path.exists():
                add(path, Path(path.stem))
            else:
                failures.append(f"{text}: no such file or folder")
        else:
            matches = sorted(Path(m) for m in glob.glob(text, recursive=recursive))
            files = [m for m in matches if m.is_file() and not _is_result(m, out)]
            if not files:
                failures.append(f"{text}: no file matches this pattern")
            for file in files:
                add(file, Path(file.stem))
    return list(found.values()), failures


def _distinct(inputs: Sequence[Input], out: Path, labels_only: bool, outcome: Outcome) -> list[Input]:
    """Gives inputs whose results would share a name, or overwrite an input, names of their own."""

    def key(path: Path) -> str:
        # some file systems do not tell A.png from a.png
        return str(path.resolve()).casefold()

    taken = {key(i.path) for i in inputs}
    result = []
    for one in inputs:
        number, candidate = 1, one
        while True:
            names = {key(p) for p in candidate.results(out, labels_only)}
            if not names & taken:
                break
            number += 1
            candidate = Input(one.path, one.name.with_name(f"{one.name.name}_{number}"))
        if candidate is not one:
            outcome.renamed.append(f"{one.path}: results are named {candidate.name}, {one.name} is taken")
        taken |= names
        result.append(candidate)
    return result


def predict_files(
    model: nn.Module,
    given: Iterable[str],
    out: Path,
    *,
    palette: Palette,
    class_names: Sequence[str] | None = None,
    alpha: float = 0.5,
    labels_only: bool = False,
    legend: bool = False,
    confidence: bool = False,
    recursive: bool = False,
    scale: float | None = None,
    value_range: SampleRange = None,
    progress: bool = True,
) -> Outcome:
    """Segments files, folders, globs and videos; one bad file does not lose the others.

    Inside a torch.distributed process group each process takes its share of the files; all return the whole outcome.

    Args:
        given: names as typed by the user.
        out: folder of the results: ``NAME_labels.png`` (8-bit train ids, with the palette) and ``NAME_overlay.png``; of
            videos ``NAME_overlay.mp4``, or the folder ``NAME_labels`` of the frames' label maps.
        palette: K rows of R, G, B.
        class_names: for the legend.
        alpha: share of the class colour in the overlay.
        labels_only: leave the overlay out.
        legend: add the class names to the overlay of pictures.
        confidence: paint overlays fainter where the network is less sure.
        recursive: search sub-folders of folders, and let ``**`` in globs match them.
        scale: input scale; the model's by default.
        value_range: of files with more than 8 bits a sample; read off each file by default.
        progress: show a progress bar on stderr when there is more than one file.

    Returns:
        What was written, and one reason for every input that failed.
    """
    outcome = Outcome()
    inputs, outcome.failures = find_inputs(given, out, recursive=recursive)
    bar: tqdm | None = None
    # every process gives all names, so that none is given twice
    share = _distinct(inputs, out, labels_only, outcome)[rank() :: world_size()]
    if rank():
        # what all of them find is told by the first
        outcome = Outcome()
    for index, one in enumerate(share):
        try:
            results = one.results(out, labels_only)
            if one.is_video:
                common: dict[str, Any] = {
                    "palette": palette,
                    "scale": scale,
                    "value_range": value_range,
                    "progress": progress and len(inputs) == 1 and rank() == 0,
                }
                if labels_only:
                    label_video(model, one.path, results[0], **common)
                else:
                    predict_video(model, one.path, results[0], alpha=alpha, confidence=confidence, **common)
            else:
                image = read_image(one.path, value_range)
                sure = None
                try:
                    with evaluating(model) as ready:
                        if confidence and not labels_only:
                            labels, sure = labels_and_confidence(ready, image, scale=scale)
                        else:
                            labels = predict_at(ready, image, scale=scale)
                except ValueError as error:
                    raise ValueError(f"{one.path}: {error}") from error
                write_labels(results[0], labels, palette)
                if not labels_only:
                    painted = overlay(image, labels, palette, alpha, sure)
                    if legend and class_names is not None:
                        painted = add_legend(painted, palette, class_names)
                    write_image(results[1], painted)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            outcome.failures.append(str(error))
        except (MemoryError, torch.OutOfMemoryError):
            outcome.failures.append(f"{one.path}: not enough memory for a file of this size")
        else:
            outcome.written += results
            outcome.done += 1
            if bar is None and len(share) > 1:
                # made at the first success: when nothing works, the reason is all that is printed
                bar = progress_bar(total=len(share), desc="predict", unit="file", show=progress and rank() == 0)
                bar.update(index)
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    return _together(gather(outcome))


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """What became of the inputs of all processes."""
    first, *others = outcomes
    for other in others:
        first.written += other.written
        first.renamed += other.renamed
        first.failures += other.failures
        first.done += other.done
    return first
