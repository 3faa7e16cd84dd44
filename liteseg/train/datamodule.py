"""Data loading for the trainer: reproducible order and augmentation, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Sampler

from liteseg.data import Augmentation, Preparation, SegmentationDataset, dataset

_DEFAULT_AUGMENTATION = Augmentation()


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that depends only on seed and epoch, split evenly over `world` processes.

    The order is cut to a multiple of `batch * world`, so every process sees the same number of whole batches.
    """

    def __init__(self, length: int, *, seed: int, batch: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.used = length // (batch * world) * (batch * world)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        for index in order[: self.used][self.rank :: self.world]:
            yield epoch, int(index)

    def __len__(self) -> int:
        return self.used // self.world


class SegmentationData(pl.LightningDataModule):
    """Training and validation images of one data set.

    Args:
        name: data set, "camvid" or "cityscapes".
        root: its folder.
        train_split: split to train on.
        val_split: split to validate on.
        mode: Cityscapes only, "fine" or "coarse".
        batch_size: images per process and step; a last incomplete batch is dropped.
        val_batch_size: images per validation step; above 1 all images must have one size.
        num_workers: loader processes; 0 loads in the training process.
        augment: random transforms of training images.
        val_input_scale: factor by which validation images are resized before the network; labels keep their size.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        root: str,
        name: str = "camvid",
        train_split: str = "train",
        val_split: str = "val",
        mode: str | None = None,
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int = 1,
        augment: Augmentation = _DEFAULT_AUGMENTATION,
        val_input_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or val_batch_size < 1:
            raise ValueError(f"data: batch size: expected at least 1, got {min(batch_size, val_batch_size)}")
        if num_workers < 0:
            raise ValueError(f"data: num_workers: expected at least 0, got {num_workers}")
        self.name, self.root, self.seed = name, root, seed
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        options = {} if mode is None else {"mode": mode}
        self.train_set: SegmentationDataset = dataset(name, root, train_split, transform=augment, seed=seed, **options)
        self.val_set: SegmentationDataset = dataset(name, root, val_split, transform=Preparation(val_input_scale))
        self.class_names = self.train_set.class_names
        self.train_split = train_split
        self._first_epoch = 0

    # lightning starts the loader before it restores its own progress and tells the sampler the epoch, so without this
    # a resumed run would repeat the pictures of epoch 0
    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"epochs_done": 0}
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return {"epochs_done": progress.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_epoch = state_dict["epochs_done"]

    def train_dataloader(self) -> DataLoader:
        world, rank = 1, 0
        if self.trainer is not None:
            world, rank = self.trainer.world_size, self.trainer.global_rank
        if len(self.train_set) < self.batch_size * world:
            raise ValueError(
                f"data: batch_size: expected at most {len(self.train_set)} images for a step "
                f"(the {self.train_split} split has no more), got {self.batch_size} x {world} process(es)"
            )
        sampler = EpochSampler(len(self.train_set), seed=self.seed, batch=self.batch_size, rank=rank, world=world)
        sampler.set_epoch(self._first_epoch)
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=self.val_batch_size, num_workers=self.num_workers)
