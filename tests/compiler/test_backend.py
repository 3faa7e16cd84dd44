"""`torch.compile(net, backend="liteseg")` and `optimize` on networks of plain torch.nn."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.compiler import backend
from liteseg_kernels.testing import trained_like
from tests.compiler import nets
from tests.compiler.test_graphs import error, layout

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_like_torch(optimized: nn.Module, net: nn.Module, x: Tensor) -> None:
    got = optimized(x)
    with torch.no_grad():
        eager, exact = net(x), copy.deepcopy(net).double()(x.double())
    assert got.shape == eager.shape and layout(got) == layout(eager) and not got.requires_grad
    assert error(got, exact) <= 3e-6 + 4 * error(eager, exact)


def test_whole_network_at_any_size() -> None:
    net = trained_like(nets.DeepLab(nn.Hardswish, 5, nets.OldHardSigmoid()), torch.randn(2, 3, 64, 96))
    optimized = lk.optimize(net, rest="eager")
    for size in ((2, 3, 64, 96), (3, 3, 75, 90), (2, 3, 96, 128), (4, 3, 51, 67)):
        assert_like_torch(optimized, net, torch.randn(size))
    (report,) = optimized.reports
    assert len(report.taken) == 1 and not report.left
    assert "inverted residual" not in str(report), "squeeze and excite is between its parts"
    assert "decode.1.0" in str(report) and "separable convolution" in str(report)
    # another memory format is another graph
    assert_like_torch(optimized, net, torch.randn(2, 3, 64, 96).to(memory_format=torch.channels_last))


class Upsampled(nn.Module):
    """Resizes by factors, whole ones as floats among them, as torch's own modules hand them over."""

    def __init__(self, factor: Any, mode: str) -> None:
        super().__init__()
        self.body, self.up = nets.conv_norm(3, 40, 3, activation=nn.ReLU), nn.Upsample(scale_factor=factor, mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.body(x))


@pytest.mark.parametrize("factor", [2, 4.0, (2.0, 3.0), 1.5], ids=str)
def test_factors_are_right_at_any_size(factor: Any) -> None:
    for mode in ("bilinear", "nearest"):
        net = trained_like(Upsampled(factor, mode))
        optimized = lk.optimize(net, rest="eager")
        for size in ((40, 48), (33, 51), (64, 36)):
            assert_like_torch(optimized, net, torch.randn(2, 3, *size))
        assert len(optimized.reports) == 1


class Rounded(nn.Module):
    """Resizes to a size that is computed as TensorFlow's padding is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nets.conv_norm(3, 40, 3, activation=nn.ReLU), nets.conv_norm(40, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = [max(math.ceil(length / 2), 3) for length in x.shape[2:]]
        return self.last(tf.interpolate(self.body(x), size, mode="bilinear", align_corners=True))


def test_rounded_sizes_are_right_at_any_size() -> None:
    net = trained_like(Rounded())
    optimized = lk.optimize(net, rest="eager")
    for size in ((40, 48), (33, 51), (64, 37)):
        assert_like_torch(optimized, net, torch.randn(2, 3, *size))
    (report,) = optimized.reports
    assert len(report.taken) == 1 and not report.left, str(report)


def test_what_is_left_runs_around_the_parts() -> None:
    net = trained_like(nets.UNet(), torch.randn(2, 3, 32, 48))
    optimized = lk.optimize(net, torch.randn(2, 3, 32, 48), rest="eager")
    assert_like_torch(optimized, net, torch.randn(2, 3, 64, 48))
    assert "transposed convolution" in optimized.report()


class Changing(nn.Module):
    """Where a compiler is wrong if it looks once: hooks, state, aliases."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nets.conv_norm(3, 16, 3, activation=nn.ReLU), nets.conv_norm(16, 8, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.calls += 1
        y = self.body(x)
        x += 1
        return y, y.view(y.shape[0], -1), x


def test_hooks_state_and_aliases() -> None:
    net = trained_like(Changing())
    plain = copy.deepcopy(net)
    for module in (net, plain):
        module.body[0].register_forward_hook(lambda part, args, result: result * 2)
    optimized = lk.optimize(net, rest="eager")
    for _ in range(2):
        x = torch.randn(2, 3, 40, 40)
        ours, theirs = x.clone(), x.clone()
        got = optimized(ours)
        with torch.no_grad():
            expected = plain(theirs)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, theirs)
        assert got[1].data_ptr() == got[0].data_ptr() and got[2] is ours
    assert float(net.calls) == float(plain.calls) == 2
    assert optimized.reports[0].taken


def test_weights_may_change() -> None:
    net = trained_like(nets.UNet())
    optimized, x = lk.optimize(net, rest="eager"), torch.randn(1, 3, 32, 48)
    assert_like_torch(optimized, net, x)
    net.load_state_dict(trained_like(nets.UNet(), seed=1).state_dict())
    assert_like_torch(optimized, net, x)
    for parameter in net.parameters():
        parameter.data.mul_(0.9)
    assert_like_torch(optimized, net, x)
    assert len(optimized.reports) == 1


def test_gradients_are_torchs() -> None:
    net = trained_like(nets.UNet())
    reports: list[Any] = []
    compiled = torch.compile(net, backend=functools.partial(backend.compile_graph, reports=reports))
    x = torch.randn(2, 3, 32, 48)
    for training in (False, True):
        net.train(training)
        expected = copy.deepcopy(net)
        loss, wanted = compiled(x).square().mean(), expected(x).square().mean()
        loss.backward()
        wanted.backward()
        for got, other in zip(net.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(got.grad, other.grad)
            got.grad = None
        for got, other in zip(net.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(got, other)
    assert reports and not any(report.taken for report in reports)
    assert "gradients are recorded" in str(reports[0])


def test_training_mode_calls_the_network() -> None:
    net = nets.UNet().train()
    optimized = lk.optimize(net)
    before = net.down1[1].running_mean.clone()
    assert optimized(torch.randn(2, 3, 32, 48)).requires_grad
    assert not torch.equal(net.down1[1].running_mean, before)
    with pytest.raises(ValueError, match="report: expected a network that was called"):
        optimized.report()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    net = trained_like(nets.UNet()).to(dtype)
    x = torch.randn(1, 3, 32, 48).to(dtype)
    optimized = lk.optimize(net, x, rest="eager")
    assert torch.equal(optimized(x), net(x))
    assert not optimized.reports[0].taken and str(dtype).removeprefix("torch.") in optimized.report()


def test_autocast_is_left_alone() -> None:
    net, x = trained_like(nets.UNet()), torch.randn(1, 3, 32, 48)
    optimized = lk.optimize(net, rest="eager")
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = optimized(x), net(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected.detach(), rtol=2e-2, atol=2e-2)


def test_inference_mode_and_threads() -> None:
    net, x = trained_like(nets.UNet()), torch.randn(1, 3, 32, 48)
    optimized = lk.optimize(net, rest="eager")
    with torch.inference_mode():
        got = optimized(x)
    torch.testing.assert_close(got, net(x).detach(), rtol=1e-4, atol=1e-5)


def test_nothing_taken_goes_to_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Any] = []

    def compile_fx(module: Any, inputs: Any) -> Any:
        handed.append([node.target for node in module.graph.nodes])
        return module.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval()
    optimized = lk.optimize(net, torch.randn(2, 8))
    assert len(handed) == 1 and "Inductor" in optimized.report()

    class Resize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return tf.interpolate(x, scale_factor=2, mode="bilinear")

    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(lk.optimize(Resize().eval())(x), Resize()(x))
    assert tf.interpolate in handed[-1]


def test_registered() -> None:
    points = importlib.metadata.entry_points(group="torch_dynamo_backends")
    if "liteseg" not in points.names:
        pytest.skip("installed before the entry point was there")
    assert points["liteseg"].load() is backend.dynamo_backend
    net, x = trained_like(nets.UNet()), torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        got = torch.compile(net, backend="liteseg", options={"rest": "eager"})(x)
        torch.testing.assert_close(got, net(x), rtol=1e-4, atol=1e-5)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="optimize: net: expected a torch.nn.Module, got str"):
        lk.optimize("net")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimize: rest: expected one of 'auto', 'eager', 'inductor', got 'none'"):
        lk.optimize(nn.Identity(), rest="none")
