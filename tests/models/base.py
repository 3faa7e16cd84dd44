"""The behaviour every model of the registry must have: a test class inherits `BaseModelTester` and sets `name`."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import liteseg
from liteseg.models import Network
from liteseg_kernels.testing import trained_like

CLASSES = 5


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest magnitude of `b`."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


class BaseModelTester:
    name: str
    switches: dict[str, Any] = {}
    # of test_learns
    few_classes = 2
    learning_rate = 0.02
    learning_steps = 10
    # largest error of test_half_types, relative to the logits' spread, in float16 and in bfloat16
    half_limits = (0.02, 0.15)
    # share of the logits that must agree: a maximum that rounding finds at a neighbour's place is unpooled there, and
    # changes what is around
    compared = 1.0
    # how many times the others' rounding errors are allowed
    rounding = 1.0
    # what the names of modules start with that forward does not call
    uncalled: tuple[str, ...] = ()

    def difference(self, a: torch.Tensor, b: torch.Tensor) -> float:
        """Largest absolute difference of the share `compared`, relative to the largest magnitude of `b`."""
        errors = (a.double() - b.double()).abs().flatten()
        return (errors.kthvalue(int(self.compared * errors.numel())).values / b.double().abs().max()).item()

    @classmethod
    def make(cls) -> Network:
        # a fixture of a class is made before a test's own seeds are set
        torch.manual_seed(0)
        model = liteseg.create_model(cls.name, num_classes=CLASSES, **cls.switches)
        return trained_like(model, torch.randn(2, 3, 64, 96))

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> Network:
        """Shared by the tests of a class: they must not change it."""
        return cls.make()

    @pytest.mark.parametrize("size", [(33, 47), (64, 96), (45, 80), (32, 32), (97, 34)], ids=lambda s: f"{s[0]}x{s[1]}")
    @torch.no_grad()
    def test_any_size(self, model: Network, size: tuple[int, int]) -> None:
        x = torch.randn(1, 3, *size)
        logits = model(x)
        assert logits.shape == (1, CLASSES, *size)
        assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
        assert model.low_resolution_logits(x).shape == (1, CLASSES, *self.low_size(model, x))

    def low_size(self, model: Network, x: torch.Tensor) -> tuple[int, ...]:
        """Height and width of the low-resolution logits."""
        low_level, _ = model.backbone(x)
        return tuple(low_level.shape[-2:])

    @torch.no_grad()
    def test_images_of_a_batch_do_not_mix(self, model: Network) -> None:
        x = torch.randn(2, 3, 40, 56)
        assert self.difference(model(x), torch.cat([model(x[:1]), model(x[1:])])) < 1e-5 * self.rounding

    @torch.no_grad()
    def test_empty_batch(self, model: Network) -> None:
        assert model(torch.empty(0, 3, 40, 56)).shape == (0, CLASSES, 40, 56)

    # at 32x32 most networks see a single value a channel, the hardest case for BatchNorm (pytorch/vision#7782)
    @pytest.mark.parametrize(("batch", "size"), [(2, (64, 96)), (1, (64, 96)), (1, (32, 32))])
    def test_training_step(self, batch: int, size: tuple[int, int]) -> None:
        model = liteseg.create_model(self.name, num_classes=CLASSES, **self.switches).train()
        before = {key: value.clone() for key, value in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x = torch.randn(batch, 3, *size)
        target = torch.randint(0, CLASSES, (batch, *size))
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        assert torch.isfinite(loss)
        for key, parameter in model.named_parameters():
            if key.startswith(self.uncalled or "\0"):
                assert parameter.grad is None, key
                continue
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        optimizer.step()
        assert any(not torch.equal(before[key], value) for key, value in model.named_parameters())
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        assert norm.running_mean is not None and norm.running_mean.abs().sum() > 0
        model.eval()
        assert torch.isfinite(model(x)).all()

    def test_learns(self) -> None:
        model = liteseg.create_model(self.name, num_classes=self.few_classes, **self.switches).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)
        x = torch.randn(2, 3, 64, 64)
        target = torch.zeros(2, 64, 64, dtype=torch.int64)
        target[:, :, 32:] = 1
        losses = []
        for _ in range(self.learning_steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0], losses

    @torch.no_grad()
    def test_reference_form(self, model: Network) -> None:
        reference = model.to_reference()
        assert list(reference.state_dict()) == list(model.state_dict())
        fresh = liteseg.create_model(self.name, num_classes=CLASSES, **self.switches).eval()
        fresh.load_state_dict(reference.state_dict(), strict=True)
        reference_fresh = liteseg.create_model(self.name, num_classes=CLASSES, **self.switches).to_reference().eval()
        reference_fresh.load_state_dict(model.state_dict(), strict=True)
        x = torch.randn(1, 3, 50, 70)
        expected = model(x)
        assert torch.equal(fresh(x), expected)
        assert self.difference(reference(x), expected) < 1e-4 * self.rounding
        assert torch.equal(reference_fresh(x), reference(x))

    @torch.no_grad()
    def test_reference_form_calls_every_module(self, model: Network) -> None:
        reference = model.to_reference()
        called = set()
        leaves = {
            name: module
            for name, module in reference.named_modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))
        }
        for name, module in leaves.items():
            module.register_forward_hook(lambda *_, name=name: called.add(name))
        reference(torch.randn(1, 3, 40, 40))
        assert called == {name for name in leaves if not name.startswith(self.uncalled or "\0")}

    @torch.no_grad()
    def test_fused_float64(self, model: Network) -> None:
        double = copy.deepcopy(model).double()
        x = torch.randn(1, 3, 50, 70, dtype=torch.float64)
        assert self.difference(liteseg.fuse(double)(x), double.to_reference()(x)) < 1e-10

    @torch.no_grad()
    def test_fused_float32(self, model: Network) -> None:
        fused = liteseg.fuse(model)
        for size in ((64, 96), (41, 59)):
            x = torch.randn(2, 3, *size)
            logits = fused(x)
            assert logits.shape == (2, CLASSES, *size)
            assert self.difference(logits, model(x)) < 1e-4 * self.rounding

    def test_fuse_leaves_the_model_alone(self, model: Network) -> None:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        liteseg.fuse(model)
        after = model.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)

    @torch.no_grad()
    def test_copies(self, model: Network) -> None:
        x = torch.randn(1, 3, 40, 56)
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        again = liteseg.create_model(self.name, num_classes=CLASSES, **self.switches).eval()
        again.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(again(x), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
    @torch.no_grad()
    def test_half_types(self, model: Network, dtype: torch.dtype) -> None:
        x = torch.randn(1, 3, 48, 64)
        half = copy.deepcopy(model).to(dtype)
        logits = half(x.to(dtype))
        assert logits.dtype == dtype
        expected = model(x)
        # some tens of layers of rounding: the error is that of a random walk, relative to the spread of the logits
        error = (logits.float() - expected).std() / expected.std()
        assert error < self.half_limits[dtype == torch.bfloat16]

    @torch.no_grad()
    def test_channels_last(self, model: Network) -> None:
        x = torch.randn(2, 3, 40, 56)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        logits = last(x.contiguous(memory_format=torch.channels_last))
        assert logits.is_contiguous(memory_format=torch.channels_last)
        assert self.difference(logits, model(x)) < 1e-4 * self.rounding

    @torch.no_grad()
    def test_meta(self) -> None:
        with torch.device("meta"):
            model = liteseg.create_model(self.name, num_classes=CLASSES, **self.switches).eval()
            logits = model(torch.empty(2, 3, 64, 96))
        assert all(value.is_meta for value in model.state_dict().values())
        assert logits.is_meta and logits.shape == (2, CLASSES, 64, 96)

    @torch.no_grad()
    def test_save_and_load(self, model: Network, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        liteseg.save_weights(model, path)
        again = liteseg.create_model(weights=path).eval()
        assert again.config == model.config
        x = torch.randn(1, 3, 40, 56)
        assert torch.equal(again(x), model(x))
        assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]

    def test_repr(self, model: Network) -> None:
        for module in (model, model.to_reference(), liteseg.fuse(model)):
            text = repr(module)
            assert text.startswith(f"{type(model).__name__}(") and "classifier" in text

    def test_config_survives(self, model: Network) -> None:
        for other in (model.to_reference(), liteseg.fuse(model), copy.deepcopy(model)):
            assert other.config == model.config

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 3, 31, 64), "31x64"),
            ((1, 3, 64, 8), "64x8"),
            ((1, 4, 64, 64), "1, 4, 64, 64"),
            ((3, 64, 64), "3, 64, 64"),
        ],
    )
    def test_wrong_shape(self, model: Network, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))

    def test_wrong_dtype(self, model: Network) -> None:
        with pytest.raises(TypeError, match="uint8"):
            model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@contextmanager
def no_trace_log() -> Iterator[None]:
    """Keep pytest, which listens to every log, from making torch write out each step of a compilation."""
    log = logging.getLogger("torch.__trace")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with mock.patch.object(log, "handlers", []):
            yield
    finally:
        log.setLevel(level)


@no_trace_log()
@torch.no_grad()
def check_compile(
    model: nn.Module, backend: str, sizes: tuple[tuple[int, int], ...] = ((160, 170), (163, 192), (161, 178))
) -> None:
    """One graph, equal results, and no second compilation at other sizes."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    # torch's own convolution is chosen by whether its input has more than 20480 elements, and Dynamo guards on that:
    # at the default sizes every layer of every model stays on its side
    first, *others = sizes
    x = torch.randn(1, 3, *first)
    assert largest_difference(compiled(x), model(x)) < 1e-4
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in others:
            x = torch.randn(1, 3, *size)
            assert largest_difference(compiled(x), model(x)) < 1e-4
    torch._dynamo.reset()


class RegistryModelTester(BaseModelTester):
    """Adds what is slow and so done only for the models of the registry, not for their variants."""

    # a map of one pixel is special to torch.export, so the smallest size it allows is beyond the output stride
    smallest_export = 33

    @pytest.mark.slow
    def test_compile(self, model: Network) -> None:
        check_compile(model, "aot_eager")

    @pytest.mark.slow
    def test_compile_fused(self, model: Network) -> None:
        check_compile(liteseg.fuse(model), "aot_eager")

    @pytest.mark.slow
    @no_trace_log()
    @torch.no_grad()
    def test_export(self, model: Network) -> None:
        height, width = (torch.export.Dim(name, min=self.smallest_export, max=4096) for name in ("height", "width"))
        exported = torch.export.export(
            model.to_reference(), (torch.randn(1, 3, 64, 96),), dynamic_shapes=({2: height, 3: width},)
        )
        targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert targets and not [target for target in targets if "liteseg" in target]
        for size in ((64, 96), (75, 80), (130, 69)):
            x = torch.randn(1, 3, *size)
            assert largest_difference(exported.module()(x), model(x)) < 1e-4
