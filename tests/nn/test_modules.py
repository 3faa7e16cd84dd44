"""Every module of liteseg_kernels against the torch.nn composition it stands for, and in what people do to modules."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as tf
from torch.utils._python_dispatch import TorchDispatchMode

import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.testing import trained_like

from . import plain


@dataclass(frozen=True)
class Pair:
    """A module and its torch.nn composition, with the shape of an input."""

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]


PAIRS = {
    "separable": Pair(
        lambda: lk.SeparableConv2d(6, 8, activation="relu"),
        lambda: plain.separable(6, 8, activation="relu"),
        (2, 6, 7, 9),
    ),
    "separable, all its options": Pair(
        lambda: lk.SeparableConv2d(6, 8, 5, 2, dilation=2, norm=False, activation="leaky_relu", bias=True),
        lambda: plain.separable(6, 8, 5, 2, 2, norm=False, activation="leaky_relu", bias=True),
        (2, 6, 7, 9),
    ),
    "convolution": Pair(
        lambda: lk.ConvNormAct(6, 8, 3, 2, dilation=2, groups=2, bias=True, activation="relu6", eps=0.1),
        lambda: plain.conv(6, 8, 3, 2, 2, 2, bias=True, activation="relu6", eps=0.1),
        (2, 6, 7, 9),
    ),
    "convolution, depthwise and of one dimension": Pair(
        lambda: lk.ConvNormAct(6, 6, (1, 5), groups=6), lambda: plain.conv(6, 6, (1, 5), groups=6), (2, 6, 7, 9)
    ),
    "convolution alone": Pair(
        lambda: lk.ConvNormAct(6, 8, norm=False), lambda: plain.conv(6, 8, norm=False), (2, 6, 7, 9)
    ),
    "inverted residual": Pair(
        lambda: lk.InvertedResidual(6, 6, 1, 4, dilation=2), lambda: plain.InvertedResidual(6, 6, 1, 4, 2), (2, 6, 7, 9)
    ),
    "inverted residual, stride 2": Pair(
        lambda: lk.InvertedResidual(6, 10, 2, 3), lambda: plain.InvertedResidual(6, 10, 2, 3), (2, 6, 7, 9)
    ),
    "inverted residual, no expansion": Pair(
        lambda: lk.InvertedResidual(6, 6, 1, 1), lambda: plain.InvertedResidual(6, 6, 1, 1), (2, 6, 7, 9)
    ),
    "inverted residual, no expansion and no shortcut": Pair(
        lambda: lk.InvertedResidual(6, 6, 1, 1, residual=False),
        lambda: plain.InvertedResidual(6, 6, 1, 1, residual=False),
        (2, 6, 7, 9),
    ),
    "shuffle unit": Pair(
        lambda: lk.ShuffleUnit(16, 16, groups=2), lambda: plain.ShuffleUnit(16, 16, 2, 2), (2, 16, 7, 9)
    ),
    "shuffle unit, concatenated": Pair(
        lambda: lk.ShuffleUnit(6, 16, groups=2, first_groups=1, stride=2, combine="concat"),
        lambda: plain.ShuffleUnit(6, 16, 2, 1, 2, True),
        (2, 6, 7, 9),
    ),
    "shuffle unit, narrow": Pair(
        lambda: lk.ShuffleUnit(6, 18, groups=3, first_groups=1, stride=2, combine="concat", bottleneck=3),
        lambda: plain.ShuffleUnit(6, 18, 3, 1, 2, True, 3),
        (2, 6, 7, 9),
    ),
    "DASPP": Pair(lambda: lk.DASPP(6, 4, (1, 2, 3)), lambda: plain.DASPP(6, 4, (1, 2, 3)), (2, 6, 7, 9)),
    "DASPP, plain, no short residual": Pair(
        lambda: lk.DASPP(6, 4, (2, 4), deeper=False, short_residual=False),
        lambda: plain.DASPP(6, 4, (2, 4), False, short=False),
        (2, 6, 7, 9),
    ),
    "DASPP, deeper, no short residual": Pair(
        lambda: lk.DASPP(6, 4, (2,), short_residual=False), lambda: plain.DASPP(6, 4, (2,), short=False), (2, 6, 7, 9)
    ),
    "DASPP, dense": Pair(
        lambda: lk.DASPP(6, 4, (1, 2), separable=False), lambda: plain.DASPP(6, 4, (1, 2), split=False), (2, 6, 7, 9)
    ),
}
# one of each class, where every option would only repeat
ONE_EACH = ["separable", "convolution", "inverted residual", "shuffle unit", "DASPP", "DASPP, dense"]

pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
one_each = pytest.mark.parametrize("pair", [PAIRS[name] for name in ONE_EACH], ids=ONE_EACH)


def both(pair: Pair, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor]:
    """The module and its composition with the same weights, and an input."""
    ours, theirs = trained_like(pair.ours()).to(dtype), pair.theirs().to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(pair.shape, dtype=dtype)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if expected.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(actual, expected, **tolerance)


class Calls(TorchDispatchMode):
    """Names of the ops of this library that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace.startswith("liteseg"):
            self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def ops_of(module: nn.Module, *args: object) -> set[str]:
    with Calls() as calls, torch.no_grad():
        module(*args)
    return calls.names


@pairs
def test_state_dict_is_that_of_plain_torch(pair: Pair) -> None:
    ours, theirs = pair.ours(), pair.theirs()
    mine, other = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in other.items()}
    assert [n for n, _ in ours.named_parameters()] == [n for n, p in theirs.named_parameters() if p.requires_grad]
    ours.load_state_dict(other, strict=True)
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in other.items())
    pair.theirs().load_state_dict(ours.state_dict(), strict=True)
    lk.fuse(ours).load_state_dict(other, strict=True)
    assert list(lk.fuse(ours).state_dict()) == list(mine) == list(lk.to_reference(ours).state_dict())


@pairs
def test_training_equals_plain_torch(pair: Pair) -> None:
    ours, theirs, x = both(pair)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [module.train()(given) for module, given in zip((ours, theirs), inputs, strict=True)]
    close(outs[0], outs[1])
    upstream = torch.randn_like(outs[0])
    for out in outs:
        out.backward(upstream)
    close(inputs[0].grad, inputs[1].grad)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, expected[name].grad)
    for name, buffer in ours.state_dict().items():
        close(buffer.double(), theirs.state_dict()[name].double())


@pairs
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eval_equals_plain_torch(pair: Pair, dtype: torch.dtype) -> None:
    ours, theirs, x = both(pair, dtype)
    close(ours.eval()(x), theirs.eval()(x))


@pairs
def test_gradients_in_eval_equal_plain_torch(pair: Pair) -> None:
    # fine-tuning with frozen statistics: the folding is differentiated through
    ours, theirs, x = both(pair)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, given in zip((ours, theirs), inputs, strict=True):
        module.eval()(given).square().sum().backward()
    close(inputs[0].grad, inputs[1].grad)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, expected[name].grad)


@pairs
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fused_and_reference_equal_plain_torch(pair: Pair, dtype: torch.dtype) -> None:
    ours, theirs, x = both(pair, dtype)
    before = copy.deepcopy(ours.state_dict())
    fused, reference = lk.fuse(ours), lk.to_reference(ours.eval())
    expected = theirs.eval()(x)
    close(fused(x), expected)
    close(reference(x), expected)
    close(lk.to_reference(fused)(x), expected)
    assert not fused.training
    assert "fused" in repr(fused) and "fused" not in repr(ours) and "reference" in repr(reference)
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())


@pairs
def test_reference_runs_plain_torch_only(pair: Pair) -> None:
    ours, _, x = both(pair, torch.float32)
    reference = lk.to_reference(lk.fuse(ours))
    seen: list[nn.Module] = []
    parts = [m for m in reference.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6))]
    for part in parts:
        part.register_forward_hook(lambda module, args, out: seen.append(module))
    assert ops_of(reference, x) == set()
    assert set(seen) == set(parts) and len(seen) == len(parts)


def test_eval_and_fused_run_the_ops() -> None:
    expected = {
        "separable": {"separable_conv2d"},
        "inverted residual": {"inverted_residual"},
        "shuffle unit": {"shuffle_unit"},
        "DASPP": {"daspp"},
    }
    # statistics of the batch stand between the convolutions, so nothing is fused across them
    training = {"depthwise_conv2d", "batch_norm_statistics", "batch_norm_activation"}
    for name, ops in expected.items():
        ours, _, x = both(PAIRS[name], torch.float32)
        assert ops_of(lk.fuse(ours), x) >= ops, name
        assert ops_of(ours.train(), x) <= training, name
        assert ops_of(ours.eval(), x) >= (ops if name != "DASPP" else {"separable_conv2d"}), name
    dense, _, x = both(PAIRS["DASPP, dense"], torch.float32)
    assert "daspp" not in ops_of(lk.fuse(dense), x)


def test_a_convolution_into_a_classifier() -> None:
    module, classifier = lk.SeparableConv2d(5, 4, activation="relu"), nn.Conv2d(4, 3, 1)
    x = torch.randn(2, 5, 7, 9)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.classifier = module, classifier

        def forward(self, x: Tensor) -> Tensor:
            return self.module.forward_classifier(x, self.classifier)

    both = Both()
    for mode in (True, False):
        both.train(mode)
        plain = copy.deepcopy(both)
        expected = plain.classifier(plain.module(x))
        close(both(x), expected)
        close(lk.to_reference(both)(x), expected)
    close(lk.fuse(both)(x), expected)
    whole = {"separable_conv2d_classifier"}
    assert ops_of(both, x) == ops_of(lk.fuse(both), x) == whole
    assert "separable_conv2d_classifier" not in ops_of(copy.deepcopy(both).train(), x)
    for other in (nn.Conv2d(4, 3, 3), nn.Sequential(nn.Dropout2d(), nn.Conv2d(4, 3, 1)).eval(), nn.Identity()):
        close(module.forward_classifier(x, other), other(plain.module(x)))


@pairs
def test_training_drops_what_was_folded(pair: Pair) -> None:
    ours, theirs, x = both(pair)
    fused = lk.fuse(ours)
    assert len(list(fused.buffers())) > len(list(ours.buffers()))
    fused.train()
    assert len(list(fused.buffers())) == len(list(ours.buffers()))
    assert "fused" not in repr(fused)
    with torch.no_grad():
        for module in (fused, theirs):
            for parameter in module.parameters():
                parameter.mul_(1.5)
    close(fused.eval()(x), theirs.eval()(x))


@pairs
@pytest.mark.parametrize("assign", [False, True])
def test_loading_into_a_fused_copy_folds_again(pair: Pair, assign: bool) -> None:
    fused = lk.fuse(pair.ours().double())
    ours, theirs, x = both(pair)
    nn.Sequential(fused).load_state_dict(nn.Sequential(ours).state_dict(), assign=assign)
    close(fused(x), theirs.eval()(x))


@pairs
def test_copies_and_files(pair: Pair) -> None:
    ours, theirs, x = both(pair)
    expected = theirs.eval()(x)
    for module in (ours.eval(), lk.fuse(ours), lk.to_reference(ours)):
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        fresh = pair.ours().double().eval()
        fresh.load_state_dict(torch.load(file, weights_only=True))
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
            close(again(x), expected)
            assert list(again.state_dict()) == list(module.state_dict())
    # a copy folds for itself
    fused = lk.fuse(ours)
    other = copy.deepcopy(fused)
    other.load_state_dict({k: torch.zeros_like(v) for k, v in fused.state_dict().items()})
    close(fused(x), expected)


@pairs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(pair: Pair, dtype: torch.dtype) -> None:
    ours, theirs, x = both(pair, torch.float32)
    expected = theirs.eval()(x)
    limit = {torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for module in (copy.deepcopy(ours.eval()).to(dtype), lk.fuse(ours).to(dtype), lk.fuse(ours.to(dtype))):
        out = module(x.to(dtype))
        assert out.dtype == dtype
        assert (out.float() - expected).norm() <= limit * expected.norm()


@pairs
def test_channels_last_stays(pair: Pair) -> None:
    ours, theirs, x = both(pair, torch.float32)
    expected = theirs.eval()(x)
    laid = x.contiguous(memory_format=torch.channels_last)
    for module in (ours.eval(), lk.fuse(ours), lk.fuse(ours).to(memory_format=torch.channels_last)):
        out = module(laid)
        assert out.is_contiguous(memory_format=torch.channels_last)
        close(out, expected)
        assert module(x).shape == expected.shape


@pairs
def test_meta_device(pair: Pair) -> None:
    with torch.device("meta"):
        ours = pair.ours()
    assert all(t.is_meta for t in (*ours.parameters(), *ours.buffers()))
    source, theirs, x = both(pair, torch.float32)
    out = ours.eval()(x.to("meta"))
    assert out.is_meta and out.shape == theirs.eval()(x).shape
    real = ours.to_empty(device="cpu")
    real.load_state_dict(source.state_dict())
    close(real(x), theirs(x))


@pairs
def test_batch_0(pair: Pair) -> None:
    ours, theirs, x = both(pair, torch.float32)
    for module in (ours.eval(), lk.fuse(ours)):
        assert module(x[:0]).shape == (0, *theirs.eval()(x).shape[1:])


@one_each
def test_synchronised_normalisation(pair: Pair) -> None:
    ours, theirs, x = both(pair)
    expected = theirs.eval()(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours).eval()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.modules())
    close(converted(x), expected)
    close(lk.fuse(converted)(x), expected)


@pytest.mark.parametrize("deeper", [True, False])
def test_daspp_trains_at_batch_1(deeper: bool) -> None:
    # user_pains M1: torch's normalisation raises on the pooled branch's single value a channel
    module = lk.DASPP(6, 4, (1, 2), deeper=deeper).train()
    trained_like(module).train()
    before = module.pool.norm.running_mean.clone(), module.pool.norm.running_var.clone()
    x = torch.randn(1, 6, 7, 9, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    # the one value is no statistic
    assert torch.equal(module.pool.norm.running_mean, before[0])
    assert torch.equal(module.pool.norm.running_var, before[1])
    assert module.atrous[0].norm.num_batches_tracked == 1001


@pytest.fixture
def compiles_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[nn.Module], Callable[..., Any]]]:
    """torch.compile in one graph; a second compilation is an error."""
    # pytest listens to every log, which makes torch write out each step of a compilation
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield lambda module: torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")


# as other dimensions: Dynamo takes equal ones for one
SIZES = ((2, 7, 9), (3, 11, 8), (5, 12, 10))


@pytest.mark.parametrize("mode", ["eval", "fused"])
@one_each
def test_compiles_once_for_all_sizes(pair: Pair, mode: str, compiles_once: Any) -> None:
    ours, theirs, x = both(pair, torch.float32)
    compiled = compiles_once(lk.fuse(ours) if mode == "fused" else ours.eval())
    theirs.eval()
    with torch.no_grad():
        for n, h, w in SIZES:
            given = torch.randn(n, x.shape[1], h, w)
            close(compiled(given), theirs(given))


@one_each
def test_training_compiles_once_for_all_sizes(pair: Pair, compiles_once: Any) -> None:
    ours, theirs, x = both(pair, torch.float32)
    compiled = compiles_once(ours.train())
    theirs.train()
    for n, h, w in SIZES[:2]:
        given = torch.randn(n, x.shape[1], h, w)
        compiled(given).square().sum().backward()
        theirs(given).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-3, msg=name)


@one_each
def test_reference_exports_for_all_sizes(pair: Pair) -> None:
    ours, theirs, x = both(pair, torch.float32)
    # a map of one pixel is special to torch.export, and stride 2 makes one of two
    size = {2: torch.export.Dim("height", min=3), 3: torch.export.Dim("width", min=3)}
    exported = torch.export.export(lk.to_reference(ours).eval(), (x,), dynamic_shapes=(size,))
    assert "liteseg" not in exported.graph_module.code
    given = torch.randn(x.shape[0], x.shape[1], 12, 13)
    close(exported.module()(given), theirs.eval()(given))


REPRS = {
    "SeparableConv2d(": lambda: lk.SeparableConv2d(3, 4, activation="relu6"),
    "(conv): Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)": lambda: lk.ConvNormAct(3, 4),
    "(expand): ConvNormAct(": lambda: lk.InvertedResidual(3, 4, 1, 6),
    "(compress): ConvNormAct(": lambda: lk.ShuffleUnit(16, 16, groups=2),
    "(atrous): ModuleList(": lambda: lk.DASPP(3, 4),
    "UpsampleConcat(align_corners=False)": lambda: lk.UpsampleConcat(False),
    "UpsampleArgmax(align_corners=True)": lk.UpsampleArgmax,
    "UpsampleCrossEntropyLoss(ignore_index=255, reduction='sum', label_smoothing=0.1, align_corners=True)": (
        lambda: lk.UpsampleCrossEntropyLoss(reduction="sum", label_smoothing=0.1)
    ),
}


@pytest.mark.parametrize("text", REPRS)
def test_repr(text: str) -> None:
    module = REPRS[text]()
    assert text in repr(module) and repr(module).startswith(type(module).__name__)
    assert repr(lk.fuse(module)).startswith(type(module).__name__)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="activation: expected None, 'relu', 'relu6' or 'leaky_relu', got 'gelu'"):
        lk.SeparableConv2d(3, 4, activation="gelu")
    with pytest.raises(ValueError, match="combine: expected 'add' or 'concat', got 'sum'"):
        lk.ShuffleUnit(16, 16, combine="sum")
    with pytest.raises(ValueError, match="ShuffleUnit: in_channels: expected 16, as many as out_channels"):
        lk.ShuffleUnit(8, 16, groups=2)
    with pytest.raises(ValueError, match="ShuffleUnit: stride: expected 1 with combine='add', got 2"):
        lk.ShuffleUnit(16, 16, groups=2, stride=2)
    with pytest.raises(ValueError, match="DASPP: rates: expected one or more rates of at least 1, got"):
        lk.DASPP(3, 4, ())
    with pytest.raises(ValueError, match="UpsampleCrossEntropyLoss: reduction: expected one of .*got 'average'"):
        lk.UpsampleCrossEntropyLoss(reduction="average")
    with pytest.raises(ValueError, match=r"separable_conv2d: x: expected \[N, C, H, W\], got \[3, 4\]"):
        lk.fuse(lk.SeparableConv2d(3, 4))(torch.randn(3, 4))


@pytest.mark.parametrize("align_corners", [True, False])
class TestUpsampling:
    def test_concat(self, align_corners: bool) -> None:
        module = lk.UpsampleConcat(align_corners)
        x, skip = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 7, 9)
        up = tf.interpolate(x, (7, 9), mode="bilinear", align_corners=align_corners)
        for each in (module, module.eval(), lk.fuse(module), lk.to_reference(module), copy.deepcopy(module)):
            close(each(x, skip), torch.cat((up, skip), 1))
        assert ops_of(module, x, skip) == {"upsample_concat"}
        assert ops_of(lk.to_reference(module), x, skip) == set()
        assert not module.state_dict()

    def test_concat_into_a_convolution(self, align_corners: bool) -> None:
        concat, module = lk.UpsampleConcat(align_corners), lk.SeparableConv2d(5, 4, activation="relu")
        x, skip = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 7, 9)
        for mode in (True, False):
            module.train(mode)
            plain = copy.deepcopy(module)
            expected = plain(concat(x, skip))
            close(module.forward_concat(x, skip, concat), expected)
            close(lk.to_reference(module).forward_concat(x, skip, lk.to_reference(concat)), expected)
        close(lk.fuse(module).forward_concat(x, skip, concat), expected)

        class Both(nn.Module):
            def forward(self, x: Tensor, skip: Tensor) -> Tensor:
                return module.forward_concat(x, skip, concat)

        assert ops_of(Both(), x, skip) == {"upsample_concat_separable_conv2d"}

    def test_argmax(self, align_corners: bool) -> None:
        module, logits = lk.UpsampleArgmax(align_corners), torch.randn(2, 3, 4, 5)
        up = tf.interpolate(logits, (9, 8), mode="bilinear", align_corners=align_corners)
        for each in (module, lk.fuse(module), lk.to_reference(module)):
            assert torch.equal(each(logits, (9, 8)), up.argmax(1).byte())
        assert ops_of(module, logits, (9, 8)) == {"upsample_argmax"}
        assert ops_of(lk.to_reference(module), logits, (9, 8)) == set()

    @pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.5, 2.0])])
    def test_loss(self, align_corners: bool, weight: Tensor | None) -> None:
        options = {"ignore_index": 2, "weight": weight, "reduction": "sum", "label_smoothing": 0.1}
        module = lk.UpsampleCrossEntropyLoss(**options, align_corners=align_corners)
        theirs = nn.CrossEntropyLoss(**options)
        assert list(module.state_dict()) == list(theirs.state_dict())
        target = torch.randint(3, (2, 9, 8))
        grads = []
        for mine in (True, False):
            logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
            up = logits if mine else tf.interpolate(logits, (9, 8), mode="bilinear", align_corners=align_corners)
            loss = module(logits, target) if mine else theirs(up, target)
            loss.backward()
            grads.append((loss.detach(), logits.grad))
        close(grads[0][0], grads[1][0])
        close(grads[0][1], grads[1][1])

    def test_compiles_once_for_all_sizes(self, align_corners: bool, compiles_once: Any) -> None:
        class All(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.concat = lk.UpsampleConcat(align_corners)
                self.argmax = lk.UpsampleArgmax(align_corners)
                self.loss = lk.UpsampleCrossEntropyLoss(align_corners=align_corners)

            def forward(self, x: Tensor, skip: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
                logits = self.concat(x, skip)
                return self.loss(logits, target), self.argmax(logits, target.shape[1:])

        module = All()
        compiled = compiles_once(module)
        for n, h, w in SIZES[:2]:
            given = torch.randn(n, 6, h, w), torch.randn(n, 4, h + 6, w + 7), torch.randint(5, (n, 4 * h, 2 * w + 13))
            grads = []
            for call in (compiled, module):
                x = given[0].clone().requires_grad_()
                loss, labels = call(x, *given[1:])
                loss.backward()
                grads.append((loss.detach(), labels, x.grad))
            for actual, expected in zip(*grads, strict=True):
                close(actual, expected)


def test_loss_moves_its_weight_with_it() -> None:
    module = lk.UpsampleCrossEntropyLoss(weight=torch.tensor([1.0, 2.0])).double()
    assert module.weight.dtype == torch.float64
    loaded = lk.UpsampleCrossEntropyLoss(weight=torch.zeros(2))
    loaded.load_state_dict(module.state_dict())
    assert torch.equal(loaded.weight, torch.tensor([1.0, 2.0]))


def test_training_runs_the_ops() -> None:
    """Batch normalisation with what follows it, and on the CPU the depthwise convolutions."""
    if _loader.missing("cpu") is not None:
        pytest.skip("without the compiled kernels training is PyTorch's")
    block = lk.InvertedResidual(8, 8, 1, 2).train()
    x = torch.randn(2, 8, 5, 6)
    ops = {"batch_norm_statistics", "batch_norm_activation", "depthwise_conv2d"}
    assert ops <= ops_of(block, x)
    assert not ops_of(lk.to_reference(block), x)
    # a hook must fire, so its module is called
    seen: list[object] = []
    block.depthwise.norm.register_forward_hook(lambda *args: seen.append(args))
    block(x)
    assert len(seen) == 1


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_torchs(momentum: float | None) -> None:
    ours = lk.ConvNormAct(3, 4, activation="relu").train()
    ours.norm.momentum = momentum
    theirs = lk.to_reference(ours).train()
    for size in ((2, 3, 5, 6), (3, 3, 4, 4), (2, 3, 1, 1)):
        x = torch.randn(size)
        close(ours(x), theirs(x))
    for name, value in theirs.norm.state_dict().items():
        torch.testing.assert_close(ours.norm.state_dict()[name], value, msg=name)


def _synchronised(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module, batch = torch.load(f"{folder}/given.pt", weights_only=False)
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module).train()
    # unequal shares of the batch
    x = (batch[:1] if rank == 0 else batch[1:]).clone().requires_grad_()
    out = module(x)
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    for grad in gradients.values():
        torch.distributed.all_reduce(grad)
    torch.save((out.detach(), x.grad, gradients, module.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo")
def test_two_processes_synchronise_to_one(tmp_path: Path) -> None:
    """SyncBatchNorm over two processes on the CPU is batch normalisation of the whole batch."""
    if _loader.missing("cpu") is not None:
        pytest.skip("torch's own SyncBatchNorm runs on GPUs only")
    module, batch = lk.InvertedResidual(6, 6, 1, 2).train(), torch.randn(3, 6, 5, 4)
    torch.save((module, batch), tmp_path / "given.pt")
    torch.multiprocessing.spawn(_synchronised, (str(tmp_path),), nprocs=2)
    x = batch.clone().requires_grad_()
    whole = lk.to_reference(module)
    out = whole(x)
    out.square().sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    close(torch.cat([part[0] for part in parts]), out)
    close(torch.cat([part[1] for part in parts]), x.grad)
    for _, _, gradients, state in parts:
        for name, parameter in whole.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_the_activation_of_an_inverted_residual(activation: str | None) -> None:
    block = trained_like(lk.InvertedResidual(6, 6, 1, 2, activation=activation))
    x = torch.randn(2, 6, 7, 5)
    with torch.no_grad():
        fused = lk.fuse(block)
        assert lk.explain(fused).fused == ("",)
        torch.testing.assert_close(fused(x), lk.to_reference(block)(x), rtol=1e-5, atol=1e-5)
    block.depthwise.activation = torch.nn.ReLU6()
    assert "depthwise.activation: expected" in lk.explain(block).refused[""]
