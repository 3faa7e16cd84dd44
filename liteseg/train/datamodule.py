"""Data loading for the trainer: reproducible order and augmentation, whatever the number of workers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader, Sampler, default_collate

from liteseg.data import Augmentation, Pipeline, Preparation, SegmentationDataset, dataset
from liteseg.data import check as check_labels
from liteseg.imports import imported

from .interruption import left_to_the_trainer

_DEFAULT_AUGMENTATION = Augmentation()


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (turn, index): every image once a pass, `passes` passes an epoch, split evenly over `world` processes.

    Turns count the passes of all epochs. The order depends only on seed and turn; of each pass it is cut to a multiple
    of `batch * world`, so every process sees the same number of whole batches and no batch mixes two passes. Together
    the processes' n-th batches are the n-th batch of one process with batches `world` times as large.
    """

    def __init__(
        self, length: int, *, seed: int, batch: int, passes: int = 1, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        self.length, self.seed, self.passes, self.rank, self.world = length, seed, passes, rank, world
        self.used = length // (batch * world) * (batch * world)
        self.epoch = 0
        # images that the first epoch leaves out: those that a resumed run has already seen
        self.start = start

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.start = self.start, 0
        turns = range(self.epoch * self.passes, (self.epoch + 1) * self.passes)
        return itertools.islice(itertools.chain.from_iterable(map(self._turn, turns)), start, None)

    def _turn(self, turn: int) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, turn)).permutation(self.length)
        for index in order[: self.used][self.rank :: self.world]:
            yield turn, int(index)

    def __len__(self) -> int:
        return self.used // self.world * self.passes


def _collate(items: list[Any]) -> Any:
    """A batch of the items that could be read; None where there is none."""
    readable = [item for item in items if item is not None]
    return default_collate(readable) if readable else None


class SegmentationData(pl.LightningDataModule):
    """Training and validation images of one data set.

    Args:
        name: data set, "camvid", "cityscapes", "folder" (your own, described by dataset.yaml) or a class such as
            mine.Lawn.
        root: its folder.
        classes: names of the classes 0, 1, ... of a folder without dataset.yaml.
        check: read all label files before training, print what is in them, and stop where one is wrong.
        train_split: split to train on, "trainval" for train and val together.
        val_split: split to validate on.
        mode: Cityscapes only, "fine" or "coarse" training labels; validation labels are always fine.
        batch_size: images per process and step; a last incomplete batch is dropped.
        val_batch_size: images per validation step; above 1 all images must have one size.
        num_workers: loader processes; 0 loads in the training process.
        augment: random transforms of training images.
        transform: path of a pipeline of your own, such as mine.pipeline, in the place of `augment`: albumentations'
            Compose, or anything else that is called as that is (see `liteseg.data.Pipeline`).
        passes: passes over the training images that make up an epoch, one after the other; each is the changes it makes
            to `augment`, such as {crop: [768, 1536]}. None is one pass without changes.
        val_input_scale: factor by which validation images are resized before the network; labels keep their size.
        seed: of order and augmentation.
        value_range: of images with more than 8 bits a sample: the one that is white, or [black, white]; read off each
            image by default.
        labels_on: what labels are drawn on: images as viewers show them, turned by their EXIF orientation ("upright"),
            or as their files hold them ("stored").
        on_error: about an image or label that cannot be read: "fail" stops and names it; "skip" warns, trains on the
            next readable image in its place, and leaves it out of validation.
    """

    def __init__(
        self,
        root: str,
        name: str = "camvid",
        train_split: str = "train",
        val_split: str = "val",
        classes: list[str] | None = None,
        check: bool = False,
        mode: str | None = None,
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int = 1,
        augment: Augmentation = _DEFAULT_AUGMENTATION,
        transform: str | None = None,
        passes: list[dict[str, Any]] | None = None,
        val_input_scale: float = 1.0,
        seed: int = 0,
        value_range: float | tuple[float, float] | None = None,
        labels_on: Literal["upright", "stored"] = "upright",
        on_error: Literal["fail", "skip"] = "fail",
    ) -> None:
        super().__init__()
        counts = (("batch_size", batch_size, 1), ("val_batch_size", val_batch_size, 1), ("num_workers", num_workers, 0))
        for option, value, least in counts:
            if value < least:
                raise ValueError(f"data: {option}: expected at least {least}, got {value}")
        self.name, self.root, self.seed = name, root, seed
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        # of every split
        self.reading: dict[str, Any] = {"value_range": value_range, "labels_on": labels_on}
        if classes is not None:
            self.reading["classes"] = classes
        options: dict[str, Any] = self.reading if mode is None else {**self.reading, "mode": mode}
        transforms: list[Augmentation | Pipeline]
        if transform is None:
            transforms = [_changed(augment, changes) for changes in (passes or [{}])]
        elif passes:
            raise ValueError(f"data: passes: expected none with a transform, whose they cannot change, got {passes}")
        else:
            transforms = [_pipeline(transform)]
        self.train_set: SegmentationDataset = dataset(
            name, root, train_split, transform=transforms, seed=seed, **options
        )
        self.val_set: SegmentationDataset = dataset(
            name, root, val_split, transform=Preparation(val_input_scale), **self.reading
        )
        if on_error == "skip":
            self.train_set.on_error, self.val_set.on_error = "replace", "drop"
        self.class_names = self.train_set.class_names
        self.train_split = train_split
        self.check = check
        self.passes = len(transforms)
        self._first_epoch = self._first_batch = 0

    def setup(self, stage: str) -> None:
        if stage != "fit" or not self.check or (self.trainer is not None and not self.trainer.is_global_zero):
            return
        reports = [check_labels(data) for data in (self.train_set, self.val_set)]
        rank_zero_info("\n".join(map(str, reports)))
        problems = [problem for report in reports for problem in report.problems]
        if problems and self.train_set.on_error == "fail":
            more = f" (and {len(problems) - 1} more; liteseg dataset check lists all)" if len(problems) > 1 else ""
            raise ValueError(f"{problems[0]}{more}")

    # lightning starts the loader before it restores its own progress and tells the sampler the epoch, so without this
    # a resumed run would repeat the pictures of epoch 0
    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"epochs_done": 0, "batches_done": 0}
        loop: Any = self.trainer.fit_loop
        batches = loop.epoch_loop.batch_progress.current.ready
        ended = batches >= self.trainer.num_training_batches
        return {
            "epochs_done": loop.epoch_progress.current.processed,
            "batches_done": 0 if ended else batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_epoch = state_dict["epochs_done"]
        # checkpoints made by older versions lie at the end of an epoch
        self._first_batch = state_dict.get("batches_done", 0)

    def _processes(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader:
        rank, world = self._processes()
        if len(self.train_set) < self.batch_size * world:
            raise ValueError(
                f"data: batch_size: expected at most {len(self.train_set)} images for a step "
                f"(the {self.train_split} split has no more), got {self.batch_size} x {world} process(es)"
            )
        sampler = EpochSampler(
            len(self.train_set),
            seed=self.seed,
            batch=self.batch_size,
            passes=self.passes,
            rank=rank,
            world=world,
            start=self._first_batch * self.batch_size,
        )
        sampler.set_epoch(self._first_epoch)
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=left_to_the_trainer,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        rank, world = self._processes()
        if len(self.val_set) < world:
            raise ValueError(
                f"data: val_split: expected an image for each of {world} processes, got {len(self.val_set)}"
            )
        # every image once: shares may differ by one, no image is repeated to make them equal
        share = range(rank, len(self.val_set), world)
        return DataLoader(
            self.val_set,
            batch_size=self.val_batch_size,
            sampler=share,
            num_workers=self.num_workers,
            worker_init_fn=left_to_the_trainer,
            collate_fn=_collate,
        )


def _pipeline(path: str) -> Pipeline:
    found = imported(path, "data: transform")
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"data: transform: expected a pipeline (an object that is called), got {path}: {found!r}")
    return Pipeline(found)


def _changed(augment: Augmentation, changes: dict[str, Any]) -> Augmentation:
    fields = {field.name for field in dataclasses.fields(augment)}
    for name in changes:
        if name not in fields:
            raise ValueError(f"data: passes: expected changes to {', '.join(sorted(fields))}, got {name!r}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()}
    return dataclasses.replace(augment, **values)
