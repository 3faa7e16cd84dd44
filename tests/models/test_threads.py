"""One model in several threads: inference changes neither modes nor buffers, not even for a moment."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg.evaluate import evaluate
from liteseg.export import _classes
from liteseg_kernels.eval_view import eval_view
from liteseg_kernels.testing import trained_like


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return trained_like(liteseg.create_model(name, num_classes=5), torch.randn(2, 3, 64, 64))


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def training(model: nn.Module) -> nn.Module:
    return model.train()


def partly_training(model: nn.Module) -> nn.Module:
    for norm in norms(model):
        norm.train()
    return model


def fused_partly_training(model: nn.Module) -> nn.Module:
    return partly_training(lk.fuse(model))


MODES = {
    "training": training,
    "eval": nn.Module.eval,
    "norms in training mode": partly_training,
    "fused": lk.fuse,
    "fused, norms in training mode": fused_partly_training,
}


def together(*works: Callable[[], None]) -> None:
    """Run in threads of their own, and raise what one of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """No tensor differs afterwards, and nothing sets a mode meanwhile."""
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    watched = {id(module) for model in models for module in model.modules()}
    written: list[str] = []
    usual = nn.Module.__setattr__

    def watch(module: nn.Module, name: str, value: object) -> None:
        if name == "training" and id(module) in watched:
            written.append(type(module).__name__)
        usual(module, name, value)

    nn.Module.__setattr__ = watch  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__setattr__ = usual  # type: ignore[method-assign]
    assert not written
    for model, state in zip(models, before, strict=True):
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("mode", MODES)
def test_predictions_of_shared_models(mode: str) -> None:
    sizes = ((40, 56), (64, 48), (33, 47))
    pictures = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(sizes)]
    models = [MODES[mode](model_of(name)) for name in ("liteseg_mobilenetv2", "enet")]
    wanted = [[liteseg.predict(copy.deepcopy(model).eval(), picture) for picture in pictures] for model in models]
    wrong: list[str] = []

    def work(index: int) -> Callable[[], None]:
        def predict() -> None:
            for step in range(3):
                which, picture = (index + step) % len(models), (index * 2 + step) % len(pictures)
                labels = liteseg.predict(models[which], pictures[picture])
                if (labels != wanted[which][picture]).mean() > 1e-3:
                    wrong.append(f"{which} {picture}")

        return predict

    with unchanged(*models):
        together(*map(work, range(4)))
    assert not wrong


def test_training_beside_predictions_is_unharmed() -> None:
    x, picture = torch.randn(4, 3, 33, 47), np.zeros((33, 47, 3), np.uint8)
    models = [model_of("liteseg_mobilenetv2").train() for _ in range(2)]

    def train(model: nn.Module) -> Callable[[], None]:
        def steps() -> None:
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            for _ in range(3):
                assert model.training
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()

        return steps

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(models[0])()
        together(train(models[1]), *[lambda: [liteseg.predict(models[1], picture) for _ in range(4)]] * 2)
    finally:
        torch.set_num_threads(threads)
    expected = models[0].state_dict()
    for key, value in models[1].state_dict().items():
        assert torch.equal(value, expected[key]), key


class Pictures:
    """A data set as `evaluate` takes it."""

    num_classes, ignore_index, class_names = 5, 255, tuple("abcde")

    def __len__(self) -> int:
        return 2

    def load(self, index: int) -> liteseg.data.Sample:
        image = np.full((40, 56, 3), 60 * index, np.uint8)
        return liteseg.data.Sample(image, np.zeros((40, 56), np.uint8), Path(f"{index}"), None)


def test_other_users_of_models_change_nothing() -> None:
    model = training(model_of("liteseg_shufflenet"))
    quiet = copy.deepcopy(model).eval()
    with unchanged(model):
        result = evaluate(model, Pictures())
        assert _classes(model, (64, 64), torch.device("cpu")) == 5
        lk.fuse(model), lk.to_reference(model)
    assert (result.matrix.matrix == evaluate(quiet, Pictures()).matrix.matrix).all()


def test_a_view_shares_tensors_and_hooks() -> None:
    model = training(model_of("liteseg_mobilenetv2"))
    seen: list[nn.Module] = []
    model.backbone.stem.conv.register_forward_hook(lambda module, args, out: seen.append(module))
    view = eval_view(model)
    assert view is not model and type(view) is type(model)
    assert not any(module.training for module in view.modules()) and all(m.training for m in model.modules())
    state = model.state_dict(keep_vars=True)
    assert all(value is state[key] for key, value in view.state_dict(keep_vars=True).items())
    with torch.no_grad():
        view(torch.zeros(1, 3, 32, 32))
    assert seen == [view.backbone.stem.conv]
    model.eval()
    assert eval_view(model) is model


def test_what_a_view_cannot_stand_for_is_refused() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.steps = [self.conv]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.steps[0](x)

    compiled = model_of("liteseg_mobilenetv2").train()
    compiled.low_resolution_logits = torch.compile(compiled.low_resolution_logits)
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 1)))
    picture = np.zeros((32, 32, 3), np.uint8)
    for model, reason in (
        (Lists(), "Lists: expected eval mode, for its attribute steps leads to modules"),
        (compiled, "LiteSeg: expected eval mode, for its attribute low_resolution_logits leads to modules"),
        (torch.compile(nn.Sequential(nn.Conv2d(3, 2, 1))), "OptimizedModule: expected eval mode"),
        (nn.Sequential(scripted), "Sequential.0: expected eval mode for a scripted module"),
    ):
        with pytest.raises(ValueError, match=reason):
            liteseg.predict(model, picture)
        assert model.training
    assert liteseg.predict(Lists().eval(), picture).shape == (32, 32)
