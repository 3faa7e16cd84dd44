"""What people do with whole networks and blocks of this library, beside changing the modules inside."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import liteseg
import liteseg_kernels as lk
from liteseg.predict import segment
from liteseg_kernels import _loader
from liteseg_kernels.testing import trained_like

from .test_alterations import network
from .test_modules import PAIRS, both, close

BACKBONES = ("mobilenetv2", "shufflenet", "darknet19")
backbones = pytest.mark.parametrize("backbone", BACKBONES)
plans = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")


def fresh(backbone: str = "mobilenetv2") -> tuple[nn.Module, nn.Module, Tensor]:
    ours, theirs, x = network(backbone)
    return copy.deepcopy(ours), copy.deepcopy(theirs), x


def near(actual: Tensor, expected: Tensor, limit: float = 1e-4) -> None:
    assert (actual - expected).norm() <= limit * expected.norm()


@backbones
@pytest.mark.parametrize("mode", ["eval", "fused", "training"])
def test_hooks_on_every_module_fire(backbone: str, mode: str) -> None:
    model, _, x = network(backbone)
    model = lk.fuse(model) if mode == "fused" else copy.deepcopy(model).train(mode == "training")
    with torch.no_grad():
        model(x)
    fired: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.append(name))
    with torch.no_grad():
        model(x)
    # a list of modules is not called, in plain torch.nn either
    expected = [name for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)]
    assert sorted(fired) == sorted(expected)


@pytest.mark.parametrize("fused", [False, True])
def test_one_hook_sees_what_plain_torch_shows(fused: bool) -> None:
    ours, theirs, x = fresh()
    ours = lk.fuse(ours) if fused else ours
    for name in ("backbone.blocks.3.project", "daspp.deep.1", "decoder.0", "decoder", "decoder.1", "classifier"):
        seen: list[Tensor] = []
        for module in (ours, theirs):
            handle = module.get_submodule(name).register_forward_hook(lambda m, args, out, to=seen: to.append(out))
            with torch.no_grad():
                module(x)
            handle.remove()
        assert len(seen) == 2, name
        near(*seen)


def test_global_hooks_see_every_module() -> None:
    model, _, x = network("shufflenet")
    fused = lk.fuse(model)
    with torch.no_grad():
        expected = fused(x)
        for module in (fused, copy.deepcopy(model), copy.deepcopy(model).train()):
            seen: set[nn.Module] = set()
            handle = register_module_forward_hook(lambda part, args, out, seen=seen: seen.add(part))
            try:
                module(x)
            finally:
                handle.remove()
            assert {part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.BatchNorm2d))} <= seen
        assert torch.equal(fused(x), expected)


@backbones
@pytest.mark.parametrize("fused", [False, True])
def test_another_classifier(backbone: str, fused: bool) -> None:
    heads = {
        "dropout": lambda: nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(96, 4, 1)),
        "none": nn.Identity,
        "3x3": lambda: nn.Conv2d(96, 4, 3, padding=1),
    }
    for head in heads.values():
        ours, theirs, x = fresh(backbone)
        ours = lk.fuse(ours) if fused else ours
        ours.classifier = head().eval()
        theirs.classifier = copy.deepcopy(ours.classifier)
        with torch.no_grad():
            near(ours(x), theirs(x))
            near(lk.fuse(ours)(x), theirs(x))
            assert liteseg.predict(ours, x).shape == (2, 32, 48)
        for module in (ours, theirs):
            module.decoder.append(nn.Tanh())
        with torch.no_grad():
            near(ours(x), theirs(x))
            near(lk.fuse(ours)(x), theirs(x))


@pytest.mark.parametrize("fused", [False, True])
def test_functional_call(fused: bool) -> None:
    ours, theirs, x = fresh()
    ours = lk.fuse(ours) if fused else ours
    given = {name: p.detach() * 0.9 for name, p in theirs.named_parameters()}
    grads = []
    for module in (ours, theirs):
        with torch.no_grad():
            before = module(x)
            parameters = {name: p.clone().requires_grad_() for name, p in given.items()}
            near(torch.func.functional_call(module, given, (x,)), torch.func.functional_call(theirs, given, (x,)))
            assert torch.equal(module(x), before)
        torch.func.functional_call(module, parameters, (x,)).sin().sum().backward()
        grads.append({name: p.grad for name, p in parameters.items()})
    for name, grad in grads[1].items():
        # the peak of what the pooled and deepest maps pass back
        near(grads[0][name], grad, 2e-2)


@pytest.mark.parametrize("name", ["separable", "inverted residual", "shuffle unit", "DASPP"])
@pytest.mark.parametrize("fused", [False, True])
def test_transforms_of_torch_func(name: str, fused: bool) -> None:
    ours, theirs, x = both(PAIRS[name])
    ours, theirs = (lk.fuse(ours) if fused else ours.eval()), theirs.eval()
    stacked = {key: torch.stack((p.detach(), p.detach() * 1.5)) for key, p in theirs.named_parameters()}
    results = []
    for module in (ours, theirs):
        many = torch.func.vmap(lambda p, m=module: torch.func.functional_call(m, p, (x,)))(stacked)
        _, forward = torch.func.jvp(module, (x,), (torch.ones_like(x),))
        grad = torch.func.grad(lambda x, m=module: m(x).sin().sum())
        second = torch.func.grad(lambda x, grad=grad: grad(x).square().sum())(x)
        results.append((many, forward, grad(x), second))
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)


@plans
def test_plans_follow_the_network() -> None:
    ours, theirs, x = fresh()
    fused = lk.fuse(ours)
    with torch.inference_mode():
        assert lk.explain(fused, x).plan == ("",) and not lk.explain(fused, x).refused
        near(fused(x), theirs(x))
        # statistics that move in between
        for module in (fused, theirs):
            module.backbone.stem.norm.train()
            module(x)
        assert lk.runtime.explain(fused, x).plan is None
        for module in (fused, theirs):
            module.backbone.stem.norm.eval()
        assert lk.runtime.explain(fused, x).plan is not None
        near(fused(x), theirs(x))
        # part of the network loaded
        state = {key: value * 0.9 if value.is_floating_point() else value for key, value in theirs.state_dict().items()}
        part = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        for module in (fused, theirs):
            module.backbone.load_state_dict(part)
        assert lk.runtime.explain(fused, x).plan is not None
        near(fused(x), theirs(x))
        # a setting of a module that the plan has built in
        for module in (fused, theirs):
            module.backbone.last.norm.eps = 0.3
            module.backbone.blocks[4].depthwise.conv.dilation = (2, 2)
            module.backbone.blocks[4].depthwise.conv.padding = (2, 2)
        assert lk.runtime.explain(fused, x).plan is not None
        near(fused(x), theirs(x))


@plans
def test_explain_tells_the_plan_of_a_network() -> None:
    ours, _, x = fresh()
    holder = nn.Sequential(lk.fuse(ours)).eval()
    with torch.inference_mode():
        told = lk.explain(holder, x)
        run = lk.runtime.explain(holder[0], x)
        assert told.plan == ("0",) and told.layers["0"].size == tuple(x.shape[2:]) and not told.graph
        assert "0: from one plan" in str(told) and told.layers["0"].layers[0].name in str(told)
        assert run.engine == "plan" == str(run) and run.plan is not None and not run.refused
        # labels of the mirrored input too, and of a network that somebody put a method on
        small = (x.shape[2], x.shape[3])
        assert "mirrored" in lk.runtime.explain(holder[0], x, small, flip=True).refused["plan"]
        holder[0].low_resolution_logits = holder[0].low_resolution_logits
        assert lk.runtime.explain(holder[0], x, small).engine == "modules"
        assert "was put on the network" in str(lk.runtime.explain(holder[0], x, small))
        assert lk.runtime.explain(holder[0], x).engine == "plan"
    # other networks have the same interface
    plain = nn.Conv2d(3, 4, 1)
    assert lk.runtime.explain(plain, x) == lk.runtime.NetworkExplanation("modules")
    assert (lk.runtime.labels(plain, x, (16, 16)) < 4).all()


@plans
def test_deprecated_names_work_and_say_what_to_use() -> None:
    ours, _, x = fresh()
    fused = lk.fuse(ours)
    with torch.inference_mode():
        with pytest.deprecated_call(match=r"use liteseg_kernels.runtime.explain\(network, x\).plan"):
            assert torch.equal(fused.plan_for(x).logits(x), fused.low_resolution_logits(x))
        with pytest.deprecated_call(match=r"use liteseg_kernels.runtime.explain\(network, x\).graph"):
            assert not fused.explain_graph(x).replays
        with pytest.deprecated_call(match="use liteseg_kernels.runtime.logits"):
            assert fused.replayed("twice", lambda x: x * 2, x).equal(x * 2)
        with pytest.deprecated_call(match="use liteseg_kernels.runtime.labels"):
            labels = segment(fused, x, (64, 96))
        assert labels.equal(lk.runtime.labels(fused, x, (64, 96)))


class Warm(liteseg.models.LiteSeg):
    """A network with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5 + x[:, :1]


class Doubled(lk.InvertedResidual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_subclasses_with_a_forward_of_their_own() -> None:
    ours, theirs, x = fresh()
    warm = Warm(ours.config).eval()
    warm.load_state_dict(ours.state_dict())
    fused = lk.fuse(warm)
    with torch.no_grad():
        expected = theirs(x) * 0.5 + x[:, :1]
        near(fused(x), expected)
        for model in (warm, fused):
            assert (liteseg.predict(model, x) == expected.argmax(1)).float().mean() > 0.999
        ours.backbone.blocks[2].__class__ = Doubled
        theirs.backbone.blocks[2].register_forward_hook(lambda module, args, out: out * 2)
        fused = lk.fuse(ours)
        assert lk.runtime.explain(fused, x).plan is None
        near(fused(x), theirs(x))


def test_predict_calls_a_network_with_hooks() -> None:
    model, _, x = network("mobilenetv2")
    fused = lk.fuse(model)
    fused.register_forward_hook(lambda module, args, out: -out)
    with torch.no_grad():
        expected = -fused(x)
    assert (liteseg.predict(fused, x) == (-expected).argmax(1)).all()


def test_explain_names_modules_and_reasons(caplog: pytest.LogCaptureFixture) -> None:
    model, _, x = fresh()
    assert lk.explain(model).fused and set(lk.explain(model).refused) == {""}
    model.decoder[1].activation = nn.SiLU()
    model.daspp.deep[0].pointwise.register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING, "liteseg_kernels"):
        fused = lk.fuse(model)
    refused = {
        "decoder.1": "activation: expected ReLU, got SiLU",
        "daspp": "deep.0.pointwise: expected no hooks, got one of its forward hooks",
        "daspp.deep.0": "pointwise: expected no hooks, got one of its forward hooks",
    }
    assert all(f"{name}.{reason}" in caplog.text for name, reason in refused.items())
    with torch.inference_mode():
        told = lk.explain(fused, x)
    first = "daspp.deep.0.pointwise: expected no hooks, got one of its forward hooks"
    assert told.refused == refused | {"": f"no plan, {first}"}
    assert "daspp.atrous.0" in told.fused and "backbone.blocks.3" in told.fused
    assert "decoder.1: not fused: activation: expected ReLU, got SiLU" in str(told)
    with pytest.raises(ValueError, match=first):
        fused.plan()
    handle = fused.backbone.blocks[0].depthwise.conv.register_forward_hook(lambda *_: None)
    assert lk.explain(fused).refused["backbone.blocks.0"].startswith("depthwise.conv: expected no hooks")
    handle.remove()
    assert "backbone.blocks.0" in lk.explain(fused).fused
    with pytest.raises(TypeError, match="explain: expected a module and at most one tensor"):
        lk.explain(model, 3)


def test_graphs_are_not_replayed_past_hooks() -> None:
    model, _, x = network("mobilenetv2")
    fused = lk.fuse(model, cuda_graph=True)
    fused._graphs.graphs.refusal = lambda x: None
    with torch.inference_mode():
        assert lk.runtime.explain(fused, x).graph.replays
        handle = fused.classifier.register_forward_hook(lambda *_: None)
        assert (
            lk.runtime.explain(fused, x).graph.reason == "classifier: expected no hooks, got one of its forward hooks"
        )
        handle.remove()
        assert lk.runtime.explain(fused, x).graph.replays


def test_altered_models_are_copied_and_pickled() -> None:
    ours, theirs, x = fresh()
    fused = lk.fuse(ours)
    with torch.no_grad():
        fused(x)
        for module in (fused, theirs):
            module.backbone.blocks[1].expand.activation = nn.Hardswish()
        expected = theirs(x)
        near(copy.deepcopy(fused)(x), expected)
        near(pickle.loads(pickle.dumps(fused))(x), expected)
        file = io.BytesIO()
        torch.save(fused, file)
        file.seek(0)
        near(torch.load(file, weights_only=False)(x), expected)


def test_pruned_blocks_are_copied_after_training() -> None:
    # torch's pruning and old weight_norm leave a computed weight behind, which deepcopy refuses
    ours, theirs, x = both(PAIRS["separable"])
    for module in (ours, theirs):
        nn.utils.prune.l1_unstructured(module.pointwise, "weight", 0.5)
        module.train()(x).sum().backward()
        module.eval()
    for copied in (lk.fuse(ours), lk.to_reference(ours)):
        close(copied(x), theirs(x))


@pytest.mark.parametrize("fused", [False, True])
def test_onnx_export_as_everyone_writes_it(fused: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = lk.ConvNormAct(3, 16, 3, stride=2, activation="relu")
            self.body = nn.Sequential(lk.InvertedResidual(16, 16, 1, 2), lk.ShuffleUnit(16, 16, groups=2))
            self.head = lk.DASPP(16, 4, (1, 2))
            self.join, self.last = lk.UpsampleConcat(), lk.SeparableConv2d(20, 4)
            self.labels = lk.UpsampleArgmax()

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.labels(self.last(self.join(self.head(self.body(y)), y)), (40, 48))

    model = trained_like(Net())
    model = lk.fuse(model) if fused else model
    x = torch.randn(1, 3, 32, 48)
    torch.onnx.export(model, (x,), tmp_path / "net.onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    labels = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert (torch.from_numpy(labels) == model(x)).float().mean() > 0.999


@pytest.mark.parametrize("fused", [False, True])
def test_programs_of_torch_export_keep_the_ops(fused: bool) -> None:
    ours, theirs, x = both(PAIRS["inverted residual"], torch.float32)
    module = lk.fuse(ours) if fused else ours.eval()
    for strict in (False, True):
        program = torch.export.export(module, (x,), strict=strict)
        assert "liteseg.inverted_residual" in program.graph_module.code
        close(program.module()(x), theirs.eval()(x))
    module.expand.activation = theirs.expand.activation = nn.SiLU()
    program = torch.export.export(module, (x,))
    assert "liteseg.inverted_residual" not in program.graph_module.code
    close(program.module()(x), theirs(x))


@pytest.mark.parametrize("fused", [False, True])
def test_compiled_blocks_follow_changes(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest listens to every log, which makes torch write out each step of a compilation
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])
    torch._dynamo.reset()
    ours, theirs, x = both(PAIRS["separable"], torch.float32)
    module, theirs = lk.fuse(ours) if fused else ours.eval(), theirs.eval()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        close(compiled(x), theirs(x))
        for one in (module, theirs):
            one.norm.train()
        close(compiled(x), theirs(x))
        for one in (module, theirs):
            one.norm.eval()
            one.activation = nn.SiLU()
        torch._dynamo.reset()
        close(torch.compile(module, fullgraph=True, backend="eager")(x), theirs(x))
