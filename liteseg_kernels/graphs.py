"""CUDA graphs of a fused network: one for each kind of call and input, replayed instead of launch after launch.

`fuse(model, cuda_graph=True)` gives a network a `GraphCache`. A graph owns its input and output; a call copies the
input in, replays, and copies the output out, so results never change afterwards. The logic knows CUDA only through
`TorchGraphs`; tests put a recording stand-in there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _dispatch

__all__ = ["GraphCache", "GraphReport", "TorchGraphs"]

_WARM_UPS = 2

# whether this thread is capturing: what is captured runs kernel by kernel
_capturing: ContextVar[bool] = ContextVar("liteseg_capturing", default=False)
# one capture at a time in a process
_capture_lock = threading.Lock()


@dataclass
class Captured:
    """A graph with the tensors that it reads and writes."""

    input: Tensor
    output: Tensor
    replay: Callable[[], Any]


class TorchGraphs:
    """What `GraphCache` needs of torch.cuda."""

    def refusal(self, x: Tensor) -> str | None:
        """Why calls on x cannot be captured."""
        if x.device.type != "cuda":
            return f"x is on {x.device.type}, and graphs replay on CUDA devices only"
        if torch.cuda.is_current_stream_capturing():
            return "the caller captures a graph itself"
        return None

    def capture(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Captured:
        with torch.cuda.device(x.device):
            static = x.clone(memory_format=torch.preserve_format)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                # lazy initialisation, autotuning and compilation must not happen while a graph is captured
                for _ in range(_WARM_UPS):
                    run(static)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # other threads may use CUDA meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = run(static)
        return Captured(static, output, graph.replay)

    def record(self, x: Tensor) -> Any:
        """An event behind all that is queued on x's device and the current stream."""
        with torch.cuda.device(x.device):
            event = torch.cuda.Event()
            event.record()
        return event

    def wait(self, event: Any) -> None:
        """What is queued on the current stream from now on comes after the event."""
        event.wait()

    def synchronize(self, event: Any) -> None:
        """Return when the event has happened."""
        event.synchronize()


@dataclass
class _Entry:
    """A graph, or room for one: `lock` is held while its tensors are in use."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    captured: Captured | None = None
    weights: list[tuple[Tensor, int, int]] = field(default_factory=list)
    last_use: Any = None


@dataclass(frozen=True)
class GraphReport:
    """What `runtime.explain` says of CUDA graphs: whether a call on the input replays a graph, and if not, why."""

    replays: bool
    reason: str
    graphs: int
    capacity: int

    def __str__(self) -> str:
        answer = "replays a CUDA graph" if self.replays else f"runs kernel by kernel: {self.reason}"
        return f"{answer} ({self.graphs} of {self.capacity} graphs captured)"


def _state(tensor: Tensor) -> tuple[int, int]:
    """Changes when the tensor is written in place or put into other memory."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class GraphCache:
    """At most `capacity` graphs, the ones used last.

    Any number of threads and streams may call `run`: calls that need the same graph take turns, each on its own stream
    behind the one before. A graph is captured again when a weight was written in place or moved; `clear` forgets all.
    """

    def __init__(self, capacity: int = 8, graphs: TorchGraphs | None = None) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"GraphCache: capacity: expected an integer of at least 1, got {capacity!r}")
        self.capacity = capacity
        self.graphs = TorchGraphs() if graphs is None else graphs
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # graphs belong to this process and to these weights
        return type(self), (self.capacity, self.graphs)

    def __len__(self) -> int:
        with self._lock:
            return sum(entry.captured is not None for entry in self._entries.values())

    def refusal(self, x: Tensor) -> str | None:
        """Why a call on x does not replay a graph."""
        if _capturing.get():
            return "it is part of a graph already"
        if type(x) is not Tensor:
            return f"x is a {type(x).__name__}"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on"
        if x.numel() == 0:
            return "the input is empty"
        return self.graphs.refusal(x)

    def clear(self) -> None:
        """Forget all graphs, once nothing that was queued uses them any more."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            with entry.lock:
                self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        # the graph's memory may go to somebody else at once
        if entry.last_use is not None:
            self.graphs.synchronize(entry.last_use)
        entry.captured, entry.last_use, entry.weights = None, None, []

    def _entry(self, key: Hashable) -> tuple[_Entry, list[_Entry]]:
        """The entry of a key, now the one used last, and those that had to go."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            gone = []
            while len(self._entries) > self.capacity:
                gone.append(self._entries.popitem(last=False)[1])
        return entry, gone

    def _capture(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Captured:
        inside = _capturing.set(True)
        try:
            # buffers of inference mode could not be written outside of it
            with _capture_lock, torch.inference_mode(False), torch.no_grad():
                return self.graphs.capture(run, x if not x.is_inference() else x.clone())
        finally:
            _capturing.reset(inside)

    def run(self, call: Hashable, run: Callable[[Tensor], Tensor], x: Tensor, weights: Iterable[Tensor]) -> Tensor:
        """run(x), replayed. `call` names what `run` does beside x; `weights` are the tensors that it reads."""
        key = (
            *(call, tuple(x.shape), tuple(x.stride()), x.dtype, x.device, _dispatch.selection()),
            *(_dispatch.tf32_allowed(), tuple(_dispatch.small_grids().values())),
        )
        entry, gone = self._entry(key)
        for old in gone:
            with old.lock:
                self._drop(old)
        with entry.lock:
            if any(_state(tensor) != (pointer, version) for tensor, pointer, version in entry.weights):
                self._drop(entry)
            if entry.captured is None:
                used = list(weights)
                entry.captured = self._capture(run, x)
                entry.weights = [(tensor, *_state(tensor)) for tensor in used]
            elif entry.last_use is not None:
                self.graphs.wait(entry.last_use)
            captured = entry.captured
            with torch.no_grad():
                captured.input.copy_(x)
                captured.replay()
                result = captured.output.clone(memory_format=torch.preserve_format)
            entry.last_use = self.graphs.record(x)
            with self._lock:
                orphan = self._entries.get(key) is not entry
            if orphan:
                # pushed out while this call waited for its turn
                self._drop(entry)
        return result
