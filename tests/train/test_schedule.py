"""Learning-rate schedule, loss weights, averaged weights and data order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

from liteseg.train.callbacks import EMA
from liteseg.train.datamodule import EpochSampler, SegmentationData
from liteseg.train.module import log_class_weights
from liteseg.train.schedule import learning_rate_factor
from tests.data import folders


def test_warm_up_then_poly() -> None:
    factors = [learning_rate_factor(s, total_steps=100, steps_per_epoch=10, warmup_steps=4) for s in range(101)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 0.96**0.9 and factors[50] == 0.5**0.9 and factors[100] == 0.0
    assert all(a > b for a, b in zip(factors[4:], factors[5:], strict=False))


def test_authors_rule_moves_every_five_epochs() -> None:
    """lr0 * (1 - e / 100) ** 0.9, set when e % 5 == 4."""
    rate, expected = 1.0, []
    for epoch in range(100):
        if epoch % 5 == 4:
            rate = (1 - epoch / 100) ** 0.9
        expected += [rate] * 3
    got = [learning_rate_factor(s, total_steps=300, steps_per_epoch=3, hold_epochs=5) for s in range(300)]
    assert np.allclose(got, expected, rtol=1e-12)


def test_steps_beyond_the_end_have_rate_zero() -> None:
    assert learning_rate_factor(120, total_steps=100, steps_per_epoch=10) == 0.0


def test_log_class_weights() -> None:
    weights = log_class_weights(np.array([0.9, 0.1, 0.0]))
    assert np.isclose(weights.mean(), 1.0)
    assert np.isclose(weights[2] / weights[0], np.log(2.0) / np.log(1.1))


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(epoch: int, seed: int = 0) -> list[tuple[int, int]]:
        sampler = EpochSampler(10, seed=seed, batch=2)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(3) == order(3) and order(3) != order(4)
    assert [i for _, i in order(3)] != [i for _, i in order(3, seed=1)]
    assert sorted(order(3)) == [(3, i) for i in range(10)]


def test_processes_share_an_epoch_without_overlap() -> None:
    samplers = [EpochSampler(23, seed=0, batch=3, rank=rank, world=2) for rank in range(2)]
    parts = [list(sampler) for sampler in samplers]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers] == [9, 9]
    assert len({*parts[0], *parts[1]}) == 18


def test_averaged_weights_warm_up() -> None:
    with pytest.raises(ValueError, match="ema_decay: expected a number between 0 and 1"):
        EMA(1.5)


def test_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    data = SegmentationData(str(folders.camvid(tmp_path)), batch_size=5)
    with pytest.raises(ValueError, match="data: batch_size: expected at most 4 images"):
        data.train_dataloader()
    for options in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match=f"data: .*got {next(iter(options.values()))}"):
            SegmentationData(str(tmp_path), **options)
