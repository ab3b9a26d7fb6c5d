"""The loop over time as a CUDA graph: one launch for all its kernels, forward and backward.

A step of a small batch takes the GPU less time than the CPU needs to launch it. A graph launches a
whole loop, but always with the same sizes and the same memory. So

- sizes are padded to those of a *bucket* (``bucket``): rows form groups, and the length of a group
  is that of its longest row, rounded up. There are few buckets, and one graph for each;
- a padding step does not change the state (``CARRY``): the forget gate is open and the input gate
  closed, exactly, and with them every gradient of the step is 0. An RNN and the h of an LSTM have
  no such gate; their last h is read at the last real step instead;
- inputs are copied into the memory of the graph and results out of it, the weights too, so that it
  does not matter where an optimizer or a checkpoint puts them.

    real            5 3 1           rows of each step: [3, 2, 2, 1, 1]
    bucket          8 4 4                              [3, 3, 3, 3, 1, 1, 1, 1]

The memory of a graph belongs to a run from its forward to its backward. If it is needed a second
time meanwhile, another graph is captured, or the plain loop runs.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioner.models.features import on_device
from captioner.models.precision import multiplies_in_tf32
from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell
from captioner.models.recurrence.loops import Gradients

log = logging.getLogger(__name__)

GROUPS = 4
"""Number of groups of rows whose lengths a bucket distinguishes."""

MULTIPLE = 4
"""The lengths of a bucket are multiples of this number of steps."""

MOST_PADDING = 2.0
"""A profile is not padded to more than this multiple of its real tokens."""

ROOM = 2**27
"""The number of gates that the memory of all graphs may have; with states and gradients a graph
needs about three times as much memory as for its gates."""

UNUSED = 1000
"""A graph that was not used in this number of runs makes room for others."""

Work = Callable[[], Any]
Capture = Callable[[Work], tuple[Any, Callable[[], None]]]
"""Runs some work once: its results, and a function that computes them again in the same tensors."""

CARRY: dict[type[Cell], tuple[float, ...]] = {
    RNN: (0.0,),
    GRU: (-torch.inf, torch.inf, 0.0),  # r, z, candidate
    LSTM: (torch.inf, -torch.inf, 0.0, 0.0),  # f, i, candidate, o
}
"""The pre-activations of the gates in a padding step."""

CARRIED: dict[type[Cell], tuple[str, ...]] = {RNN: (), GRU: ("h",), LSTM: ("c",)}
"""The parts of the state that a padding step does not change."""


# Buckets ------------------------------------------------------------------------------------------


def bucket(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes to which those of a batch are padded: as many rows, and no step has fewer.

    Args:
        sizes: number of rows of each step; non-increasing, the first is B.
    """
    rows = sizes[0]
    firsts = sorted({rows * group // GROUPS for group in range(GROUPS)})
    ends = [*firsts[1:], rows]
    lengths = [-(-sum(size > first for size in sizes) // MULTIPLE) * MULTIPLE for first in firsts]
    return tuple(
        max(end for end, length in zip(ends, lengths) if length > step)
        for step in range(lengths[0])
    )


class Places(NamedTuple):
    """Where the real tokens of a batch are in a bucket.

    Attributes:
        tokens: the row of each token in the packed bucket, [N].
        last: that of the last token of each row of the batch, [B].
    """

    tokens: Tensor
    last: Tensor

    @classmethod
    def of(cls, sizes: tuple[int, ...], padded: tuple[int, ...], device: torch.device) -> Places:
        """The places of a batch with these sizes in a bucket; computed on the CPU."""
        real, whole = torch.tensor(sizes), torch.tensor(padded)
        starts = whole.cumsum(0) - whole  # of each step in the bucket
        steps = torch.arange(len(sizes)).repeat_interleave(real)  # [N]
        rows = torch.arange(len(steps)) - (real.cumsum(0) - real)[steps]
        batch = torch.arange(sizes[0])
        lengths = (real[:, None] > batch).sum(0)  # [B]
        places = torch.cat([starts[steps] + rows, starts[lengths - 1] + batch])
        tokens, last = on_device(places, device).split([len(steps), sizes[0]])
        return cls(tokens, last)


# Graphs -------------------------------------------------------------------------------------------


def capture_on_cuda(work: Work) -> tuple[Any, Callable[[], None]]:
    """Capture some work as a CUDA graph, after a first run that compiles and loads its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as that which pins memory, may use CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = work()
    return results, graph.replay


class Graph:
    """The loop of one bucket, captured forward and backward, and its memory.

    Args:
        loop: of a class in ``loops.LOOPS``, or the same with Triton.
        padded: the sizes of the bucket.
        sums, w_h, b_h, state: tensors with the dtypes and widths of those that will be given.
        capture: ``capture_on_cuda``.
    """

    def __init__(
        self,
        loop: Any,
        padded: tuple[int, ...],
        sums: Tensor,
        w_h: Tensor,
        b_h: Tensor | None,
        state: Sequence[Tensor],
        capture: Capture,
    ) -> None:
        rows = sum(padded)
        self.sums = sums.new_zeros(rows, sums.shape[1])
        self.w_h, self.b_h = torch.zeros_like(w_h), None if b_h is None else torch.zeros_like(b_h)
        self.state = [part.new_zeros(part.shape) for part in state]
        given = (self.w_h, self.b_h, self.state, padded)
        forward = capture(lambda: loop.forward(self.sums, *given))
        (self.outputs, self.last, self.kept), self.forward = forward
        self.of_outputs = torch.zeros_like(self.outputs)
        self.of_last = [torch.zeros_like(part) for part in self.last]
        gradients, own = (self.of_outputs, *self.of_last), (self.w_h, self.state)
        backward = capture(lambda: loop.backward(self.kept, self.outputs, *own, gradients, padded))
        self.gradients, self.backward = backward
        self.owner: Callable[[], Run | None] = lambda: None
        self.used = 0

    def is_free(self) -> bool:
        """Whether no run needs the memory: the last one has its gradients, or is gone."""
        owner = self.owner()
        return owner is None or owner.done


class Run:
    """One forward and backward by a graph, with the functions of a loop of ``loops.py``."""

    def __init__(self, graph: Graph, loop: Any, kind: type[Cell], padded: tuple[int, ...]) -> None:
        self.graph, self.loop, self.kind, self.padded = graph, loop, kind, padded
        self.done = False
        graph.owner = weakref.ref(self)

    def forward(
        self, sums: Tensor, w_h: Tensor, b_h: Tensor | None, state: Any, sizes: tuple[int, ...]
    ) -> Any:
        graph, self.b_h = self.graph, b_h
        self.places = Places.of(sizes, self.padded, sums.device)
        for gate, carry in zip(graph.sums.chunk(len(CARRY[self.kind]), dim=1), CARRY[self.kind]):
            gate.fill_(carry)
        graph.sums.index_copy_(0, self.places.tokens, sums)
        graph.w_h.copy_(w_h)
        if b_h is not None and graph.b_h is not None:
            graph.b_h.copy_(b_h)
        for own, given in zip(graph.state, state):
            own.copy_(given)
        graph.forward()
        last = [part.clone() for part in graph.last]
        if self.kind.state_names[0] not in CARRIED[self.kind]:
            last[0] = graph.outputs.index_select(0, self.places.last)
        return graph.outputs.index_select(0, self.places.tokens), last, [sums]

    def backward(
        self, kept: Any, outputs: Tensor, w_h: Tensor, state: Any, gradients: Any, sizes: Any
    ) -> Gradients:
        graph, places = self.graph, self.places
        if graph.owner() is not self:  # another run has the memory: compute the gates again
            again = self.loop.forward(kept[0].clone(), w_h, self.b_h, state, sizes)
            return self.loop.backward(again[2], outputs, w_h, state, gradients, sizes)
        graph.of_outputs.zero_().index_copy_(0, places.tokens, gradients[0])
        for name, own, given in zip(self.kind.state_names, graph.of_last, gradients[1:]):
            if name in CARRIED[self.kind]:
                own.copy_(given)
            else:
                graph.of_outputs.index_add_(0, places.last, given)
        graph.backward()
        self.done = True
        of_input, of_hidden, of_state = graph.gradients
        of_x = of_input.index_select(0, places.tokens)
        of_h = of_x if of_hidden is of_input else of_hidden.index_select(0, places.tokens)
        return Gradients(of_x, of_h, [part.clone() for part in of_state])


class Graphs:
    """The graphs of a process, by what they depend on; a bounded number of them.

    Args:
        capture: ``capture_on_cuda``; tests replace it by a function that runs on the CPU.
        room: as ``ROOM``.
    """

    def __init__(self, capture: Capture = capture_on_cuda, room: int = ROOM) -> None:
        self.capture, self.room = capture, room
        self.graphs: dict[Any, list[Graph]] = {}
        self.failed: set[Any] = set()
        self.runs = 0
        self._lock = threading.Lock()

    def loop(
        self, loop: Any, kind: type[Cell], given: Sequence[Any], sizes: tuple[int, ...]
    ) -> Any:
        """A ``Run`` of a graph; the loop itself if none is free and none can be captured.

        Args:
            loop: of a class in ``loops.LOOPS``, or the same with Triton.
            kind: the class of the cell.
            given: sums, w_h, b_h and the state, as for the loop's ``forward``.
            sizes: number of rows of each step.
        """
        padded = bucket(sizes)
        if sum(padded) > MOST_PADDING * sum(sizes):
            return loop
        with self._lock:
            graph = self._graph(loop, given, padded)
            return loop if graph is None else Run(graph, loop, kind, padded)

    def _graph(self, loop: Any, given: Sequence[Any], padded: tuple[int, ...]) -> Graph | None:
        """A graph whose memory is free, captured if necessary; None if that is not possible."""
        self.runs += 1
        sums, w_h, b_h, state = given
        key = (loop, padded, w_h.shape, *_settings(sums), *(part.dtype for part in state))
        free = [graph for graph in self.graphs.get(key, []) if graph.is_free()]
        if not free and key not in self.failed and self._has_room(sum(padded) * sums.shape[1]):
            try:
                free = [Graph(loop, padded, sums, w_h, b_h, state, self.capture)]
            except RuntimeError as error:
                log.warning("no CUDA graph of the recurrence, which runs without: %s", error)
                self.failed.add(key)
                return None
            self.graphs.setdefault(key, []).append(free[0])
        if not free:
            return None
        free[0].used = self.runs
        return free[0]

    def _has_room(self, gates: int) -> bool:
        """Whether there is room for a graph, after removing those that are no longer used."""

        def total() -> int:
            return sum(graph.sums.numel() for graphs in self.graphs.values() for graph in graphs)

        if total() + gates > self.room:
            for key, graphs in [*self.graphs.items()]:
                used = [graph for graph in graphs if self.runs - graph.used < UNUSED]
                self.graphs[key] = used
        return total() + gates <= self.room


def _settings(sums: Tensor) -> tuple[Any, ...]:
    """What a captured kernel depends on besides its sizes."""
    on_cuda = sums.device.type == "cuda"
    stream = torch.cuda.current_stream(sums.device).cuda_stream if on_cuda else 0
    return sums.device, sums.dtype, stream, multiplies_in_tf32()


GRAPHS = Graphs()
"""The graphs of this process."""
