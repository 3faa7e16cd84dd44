"""Whole networks run from one packed plan: values, layouts, selection, threads, memory, life cycle and bad programs."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg.bench.timing import resident_mb
from liteseg_kernels import _loader
from liteseg_kernels.plan import Plan, PlannedModule, Program
from liteseg_kernels.testing import trained_like
from tests.data import street_file
from tests.instruction_sets.order import ORDER, here

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")

SIZES = [(33, 47), (65, 97), (64, 96), (128, 32)]
SWITCHES = {
    "stride16": {"output_stride": 16},
    "stride8": {"output_stride": 8},
    "no_long_residual": {"long_residual": False},
    "no_short_residual": {"short_residual": False},
    "aspp": {"deeper": False},
    "aspp_plain": {"deeper": False, "short_residual": False, "long_residual": False},
    "rates": {"rates": (6, 12, 18, 24)},
    "one_rate": {"rates": (2,)},
    "filters": {"filters": 40},
    "classes": {"num_classes": 2},
}


def network(backbone: str = "mobilenetv2", **switches: object) -> nn.Module:
    """Its logits depend on every layer, and amplify the roundings of the first."""
    return trained_like(fresh(backbone, **switches), picture(2, 3, 64, 96, seed=2))


def uncalibrated(backbone: str = "mobilenetv2", **switches: object) -> nn.Module:
    """With statistics that are not its activations' own: roundings stay as they are, and a limit can be tight."""
    return trained_like(fresh(backbone, **switches))


def fresh(backbone: str, **switches: object) -> nn.Module:
    torch.manual_seed(0)
    return liteseg.create_model(f"liteseg_{backbone}", **{"num_classes": 11, **switches})


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def fused(model: nn.Module) -> nn.Module:
    return lk.fuse(model)


@pytest.fixture(autouse=True)
def inference() -> object:
    threads = torch.get_num_threads()
    # torch's float64 depthwise convolutions enter the pool once a channel
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def picture(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(fused: nn.Module, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return lk.runtime.explain(fused, x).plan.labels(x, size)


def error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return ((actual.double() - exact).norm() / exact.norm()).item()


def assert_as_exact_as_torch(model: nn.Module, fused: nn.Module, x: torch.Tensor) -> None:
    assert lk.runtime.explain(fused, x).plan is not None
    plain = lk.to_reference(model)
    own = plain.low_resolution_logits(x)
    exact = lk.to_reference(model).double().low_resolution_logits(x.double())
    logits = fused.low_resolution_logits(x)
    assert logits.shape == exact.shape and logits.dtype == torch.float32
    assert error(logits, exact) <= 3 * error(own, exact)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("batch", [1, 3])
def test_logits(model: nn.Module, fused: nn.Module, size: tuple[int, int], batch: int) -> None:
    assert_as_exact_as_torch(model, fused, picture(batch, 3, *size))


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name: str) -> None:
    model = network(**SWITCHES[name])
    assert_as_exact_as_torch(model, lk.fuse(model), picture(2, 3, 65, 97))


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    n, c, h, w = x.shape
    wide = torch.full((n, c + 2, h + 3, w + 5), float("nan"))
    wide[:, 1 : c + 1, 2 : h + 2, 3 : w + 3] = x
    return {
        "nchw": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "slice": wide[:, 1 : c + 1, 2 : h + 2, 3 : w + 3],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "flipped_batch": x.flip(0).contiguous().flip(0),
    }


@pytest.mark.parametrize("name", ["nchw", "channels_last", "slice", "transposed", "flipped_batch"])
def test_layouts(fused: nn.Module, name: str) -> None:
    x = picture(2, 3, 65, 97)
    given = layouts(x)[name]
    logits = fused.low_resolution_logits(given)
    assert torch.equal(logits, fused.low_resolution_logits(x))
    by_modules = with_modules(fused, given)
    assert logits.stride() == by_modules.stride()


def with_modules(fused: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The logits of the same weights module by module."""
    copied = copy.deepcopy(fused)
    copied.drop_plan()
    assert lk.runtime.explain(copied, x).plan is None
    return copied.low_resolution_logits(x)


def test_expanded_input(fused: nn.Module) -> None:
    grey = picture(1, 1, 64, 96)
    assert torch.equal(
        fused.low_resolution_logits(grey.expand(2, 3, -1, -1)),
        fused.low_resolution_logits(grey.expand(2, 3, -1, -1).contiguous()),
    )


def test_empty_batch(fused: nn.Module) -> None:
    x = torch.zeros(0, 3, 64, 96)
    assert lk.runtime.explain(fused, x).plan is not None
    assert fused(x).shape == (0, 11, 64, 96)
    assert labels_of(fused, x, (64, 96)).shape == (0, 64, 96)


def test_images_of_a_batch_are_independent(fused: nn.Module) -> None:
    x = picture(3, 3, 65, 97)
    together = fused.low_resolution_logits(x)
    for i in range(3):
        assert torch.equal(together[i : i + 1], fused.low_resolution_logits(x[i : i + 1]))


@pytest.mark.parametrize("size", [(65, 97), (64, 64), (20, 30), (1, 1)])
def test_labels(fused: nn.Module, size: tuple[int, int]) -> None:
    x = picture(2, 3, 65, 97)
    labels = labels_of(fused, x, size)
    assert labels.dtype == torch.uint8 and labels.shape == (2, *size)
    assert torch.equal(labels, lk.functional.upsample_argmax(fused.low_resolution_logits(x), size))


def test_labels_of_a_street(model: nn.Module, fused: nn.Module) -> None:
    pixels = np.asarray(Image.open(street_file()).convert("RGB").resize((320, 192)))
    labels = liteseg.predict(fused, pixels)
    plain = liteseg.predict(lk.to_reference(model), pixels)
    assert (labels == plain).mean() >= 0.9999


def test_predict_runs_the_plan(fused: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture(1, 3, 65, 97)
    labels = liteseg.predict(fused, x)
    assert torch.equal(labels, labels_of(fused, x, (65, 97)))
    calls = []
    monkeypatch.setattr(Plan, "labels", lambda self, *args: calls.append(args) or labels)
    liteseg.predict(fused, x)
    assert len(calls) == 1
    # a method of the model's own, as torch.compile gives it, comes first
    other = copy.deepcopy(fused)
    zeros = torch.zeros(1, 11, 4, 4)
    other.low_resolution_logits = lambda x: zeros
    assert (liteseg.predict(other, x) == 0).all() and len(calls) == 1


def test_many_classes() -> None:
    fused = lk.fuse(network(num_classes=300))
    x = picture(1, 3, 33, 47)
    assert lk.runtime.explain(fused, x).plan is not None
    assert fused(x).shape == (1, 300, 33, 47)
    with pytest.raises(ValueError, match="at most 256 classes"):
        liteseg.predict(fused, x)


def test_not_a_number_reaches_every_logit(fused: nn.Module) -> None:
    x = picture(1, 3, 64, 96)
    x[0, 1, 30, 40] = float("nan")
    # image pooling spreads it
    assert fused.low_resolution_logits(x).isnan().all()


def test_other_runs_do_not_leak_in(fused: nn.Module) -> None:
    """The arena holds what former inputs left; nothing of it may count."""
    x = picture(1, 3, 65, 97)
    before = fused.low_resolution_logits(x)
    fused.low_resolution_logits(torch.full((2, 3, 128, 160), float("nan")))
    assert torch.equal(fused.low_resolution_logits(x), before)


# selection


def test_selection(fused: nn.Module) -> None:
    x = picture(1, 3, 64, 96)
    assert isinstance(lk.runtime.explain(fused, x).plan, Plan)
    with lk.use_backend("cpu"):
        assert lk.runtime.explain(fused, x).plan is not None
    for name in ("reference", "triton", "cuda"):
        with lk.use_backend(name):
            assert lk.runtime.explain(fused, x).plan is None
    with torch.autocast("cpu", dtype=torch.float16):
        assert lk.runtime.explain(fused, x).plan is None
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert lk.runtime.explain(fused, x.to(dtype)).plan is None
    assert lk.runtime.explain(fused, x.to("meta")).plan is None


def test_gradients_run_by_modules(fused: nn.Module) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        x = picture(1, 3, 64, 96)
        assert lk.runtime.explain(fused, x).plan is None
        frozen = copy.deepcopy(fused).requires_grad_(False)
        assert lk.runtime.explain(frozen, x).plan is not None
        x.requires_grad_()
        assert lk.runtime.explain(frozen, x).plan is None
        frozen(x).sum().backward()
        assert x.grad is not None and x.grad.abs().sum() > 0


def test_uncovered_networks_run_by_modules() -> None:
    model = network(separable=False)
    fused = lk.fuse(model)
    x = picture(1, 3, 64, 96)
    assert lk.runtime.explain(fused, x).plan is None
    with pytest.raises(ValueError, match="^plan: expected a network that runs from a plan"):
        fused.plan()
    torch.testing.assert_close(fused(x), lk.to_reference(model)(x), rtol=1e-3, atol=1e-3)


def test_too_many_branches_run_by_modules() -> None:
    fused = lk.fuse(network(rates=(1, 2, 3, 4, 5, 6, 7, 8)))
    assert lk.runtime.explain(fused, picture(1, 3, 64, 96)).plan is None
    with pytest.raises(ValueError, match="9 branches of the pyramid"):
        fused.plan()


def test_plain_models_have_no_plan(model: nn.Module) -> None:
    assert lk.runtime.explain(model, picture(1, 3, 64, 96)).plan is None
    with pytest.raises(ValueError, match="not fused"):
        model.plan()
    assert lk.runtime.explain(lk.to_reference(lk.fuse(model)), picture(1, 3, 64, 96)).plan is None


def test_compiled_models_run_by_modules(fused: nn.Module) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x = picture(1, 3, 64, 96)
    with torch.inference_mode(False), torch.no_grad():
        compiled = torch.compile(fused.low_resolution_logits, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(x), fused.low_resolution_logits(x), rtol=1e-3, atol=1e-4)
    assert any("inverted_residual" in target for target in seen)
    assert not any("run_plan" in target for target in seen)


# threads, processes, memory


def test_same_bits_on_any_number_of_threads(fused: nn.Module) -> None:
    x = picture(2, 3, 97, 161)
    results = []
    # more threads than work, and more than most machines of a test run have
    for threads in (1, 2, 3, 7, 16):
        torch.set_num_threads(threads)
        results.append((fused.low_resolution_logits(x), labels_of(fused, x, (97, 161))))
    for logits, labels in results[1:]:
        assert torch.equal(logits, results[0][0]) and torch.equal(labels, results[0][1])


@pytest.mark.parametrize("team", [1, 2])
def test_several_threads_at_once(fused: nn.Module, team: int) -> None:
    torch.set_num_threads(team)
    inputs = [picture(1, 3, 65, 97, seed=s) for s in range(2)] + [picture(1, 3, 128, 96)]
    expected = [fused.low_resolution_logits(x) for x in inputs]
    equal: list[bool] = []

    def work(index: int) -> None:
        # a pool of threads belongs to the thread that calls
        assert torch.get_num_threads() == team
        with torch.inference_mode():
            for _ in range(15):
                equal.append(torch.equal(fused.low_resolution_logits(inputs[index]), expected[index]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(equal) == 45 and all(equal)


def test_inside_another_programs_load(fused: nn.Module) -> None:
    x = picture(1, 3, 96, 160)
    torch.set_num_threads(2)
    expected = fused.low_resolution_logits(x)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        for _ in range(20):
            assert torch.equal(fused.low_resolution_logits(x), expected)
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child(fused: nn.Module) -> None:
    torch.set_num_threads(2)
    x = picture(1, 3, 65, 97)
    expected = fused.low_resolution_logits(x)
    child = os.fork()
    if child == 0:
        # torch's own parallel code would wait for ever for the parent's threads
        signal.alarm(30)
        values = np.array_equal(fused.low_resolution_logits(x).numpy(), expected.numpy())
        os._exit(0 if values else 1)
    assert os.waitpid(child, 0)[1] == 0


class Labels(torch.utils.data.Dataset[torch.Tensor]):
    """A data set that predicts, in the processes of its loader."""

    def __init__(self, fused: nn.Module, inputs: list[torch.Tensor]) -> None:
        self.fused, self.inputs = fused, inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        x = self.inputs[index]
        with torch.inference_mode():
            return labels_of(self.fused, x, x.shape[2:]).clone()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize(
    "start", [name for name in ("fork", "spawn") if name in multiprocessing.get_all_start_methods()]
)
def test_workers_of_a_loader(fused: nn.Module, start: str) -> None:
    torch.set_num_threads(2)
    with torch.inference_mode(False):
        inputs = [picture(1, 3, 65, 97, seed=seed) for seed in range(4)]
    data = Labels(fused, inputs)
    expected = [data[i] for i in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=60
    )
    for labels, wanted in zip(loader, expected, strict=True):
        assert torch.equal(labels, wanted)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")
def test_alternating_sizes_do_not_leak(fused: nn.Module) -> None:
    inputs = [picture(1, 3, *size) for size in [(64, 96), (96, 64), (160, 224), (33, 47)]]
    for x in inputs * 3:
        labels_of(fused, x, x.shape[2:])
    before = resident_mb()
    for i in range(200):
        x = inputs[i % len(inputs)]
        labels_of(fused, x, x.shape[2:])
    assert resident_mb() - before < 4


_OTHER_ISA = """
import sys, torch, liteseg_kernels as lk
from tests.plan.test_plan import labels_of, network, picture
# float64's depthwise convolutions enter the pool once a channel: two threads only for the plan
torch.set_num_threads(1)
assert torch.ops.liteseg_cpu.isa() == sys.argv[1]
with torch.inference_mode():
    fused, x = lk.fuse(network(sys.argv[2])), picture(2, 3, 65, 97)
    torch.set_num_threads(2)
    assert lk.runtime.explain(fused, x).plan is not None
    torch.save((fused.low_resolution_logits(x), labels_of(fused, x, (65, 97))), sys.argv[3])
"""


def check_instruction_set(model: nn.Module, backbone: str, isa: str, file: Path) -> None:
    """A process that is told to use `isa`, against `model`, which is `network(backbone)`, in float64."""
    if isa not in here():
        pytest.skip(f"this processor has no {isa}")
    command = [sys.executable, "-c", _OTHER_ISA, isa, backbone, str(file)]
    env = os.environ | {"LITESEG_CPU_ISA": isa}
    subprocess.run(command, check=True, env=env, cwd=Path(__file__).resolve().parents[2], timeout=120)
    logits, labels = torch.load(file)
    x = picture(2, 3, 65, 97)
    exact = lk.to_reference(model).double().low_resolution_logits(x.double())
    assert error(logits, exact) <= 3 * error(lk.to_reference(model).low_resolution_logits(x), exact)
    up = nn.functional.interpolate(exact, (65, 97), mode="bilinear", align_corners=True)
    assert (labels == up.argmax(1)).double().mean() >= 0.9999


@pytest.mark.parametrize("isa", ORDER)
def test_instruction_sets(model: nn.Module, isa: str, tmp_path: Path) -> None:
    check_instruction_set(model, "mobilenetv2", isa, tmp_path / "logits.pt")


# life cycle


def test_copies(fused: nn.Module) -> None:
    x = picture(1, 3, 65, 97)
    expected = fused.low_resolution_logits(x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (copy.deepcopy(fused), torch.load(file, weights_only=False)):
        assert not other._plans
        assert lk.runtime.explain(other, x).plan is not None
        assert torch.equal(other.low_resolution_logits(x), expected)


def test_loading_weights_packs_again(model: nn.Module) -> None:
    with torch.inference_mode(False):
        fused = lk.fuse(model)
        other = network()
        for parameter in other.parameters():
            parameter.data.mul_(0.9)
        x = picture(1, 3, 65, 97)
    before = fused.low_resolution_logits(x)
    fused.load_state_dict(other.state_dict())
    after = fused.low_resolution_logits(x)
    assert not torch.allclose(after, before)
    assert lk.runtime.explain(fused, x).plan is not None
    torch.testing.assert_close(after, lk.to_reference(other).low_resolution_logits(x), rtol=1e-3, atol=1e-4)


def test_conversion(model: nn.Module) -> None:
    with torch.inference_mode(False):
        fused = lk.fuse(model)
        x = picture(1, 3, 64, 96)
        assert lk.runtime.explain(fused, x).plan is not None or torch.is_grad_enabled()
        fused.bfloat16()
    assert lk.runtime.explain(fused, x).plan is None
    assert fused(x.bfloat16()).dtype == torch.bfloat16
    fused.float()
    rounded = fused.low_resolution_logits(x)
    assert lk.runtime.explain(fused, x).plan is not None
    torch.testing.assert_close(rounded, with_modules(fused, x), rtol=1e-3, atol=1e-3)


def test_state_dict_and_training(model: nn.Module) -> None:
    with torch.inference_mode(False):
        fused = lk.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    x = picture(1, 3, 64, 96)
    assert lk.runtime.explain(fused, x).plan is not None
    fused.train()
    assert lk.runtime.explain(fused, x).plan is None
    fused.eval()
    assert lk.runtime.explain(fused, x).plan is None
    torch.testing.assert_close(fused(x), lk.to_reference(model)(x), rtol=1e-3, atol=1e-3)


# report


def test_report(model: nn.Module, fused: nn.Module) -> None:
    report = fused.plan((64, 96))
    plain = liteseg.profile(model, (64, 96))
    network_macs = sum(layer.macs for layer in report.layers if layer.name != "labels")
    # the linear branch of the pyramid and the short residual connection are one, and the decoder saves
    assert 0.85 * plain.macs < network_macs < plain.macs
    assert report.layers[0].name == "stem + blocks.0" and report.layers[0].shape == (16, 32, 48)
    assert report.layers[-2].shape == (11, 16, 24)
    # the decoder of a quarter of the size resizes 8 times and saves by convolving first; resizing twice does not
    assert "before resizing" in report.layers[-2].strategy
    assert "before resizing" not in lk.fuse(network(output_stride=8)).plan((64, 96)).layers[-2].strategy
    assert all(layer.bytes > 0 and layer.seconds is None for layer in report.layers)
    assert str(report).count("\n") == len(report.layers) + 2


def test_profile(fused: nn.Module) -> None:
    report = fused.plan((64, 96), profile=True)
    assert report.threads == torch.get_num_threads()
    assert all(layer.seconds is not None and layer.seconds > 0 for layer in report.layers)
    assert "GMAC/s" in str(report)
    # without labels, what the order of the logits costs is part of the last layer
    plan, x = lk.runtime.explain(fused, picture(1, 3, 64, 96)).plan, picture(1, 3, 64, 96)
    for size, more in ([], 0), ([64, 96], 1):
        seconds = torch.ops.liteseg_cpu.time_plan(x, plan.packed, plan.program, size)
        assert len(seconds) == len(plan.layers) + more and (seconds > 0).all()


# a network that is not LiteSeg, and programs that are wrong


class Small(PlannedModule):
    """Two blocks, the first without expansion, and a decoder on top."""

    in_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.stem = lk.ConvNormAct(4, 20, 3, stride=1, activation="relu")
        self.first = lk.InvertedResidual(20, 12, 1, 1)
        self.second = lk.InvertedResidual(12, 24, 2, 3)
        self.join = lk.UpsampleConcat()
        self.convolutions = nn.ModuleList([lk.SeparableConv2d(36, 17), lk.SeparableConv2d(17, 9, activation="relu6")])
        self.classifier = nn.Conv2d(9, 3, 1)

    def lower(self, program: Program, x: int) -> int:
        low = program.run(self.first, "first", program.run(self.stem, "stem", x))
        y = program.run(self.join, "join", program.run(self.second, "second", low), low)
        for convolution in self.convolutions:
            y = program.run(convolution, "convolution", y)
        return program.convolution(y, self.classifier.weight, self.classifier.bias)

    def forward_modules(self, x: torch.Tensor) -> torch.Tensor:
        low = self.first(self.stem(x))
        y = self.join(self.second(low), low)
        for convolution in self.convolutions:
            y = convolution(y)
        return self.classifier(y)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (17, 40)])
def test_another_network(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = trained_like(Small())
    fused = lk.fuse(model)
    x = picture(2, 4, *size)
    assert lk.runtime.explain(fused, x).plan is not None
    exact = lk.to_reference(model).double()(x.double())
    assert error(fused(x), exact) < 2e-6


def test_wrong_channels(fused: nn.Module) -> None:
    plan = lk.runtime.explain(fused, picture(1, 3, 64, 96)).plan
    with pytest.raises(RuntimeError, match="run_plan: x: expected the plan's number of channels"):
        plan.logits(picture(1, 4, 64, 96))


@pytest.mark.parametrize("place", ["version", "panel", "layers", "kind", "end", "more", "offset", "packed"])
def test_wrong_programs(fused: nn.Module, place: str) -> None:
    x = picture(1, 3, 64, 96)
    plan = lk.runtime.explain(fused, x).plan
    words, packed = plan.program.tolist(), plan.packed
    if place == "packed":
        packed = packed[:1000].clone()
    elif place == "end":
        words = words[:-3]
    elif place == "more":
        words.append(1)
    else:
        index = {"version": 0, "panel": 1, "layers": 2, "kind": 3, "offset": 9}[place]
        words[index] += 10**9
    with pytest.raises(RuntimeError, match="^run_plan: (program|packed): expected"):
        torch.ops.liteseg_cpu.run_plan(x, packed, torch.tensor(words), [])


@pytest.mark.parametrize("seed", range(40))
def test_damaged_programs_never_crash(fused: nn.Module, seed: int) -> None:
    """Any word may be wrong: the op refuses it, or runs within its memory."""
    x = picture(1, 3, 33, 47)
    plan = lk.runtime.explain(fused, x).plan
    generator = torch.Generator().manual_seed(seed)
    words = plan.program.clone()
    for _ in range(3):
        index = torch.randint(len(words), (1,), generator=generator)
        words[index] = torch.randint(-2, 400, (1,), generator=generator)
    try:
        torch.ops.liteseg_cpu.run_plan(x, plan.packed, words, [])
    except RuntimeError as refusal:
        assert str(refusal).startswith("run_plan: ")
