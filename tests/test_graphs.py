"""CUDA graphs of fused networks: their logic with a recording stand-in on the CPU, and the real thing on a GPU."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import liteseg
import liteseg_kernels as lk
from liteseg_kernels import graphs
from liteseg_kernels.graphs import Captured, GraphCache, TorchGraphs


class Recorder(TorchGraphs):
    """Graphs that are functions, with a log of what happened. As with real ones, a replay reads and writes the tensors
    of the capture, and nothing else."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.events = 0

    def refusal(self, x: Tensor) -> str | None:
        return None

    def capture(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Captured:
        self.log.append("capture")
        static = x.clone()
        output = run(static)

        def replay() -> None:
            self.log.append("replay")
            # a graph calls no Python, so nothing in it asks for a graph
            inside = graphs._capturing.set(True)
            output.copy_(run(static))
            graphs._capturing.reset(inside)

        return Captured(static, output, replay)

    def record(self, x: Tensor) -> int:
        self.events += 1
        return self.events

    def wait(self, event: int) -> None:
        self.log.append(f"wait {event}")

    def synchronize(self, event: int) -> None:
        self.log.append(f"synchronize {event}")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def times(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


def test_a_graph_is_captured_once_and_replayed(recorder: Recorder) -> None:
    cache, factor = GraphCache(graphs=recorder), torch.tensor(3.0)
    results = [cache.run("times", times(factor), torch.full((2, 3), float(i)), [factor]) for i in range(3)]
    assert recorder.log == ["capture", "replay", "wait 1", "replay", "wait 2", "replay"]
    # copied out: later replays do not change earlier results
    assert [r.unique().item() for r in results] == [0.0, 3.0, 6.0]


def test_each_size_dtype_layout_call_backend_and_switch_has_a_graph(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, factor = GraphCache(graphs=recorder), torch.tensor(2.0)
    x = torch.randn(1, 4, 6, 8)
    inputs = [x, x[..., 1:], x.double(), x.contiguous(memory_format=torch.channels_last)]
    for _ in range(2):
        for one in inputs:
            torch.testing.assert_close(cache.run("a", times(factor), one, [factor]), one * 2)
        cache.run("b", times(factor), x, [factor])
        with lk.use_backend("cuda"):
            cache.run("a", times(factor), x, [factor])
        with monkeypatch.context() as patch:
            patch.setenv("LITESEG_CLUSTERS", "0")
            cache.run("a", times(factor), x, [factor])
    assert recorder.log.count("capture") == len(cache) == 7


def test_the_graphs_used_last_are_kept(recorder: Recorder) -> None:
    cache, factor = GraphCache(2, recorder), torch.tensor(2.0)
    for size in (1, 2, 1, 3, 1, 2):
        cache.run("a", times(factor), torch.randn(size), [factor])
    # 1 stays, for it was used between the others; what goes is waited for
    assert recorder.log.count("capture") == 4 and len(cache) == 2
    assert [entry for entry in recorder.log if entry.startswith("synchronize")] == ["synchronize 2", "synchronize 4"]


@pytest.mark.parametrize("change", ["in place", "data"])
def test_a_changed_weight_is_captured_again(recorder: Recorder, change: str) -> None:
    cache, factor = GraphCache(graphs=recorder), nn.Parameter(torch.tensor(2.0))
    x = torch.randn(3)
    with torch.no_grad():
        cache.run("a", times(factor), x, [factor])
        if change == "in place":
            factor.fill_(5.0)
        else:
            factor.data = torch.tensor(5.0)
        torch.testing.assert_close(cache.run("a", times(factor), x, [factor]), x * 5)
    assert recorder.log == ["capture", "replay", "synchronize 1", "capture", "replay"]


def test_clear_waits_for_what_is_queued(recorder: Recorder) -> None:
    cache, factor = GraphCache(graphs=recorder), torch.tensor(2.0)
    cache.run("a", times(factor), torch.randn(3), [factor])
    cache.clear()
    assert recorder.log[-1] == "synchronize 1" and len(cache) == 0


def test_threads_take_turns_and_get_their_own_results(recorder: Recorder) -> None:
    cache, factor = GraphCache(2, recorder), torch.tensor(2.0)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for step in range(40):
            x = torch.full((4 + step % 3,), float(number))
            result = cache.run("a", times(factor), x, [factor])
            if not torch.equal(result, x * 2):
                wrong.append((number, step, result))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(cache) <= 2


def test_a_failed_capture_leaves_nothing_behind(recorder: Recorder) -> None:
    cache = GraphCache(graphs=recorder)

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such kernel"):
            cache.run("a", fail, torch.randn(3), [])
    assert len(cache) == 0
    torch.testing.assert_close(cache.run("a", times(torch.tensor(2.0)), torch.ones(3), []), torch.full((3,), 2.0))


def test_inference_mode_in_and_out(recorder: Recorder) -> None:
    cache, factor = GraphCache(graphs=recorder), torch.tensor(2.0)
    with torch.inference_mode():
        inside = cache.run("a", times(factor), torch.ones(3), [factor])
    outside = cache.run("a", times(factor), torch.ones(3), [factor])
    assert inside.is_inference() and not outside.is_inference()
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("capacity", [0, -1, 2.0, True])
def test_a_wrong_capacity_is_named(capacity: Any) -> None:
    with pytest.raises(ValueError, match="capacity: expected an integer of at least 1, got"):
        GraphCache(capacity)


# the network


@pytest.fixture
def network() -> nn.Module:
    return liteseg.fuse(liteseg.create_model("liteseg_mobilenetv2", num_classes=5), cuda_graph=True)


def recorded(network: Any, recorder: Recorder) -> Any:
    network.graph_(GraphCache(graphs=recorder))
    return network


@pytest.fixture(autouse=True)
def module_by_module() -> Iterator[None]:
    # the plan of the CPU would answer before any graph
    with lk.use_backend("reference"):
        yield


def test_on_the_cpu_it_says_why_it_does_nothing(network: Any, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(1, 3, 64, 64)
    plain = liteseg.fuse(liteseg.create_model("liteseg_mobilenetv2", num_classes=5))
    with torch.inference_mode():
        report = lk.runtime.explain(network, x).graph
        assert not report.replays and report.reason == "x is on cpu, and graphs replay on CUDA devices only"
        assert str(report) == f"runs kernel by kernel: {report.reason} (0 of 8 graphs captured)"
        assert lk.runtime.explain(plain, x).graph.reason == "the network was not fused with cuda_graph=True"
        for _ in range(2):
            network(x)
    assert [r.message for r in caplog.records] == [f"cuda_graph: no replay: {report.reason}"]


def test_what_is_not_replayed_says_why(network: Any, recorder: Recorder) -> None:
    x = torch.randn(1, 3, 64, 64)
    recorded(network, recorder)
    assert "gradients are recorded" in lk.runtime.explain(network, x).graph.reason
    with torch.inference_mode():
        assert lk.runtime.explain(network, x).graph.replays
        with torch.autocast("cpu"):
            assert lk.runtime.explain(network, x).graph.reason == "autocast is on"
    network.train()
    assert lk.runtime.explain(network, x).graph.reason == "the network was not fused with cuda_graph=True"


def test_logits_and_predictions_are_replayed(network: Any, recorder: Recorder) -> None:
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = network(x)
    labels = liteseg.predict(network, x)
    recorded(network, recorder)
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(network(x), expected)
        assert torch.equal(liteseg.predict(network, x), labels)
    # one graph of the logits, one of the labels, which contains the logits
    assert recorder.log.count("capture") == 2 and recorder.log.count("replay") == 4
    assert lk.runtime.explain(network, x).graph.graphs == 2


def test_new_weights_are_used(network: Any, recorder: Recorder) -> None:
    x = torch.randn(1, 3, 64, 64)
    other = liteseg.create_model("liteseg_mobilenetv2", num_classes=5).eval()
    recorded(network, recorder)
    with torch.inference_mode():
        network(x)
    network.load_state_dict(other.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(network(x), other(x), rtol=1e-4, atol=1e-5)
    assert recorder.log.count("capture") == 2
    network.double()
    with torch.inference_mode():
        assert network(x.double()).dtype == torch.float64
    assert recorder.log.count("capture") == 3 and lk.runtime.explain(network, x).graph.graphs == 1


def test_copies_have_graphs_of_their_own(network: Any, recorder: Recorder) -> None:
    recorded(network, recorder)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        network(x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert lk.runtime.explain(twin, x).graph.graphs == 0 and lk.runtime.explain(twin, x).graph.capacity == 8
    assert lk.runtime.explain(network, x).graph.graphs == 1


def test_a_model_of_others_is_refused() -> None:
    with pytest.raises(TypeError, match="fuse: cuda_graph: expected a network of this library"):
        liteseg.fuse(nn.Conv2d(3, 4, 1), cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    with lk.use_backend("auto"):
        model = liteseg.create_model("liteseg_mobilenetv2", num_classes=5).to("cuda", dtype)
        plain, graphed = liteseg.fuse(model), liteseg.fuse(model, cuda_graph=True)
        sizes = [(64, 96), (65, 97), (64, 96)]
        inputs = [torch.randn(1, 3, *size, device="cuda", dtype=dtype) for size in sizes]
        with torch.inference_mode():
            assert lk.runtime.explain(graphed, inputs[0]).graph.replays
            for x in inputs * 2:
                assert torch.equal(graphed(x), plain(x))
                assert torch.equal(liteseg.predict(graphed, x), liteseg.predict(plain, x))
        wrong: list[int] = []

        def work(number: int) -> None:
            with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
                for x in inputs * 5:
                    if not torch.equal(graphed(x), plain(x)):
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(0.9)
        graphed.load_state_dict(model.state_dict())
        plain = liteseg.fuse(model)
        with torch.inference_mode():
            assert torch.equal(graphed(inputs[0]), plain(inputs[0]))
