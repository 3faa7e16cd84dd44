"""Which parts of a graph are taken, and that they compute what torch does, without Dynamo in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as tf

from liteseg_kernels import _loader
from liteseg_kernels.compiler import take as taking
from liteseg_kernels.compiler.region import Region
from liteseg_kernels.compiler.report import GraphReport
from liteseg_kernels.testing import trained_like
from tests.compiler import nets

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")

# random graphs; the count that a release is checked with is 10000
RANDOM = int(os.environ.get("LITESEG_RANDOM_GRAPHS", "100"))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "_LEAST_MACS", 1)


def traced(net: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """An aten graph with its parameters as attributes."""
    with torch.no_grad():
        module = make_fx(net, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = getattr(module, node.target)
    module.graph.eliminate_dead_code()
    return module


def taken(net: Callable[..., Any], *inputs: Tensor) -> tuple[fx.GraphModule, GraphReport]:
    module = traced(net, *inputs)
    report = taking.take(module, lambda node: node.op == "get_attr")
    return module, report


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12))


def layout(x: Tensor) -> list[int]:
    """Strides, where they mean something."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


def assert_like_torch(net: nn.Module, *inputs: Tensor, least: int = 1) -> GraphReport:
    """All results as exact as torch's own, of the same shape and strides."""
    module = traced(net, *inputs)
    results = module.graph.output_node().args[0]
    layouts = [layout(node.meta["val"]) for node in (results if isinstance(results, (tuple, list)) else (results,))]
    report = taking.take(module, lambda node: node.op == "get_attr")
    assert len(report.taken) >= least, str(report)
    with torch.no_grad():
        got, eager = module(*inputs), net(*inputs)
        exact = net.double()(*(x.double() for x in inputs))
    net.float()
    values = [value if isinstance(value, tuple) else (value,) for value in (got, eager, exact)]
    for ours, torchs, reference, strides in zip(*values, layouts, strict=True):
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        # the trace differs from torch's run where a map with one channel has either format
        assert layout(ours) in (strides, layout(torchs))
        assert error(ours, reference) <= 3e-6 + 4 * error(torchs, reference), str(report)
    return report


@pytest.mark.parametrize("first", range(0, RANDOM, 50))
def test_random_graphs(first: int) -> None:
    parts = 0
    for seed in range(first, min(first + 50, RANDOM)):
        torch.manual_seed(seed)
        net = trained_like(nets.RandomNet(seed), seed=seed)
        x = torch.randn(net.size)
        if seed % 3 == 0:
            x = x.to(memory_format=torch.channels_last)
        if seed % 5 == 0:
            x = torch.randn(*net.size[:3], 2 * net.size[3])[..., ::2]
        try:
            net(x)
        except RuntimeError:
            # a kernel larger than what is left of the map
            continue
        try:
            parts += len(assert_like_torch(net, x, least=0).taken)
        except Exception as wrong:
            raise AssertionError(f"random graph {seed}") from wrong
    assert parts >= 20


def described(report: GraphReport) -> list[str]:
    return [layer.layer for layer in report.layers]


def block(activation: type[nn.Module], kernel: int, stride: int = 1, ratio: int = 6) -> nn.Module:
    part = nets.Bottleneck((12, 12), stride=stride, ratio=ratio, kernel=kernel, activation=activation)
    return nn.Sequential(*(module for module in (part,)))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_blocks_are_one_layer(activation: type[nn.Module], kernel: int) -> None:
    net = block(activation, kernel)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    report = assert_like_torch(trained_like(net), torch.randn(2, 12, 11, 13))
    assert described(report) == ["inverted residual"] and not report.left


class Parallel(nn.Module):
    """The sum of convolutions of one map, each with a normalisation behind it, in the order given."""

    def __init__(self, *branches: nn.Module, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.behind = behind or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first, *more = (branch(x) for branch in self.branches)
        for one in more:
            first = first + one
        return self.behind(tf.relu(first))


def normed(*args: Any, **kwargs: Any) -> nn.Module:
    convolution = nn.Conv2d(*args, bias=False, **kwargs)
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


def deep(kernel: Any, channels: int = 6, **kwargs: Any) -> nn.Module:
    return normed(channels, channels, kernel, groups=channels, **kwargs)


def dense(kernel: Any, out: int = 6, **kwargs: Any) -> nn.Module:
    return normed(6, out, kernel, **kwargs)


MERGED = {
    "MobileOne's depthwise": ([deep(1), nn.BatchNorm2d(6), *(deep(3, padding=1) for _ in range(4))], "3x3 depthwise"),
    "MobileOne's pointwise": ([nn.BatchNorm2d(6), *(dense(1) for _ in range(4))], "1x1"),
    "RepVGG's": ([dense(3, padding=1), dense(1), nn.BatchNorm2d(6)], "3x3"),
    "RepVGG's, halved": ([dense(1, 7, stride=2), dense(3, 7, padding=1, stride=2)], "3x3"),
    "more channels": ([dense(3, 9, padding=1), dense(3, 9, padding=1)], "3x3"),
    "with dilation": ([dense(3, padding=2, dilation=2), dense(1), dense(3, padding=2, dilation=2)], "3x3"),
    "depthwise in dense": ([deep(3, padding=1), dense(5, padding=2)], "5x5"),
    "oblong": (
        [deep((3, 5), padding=(1, 2)), deep((1, 3), padding=(0, 1)), deep((3, 1), padding=(1, 0))],
        "3x5 depthwise",
    ),
    "a margin": ([dense(3, padding=3), dense(1, padding=2)], "3x3"),
    "an input of one channel": ([normed(1, 1, 3, padding=1), normed(1, 1, 1)], "3x3 depthwise"),
}


@pytest.mark.parametrize("name", MERGED)
def test_parallel_convolutions_are_one(name: str) -> None:
    branches, layer = MERGED[name]
    net = trained_like(Parallel(*branches))
    channels = next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d)).num_features
    x = torch.randn(2, 1 if channels == 1 else 6, 11, 13)
    report = assert_like_torch(net, x)
    (only,) = described(report)
    assert only.startswith(layer) and not report.left


def test_merged_branches_are_part_of_what_comes_behind() -> None:
    """A depthwise sum, and a pointwise one, in one separable convolution."""
    pointwise = Parallel(*(dense(1) for _ in range(3)))
    net = Parallel(deep(1), deep(3, padding=1), nn.BatchNorm2d(6), behind=pointwise)
    assert described(assert_like_torch(trained_like(net), torch.randn(1, 6, 9, 10))) == ["separable convolution"]


APART = {
    "strides": [deep(3, stride=2, padding=1), deep((6, 7))],
    "dilation": [dense(3, padding=2, dilation=2), dense(3, padding=1)],
    "an even kernel in an odd one": [dense(3, padding=1), nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), dense(2))],
    "wide depthwise beside narrow dense": [deep(3, padding=1), dense(1)],
    "an activation": [dense(3, padding=1), nn.Sequential(dense(1), nn.ReLU())],
    "taller and wider": [deep((3, 1), padding=(1, 0)), deep((1, 3), padding=(0, 1))],
}


@pytest.mark.parametrize("name", APART)
def test_other_sums_stay(name: str) -> None:
    report = assert_like_torch(trained_like(Parallel(*APART[name])), torch.randn(2, 6, 11, 13))
    assert "sum" in " ".join(described(report))


class Shared(nn.Module):
    """One of the branches is read once more."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = dense(3, padding=1), dense(1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.narrow(x)
        return tf.relu(self.wide(x) + narrow) * narrow


def test_a_branch_that_is_read_twice_stays() -> None:
    report = assert_like_torch(trained_like(Shared()), torch.randn(2, 6, 11, 13))
    assert any(layer.startswith("sum") for layer in described(report))


class Padded(nn.Module):
    """Padding of TensorFlow: none on the left and on top of what is halved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, groups=8)
        self.point = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = tf.relu6(self.stem(tf.pad(x, (0, 1, 0, 1))))
        return self.point(tf.relu6(self.depthwise(tf.pad(y, (0, 1, 0, 1)))))


def test_uneven_padding() -> None:
    report = assert_like_torch(trained_like(Padded()), torch.randn(1, 3, 20, 24))
    assert described(report) == ["3x3 convolution + relu6", "separable convolution"]


class Classes(nn.Module):
    def __init__(self, resizes: bool) -> None:
        super().__init__()
        self.classifier, self.resizes = nn.Conv2d(6, 19, 1), resizes

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        if self.resizes:
            logits = nets.interpolate(logits, (33, 41), mode="bilinear", align_corners=False)
        return logits.argmax(1)


@pytest.mark.parametrize("resizes", [False, True])
def test_labels(resizes: bool) -> None:
    net, x = trained_like(Classes(resizes)), torch.randn(2, 6, 9, 10)
    module, report = taken(net, x)
    assert described(report)[-1] == ("bilinear resize + arg max" if resizes else "arg max")
    labels = module(x)
    assert labels.dtype == torch.int64
    # ties within rounding
    assert (labels == net(x)).float().mean() > 0.999


def test_empty_batch() -> None:
    net, x = trained_like(Padded()), torch.randn(0, 3, 20, 24)
    module, _ = taken(net, torch.randn(2, 3, 20, 24))
    assert module(x).shape == net(x).shape


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight / self.conv.weight.norm()
        return tf.conv2d(self.norm(self.conv(x)), weight.transpose(0, 1), groups=1)


def test_computed_weights_are_left() -> None:
    report = assert_like_torch(trained_like(Trained()), torch.randn(1, 3, 12, 12))
    assert [left.reason for left in report.left if left.op == "aten.convolution.default"] == ["weights are computed"]
    assert "weights are computed" in str(report)


def test_other_dtypes_and_statistics_of_the_batch_are_left() -> None:
    net, x = Trained().double(), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    module, report = taken(net.eval(), x)
    assert not report.taken and "float64 on cpu" in str(report)
    norm = nn.BatchNorm2d(3).train()
    _, report = taken(lambda y: tf.batch_norm(y, None, None, norm.weight, norm.bias, training=True), x.float())
    assert not report.taken


def test_changed_weights_are_packed_again() -> None:
    net, x = trained_like(Padded()), torch.randn(1, 3, 20, 24)
    module, _ = taken(net, x)
    module(x)
    with torch.no_grad():
        # seen by the version, unseen by it, a new place
        for change in (
            lambda p: p.mul_(1.5),
            lambda p: p.data.add_(0.25),
            lambda p: setattr(p, "data", p.detach() * 0.5),
        ):
            for parameter in net.parameters():
                change(parameter)
            torch.testing.assert_close(module(x), net(x), rtol=1e-4, atol=1e-5)


class First(nn.Module):
    """What a network begins with: a convolution of few channels, and a separable one."""

    def __init__(self, channels: int, hidden: int, stride: int, padding: tuple[int, ...], activation: Any) -> None:
        super().__init__()
        self.conv, self.padding = nn.Conv2d(channels, hidden, 3, stride), padding
        self.depthwise, self.project = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.Conv2d(hidden, 7, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.activation(self.depthwise(self.activation(self.conv(tf.pad(x, self.padding))))))


@pytest.mark.parametrize(
    ("channels", "hidden", "stride", "padding"),
    [
        (3, 16, 2, (1, 1, 1, 1)),
        (1, 40, 1, (0, 0, 0, 0)),
        (4, 5, 2, (0, 1, 0, 1)),
        (8, 33, 3, (1, 0, 0, 1)),
        (3, 20, 8, (0, 0, 1, 0)),
    ],
)
@pytest.mark.parametrize("activation", [tf.relu6, tf.relu, lambda x: x], ids=["relu6", "relu", "none"])
def test_first_layers(channels: int, hidden: int, stride: int, padding: tuple[int, ...], activation: Any) -> None:
    net = trained_like(First(channels, hidden, stride, padding, activation))
    for x in (torch.randn(2, channels, 18, 19), torch.randn(1, channels, 11, 130), torch.randn(1, channels, 3, 3)):
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            report = assert_like_torch(net, given)
            assert described(report) == ["3x3 convolution and separable convolution"]


class Joined(nn.Module):
    """A resized map in front of another one, and nothing behind it that would need one layout."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.low, self.high, self.align_corners = nn.Conv2d(6, 8, 1), nn.Conv2d(5, 7, 3, 1, 1), align_corners

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        high = self.high(y)
        low = nets.interpolate(self.low(x), high.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return torch.cat([low, high], 1)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_and_concat_are_one_layer(align_corners: bool) -> None:
    x, y = torch.randn(2, 6, 3, 4), torch.randn(2, 5, 9, 11)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = [t.contiguous(memory_format=layout) for t in (x, y)]
        net = trained_like(Joined(align_corners))
        report = assert_like_torch(net, *given)
        assert described(report)[-1] == "bilinear resize + concat"
        module, _ = taken(net, *given)
        assert module(*(t[:0] for t in given)).shape == (0, 15, 9, 11)


class Deep(nn.Module):
    """A convolution that Winograd's method suits, behind another one."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.activation = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, 1, 1), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.first(x)))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Hardswish()], ids=str)
def test_activations_behind_winograd(activation: nn.Module) -> None:
    report = assert_like_torch(trained_like(Deep(activation)), torch.randn(1, 3, 21, 26))
    assert "Winograd" in str(report)


class Excited(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 9, 1), nn.Conv2d(9, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (1, 1), (4, 5)], ids=str)
def test_one_pixel_for_a_row_or_a_column(size: tuple[int, int]) -> None:
    assert_like_torch(trained_like(Excited()), torch.randn(2, 3, *size))


class Readers(nn.Module):
    """The input read by a product in place, by one of copied rows, and by a result of many layouts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.point, self.rows = nn.Conv2d(channels, 6, 1), nn.Conv2d(channels, 5, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.point(x), self.rows(x), tf.avg_pool2d(self.rows(x), 2, 1)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x,
    "a part of the channels": lambda x: x[:, 1:-1],
    "every second row": lambda x: x[:, :, ::2],
    "every second column": lambda x: x[..., ::2],
    "every second image": lambda x: x[::2],
    "one image": lambda x: x[1:2],
    "a row": lambda x: x[:, :, 2:3],
    "a column": lambda x: x[..., 3:4],
    "a pixel": lambda x: x[:, :, 1:2, 2:3],
    "one channel": lambda x: x[:, 2:3],
    "planes": lambda x: x.contiguous(),
    "planes of one channel": lambda x: x.contiguous()[:, :1],
    "one plane": lambda x: x[:, :1].contiguous(),
    "a row of planes": lambda x: x.contiguous()[:, :, 2:3],
    "turned": lambda x: x.transpose(2, 3),
    "one image for all": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_as_inputs(name: str) -> None:
    x = torch.randn(4, 6, 8, 9).contiguous(memory_format=torch.channels_last)
    given = VIEWS[name](x)
    if min(given.shape[2:]) == 1:
        net: nn.Module = nn.Sequential(nn.Conv2d(given.shape[1], 6, 1), nn.Conv2d(6, 5, 3, 1, 1))
    else:
        net = Readers(given.shape[1])
    assert_like_torch(trained_like(net), given)


class Twice(nn.Module):
    """Maps that are two results each, in two layouts: one that a layer reads, others that none does, the input."""

    def __init__(self, channels: int, innermost_first: bool) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, channels, 3, 1, 1), nn.Conv2d(channels, 4, 1)
        # results come in the order in which they are made
        formats = [torch.contiguous_format, torch.channels_last]
        self.formats = formats[::-1] if innermost_first else formats

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        up = nets.interpolate(y, (7, 9), mode="bilinear", align_corners=False)
        read = nets.interpolate(y, (6, 5), mode="bilinear", align_corners=True)
        results = [self.last(read)]
        for result in (y, up, read, x):
            results += [result.clone(memory_format=layout) for layout in self.formats]
        return tuple(results)


@pytest.mark.parametrize("innermost_first", [False, True])
@pytest.mark.parametrize("channels", [1, 5])
def test_a_map_is_several_results(channels: int, innermost_first: bool) -> None:
    for size in ((4, 5), (1, 5), (1, 1)):
        assert_like_torch(trained_like(Twice(channels, innermost_first)), torch.randn(2, 3, *size))


@pytest.fixture(scope="module")
def programs() -> list[tuple[list[Tensor], Tensor, Tensor, list[int]]]:
    """What the compiled op takes for the parts of two networks."""
    calls: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taking, "_LEAST_MACS", 1)
        own = Region.compiled_arguments
        patch.setattr(Region, "compiled_arguments", lambda self, given: calls.append(own(self, given)) or calls[-1])
        for net in (nets.UNet(), nets.DeepLab(nn.Hardswish, gate=nn.Sigmoid())):
            x = torch.randn(1, 3, 24, 32)
            taken(trained_like(net), x)[0](x)
    return calls


@pytest.mark.parametrize("seed", range(60))
def test_damaged_programs_never_crash(programs: list[Any], seed: int) -> None:
    """Any word may be wrong: the op refuses it, or runs within its memory."""
    maps, packed, program, sizes = programs[seed % len(programs)]
    generator = torch.Generator().manual_seed(seed)
    words = program.clone()
    for _ in range(3):
        index = torch.randint(len(words), (1,), generator=generator)
        words[index] = torch.randint(-2, 400, (1,), generator=generator)
    try:
        torch.ops.liteseg_cpu.run_graph(maps, packed, words, sizes)
    except RuntimeError as refusal:
        assert str(refusal).startswith("run_graph: ")


def test_unknown_layers_are_refused(programs: list[Any]) -> None:
    maps, packed, program, sizes = programs[0]
    words = program.clone()
    # behind the version, the panel and the number of layers
    words[3] = 99
    with pytest.raises(RuntimeError, match="^run_graph: program: expected a known layer"):
        torch.ops.liteseg_cpu.run_graph(maps, packed, words, sizes)


def test_weights_without_a_value_have_a_fingerprint() -> None:
    weight = torch.randn(3, 4)
    assert torch.ops.liteseg_cpu.fingerprint([torch.empty(0, 4), weight]) != torch.ops.liteseg_cpu.fingerprint([weight])
